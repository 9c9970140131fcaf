"""Slices of the loss against closed forms: a quadratic is its own Taylor approximation, others are known exactly."""

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diagnostics
from diagnostics.curvature import measure, slices
from diagnostics.metrics import TABLES

MATRIX = np.diag([4.0, 1.0, 0.25]) + 0.1
LINEAR = np.array([1.0, -2.0, 0.5])
START = np.array([0.3, -0.7, 1.1])


class Point(nn.Module):
    """Parameters that are a point of the plane on which the loss is defined."""

    def __init__(self, start: Any, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start, dtype=dtype))


def quadratic(point: Point) -> Callable[[], Tensor]:
    a, b = torch.tensor(MATRIX), torch.tensor(LINEAR)
    return lambda: point.theta @ a @ point.theta / 2 + b @ point.theta + 3.0


def rows_of(point: Point, closure: Callable[[], Any], change: Any = None) -> dict[str, dict[str, Any]]:
    optimizer = torch.optim.SGD(point.parameters(), lr=0.1)
    estimate = measure(closure, point, optimizer, [0.1], eigenvalues=1, tolerance=1e-8)
    moved = None if change is None else [torch.tensor(change, dtype=point.theta.dtype)]
    return {row["direction"]: row for row in slices(closure, point, estimate, moved)}


def test_a_quadratic_is_its_own_taylor_approximation():
    point = Point(START)
    before = point.theta.detach().clone()
    rows = rows_of(point, quadratic(point))
    gradient = MATRIX @ START + LINEAR
    values, vectors = np.linalg.eigh(MATRIX)
    value_here = START @ MATRIX @ START / 2 + LINEAR @ START + 3
    exact = {
        "top eigenvector": (abs(gradient @ vectors[:, -1]), values[-1]),
        "gradient": (np.linalg.norm(gradient), gradient @ MATRIX @ gradient / (gradient @ gradient)),
    }
    assert rows.keys() == exact.keys()
    for direction, (slope, curvature) in exact.items():
        row, t = rows[direction], np.array(rows[direction]["offsets"])
        assert abs(row["slope"]) == pytest.approx(slope, rel=1e-6)
        assert row["curvature"] == pytest.approx(curvature, rel=1e-6)
        taylor = value_here + row["slope"] * t + curvature * t**2 / 2
        np.testing.assert_allclose(row["losses"], taylor, rtol=1e-9)
        # The whole valley is seen: from here over its floor to where the loss is the same again.
        assert t[0] < min(0, -2 * row["slope"] / curvature) and t[-1] > max(0, -2 * row["slope"] / curvature)
    assert torch.equal(point.theta, before)


@pytest.mark.parametrize(("times", "higher"), [(0.5, False), (1.5, False), (2.5, True)])
def test_a_step_beyond_two_over_the_curvature_lands_higher_than_it_started(times: float, higher: bool):
    """Gradient descent on c theta^2 / 2 multiplies theta by 1 - times, the loss by its square."""
    curvature, start = 4.0, 1.0
    end = (1 - times) * start
    point = Point([end, 0.0])
    row = rows_of(point, lambda: curvature * point.theta.square().sum() / 2, change=[end - start, 0.0])["gradient"]
    losses = dict(zip(row["offsets"], row["losses"], strict=True))
    assert losses[-row["moved"]] == pytest.approx(curvature / 2 * start**2)
    assert losses[0.0] == pytest.approx(curvature / 2 * end**2)
    assert (losses[0.0] > losses[-row["moved"]]) is higher


def test_a_loss_that_is_no_quadratic_departs_from_its_parabola():
    """(1 + t)^4 has slope 4 and curvature 12 at t = 0, up to the direction's sign."""
    point = Point([1.0, 0.0])
    row = rows_of(point, lambda: (point.theta**4).sum())["gradient"]
    assert (row["slope"], row["curvature"]) == (pytest.approx(4.0), pytest.approx(12.0))
    np.testing.assert_allclose(row["losses"], (1 + np.array(row["offsets"])) ** 4, rtol=1e-12)


def test_values_that_are_not_finite_are_kept():
    """-log(theta): half of the stretch lies beyond the pole."""
    point = Point([0.1, 0.0])
    row = rows_of(point, lambda: -point.theta[0].log(), change=[-1.0, 0.0])["gradient"]
    losses, inside = np.array(row["losses"]), 0.1 + np.array(row["offsets"]) * np.sign(row["slope"]) * -1 > 0
    assert inside.any() and not inside.all()
    np.testing.assert_array_equal(np.isfinite(losses), inside)


def test_a_valley_far_wider_than_the_update_does_not_hide_it():
    point = Point([1.0, 0.0])
    row = rows_of(point, lambda: point.theta.square().sum() / 2, change=[-1e-3, 0.0])["gradient"]
    assert row["offsets"][-1] - row["offsets"][0] < 50 * 1e-3


def test_no_gradient_no_line_along_it():
    point = Point([0.0, 0.0])
    rows = rows_of(point, lambda: 1 + point.theta.square().sum())
    assert list(rows) == ["top eigenvector"]


def test_a_closure_that_draws_another_batch_each_time_is_not_drawn():
    point, calls = Point([1.0, 0.0]), count()
    assert not rows_of(point, lambda: point.theta.square().sum() * (1 + 0.1 * next(calls)))


def test_weights_in_half_precision_are_not_drawn():
    point = Point([1.0, 2.0], torch.bfloat16)
    assert not rows_of(point, lambda: point.theta.float().square().sum())


def test_a_watched_run_holds_them(tmp_path: Any):
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(32, 3), torch.randn(32, 1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", curvature_every=3, budget=1e9) as monitor:
        for _ in range(7):
            before = [p.detach().clone() for p in model.parameters()]
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            change = torch.cat([(p.detach() - b).flatten() for p, b in zip(model.parameters(), before, strict=True)])
            monitor.step(loss, lambda: nn.functional.mse_loss(model(x), y))
            if monitor._plan.step - 1 == 6:
                gradient = torch.cat(
                    [
                        g.flatten()
                        for g in torch.autograd.grad(nn.functional.mse_loss(model(x), y), [*model.parameters()])
                    ]
                )
                expected = float(change @ gradient / gradient.norm())
    table = diagnostics.load(tmp_path / "run").table("slices")
    assert tuple(table) == TABLES["slices"].names
    assert table["step"].tolist() == [1, 1, 3, 3, 6, 6]
    row = table[(table["step"] == 6) & (table["direction"] == "gradient")].iloc[0]
    assert row["moved"] == pytest.approx(expected, rel=1e-4)
    offsets = np.array(row["offsets"])
    here = row["losses"][row["offsets"].index(0.0)]
    taylor = here + row["slope"] * offsets + row["curvature"] * offsets**2 / 2  # least squares is a quadratic
    np.testing.assert_allclose(row["losses"], taylor, rtol=1e-4)
