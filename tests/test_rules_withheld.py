"""A part of the loss whose gradient never reaches the optimizer, beside loops that leave gradients out on purpose."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.monitor import withheld
from diagnostics.run import Run

ANY = 100.0  # budget: every measurement that is due is made


class TwoTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(4, 16), nn.Tanh())
        self.first, self.second = nn.Linear(16, 1), nn.Linear(16, 1)
        self.spare = nn.Linear(16, 1)  # takes no part

    def losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.trunk(x)
        return F.mse_loss(self.first(z), x[:, :1] - x[:, 1:2]), F.mse_loss(self.second(z), x[:, 2:3] * x[:, 3:])


def backward(kind: str, step: int, model: TwoTasks, optimizer: torch.optim.Optimizer, x: Tensor) -> None:
    first, second = model.losses(x)
    optimizer.zero_grad()
    if kind == "zeroed between":
        first.backward(retain_graph=True)
        optimizer.zero_grad()
        second.backward()
    elif kind == "part forgotten":
        second.backward()
    elif kind == "tasks in turns":
        (first if step % 2 else second).backward()
    else:
        (first + second).backward()
    if kind == "head held for some updates" and step < 5:
        model.first.weight.grad = model.first.bias.grad = None
    if kind == "removed after the step":
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.exhaustive
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize(
    ("kind", "layers"),
    [
        ("zeroed between", ("first.weight", "first.bias")),
        ("part forgotten", ("first.weight", "first.bias")),
        ("sum", ()),
        ("tasks in turns", ()),
        ("head held for some updates", ()),
        ("removed after the step", ()),
    ],
)
def test_a_gradient_that_the_loop_withholds(kind, layers, optimizer, tmp_path: Path):
    torch.manual_seed(0)
    model = TwoTasks()
    steps = optimizer(model.parameters(), lr=0.01)
    with diagnostics.watch(model, steps, tmp_path, every=2, budget=ANY) as monitor:
        for step in range(60):
            x = torch.randn(32, 4)
            backward(kind, step, model, steps, x)
            if kind != "removed after the step":
                steps.step()
            loss = sum(model.losses(x))
            monitor.step(loss.detach(), lambda x=x: sum(model.losses(x)))
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "wiring"]
    assert [(each.cause, each.layers) for each in found] == ([("gradient-withheld", layers)] if layers else [])


class Places(nn.Module):
    """Finds the largest of eight numbers and its size; beside heads and a teacher that get no gradient on purpose."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.trunk = kind, nn.Sequential(nn.Linear(8, 16), nn.Tanh())
        self.where, self.size, self.spare = nn.Linear(16, 8), nn.Linear(16, 1), nn.Linear(16, 1)
        self.teacher = nn.Linear(8, 1)

    def loss(self, x: Tensor) -> Tensor:
        z = self.trunk(x)
        places, at = torch.arange(8.0), x.argmax(1).float()
        if self.kind.startswith("argmax"):
            found = self.where(z).argmax(1).float()
        elif self.kind == "rounded":
            found = (self.where(z).softmax(1) @ places).detach().round()
        else:
            found = self.where(z).softmax(1) @ places
        loss = F.mse_loss(found, at) / 8 + F.mse_loss(self.size(z), x.amax(1, keepdim=True))
        if self.kind.endswith("spare head"):
            self.spare(z)
        elif self.kind == "teacher":
            with torch.no_grad():
                target = self.teacher(x)
            loss = loss + 0.1 * F.mse_loss(self.size(z), target)
        return loss


@pytest.mark.exhaustive
@pytest.mark.every_case
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("argmax", {"detached": "where"}),
        ("rounded", {"detached": "where"}),  # its bias alone moves what is rounded by too little
        ("argmax and spare head", {"detached": "where", "unused": "spare"}),
        ("spare head", {"unused": "spare"}),
        ("soft", {}),
        ("teacher", {}),
    ],
)
def test_what_the_loss_depends_on_without_a_gradient(kind, told, tmp_path: Path):
    torch.manual_seed(0)
    model = Places(kind)
    steps = torch.optim.Adam(model.parameters(), lr=0.01)
    with diagnostics.watch(model, steps, tmp_path, every=2, budget=ANY) as monitor:
        for _ in range(60):
            x = torch.randn(32, 8)
            steps.zero_grad()
            loss = model.loss(x)
            loss.backward()
            steps.step()
            monitor.step(loss, lambda x=x: model.loss(x))
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "wiring"]
    assert {each.cause: each.layers for each in found} == {
        cause: (f"{module}.weight", f"{module}.bias") for cause, module in told.items()
    }


@pytest.mark.parametrize(("looks", "told"), [([1, 2, 60], True), ([1, 2, 3, 4], False)])
def test_what_few_looks_tell_of_it(looks, told):
    """A layer that is left out at random would have had its turn by then, and moved."""
    rows = [(step, name, norm) for step in looks for name, norm in (("first", 1.0), ("second", np.nan), ("last", 1.0))]
    layers = pd.DataFrame(rows, columns=["step", "layer", "grad_norm"]).assign(weight_norm=1.0)
    layers["grad_missing"] = layers["grad_norm"].isna().astype(float)
    described = [{"name": name, "shape": [4, 4], "parameters": 16} for name in ("first", "second", "last")]
    meta = {"name": "test", "status": "finished", "layers": described, "by_value": ["second"]}
    scalars = pd.DataFrame({"step": range(1, 61), "loss": 1.0, "grad_norm": 1.0})
    diagnosis = diagnostics.diagnose(Run.from_frames(meta, {"scalars": scalars, "layers": layers}))
    found = [each.layers for each in diagnosis.findings if each.cause == "detached"]
    assert not diagnosis.crashed and found == ([("second",)] if told else [])


def test_asking_leaves_weights_and_random_numbers_as_they_were():
    torch.manual_seed(0)
    model, x = Places("argmax"), torch.randn(16, 8)
    model.loss(x).backward()
    weights, gradients = [p.detach().clone() for p in model.parameters()], [p.grad for p in model.parameters()]
    state = torch.get_rng_state()
    told = withheld.names(model, lambda: model.loss(F.dropout(x, 0.1)))
    assert told["by_value"] == ["where.weight", "where.bias"] and told["withheld"] == []
    assert all(map(torch.equal, weights, model.parameters())) and torch.equal(state, torch.get_rng_state())
    assert all(a is p.grad for a, p in zip(gradients, model.parameters(), strict=True))
