"""What `measure` does with bad input, between estimates, and with little memory; brackets on further batches."""

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diagnostics.curvature import CurvatureError, TooDear, combine, follow, measure
from diagnostics.curvature.batches import Quotients
from diagnostics.curvature.estimate import Estimate
from diagnostics.curvature.scaling import UNKNOWN
from diagnostics.metrics import TABLES


def problem(seed: int = 0, width: int = 24) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(10, width), nn.Tanh(), nn.Linear(width, 4))
    return model, torch.randn(64, 10), torch.randint(0, 4, (64,))


def sgd(model: nn.Module, lr: float = 0.1, **options) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def test_the_record_has_every_column_of_the_table():
    model, x, y = problem()
    record = measure(lambda: F.cross_entropy(model(x), y), model, sgd(model), [0.1]).record()
    assert set(record) == set(TABLES["curvature"].names) - {"step"}
    for metric in TABLES["curvature"].columns:
        if metric.dtype == "string":
            assert isinstance(record[metric.name], str)
        elif metric.dtype == "list":
            assert all(isinstance(value, float) for value in record[metric.name])
        elif metric.name != "step":
            assert isinstance(record[metric.name], float | int)


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        (lambda loss: loss.item(), "returned float"),
        (lambda loss: torch.stack([loss, loss]), r"shape \(2,\)"),
        (lambda loss: loss * math.nan, "loss is nan"),
        (lambda loss: loss / 0, "loss is inf"),
        (lambda loss: None, "returned NoneType"),
        (lambda loss: 1 / 0, "raised ZeroDivisionError"),
    ],
)
def test_a_bad_closure_is_named_and_nothing_is_changed(returns, says):
    model, x, y = problem()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(CurvatureError, match=says):
        measure(lambda: returns(F.cross_entropy(model(x), y)), model, sgd(model), [0.1])
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_a_product_that_overflows_is_an_error():
    w = nn.Parameter(torch.zeros(3))
    model = nn.ParameterList([w])
    with pytest.raises(CurvatureError, match="not finite"):  # the second derivative at 0 is infinite
        measure(lambda: w.pow(1.5).sum(), model, sgd(model), [0.1])


def test_no_trainable_parameter():
    model = nn.Linear(2, 2)
    optimizer = sgd(model)
    model.requires_grad_(False)
    with pytest.raises(CurvatureError, match="no trainable parameters"):
        measure(lambda: model(torch.ones(1, 2)).sum(), model, optimizer, [0.1])


def test_a_single_parameter_has_its_second_derivative():
    model = nn.Linear(1, 1, bias=False)
    estimate = measure(lambda: 3 * model.weight.square().sum(), model, sgd(model), [0.1])
    assert estimate.eigenvalues == pytest.approx([6.0]) and estimate.stability == pytest.approx(0.3)
    assert float(estimate.vectors.abs()) == pytest.approx(1.0)


def test_a_loss_without_the_parameters_has_only_zero_eigenvalues_and_says_so():
    model, *_ = problem()
    estimate = measure(lambda: torch.tensor(1.0), model, sgd(model), [0.1])
    assert estimate.eigenvalues == [0.0] * 5 and estimate.smallest == estimate.stability == 0
    assert any("does not depend" in note for note in estimate.notes)


def test_a_piecewise_linear_loss_is_flat():
    model, *_ = problem()
    estimate = measure(lambda: sum(p.sum() for p in model.parameters()), model, sgd(model), [0.1])
    assert estimate.eigenvalues == [0.0] * 5
    assert estimate.notes == ()


def test_a_closure_that_draws_another_batch_each_time_is_noticed():
    model, x, y = problem()
    batches = iter(range(100))

    def closure() -> Tensor:
        start = 16 * (next(batches) % 4)
        return F.cross_entropy(model(x[start : start + 16]), y[start : start + 16])

    estimate = measure(closure, model, sgd(model), [0.1])
    assert estimate.loss_spread > 1e-3
    assert any("another loss at each call" in note for note in estimate.notes)


def test_only_what_the_ratio_needs():
    model, x, y = problem()

    def closure() -> Tensor:
        return F.cross_entropy(model(x), y)

    full = measure(closure, model, sgd(model), [0.1], tolerance=1e-3)
    quick = measure(closure, model, sgd(model), [0.1], full=False)
    assert quick.products < full.products / 2
    assert quick.stability == pytest.approx(full.stability, rel=1e-2)
    assert len(quick.eigenvalues) == 1 and math.isnan(quick.smallest) and math.isnan(quick.condition)


