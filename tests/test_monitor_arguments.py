"""A model that is called by name, or with a batch that is a mapping, is seen as one that is called by place."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.charts.examples import kept
from diagnostics.monitor import arguments
from diagnostics.run import Run


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, x: Tensor, mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        return self.layers(x if mask is None else x * mask)


class OfBatch(Classifier):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["image"])


class OfAnything(Classifier):
    def forward(self, **batch: Tensor) -> Tensor:
        return super().forward(batch["image"])


CALLS: dict[str, tuple[type[Classifier], Callable[[nn.Module, Tensor, Tensor], Tensor]]] = {
    "by name": (Classifier, lambda model, x, y: model(labels=y, x=x)),
    "some by name": (Classifier, lambda model, x, y: model(x, labels=y)),
    "a mapping": (OfBatch, lambda model, x, y: model({"label": y, "image": x})),
    "any names": (OfAnything, lambda model, x, y: model(label=y, image=x)),
}


def train(path: Path, model: nn.Module, call: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> Run:
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with diagnostics.watch(model, optimizer, path, every=1, curvature_every=0, budget=100.0, examples=2) as monitor:
        for _ in range(60):
            x = torch.randn(32, 6, generator=generator)
            y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
            optimizer.zero_grad()
            loss = F.cross_entropy(call(model, x, y), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y: F.cross_entropy(call(model, x, y), y))
    return diagnostics.load(path)


def of(kind: type[Classifier]) -> Classifier:
    torch.manual_seed(0)
    return kind()


@pytest.fixture(scope="module")
def by_place(tmp_path_factory: Any) -> Run:
    return train(tmp_path_factory.mktemp("runs"), of(Classifier), lambda model, x, y: model(x))


@pytest.mark.parametrize("case", CALLS)
def test_what_is_known_of_inputs_and_targets_is_the_same(tmp_path, by_place, case):
    kind, call = CALLS[case]
    run = train(tmp_path, of(kind), call)
    of_batch, of_all_before = ["loss", "equal_examples", "input_sum"], ["constant_loss", "linear_loss"]
    tables = [each.table("scalars")[["step", *of_batch, *of_all_before]].dropna() for each in (run, by_place)]
    steps = sorted(set(tables[0]["step"]) & set(tables[1]["step"]))  # a busy machine leaves some out
    seen, expected = (each.set_index("step").loc[steps] for each in tables)
    assert len(steps) > 10 and np.allclose(seen[of_batch], expected[of_batch], rtol=1e-5)
    assert np.allclose(seen[of_all_before].mean(), expected[of_all_before].mean(), rtol=0.05)
    first, other = (each.table("examples", last=int(kept(each)[0])) for each in (run, by_place))
    assert list(first["role"]) == ["input", "input", "target", "target", "answer", "answer"]
    assert first.equals(other)


def test_inputs_by_name_come_as_the_forward_lists_them():
    x, mask, y = torch.zeros(2, 6), torch.ones(2, 6), torch.zeros(2)
    assert arguments.in_order(Classifier(), (), {"labels": y, "mask": mask, "x": x}) == [x, mask, y]
    assert arguments.in_order(Classifier(), (x,), {"labels": y, "mask": mask}) == [x, mask, y]
    assert arguments.in_order(nn.DataParallel(Classifier()), (), {"mask": mask, "x": x}) == [x, mask]


def test_keys_of_a_batch_may_be_anything():
    x, y = torch.zeros(3), torch.ones(2)
    assert list(arguments.tensors_in({0: {"Labels": y, None: x}, "target": y})) == [x, y, y]


def test_training_by_name_is_bitwise_unchanged(tmp_path):
    model = of(Classifier)
    twin = copy.deepcopy(model)
    train(tmp_path, model, CALLS["by name"][1])
    optimizer, generator = torch.optim.SGD(twin.parameters(), 0.1), torch.Generator().manual_seed(1)
    for _ in range(60):
        x = torch.randn(32, 6, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(twin(x=x), (x[:, 0] > 0).long() + (x[:, 1] > 0).long()).backward()
        optimizer.step()
    assert all(map(torch.equal, model.parameters(), twin.parameters()))
