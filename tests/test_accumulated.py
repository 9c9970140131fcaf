"""Gradients of several backward passes: whether the optimizer got their mean or their sum, and what follows of it.

The truth is the loop itself, the Hessian 2 X'X / n of least squares, and the loss that grows or falls.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import diagnostics

PASSES, ROWS, ANY = 4, 40, 100.0


class Line(nn.Module):
    """Least squares; the mask draws anew at every forward."""

    def __init__(self, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.out, self.mask = nn.Linear(6, outputs, bias=False).double(), nn.Dropout(dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mask(self.out(x))


def batches(step: int, outputs: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(PASSES, ROWS, 6, generator=generator, dtype=torch.float64)
    return list(zip(x, torch.randn(PASSES, ROWS, outputs, generator=generator, dtype=torch.float64), strict=True))


def train(
    folder: Path,
    divide: bool,
    of: str,
    outputs: int = 3,
    dropout: float = 0.0,
    clip: float | None = None,
    steps: int = 6,
    rate: float = 0.01,
    make: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
) -> diagnostics.Run:
    """`of`: what the closure computes the loss of."""
    model = Line(outputs, dropout)
    optimizer = make(model.parameters(), lr=rate)
    share = PASSES if divide else 1
    with diagnostics.watch(model, optimizer, folder, every=2, curvature_every=1, budget=ANY) as monitor:
        for step in range(steps):
            given = batches(step, outputs)
            optimizer.zero_grad()
            for x, y in given:
                loss = nn.functional.mse_loss(model(x), y) * outputs
                (loss / share).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()

            def closure(given: Any = given) -> torch.Tensor:
                seen = given if of in ("all", "sum") else given[-1:]
                total = torch.stack([nn.functional.mse_loss(model(x), y) * outputs for x, y in seen]).sum()
                return total / PASSES if of in ("all", "part") else total

            monitor.step(loss, closure)
    return diagnostics.load(folder)


def ratio(step: int, of: str, rate: float, times: float, outputs: int) -> float:
    """s of gradient descent on the mean squared error, summed over the outputs."""
    given = batches(step - 1, outputs)
    x = given[-1][0] if of in ("last", "part") else torch.cat([x for x, _ in given])
    return rate * times * float(torch.linalg.eigvalsh(2 * x.T @ x / len(x))[-1]) / 2


@pytest.mark.parametrize("outputs", [1, pytest.param(3, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    ("divide", "of", "times"),
    [(True, "last", 1), (False, "last", PASSES), (True, "all", 1), (False, "all", PASSES)],
)
def test_the_ratio_is_that_of_what_the_optimizer_was_given(
    divide: bool, of: str, times: int, outputs: int, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", divide, of, outputs)
    found = run.meta["accumulated"]
    assert found == {"passes": PASSES, "times": times, "batches": PASSES if of == "last" else 1}
    told = [message for message in run.table("events")["message"] if "added up" in message]
    assert len(told) == (times > 1)
    table = run.table("curvature")
    truth = [ratio(step, of, 0.01, times, outputs) for step in table["step"]]
    np.testing.assert_allclose(table["stability"], truth, rtol=1e-2)


@pytest.mark.parametrize(("divide", "of"), [(False, "sum"), (True, "part")])
def test_a_closure_that_adds_up_or_divides_as_the_loop_does(divide: bool, of: str, tmp_path: Path) -> None:
    """Its curvature is so many times larger or smaller, and the ratio is the same."""
    run = train(tmp_path / "run", divide, of)
    assert run.meta["accumulated"]["times"] == (1 if of == "sum" else PASSES)
    truth = [ratio(step, of, 0.01, PASSES if of == "sum" else 1, 3) for step in run.table("curvature")["step"]]
    np.testing.assert_allclose(run.table("curvature")["stability"], truth, rtol=1e-2)


@pytest.mark.exhaustive
@pytest.mark.parametrize("make", [torch.optim.Adam, torch.optim.RMSprop])
def test_optimizers_that_divide_by_the_gradient_see_no_difference(make: Any, tmp_path: Path) -> None:
    summed = train(tmp_path / "sum", False, "last", make=make, rate=1e-4)
    mean = train(tmp_path / "mean", True, "last", make=make, rate=1e-4)
    assert (summed.meta["accumulated"]["times"], mean.meta["accumulated"]["times"]) == (PASSES, 1)
    np.testing.assert_allclose(summed.table("curvature")["stability"], mean.table("curvature")["stability"], rtol=1e-2)


def test_masks_that_are_drawn_anew_are_drawn_again(tmp_path: Path) -> None:
    assert train(tmp_path / "last", False, "last", dropout=0.3).meta["accumulated"]["times"] == PASSES
    assert train(tmp_path / "all", False, "all", dropout=0.3).meta["accumulated"] == {}  # another mask for each


def test_gradients_are_compared_before_they_are_clipped(tmp_path: Path) -> None:
    assert train(tmp_path / "run", False, "all", clip=1e-3).meta["accumulated"]["times"] == PASSES


def test_gradients_that_are_zeroed_in_between_are_not_added_up(tmp_path: Path) -> None:
    """Two passes, of which the optimizer gets the second, at nearly the same weights, as under SAM."""
    model = Line(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=2, budget=ANY) as monitor:
        for step in range(6):
            x, y = batches(step, 3)[0]
            for _ in range(2):
                optimizer.zero_grad(set_to_none=False)
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
            optimizer.step()
            monitor.step(loss, lambda x=x, y=y: nn.functional.mse_loss(model(x), y))
    assert diagnostics.load(tmp_path / "run").meta["accumulated"] == {}


@pytest.mark.exhaustive
@pytest.mark.parametrize("of_limit", [0.98, 1.02])
def test_it_is_the_limit_of_the_loop(of_limit: float, tmp_path: Path) -> None:
    """The same batch in every pass, added up: the weights leave the minimum where s > 1."""
    x = torch.randn(ROWS, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rate = of_limit * 2 / (PASSES * float(torch.linalg.eigvalsh(2 * x.T @ x / ROWS)[-1]))
    model = Line(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    with diagnostics.watch(model, optimizer, tmp_path / "run", curvature_every=50, budget=ANY) as monitor:
        for _ in range(200):
            optimizer.zero_grad()
            for _ in range(PASSES):
                loss = model(x).square().mean()
                loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
            monitor.step(loss, lambda: model(x).square().mean())
    np.testing.assert_allclose(diagnostics.load(tmp_path / "run").table("curvature")["stability"], of_limit, rtol=1e-3)
    assert (losses[-1] > losses[-20]) == (of_limit > 1)


def test_the_noise_of_an_update_is_that_of_the_mean_of_its_batches(tmp_path: Path) -> None:
    """At a rate that moves nothing, against the same batches one an update."""

    def recorded(name: str, passes: int) -> Any:
        model = Line(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-30)
        with diagnostics.watch(model, optimizer, tmp_path / name, every=2, curvature_every=10, budget=ANY) as monitor:
            for step in range(12):
                given = batches(step, 1)[-passes:]
                optimizer.zero_grad()
                for x, y in given:
                    loss = nn.functional.mse_loss(model(x), y) / passes
                    loss.backward()
                optimizer.step()
                monitor.step(loss * passes, lambda x=x, y=y: nn.functional.mse_loss(model(x), y))
        return diagnostics.load(tmp_path / name).table("batches").iloc[0]

    one, mean = recorded("one", 1), recorded("mean", PASSES)
    np.testing.assert_allclose(mean["noise_term"], one["noise_term"] / PASSES, rtol=1e-6)
    np.testing.assert_allclose(mean["gradient_square"], one["gradient_square"], rtol=1e-6)
    noise = one["gradient_noise"] - one["gradient_square"]
    np.testing.assert_allclose(mean["gradient_noise"], one["gradient_square"] + noise / PASSES, rtol=1e-6)


def test_training_is_bitwise_the_same(tmp_path: Path) -> None:
    def final(watched: bool) -> torch.Tensor:
        model = Line(3, dropout=0.3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        monitor = diagnostics.watch(model, optimizer, tmp_path / "run", every=1, curvature_every=2) if watched else None
        for step in range(12):
            optimizer.zero_grad()
            for x, y in batches(step, 3):
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
            optimizer.step()
            if monitor:
                monitor.step(loss, lambda x=x, y=y: nn.functional.mse_loss(model(x), y))
        if monitor:
            monitor.close()
        return model.out.weight.detach()

    assert torch.equal(final(watched=False), final(watched=True))
    assert diagnostics.load(tmp_path / "run").meta["accumulated"]["times"] == PASSES


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize(
    ("told", "closure", "cut_short"),
    [("whole", "part", True), ("whole", "last", True), ("last", "last", True), ("part", "part", False)],
)
def test_zeroed_before_every_backward(tmp_path: Path, told: str, closure: str, cut_short: bool, to_none: bool) -> None:
    """`told`: the loss that the loop gives; where it is one batch's share, as the gradient is, nothing is wrong."""
    torch.manual_seed(0)
    model = Line(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path, every=1, budget=ANY) as monitor:
        for _ in range(6):
            losses = []
            for x, y in batches(0, 3):
                optimizer.zero_grad(set_to_none=to_none)
                losses.append(nn.functional.mse_loss(model(x), y))
                (losses[-1] / PASSES).backward()
            optimizer.step()

            def last(x: Any = x, y: Any = y) -> torch.Tensor:
                return nn.functional.mse_loss(model(x), y) / (PASSES if closure == "part" else 1)

            whole = torch.stack(losses).detach().mean()
            monitor.step({"whole": whole, "last": losses[-1], "part": losses[-1] / PASSES}[told], last)
    found = diagnostics.diagnose(diagnostics.load(tmp_path)).alarms
    assert ("accumulation-cut-short" in {each.cause for each in found}) == cut_short


