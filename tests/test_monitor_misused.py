"""Closures and losses that are not what they should be: training stays bitwise the same, and the run says so."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics

STEPS = 8


class Remembering(nn.Module):
    """Keeps what the last batch left, in place and outside of its buffers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cell, self.out, self.state = nn.Linear(8, 4), nn.Linear(4, 3), torch.zeros(4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.cell(torch.cat([x, self.state.expand(len(x), 4)], 1)))
        self.state.copy_(h.detach().mean(0))
        return self.out(h)


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(16, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def train(
    model: nn.Module, path: Path | None, closure_of: Callable[..., Any] | None = None, loss_of: Any = None
) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a script that makes errors of warnings must survive ours
        monitor = path and diagnostics.watch(model, optimizer, path, every=1, budget=1e9)
        for step in range(STEPS):
            x, y = batch(step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            if monitor:
                closure = closure_of and (lambda x=x, y=y: closure_of(model, optimizer, x, y))
                monitor.step(loss_of(loss) if loss_of else loss, closure)
        if monitor:
            monitor.close()
    return [p.detach() for p in model.parameters()]


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def stepping(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
    with torch.enable_grad():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward(retain_graph=True)
        optimizer.step()
    return loss


def drawing(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
    drawn.append(batch(100 + len(drawn)))
    return F.cross_entropy(model(drawn[-1][0]), drawn[-1][1])


drawn: list[Any] = []


@pytest.mark.parametrize(
    ("make", "closure", "kind", "says"),
    [
        (small, stepping, "measurement-off", "the closure calls SGD.step"),
        (small, drawing, "closure-differs", "two losses for the same weights"),
    ],
    ids=["makes updates", "draws batches"],
)
def test_closures_with_side_effects(make: Any, closure: Any, kind: str, says: str, tmp_path: Path) -> None:
    drawn.clear()
    model = make()
    alone = train(copy.deepcopy(model), None)
    watched = train(model, tmp_path / "run", closure)
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))
    run = diagnostics.load(tmp_path / "run")
    events = run.table("events")
    assert any(says in message for message in events[events["kind"] == kind]["message"])
    assert list(run.table("scalars")["step"]) == list(range(1, STEPS + 1))
    assert len(run.table("curvature")) == 0
    assert len(drawn) <= 2


def test_a_state_outside_the_buffers_is_noticed(tmp_path: Path) -> None:
    model = Remembering()
    train(model, tmp_path / "run", lambda model, optimizer, x, y: F.cross_entropy(model(x), y))
    run = diagnostics.load(tmp_path / "run")
    assert list(run.table("events")["kind"]) == ["closure-differs"] and run.meta["closure"] is False
    assert len(run.table("units")) > 0 and len(run.table("curvature")) == 0


def test_dropout_and_batch_norm_do_repeat(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    train(model, tmp_path / "run", lambda model, optimizer, x, y: F.cross_entropy(model(x), y))
    run = diagnostics.load(tmp_path / "run")
    assert "closure-differs" not in set(run.table("events")["kind"]) and len(run.table("curvature")) > 0


@pytest.mark.parametrize(
    "loss_of",
    [lambda loss: loss.detach().to("meta"), lambda loss: None, lambda loss: {"loss": loss}],
    ids=["without data", "None", "dictionary"],
)
def test_losses_that_cannot_be_read(loss_of: Any, tmp_path: Path) -> None:
    train(small(), tmp_path / "run", lambda model, optimizer, x, y: F.cross_entropy(model(x), y), loss_of)
    run = diagnostics.load(tmp_path / "run")
    assert list(run.table("events")["kind"]).count("loss-unreadable") == 1
    assert "non-finite" not in set(run.table("events")["kind"])  # missing is not bad
    assert run.table("scalars")["loss"].isna().all() and run.table("scalars")["grad_norm"].notna().all()
    assert not diagnostics.diagnose(run).alarms


def test_a_step_that_is_never_told(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    norms = []
    with pytest.warns(RuntimeWarning, match="not called"), diagnostics.watch(model, optimizer, tmp_path / "run"):
        for step in range(6):
            x, y = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            norms.append(torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()])).item())
            optimizer.step()
    run = diagnostics.load(tmp_path / "run")
    assert list(run.table("scalars")["grad_norm"]) == pytest.approx(norms, rel=1e-5)
    assert list(run.table("events")["kind"]) == ["step-missing"]
    assert not diagnostics.diagnose(run).alarms
