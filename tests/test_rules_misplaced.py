"""Maps that are mirrored or turned against their pictures, and those that lie right or were meant to be turned."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.rules import _misplaced, _signals
from diagnostics.run import Run

SIDE, BATCH = 16, 12
Place = Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]


def discs(n: int, generator: torch.Generator) -> Tensor:
    at = torch.arange(SIDE).float()
    middles = 3 + (SIDE - 6) * torch.rand(n, 2, generator=generator)
    radius = 2 + 2 * torch.rand(n, 1, 1, generator=generator)
    down, across = (at - middles[:, side, None] for side in (0, 1))
    return ((down[:, :, None] ** 2 + across[:, None, :] ** 2) < radius**2)[:, None].float()


def mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each left to right, or not."""
    flips = torch.rand(len(x), generator=generator) < 0.5
    return torch.where(flips[:, None, None, None], x.flip(-1), x)


def each_by_itself(x: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return mirrored(x, generator), mirrored(t, generator)


def both_at_once(x: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    both = mirrored(torch.cat([x, t], 1), generator)
    return both[:, :1], both[:, 1:]


def exchanged(x: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, t.mT


def of_others(x: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, t.roll(1, 0)


def turned_by_the_task(x: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return x, t.flip(-1)


def local() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1)
    )  # fmt: skip


def with_a_view_of_all() -> nn.Module:
    size = SIDE * SIDE
    layers = nn.Conv2d(1, 1, 3, padding=1), nn.Flatten(), nn.Linear(size, size), nn.Unflatten(1, (1, SIDE, SIDE))
    return nn.Sequential(*layers)


def train(path: Path, place: Place, model: Callable[[], nn.Module] = local, examples: int = 384, kept: int = 0) -> Run:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    masks = discs(examples, generator)
    pictures = masks + 0.5 * torch.randn(masks.shape, generator=generator)
    net = model()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    measured = {"every": 1, "curvature_every": 0, "budget": 100.0, "examples": kept}
    with diagnostics.watch(net, optimizer, path, **measured) as monitor:
        for _ in range(160):
            chosen = torch.randint(examples, (BATCH,), generator=generator)
            x, t = place(pictures[chosen], masks[chosen], generator)
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(net(x), t)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, t=t: F.binary_cross_entropy_with_logits(net(x), t))
    return diagnostics.load(path)


def misplaced(run: Run) -> list[diagnostics.Finding]:
    return [each for each in diagnostics.diagnose(run).findings if each.cause == "misplaced"]


def test_masks_that_are_mirrored_by_themselves_are_told(tmp_path):
    (finding,) = misplaced(train(tmp_path, each_by_itself))
    assert finding.alarm and "they fit mirrored left to right as often as they do as they lie" in finding.summary
    assert "once for both" in finding.remedies[0]


@pytest.mark.exhaustive
def test_masks_with_rows_and_columns_exchanged_are_told(tmp_path):
    (finding,) = misplaced(train(tmp_path, exchanged, kept=4))
    assert finding.alarm and "they fit with rows and columns exchanged, and less as they lie" in finding.summary
    assert [each.mark for each in finding.charts] == ["line", "examples"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("place", [both_at_once, of_others])
def test_masks_that_lie_right_or_nowhere_are_not(tmp_path, place):
    assert not misplaced(train(tmp_path, place))


@pytest.mark.exhaustive
def test_a_turn_that_is_learned_is_none(tmp_path):
    """As where a picture is to be drawn the right way round."""
    run = train(tmp_path, turned_by_the_task, with_a_view_of_all)
    assert run.matrix("placements", "as_given")[2][:, 0].mean() < 0 and not misplaced(run)


@pytest.mark.exhaustive
def test_a_few_pictures_that_come_again_are_few(tmp_path):
    run = train(tmp_path, each_by_itself, examples=BATCH)
    assert run.table("placements")["step"].nunique() < 8 and not misplaced(run)


def test_training_is_bitwise_unchanged(tmp_path):
    """With dropout, whose numbers are drawn, and a batch norm, which counts its batches."""

    def trained(path: Path | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(1)
        net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        monitor = diagnostics.watch(net, optimizer, path, every=1, budget=100.0) if path else None
        for _ in range(12):
            t = discs(BATCH, generator)
            optimizer.zero_grad()
            loss = F.mse_loss(net(t + 0.5), t)
            loss.backward()
            optimizer.step()
            if monitor is not None:
                monitor.step(loss, closure=lambda t=t: F.mse_loss(net(t + 0.5), t))
        if monitor is not None:
            monitor.close()
        return net.state_dict()

    watched, alone = trained(tmp_path), trained(None)
    assert diagnostics.load(tmp_path).table("placements")["step"].nunique() > 4
    assert all(torch.equal(watched[name], alone[name]) for name in alone)


@pytest.mark.exhaustive
def test_a_run_that_learned_is_not_told(tmp_path, monkeypatch):
    """As one that draws turned digits upright: each target lies in another way by the task."""
    run = train(tmp_path, exchanged)
    assert len(list(_misplaced.misplaced(run))) == 1
    monkeypatch.setattr(_signals, "has_learned", lambda run: True)
    assert not list(_misplaced.misplaced(run))