@pytest.mark.parametrize("answer", [True, False, None])
def test_what_a_product_takes_decides_what_is_measured(answer):
    model, x, y = problem()
    asked = []

    def closure() -> Tensor:
        return F.cross_entropy(model(x), y)

    def affordable(seconds: float) -> bool | None:
        asked.append(seconds)
        return answer

    if answer is None:
        with pytest.raises(TooDear):
            measure(closure, model, sgd(model), [0.1], full=affordable)
    else:
        found = measure(closure, model, sgd(model), [0.1], full=affordable)
        alike = measure(closure, model, sgd(model), [0.1], full=answer)
        assert [*found.eigenvalues, found.smallest] == pytest.approx([*alike.eigenvalues, alike.smallest], nan_ok=True)
    assert len(asked) == 1 and 0 < asked[0] < 1


def test_a_quick_estimate_ends_in_time_and_says_how_exact_it_is():
    model, x, y = problem()

    def closure() -> Tensor:
        return F.cross_entropy(model(x), y)

    exact = measure(closure, model, sgd(model), [0.1], tolerance=1e-4)
    hurried = measure(closure, model, sgd(model), [0.1], full=False, seconds=0.0)
    assert hurried.products <= 2 < exact.products
    assert abs(hurried.preconditioned - exact.preconditioned) > 0.01 * exact.preconditioned
    assert hurried.preconditioned_residual > 0.1 * hurried.preconditioned


