"""Masks of 0 and 255 in losses of an overlap, in all the ways that these are written, beside products of probabilities
with numbers that are meant."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics

ANY = 100.0


def dice(p: Tensor, t: Tensor) -> Tensor:
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


def of_each_image(p: Tensor, t: Tensor) -> Tensor:
    p, t = p.reshape(len(p), -1), t.reshape(len(t), -1)
    return (1 - 2 * (p * t).sum(1) / (p.sum(1) + t.sum(1) + 1e-6)).mean()


def jaccard(p: Tensor, t: Tensor) -> Tensor:
    both = torch.sum(t * p)
    return 1 - (both + 1) / (p.sum() + t.sum() - both + 1)


def negative(p: Tensor, t: Tensor) -> Tensor:
    return -2 * (p * t).sum() / (p.sum() + t.sum())


def beside_entropy(p: Tensor, t: Tensor) -> Tensor:
    return dice(p, t) + 0.1 * F.binary_cross_entropy(p, (t > 0).float())


def gain(p: Tensor, t: Tensor) -> Tensor:
    """What each choice is worth, and how probable it is."""
    return -(p * t).sum() / t.sum()


def gain_of_all(p: Tensor, t: Tensor) -> Tensor:
    return -(p * t).mean()


def run_of(loss_of, height: float, folder, closure: bool = True) -> diagnostics.Run:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1, 8, 8, generator=draw)
    t = height * (F.avg_pool2d(x, 3, 1, 1) > 0.2).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1), nn.Sigmoid())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with diagnostics.watch(model, optimizer, folder, budget=ANY, curvature_every=1000) as monitor:
        for step in range(60):
            each = slice(16 * (step % 4), 16 * (step % 4) + 16)
            optimizer.zero_grad()
            loss = loss_of(model(x[each]), t[each])
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=(lambda each=each: loss_of(model(x[each]), t[each])) if closure else None)
    return diagnostics.load(folder)


def told(run: diagnostics.Run) -> bool:
    return any(each.cause == "targets-outside" for each in diagnostics.diagnose(run).findings)


MORE = pytest.mark.exhaustive
WRITTEN = [dice, *(pytest.param(each, marks=MORE) for each in (of_each_image, jaccard, beside_entropy))]


@pytest.mark.every_case
@pytest.mark.parametrize("height", [1.0, 255.0])
@pytest.mark.parametrize("loss_of", WRITTEN)
def test_masks_of_255_are_told(loss_of, height, tmp_path):
    assert told(run_of(loss_of, height, tmp_path / "run")) == (height > 1)


@pytest.mark.parametrize(("loss_of", "height"), [(negative, 1.0), (gain, 10.0), (gain_of_all, 10.0)])
def test_a_loss_below_zero_that_is_meant(loss_of, height, tmp_path):
    run = run_of(loss_of, height, tmp_path / "run")
    assert run.table("scalars")["loss"].iloc[-1] < 0
    assert not told(run)


def test_without_a_closure_nothing_is_known_of_masks(tmp_path):
    assert run_of(dice, 255.0, tmp_path / "run", closure=False).meta["mask_height"] == 0