def an_update(model: nn.Module, optimizer: torch.optim.Optimizer, given: list, kind: str) -> torch.Tensor:
    """From the last of these batches alone, or from all; where it is the last, the others may be meant all the same."""
    kept = []
    for x, y in given:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        kept.append([p.grad.clone() for p in model.parameters()])
        if kind == "moved":  # as inner steps do, which are taken back
            with torch.no_grad():
                model.out.weight.mul_(1.0)
    if kind == "by hand":  # as where gradients of tasks are projected on each other, or clipped one by one
        for p, *gradients in zip(model.parameters(), *kept, strict=True):
            p.grad = torch.stack(gradients).mean(0)
    optimizer.step()
    return loss


@pytest.mark.parametrize(
    ("kind", "count", "told"),
    [
        ("an epoch", 8, True),
        ("an epoch", 4, False),  # may be of other tasks, whose gradients are looked at
        ("the same", 8, False),
        ("by hand", 8, False),
        ("moved", 8, False),
    ],
)
@pytest.mark.parametrize("short", [0, 15])
def test_one_update_for_many_batches(tmp_path: Path, kind: str, count: int, told: bool, short: int) -> None:
    """As where `optimizer.step()` stands behind the loop over them: the last one, which may be shorter, is left."""
    model = Line(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path, every=1, budget=ANY) as monitor:
        for step in range(8):
            given = [*batches(step, 3), *batches(100 + step, 3)][:count]
            given = given[:1] * count if kind == "the same" else given
            x, y = (each[short:] for each in given[-1])
            loss = an_update(model, optimizer, [*given[:-1], (x, y)], kind)
            monitor.step(loss, lambda x=x, y=y: nn.functional.mse_loss(model(x), y))
    found = {each.cause for each in diagnostics.diagnose(diagnostics.load(tmp_path)).alarms}
    assert ("accumulation-cut-short" in found) == told


