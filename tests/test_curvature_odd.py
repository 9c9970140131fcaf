"""Models, losses and optimizers that are odd but possible, against what is known of them otherwise."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim

from diagnostics.curvature import measure
from diagnostics.curvature.steepest import FLAT, ROUNDINGS


class Own(optim.SGD):
    """Measured, not in the table: a subclass with a step of its own."""

    def step(self, closure=None):
        return super().step(closure)


class OwnAdamW(optim.AdamW):
    def step(self, closure=None):
        return super().step(closure)


def weights(*values: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def trained(optimizer: optim.Optimizer, loss, updates: int = 10) -> None:
    for _ in range(updates):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def test_a_loss_that_is_not_defined_nearby_keeps_its_estimate():
    """A stopped gradient asks for a test by differences, whose long steps leave the logarithm's domain."""
    w = weights(1e-3, 2.0, 3.0)

    def loss(stopped: Tensor) -> Tensor:
        return (w * w).sum() - 1e-3 * torch.log(w).sum() + 0.1 * (stopped * w).sum()

    exact = torch.diagonal(torch.autograd.functional.hessian(lambda v: (v * v).sum() - 1e-3 * v.log().sum(), w))
    found = measure(lambda: loss(w.detach()), nn.ParameterList([w]), optim.SGD([w], 1e-3), [1e-3])
    assert found.stability == pytest.approx(float(exact.max()) * 1e-3 / 2, rel=1e-6)
    assert found.method == "double backward"


