"""The overshoot ratio where gradients or weights are written to around a step, against losses and slopes taken here."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.monitor import pairs

WRITES: dict[str, Callable[[nn.Sequential], object]] = {
    "nothing": lambda m: None,
    "by norm": lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1),
    "by value": lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.02),
    "tensor by tensor": lambda m: [nn.utils.clip_grad_norm_([p], 0.05) for p in m.parameters()],
    "rows zeroed": lambda m: m[0].weight.grad[:6].zero_(),
    "noise": lambda m: [p.grad.add_(0.05 * torch.randn_like(p)) for p in m.parameters()],
}


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def overshoots(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    write: Callable = lambda m: None,
    then: Callable[[int], object] = lambda step: None,
    steps: int = 6,
) -> tuple[np.ndarray, np.ndarray]:
    """Recorded, and from losses and the gradient of the loss at the weights that the optimizer left."""
    true = []
    with diagnostics.watch(model, optimizer, path, every=1, budget=1e9) as monitor:
        for step in range(steps):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(16, 4, generator=generator, dtype=torch.float64)
            y = torch.randint(0, 3, (16,), generator=generator)

            def closure(x=x, y=y):
                return F.cross_entropy(model(x), y)

            model.zero_grad()
            loss = closure()
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, materialize_grads=True)
            loss.backward()
            before = [p.detach().clone() for p in parameters]
            write(model)
            optimizer.step()
            moved = zip(gradients, parameters, before, strict=True)
            slope = sum(float((g * (p.detach() - b)).sum()) for g, p, b in moved)
            true.append(-(closure().item() - loss.item() - slope) / slope)
            then(step)
            monitor.step(loss, closure=closure)
    return diagnostics.load(path).table("scalars")["overshoot"].to_numpy(), np.array(true)


@pytest.mark.parametrize("kind", ["SGD", pytest.param("Adam", marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", WRITES)
def test_the_slope_is_that_of_the_loss_whatever_the_optimizer_got(tmp_path: Path, name: str, kind: str) -> None:
    model = small()
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.5 if kind == "SGD" else 1e-2)
    recorded, true = overshoots(tmp_path, model, optimizer, WRITES[name])
    assert recorded == pytest.approx(true, rel=1e-3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", WRITES)
def test_of_a_larger_model_it_is_told_only_where_the_optimizer_got_a_multiple(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "SAMPLE", 20)
    model = small()
    recorded, true = overshoots(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.5), WRITES[name])
    if name in ("nothing", "by norm"):
        assert recorded == pytest.approx(true, rel=1e-3)
    else:
        assert np.isnan(recorded).all()


def test_writes_that_begin_later_are_not_told_at_first(tmp_path: Path) -> None:
    model, calls = small(), []

    def write(m: nn.Sequential) -> None:
        calls.append(None)
        if len(calls) > 3:
            nn.utils.clip_grad_value_(m.parameters(), 0.02)

    recorded, true = overshoots(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.5), write)
    assert np.isnan(recorded[3]) and np.delete(recorded, 3) == pytest.approx(np.delete(true, 3), rel=1e-3)


@pytest.mark.parametrize("name", ["clamped", "clamped in place", "a second optimizer"])
def test_weights_that_something_else_moves_before_they_are_looked_at(tmp_path: Path, name: str) -> None:
    """From the third update on; the last one is left alone again."""
    model = small()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.5)
    second = torch.optim.SGD(model[2].parameters(), lr=0.5)

    @torch.no_grad()
    def clamp() -> None:
        for p in model.parameters():
            p.clamp_(-0.2, 0.2)

    move = {
        "clamped": lambda: [p.data.clamp_(-0.2, 0.2) for p in model.parameters()],
        "clamped in place": clamp,
        "a second optimizer": second.step,
    }[name]
    recorded, true = overshoots(tmp_path, model, optimizer, then=lambda step: 2 <= step < 5 and move())
    assert np.isnan(recorded[2:5]).all()
    assert recorded[[0, 1, 5]] == pytest.approx(true[[0, 1, 5]], rel=1e-3)


@pytest.mark.exhaustive
def test_a_closure_that_agreed_by_chance_is_found_out(tmp_path: Path) -> None:
    """Stochastic depth by Python's own generator: its first replay may have taken the same path."""

    class Depth(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.inner, self.last = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.tanh(self.first(x))
            return self.last(h + torch.tanh(self.inner(h)) if random.random() < 0.5 else h)

    for seed in range(2):
        random.seed(seed)
        model = Depth().double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        recorded, _ = overshoots(tmp_path / str(seed), model, optimizer, steps=33)
        assert np.isnan(recorded[-1])