def test_an_attack_before_every_update_is_no_accumulation(tmp_path: Path) -> None:
    """Inputs are moved up the loss first; what that leaves in the weights' gradients is thrown away."""
    model = Line(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path, every=1, budget=ANY) as monitor:
        for step in range(6):
            x, y = batches(step, 3)[0]
            for _ in range(PASSES - 1):
                x = x.detach().requires_grad_()
                nn.functional.mse_loss(model(x), y).backward()
                assert x.grad is not None
                x = (x + 0.01 * x.grad.sign()).detach()
                optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, lambda x=x, y=y: nn.functional.mse_loss(model(x), y))
    run = diagnostics.load(tmp_path)
    assert not run.meta["accumulated"]
    assert set(run.table("scalars")["micro_batches"]) == {float(PASSES)}


def test_passes_of_a_critic_are_no_accumulation(tmp_path: Path) -> None:
    """Several updates of a critic for one of what it judges, which is not detached: its gradients are thrown away."""
    torch.manual_seed(0)
    maker, critic = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), nn.Linear(2, 1)
    optimizer = torch.optim.RMSprop(maker.parameters(), 1e-3)
    other = torch.optim.RMSprop(critic.parameters(), 1e-3)
    with diagnostics.watch(maker, optimizer, tmp_path, every=1, budget=ANY) as monitor:
        for _ in range(8):
            for _ in range(9):
                other.zero_grad()
                (critic(maker(torch.randn(16, 4))).mean() - critic(torch.randn(16, 2) + 1).mean()).backward()
                other.step()
            z = torch.randn(16, 4)
            optimizer.zero_grad()
            loss = -critic(maker(z)).mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss, lambda z=z: -critic(maker(z)).mean())
    run = diagnostics.load(tmp_path)
    assert set(run.table("scalars")["micro_batches"]) == {10.0}
    assert not [each for each in diagnostics.diagnose(run).alarms if each.kind == "wiring"]