class Root(torch.autograd.Function):
    """A function without a second derivative, so that differences are all there is."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sqrt()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient / (2 * ctx.saved_tensors[0].sqrt())


def test_differences_take_the_steps_that_stay_where_the_loss_is_defined():
    w = weights(1e-3, 1.0)
    found = measure(lambda: -Root.apply(w).sum(), nn.ParameterList([w]), optim.SGD([w], 1e-3), [1e-3])
    assert found.method == "differences"
    assert found.eigenvalues[0] == pytest.approx(0.25 * 1e-3**-1.5, rel=0.02)


@pytest.mark.parametrize("kind", [optim.Adafactor, OwnAdamW])
def test_rows_that_never_had_a_gradient_cost_no_measured_gain(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(12, 4), nn.Linear(4, 3))
    tokens, classes = torch.randint(0, 8, (40,)), torch.randint(0, 3, (40,))

    def loss() -> Tensor:
        return F.cross_entropy(model(tokens), classes)

    optimizer = kind(model.parameters(), lr=1e-2)
    trained(optimizer, loss)
    found = measure(loss, model, optimizer, [1e-2])
    assert found.stability > 0 and any("never had a gradient" in note for note in found.notes)
    if kind is OwnAdamW:
        table = optim.AdamW(model.parameters(), lr=1e-2)
        table.load_state_dict(optimizer.state_dict())
        assert found.stability == pytest.approx(measure(loss, model, table, [1e-2]).stability, rel=0.02)


@pytest.mark.parametrize(
    ("own", "table", "options"),
    [
        (OwnAdamW, optim.AdamW, {}),
        (Own, optim.SGD, {"momentum": 0.9}),
        (Own, optim.SGD, {"momentum": 0.9, "nesterov": True}),
    ],
)
def test_a_measured_optimizer_is_one_for_all_its_tensors(own, table, options):
    """A bias of one number has one gain whatever the optimizer; that is no other group."""
    x, y = 0.3 * torch.randn(50, 4, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    rate, found = 1e-6 if options else 1e-2, []
    for kind in (own, table):
        torch.manual_seed(2)
        model = nn.Linear(4, 1).double()
        optimizer = kind(model.parameters(), rate, **options)

        def loss(model=model) -> Tensor:
            return 1e4 * (model(x) - y).square().mean()

        trained(optimizer, loss, 30)
        found.append(measure(loss, model, optimizer, [rate]))
    mine, known = found
    assert mine.stability == pytest.approx(known.stability, rel=0.03)
    assert mine.limit == pytest.approx(known.limit, rel=1e-3) and mine.gain_dc == pytest.approx(known.gain_dc, rel=1e-3)
    assert mine.products <= known.products and len(mine.notes) == len(known.notes) + 1
    assert mine.oscillation_limit != mine.oscillation_limit  # not measured


def test_a_measured_gain_is_of_the_rate_of_the_update_just_made():
    """A scheduler has set another one since."""
    for kind in (optim.SGD, Own):
        w = weights(1.0, 1.0)
        optimizer = kind([w], 0.01)
        (2 * (w * w).sum()).backward()
        found = measure(lambda w=w: 2 * (w * w).sum(), nn.ParameterList([w]), optimizer, [0.1])
        assert (found.stability, found.limit, found.gain_dc) == pytest.approx((0.2, 20.0, 1.0))


def test_the_machines_own_random_numbers_have_no_state():
    generator, w = random.SystemRandom(), weights(1.0, 1.0)

    def loss() -> Tensor:
        return (w * w).sum() * (1 if generator else 2)

    assert measure(loss, nn.ParameterList([w]), optim.SGD([w], 0.1), [0.1]).stability == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")
def test_a_parameter_that_is_listed_twice_is_one():
    torch.manual_seed(0)
    x, y, model = torch.randn(30, 3), torch.randn(30, 1), nn.Linear(3, 1, bias=False)

    def loss() -> Tensor:
        return (model(x) - y).square().mean()

    found = measure(loss, model, optim.SGD([model.weight] * 2, 0.05), [0.05], eigenvalues=3)
    exact = torch.linalg.eigvalsh(2 * x.T @ x / 30).flip(0)
    assert found.eigenvalues == pytest.approx(exact.tolist(), rel=1e-3)
    assert found.stability != found.stability and any("twice" in note for note in found.notes)


def test_an_unused_parameter_changes_nothing_that_is_said_of_the_others():
    estimates = []
    for unused in (False, True):
        torch.manual_seed(0)
        model, x = nn.Linear(4, 1).double(), torch.randn(50, 4).double()
        if unused:
            model.register_parameter("unused", nn.Parameter(torch.ones(3).double()))

        def loss(model=model, x=x) -> Tensor:
            return model(x).square().mean()

        optimizer = optim.NAdam(model.parameters(), 1e-2)
        trained(optimizer, loss)
        estimates.append(measure(loss, model, optimizer, [1e-2]))
    plain, beside = estimates
    for name in ("stability", "limit", "gain_dc", "oscillation_limit"):
        assert getattr(beside, name) == pytest.approx(getattr(plain, name), rel=1e-3)


def test_an_optimizer_that_has_seen_no_gradient_yet_moves_nothing():
    w = weights(1.0, 1.0)
    assert measure(lambda: (w * w).sum(), nn.ParameterList([w]), optim.Adam([w], 0.1), [0.1]).stability == 0


def test_maximizing_is_minimizing_the_negative():
    w = weights(1.0, 1.0, 1.0)
    optimizer = optim.ASGD([w], 0.01, maximize=True)
    found = measure(lambda: -2 * (w * w).sum(), nn.ParameterList([w]), optimizer, [0.01])
    assert found.stability == pytest.approx(0.02, rel=1e-3)
    curved, moved = torch.tensor([100.0, 1.0]).double(), [torch.tensor([1e-3, 1.0]).double()]
    conditions = []
    for sign in (1, -1):
        w = weights(1.0, 1.0)
        optimizer = optim.SGD([w], 1e-3, maximize=sign < 0)
        found = measure(
            lambda w=w, sign=sign: sign * 0.5 * (curved * w * w).sum(),
            nn.ParameterList([w]),
            optimizer,
            [1e-3],
            displacement=moved,
        )
        conditions.append(found.condition)
    assert conditions[0] == pytest.approx(99.99, rel=1e-3) and conditions[1] != conditions[1]  # not told


@pytest.mark.parametrize("change", ["type", "size"])
def test_the_same_parameter_of_another_type_or_size_begins_anew(change):
    w = nn.Parameter(torch.ones(4))
    model, optimizer = nn.ParameterList([w]), optim.SGD([w], 0.1)
    last = measure(lambda: (w * w).sum(), model, optimizer, [0.1]).lasting()
    if change == "type":
        model.double()
    else:
        w.data = torch.ones(6)
    found = measure(lambda: (w * w).sum(), model, optimizer, [0.1], previous=last)
    assert found.start == "cold" and found.stability == pytest.approx(0.1)


def test_directions_that_the_optimizer_hardly_moves_are_no_rounding():
    """P over seven decades, a Hessian that is steep in P's own units: exact in float64."""
    assert max(FLAT, ROUNDINGS * torch.finfo(torch.float64).eps) == FLAT
    for seed in range(4):
        torch.manual_seed(seed)
        scales = torch.logspace(-3.5, 3.5, 16)[torch.randperm(16)]
        basis = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
        inner = (basis * torch.logspace(0, 2, 16, dtype=torch.float64)) @ basis.T
        matrix = (scales.double()[:, None] ** 0.5 * inner * scales.double() ** 0.5).float()
        w = nn.Parameter(1e-3 * torch.randn(16))
        optimizer = optim.RMSprop([w], 1e-4, eps=0.0)
        optimizer.state[w] = {"step": torch.tensor(1.0), "square_avg": scales**2}
        found = measure(lambda w=w, m=matrix: 0.5 * w @ (m @ w), nn.ParameterList([w]), optimizer, [1e-4])
        exact = torch.linalg.eigvalsh(matrix.double() / (scales.double()[:, None] * scales.double()) ** 0.5)
        assert found.preconditioned == pytest.approx(float(exact.max()), rel=2e-3 + found.preconditioned_residual)


def test_hooks_of_a_loss_that_learns_see_no_product():
    class Criterion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.temperature).square().mean()

    calls = []
    model, criterion, x = nn.Linear(3, 2), Criterion(), torch.randn(4, 3)
    criterion.temperature.register_hook(lambda gradient: calls.append(1))
    optimizer = optim.SGD([*model.parameters(), *criterion.parameters()], 0.1)
    measure(lambda: criterion(model(x)), model, optimizer, [0.1])
    assert not calls
    criterion(model(x)).backward()
    assert calls == [1]