def test_warm_estimates_follow_the_truth_cheaply_and_turn_cold_in_time():
    model, x, y = problem(width=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    previous, starts, products = None, [], []
    for step in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step % 5 == 4:

            def closure() -> Tensor:
                return F.cross_entropy(model(x), y)

            previous = measure(closure, model, optimizer, [3e-3], previous=previous, full=False)
            exact = measure(closure, model, optimizer, [3e-3], full=False, cold=True, tolerance=1e-4)
            assert previous.stability == pytest.approx(exact.stability, rel=2e-2)
            starts.append(previous.start)
            products.append(previous.products)
    assert starts[0] == "cold" and starts[1:9] == ["warm"] * 8 and "cold" in starts[9:]
    assert np.mean(products[1:9]) <= 6


def test_a_new_top_direction_is_found_from_a_warm_start():
    """The old top eigenvector has no part in the new one: only the random component of the start can find it."""
    curvature = torch.linspace(0, 1, 300, dtype=torch.float64)
    theta = nn.Parameter(torch.ones(300, dtype=torch.float64))
    model = nn.ParameterList([theta])

    def closure() -> Tensor:
        return 0.5 * (curvature * theta**2).sum()

    curvature[0] = 10
    first = measure(closure, model, sgd(model), [0.1])
    curvature[0], curvature[7] = 0.5, 20
    second = measure(closure, model, sgd(model), [0.1], previous=first)
    assert second.start == "warm" and second.eigenvalues[0] == pytest.approx(20, rel=1e-3)
    third = measure(closure, model, sgd(model), [0.1], previous=second)
    assert third.start == "cold"  # the two disagreed


@pytest.mark.parametrize("last", [4.5, 5.5])
def test_warm_starts_end_where_one_of_the_listed_directions_is_new(last: float):
    """The top stays; only the fifth is another one, or it is not."""
    theta = nn.Parameter(torch.ones(300, dtype=torch.float64))
    curvature = torch.linspace(0, 1, 300, dtype=torch.float64)
    curvature[:5], curvature[7] = torch.tensor([9.0, 8, 7, 6, 5]), 2

    def estimate(previous: Estimate | None) -> Estimate:
        return measure(
            lambda: 0.5 * (curvature * theta**2).sum(), nn.ParameterList([theta]), optimizer, [0.1], previous=previous
        )

    optimizer = torch.optim.SGD([theta], lr=0.1)
    first = estimate(None)
    curvature[7] = last
    second = estimate(first)
    assert second.start == "warm" and second.eigenvalues[4] == pytest.approx(max(5, last), rel=1e-2)
    third = estimate(second)
    assert third.start == ("cold" if last > 5 else "warm")
    if third.start == "cold":  # found again, so the next may start from it
        assert estimate(third).start == "warm"


def test_other_parameters_than_before_are_measured_cold():
    model, x, y = problem()
    first = measure(lambda: F.cross_entropy(model(x), y), model, sgd(model), [0.1])
    other, x, y = problem(width=10)
    assert measure(lambda: F.cross_entropy(other(x), y), other, sgd(other), [0.1], previous=first).start == "cold"


@pytest.mark.parametrize("quick_first", [False, True])
def test_copies_of_symmetric_initialization_are_found(quick_first):
    """By the first estimate of the whole spectrum, whether or not one of the steepest direction came before it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Tanh(), nn.Linear(4, 1, bias=False)).double()
    for p in model.parameters():
        nn.init.constant_(p, 0.3)
    x, y = torch.randn(30, 6).double(), torch.randn(30, 1).double()

    def closure() -> Tensor:
        return F.mse_loss(model(x), y)

    quick = measure(closure, model, sgd(model), [0.1], full=False) if quick_first else None
    estimate = measure(closure, model, sgd(model), [0.1], eigenvalues=7, tolerance=1e-4, previous=quick)
    sizes = [p.numel() for p in model.parameters()]

    def of(flat: Tensor) -> Tensor:
        parts = {n: v.view(p.shape) for (n, p), v in zip(model.named_parameters(), flat.split(sizes), strict=True)}
        return F.mse_loss(torch.func.functional_call(model, parts, (x,)), y)

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    true = torch.linalg.eigvalsh(torch.autograd.functional.hessian(of, flat)).flip(0)[:7]
    assert float((true[1:] / true[:-1] - 1).abs().min()) < 1e-6  # there are copies
    assert estimate.eigenvalues == pytest.approx(true.tolist(), rel=1e-2)
    assert estimate.copies


def test_a_small_memory_cap_gives_the_same_by_restarts():
    model, x, y = problem()

    def closure() -> Tensor:
        return F.cross_entropy(model(x), y)

    free = measure(closure, model, sgd(model), [0.1], tolerance=1e-3)
    tight = measure(closure, model, sgd(model), [0.1], tolerance=1e-3, memory_bytes=1)
    assert tight.eigenvalues == pytest.approx(free.eigenvalues, rel=5e-3)
    assert tight.smallest == pytest.approx(free.smallest, rel=2e-2)
    assert math.isnan(tight.trace)  # the quadrature needs the whole chain


def test_an_optimizer_without_a_stability_ratio_still_gets_its_spectrum():
    model, x, y = problem()
    optimizer = torch.optim.LBFGS(model.parameters())
    estimate = measure(lambda: F.cross_entropy(model(x), y), model, optimizer, [1.0])
    assert math.isnan(estimate.stability) and math.isnan(estimate.limit) and estimate.scaling is UNKNOWN
    assert estimate.preconditioned == estimate.eigenvalues[0] > 0
    assert any("no stability ratio" in note for note in estimate.notes)


def test_maximizing_sees_the_curvature_from_below():
    theta = nn.Parameter(torch.ones(3, dtype=torch.float64))
    model = nn.ParameterList([theta])
    curvature = torch.tensor([5.0, 1.0, -40.0], dtype=torch.float64)
    optimizer = sgd(model, maximize=True)
    estimate = measure(lambda: 0.5 * (curvature * theta**2).sum(), model, optimizer, [0.1])
    assert estimate.eigenvalues[0] == pytest.approx(5) and estimate.stability == pytest.approx(2)


def test_weight_decay_is_in_the_ratio_and_not_in_the_eigenvalues():
    theta = nn.Parameter(torch.ones(2, dtype=torch.float64))
    model = nn.ParameterList([theta])
    curvature = torch.tensor([5.0, 1.0], dtype=torch.float64)
    optimizer = sgd(model, weight_decay=3.0)
    estimate = measure(lambda: 0.5 * (curvature * theta**2).sum(), model, optimizer, [0.1])
    assert estimate.preconditioned == pytest.approx(5) and estimate.stability == pytest.approx(0.1 * 8 / 2)
    assert estimate.limit == pytest.approx(20 - 3)


def batch_of(curvature: Tensor, theta: Tensor):
    return lambda: 0.5 * (curvature * theta**2).sum()


def test_brackets_and_the_two_terms_on_batches_that_follow():
    """Batches with independent random curvature along each axis: every number has a closed form."""
    generator = torch.Generator().manual_seed(0)
    theta = nn.Parameter(torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64))
    model, mean = nn.ParameterList([theta]), torch.tensor([8.0, 1.0, -0.5], dtype=torch.float64)
    optimizer = sgd(model, 0.05, momentum=0.9)
    estimate = measure(batch_of(mean, theta), model, optimizer, [0.05])
    curvatures = mean + torch.randn(100, 3, generator=generator, dtype=torch.float64)
    row = combine([follow(batch_of(c, theta), model, estimate) for c in curvatures], estimate)
    assert row["largest"] == pytest.approx(float(curvatures[:, 0].mean()))
    assert row["largest_error"] == pytest.approx(float(curvatures[:, 0].std()) / 10)
    assert row["smallest"] == pytest.approx(float(curvatures[:, 2].mean()))
    assert row["curvature_term"] == pytest.approx(0.05 * row["largest"] / (2 * 1.9))
    spread = float(curvatures[:, 0].var())
    assert row["noise_term"] == pytest.approx(0.05 * 10 * spread / (2 * row["largest"]), rel=1e-6)
    assert 0 < row["noise_term_error"] < 0.4 * row["noise_term"]
    gradient = mean * theta.detach()
    assert row["gradient_square"] == pytest.approx(float(gradient.square().sum()), abs=4 * row["gradient_square_error"])
    assert row["gradient_noise"] > row["gradient_square"]
    assert set(row) == set(TABLES["batches"].names) - {"step", "origin"}


def test_what_is_left_along_flat_directions_of_least_squares():
    """Uncentred inputs make one steep direction; half the sum of lambda_i (w_i - w*_i)^2 over the others is left."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4000, 12, generator=generator, dtype=torch.float64) + 30
    truth = torch.randn(12, 1, generator=generator, dtype=torch.float64)
    y = (x - 30) @ truth + torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(12, 1, bias=False).double()
    nn.init.zeros_(model.weight)
    optimizer = sgd(model, 1e-6)

    def batch(rows):
        return lambda: (model(x[rows]) - y[rows]).square().mean()

    estimate = measure(batch(slice(0, 4000)), model, optimizer, [1e-6])
    row = combine([follow(batch(slice(i, i + 100)), model, estimate) for i in range(0, 4000, 100)], estimate)
    values, vectors = torch.linalg.eigh(2 * x.T @ x / 4000)
    best = torch.linalg.lstsq(x, y).solution
    along = vectors.T @ best
    left = 0.5 * float((values * along.square().squeeze())[:-1].sum())
    assert values[-1] > 100 * values[-2]
    # directions beyond the five listed are given the curvature of the second: less is promised than is there
    assert 0.8 * left < row["flat_gain"] < left + 3 * row["flat_gain_error"]
    assert row["flat_gain_error"] < 0.2 * left
    assert values[0] < row["flat_curvature"] < values[-2] * 1.01


def test_the_stated_errors_of_a_few_batches_are_honest():
    generator = torch.Generator().manual_seed(1)
    theta = nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    model, mean = nn.ParameterList([theta]), torch.tensor([8.0, -0.5], dtype=torch.float64)
    estimate = measure(batch_of(mean, theta), model, sgd(model), [0.1])
    rows = []
    for _ in range(60):
        draws = mean + torch.randn(6, 2, generator=generator, dtype=torch.float64)
        rows.append(combine([follow(batch_of(c, theta), model, estimate) for c in draws], estimate))
    for name, truth in (("largest", 8.0), ("smallest", -0.5), ("gradient_square", 64 + 1.0)):
        z = [(row[name] - truth) / row[f"{name}_error"] for row in rows]
        assert np.mean(np.abs(z) < 3) > 0.9
        assert abs(np.mean([row[name] for row in rows]) - truth) < 4 * np.std([row[name] for row in rows]) / 7.7
    assert np.mean([row["noise_term"] for row in rows]) == pytest.approx(0.1 / 16, rel=0.2)


def test_one_batch_alone_has_no_error():
    model, x, y = problem()
    estimate = measure(lambda: F.cross_entropy(model(x), y), model, sgd(model), [0.1])
    row = combine([follow(lambda: F.cross_entropy(model(x), y), model, estimate)], estimate)
    assert row["largest"] == pytest.approx(estimate.eigenvalues[0], rel=1e-3)
    assert math.isnan(row["largest_error"]) and math.isnan(row["noise_term"])


def test_an_estimate_of_the_ratio_alone_cannot_be_followed():
    model, x, y = problem()
    estimate = measure(lambda: F.cross_entropy(model(x), y), model, sgd(model), [0.1], full=False)
    with pytest.raises(CurvatureError, match="full estimate"):
        follow(lambda: F.cross_entropy(model(x), y), model, estimate)


def test_results_are_values():
    assert dataclasses.is_dataclass(Quotients)
    with pytest.raises(dataclasses.FrozenInstanceError):
        UNKNOWN.gain = 1.0  # type: ignore[misc]


def test_weights_in_half_precision_are_measured_and_said_to_be():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 4)).bfloat16()
    x, y = torch.randn(64, 10).bfloat16(), torch.randint(0, 4, (64,))
    low = measure(lambda: F.cross_entropy(model(x).float(), y), model, sgd(model), [0.1])
    model.float()
    high = measure(lambda: F.cross_entropy(model(x.float()), y), model, sgd(model), [0.1])
    assert low.method == "double backward" and any("half precision" in note for note in low.notes)
    assert low.eigenvalues[0] == pytest.approx(high.eigenvalues[0], rel=0.03)


@pytest.mark.parametrize("kind", ["Muon", "Rprop"])
def test_optimizers_that_are_no_linear_filter_have_no_ratio(kind: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 16, bias=False), nn.Tanh(), nn.Linear(16, 4, bias=False))
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=1e-2)
    x, y = torch.randn(64, 10), torch.randint(0, 4, (64,))
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    estimate = measure(lambda: F.cross_entropy(model(x), y), model, optimizer, [1e-2])
    assert math.isnan(estimate.stability) and estimate.eigenvalues[0] > 0
