"""Few examples, drawn again and again: a sampler that was given one weight a class, and what is few by its nature."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, WeightedRandomSampler

import diagnostics
from diagnostics.run import Run

EXAMPLES, CLASSES, BATCH = 600, 4, 32


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(EXAMPLES, 6, generator=torch.Generator().manual_seed(0))
    return x, x[:, :CLASSES].argmax(1)


def train(path: Path, x: Tensor, y: Tensor, weights: Tensor, loss=F.cross_entropy) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 16), nn.ReLU(), nn.Linear(16, CLASSES if y.dim() == 1 else 1))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    sampler = WeightedRandomSampler(weights.tolist(), EXAMPLES, replacement=True)
    loader = DataLoader(TensorDataset(x, y), BATCH, sampler=sampler, drop_last=True)
    with diagnostics.watch(model, optimizer, path, every=2, curvature_every=0, budget=100.0) as monitor:
        for _ in range(3):
            for a, b in loader:
                optimizer.zero_grad()
                value = loss(model(a), b)
                value.backward()
                optimizer.step()
                monitor.step(value, closure=lambda a=a, b=b: loss(model(a), b))
    return diagnostics.load(path)


def found(run: Run) -> list[tuple[str, str]]:
    return [(each.cause, each.severity) for each in diagnostics.diagnose(run).findings if each.kind == "wiring"]


def test_a_weight_a_class_draws_the_first_examples(tmp_path):
    x, y = data()
    run = train(tmp_path, x, y, 1.0 / torch.bincount(y))
    assert found(run) == [("few-examples", "warning")]
    (finding,) = [each for each in diagnostics.diagnose(run).findings if each.cause == "few-examples"]
    assert finding.evidence == {"different examples": float(CLASSES), "examples of a batch": float(BATCH)}


def test_a_weight_an_example_draws_them_all(tmp_path):
    x, y = data()
    run = train(tmp_path, x, y, (1.0 / torch.bincount(y))[y])
    assert found(run) == []


@pytest.mark.parametrize("loss", [F.mse_loss, F.cross_entropy])
def test_few_by_nature(tmp_path, loss):
    """A table of truth is whole numbers; a few measured points may be all there are."""
    if loss is F.cross_entropy:
        x = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3)
        run = train(tmp_path, x, x.sum(1).long(), torch.ones(8), loss)
        assert found(run) == []
    else:
        x = torch.linspace(0, 1, 7)[:, None]
        run = train(tmp_path, x, x**2, torch.ones(7), loss)
        assert found(run) == [("few-examples", "info")]
