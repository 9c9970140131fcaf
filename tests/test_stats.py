"""Statistics against closed forms and against numbers counted by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from diagnostics import stats


def test_half_precision_norms_do_not_overflow() -> None:
    tensors = [torch.full((4096,), 300.0, dtype=torch.float16), torch.ones(3, dtype=torch.bfloat16)]
    assert stats.squared_norms(tensors).sqrt().tolist() == pytest.approx([300 * 64, math.sqrt(3)], rel=1e-6)


def test_silent_rows_are_exactly_zero_rows() -> None:
    gradient = torch.ones(4, 2, 3)
    gradient[1] = 0
    gradient[2, 0] = 0  # not the whole row
    assert stats.silent_rows(gradient).item() == 1


@pytest.mark.parametrize("name", [k for k in stats.KINDS if k not in ("softmax", "threshold", "leaky_relu", "elu")])
def test_derivatives_are_those_of_autograd(name: str) -> None:
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(stats.OUTPUTS[name](x).sum(), x)
    x, kinks = x.detach(), torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 6.0])
    smooth = (x[:, None] - kinks).abs().amin(1) > 1e-6
    mine = stats.KINDS[name].derivative(x)
    assert torch.allclose(mine[smooth], (slope / slope.max())[smooth], atol=1e-3)


def test_units_are_channels_after_a_convolution_and_the_last_dimension_else() -> None:
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert torch.equal(stats.by_unit(x, True)[:, 1], x[:, 1].reshape(-1))
    assert stats.by_unit(x, False).shape == (24, 5)
    assert stats.by_unit(x[0, 0, 0], False).shape == (1, 5)


def test_dead_and_saturated_units() -> None:
    x = torch.full((400, 4), -1.0)
    x[:, 1] = 1.0
    x[7, 2] = 0.5  # once in 400 inputs: alive
    relu = stats.count_units(stats.KINDS["relu"], x, x.relu(), False)
    assert relu.active.tolist() == [0, 400, 1, 0]
    dead, saturated = stats.unit_fractions(stats.KINDS["relu"], 400, relu.active, relu.flat, 300).tolist()
    assert dead == 0.5 and math.isnan(saturated)
    early = stats.unit_fractions(stats.KINDS["relu"], 299, relu.active, relu.flat, 300)
    assert early.isnan().all()

    y = torch.zeros(400, 3)
    y[:, 0] = 3.0  # 1 - tanh^2 = 0.0099
    y[:380, 1] = 3.0  # 95 %
    y[:379, 2] = 3.0
    tanh = stats.count_units(stats.KINDS["tanh"], y, y.tanh(), False)
    dead, saturated = stats.unit_fractions(stats.KINDS["tanh"], 400, tanh.active, tanh.flat, 300).tolist()
    assert math.isnan(dead) and saturated == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", ["relu", "relu6", "gelu", "silu", "mish", "hardswish"])
def test_an_inactive_unit_passes_on_less_than_a_hundredth(name: str) -> None:
    x = torch.linspace(-12, 0, 12_001, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(stats.OUTPUTS[name](x).sum(), x)
    inactive = stats.KINDS[name].inactive
    assert inactive is not None and inactive(x.detach()).any()
    assert slope[inactive(x.detach())].abs().max() < 0.01


def test_moments_are_those_of_the_entries() -> None:
    x = torch.randn(50, 6) * 3 + 1
    counts = stats.count_units(stats.KINDS["relu"], x, x.relu(), False)
    y, deviation, zeros, slope, mean, spread, entropy = stats.unit_moments(counts.moments).tolist()
    assert (y, deviation) == pytest.approx((x.relu().mean().item(), x.relu().std(correction=0).item()), rel=1e-5)
    assert (mean, spread) == pytest.approx((x.mean().item(), x.std(correction=0).item()), rel=1e-5)
    assert zeros == pytest.approx((x <= 0).float().mean().item())
    assert slope == pytest.approx((x > 0).float().mean().item())
    assert math.isnan(entropy)


def test_entropy_of_softmax_rows() -> None:
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [50.0, 0.0, 0.0, 0.0]])
    counts = stats.count_softmax(logits, logits.softmax(-1))
    assert counts.active.tolist() == [2] and counts.flat.tolist() == [1]
    assert stats.unit_moments(counts.moments)[6].item() == pytest.approx(0.5, abs=1e-6)
    assert counts.largest.item() == 50
    masked = stats.count_softmax(logits, logits.softmax(-1), reachable=torch.tensor([1.0, 4.0]))
    assert masked.active.tolist() == [1]  # a row that may attend to one key only is not saturated


def test_input_moments_merge_like_numpy() -> None:
    rows = torch.randn(300, 4) * torch.tensor([1.0, 10.0, 0.1, 1.0]) + torch.tensor([0.0, 1e4, 1.0, 2.0])
    rows[:, 3] = 7.0  # constant
    merged = stats.moments(rows[:100], True)
    for part in (rows[100:150], rows[150:]):
        merged = stats.merge(merged, stats.moments(part, True))
    exact = rows.double().numpy()
    assert merged.mean.numpy() == pytest.approx(exact.mean(0), rel=1e-9)
    assert stats.deviations(merged).numpy() == pytest.approx(exact.std(0), rel=1e-6, abs=1e-12)
    assert stats.correlation(merged)[:3, :3].numpy() == pytest.approx(np.corrcoef(exact[:, :3].T), rel=1e-6)
    assert stats.correlation(merged)[3].tolist() == [0, 0, 0, 1]


def test_a_bad_row_spoils_nothing() -> None:
    rows = torch.randn(20, 3)
    spoiled = torch.cat([rows, torch.tensor([[1.0, math.nan, 1.0]])])
    assert torch.equal(stats.moments(spoiled, False).mean, stats.moments(rows, False).mean)
    assert stats.nonfinite_share(spoiled).tolist() == pytest.approx([0, 1 / 21, 0])


def classes(*sides: Tensor, groups: int = 1, within: float = stats.SAME, neighbours: int = 4) -> int:
    return int((stats.apart(*sides, groups, neighbours) > within).sum())


def distinct(incoming: Tensor, outgoing: Tensor) -> int:
    return classes(stats.project(incoming), stats.project(outgoing))


@pytest.mark.parametrize("units", [2, 16, 300])
def test_distinct_units(units: int) -> None:
    generator = torch.Generator().manual_seed(units)
    w, out = torch.randn(units, 40, generator=generator), torch.randn(units, 9, generator=generator)
    assert distinct(w, out) == units
    assert distinct(w[:1].expand(units, -1), out[:1].expand(units, -1)) == 1
    assert distinct(w[:1].expand(units, -1), out) == units  # alike on one side only
    assert distinct(w, torch.zeros(units, 9)) == units  # a zero-initialized output layer
    twins = torch.cat([w, w * (1 + 1e-6)]), torch.cat([out, out])
    assert distinct(*twins) == units
    assert distinct(torch.cat([w, -w]), torch.cat([out, -out])) == units  # equal up to one sign for both
    assert distinct(torch.cat([w, -w]), torch.cat([out, out])) == 2 * units
    assert distinct(torch.cat([w, w + 1e-3 * w.flip(0)]), torch.cat([out, out])) == 2 * units
    assert distinct(torch.zeros(units, 40), torch.zeros(units, 9)) == 1
    decayed = torch.cat([torch.ones(units), torch.full((units,), 1e-24)])[:, None]  # whose squares underflow
    assert distinct(decayed * torch.cat([w, w]), decayed * torch.cat([out, out])) == 2 * units
    copies = [torch.cat([side, side[:1].expand(units, -1)]) for side in (w, out)]
    assert distinct(decayed * copies[0], copies[1]) == units + 1  # small on one side only


def test_units_within_a_percent() -> None:
    """The distance by projection is the distance within about a quarter."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(40, generator=generator), torch.randn(9, generator=generator)
    for noise, within in ((1e-3, 1), (5e-3, 1), (3e-2, 20)):
        sides = [stats.project(x * (1 + noise * torch.randn(20, len(x), generator=generator))) for x in (one, other)]
        assert classes(*sides) == 20
        assert classes(*sides, within=stats.ALIKE, neighbours=19) == within
    parted = stats.project(one.expand(20, -1)), stats.project(torch.randn(20, 9, generator=generator))
    assert classes(*parted, within=stats.ALIKE) == 20  # alike on one side only


def test_units_of_different_groups_are_different() -> None:
    w, out = (stats.project(torch.ones(12, n)) for n in (5, 7))
    assert [classes(w, out, groups=groups) for groups in (1, 2, 3, 12)] == [1, 2, 3, 12]


def test_nothing_here_draws_from_the_global_random_state() -> None:
    before = torch.get_rng_state()
    stats.project(torch.ones(4, 5))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_told_from_logits(dtype: torch.dtype) -> None:
    logits = torch.randn(50, 7, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert stats.is_distribution(logits.softmax(1), 1)
    for other in (
        logits,
        logits.sigmoid(),
        logits.log_softmax(1),
        logits.softmax(1).flip(1) * 2,
        torch.zeros_like(logits),
    ):
        assert not stats.is_distribution(other, 1)
    assert not stats.is_distribution(logits.softmax(1), 2)
    spoiled = logits.softmax(1)
    spoiled[3, 1] = math.nan
    assert not stats.is_distribution(spoiled, 1)


def test_quartiles_are_numpys_in_deviations() -> None:
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((500, 3)).astype(np.float32)
    rows[generator.random(500) < 0.05, 1] = -9999.0
    rows[:, 2] = rows[:, 2] > 1.0  # three quarters are one number
    low, high = np.quantile(rows, [0.25, 0.75], axis=0)
    found = stats.middle_halves(torch.tensor(rows))
    np.testing.assert_allclose(found, (high - low) / rows.std(0), rtol=1e-4)
    assert found[1] < 1e-3 and found[2] == 0
    assert stats.middle_halves(torch.ones(8, 1)).isnan().all()


@pytest.mark.parametrize(("far", "proven"), [(1e4, False), (0.0, True)])
def test_signs_alone_prove_no_labels(far: float, proven: bool) -> None:
    """The gradient of an absolute error whose answers are all too large, beside that of a cross-entropy."""
    torch.manual_seed(0)
    y, t = (far * torch.randn(64, 1).sign() + torch.randn(64, 1)).requires_grad_(), torch.randint(2, (64, 1)).float()
    loss_of = torch.nn.functional.binary_cross_entropy_with_logits if proven else torch.nn.functional.l1_loss
    (gradient,) = torch.autograd.grad(loss_of(y, t), y)
    read = [form.read(y, gradient) for form in stats.FORMS if form.name == "binary cross-entropy of logits"]
    assert any(bool(each.alone) for each in read if each is not None) == proven


@pytest.mark.parametrize("weight", [10.0, 0.003])
def test_a_squared_error_of_inputs_is_known_whatever_it_is_multiplied_by(weight):
    form = next(form for form in stats.FORMS if form.of_given)
    x, y = torch.rand(9, 3, 4), torch.rand(9, 3, 4, requires_grad=True)
    loss = weight * torch.nn.functional.mse_loss(y, x)
    (gradient,) = torch.autograd.grad(loss, y)
    read = form.read(y, gradient, x)
    assert read is not None and read.alone
    assert read.error == pytest.approx(loss.item(), rel=1e-5) and read.times == pytest.approx(weight, rel=1e-5)
    others = ((gradient, None), (gradient, x.roll(1, 0)), (-gradient, x), (gradient.sign(), x), (0 * gradient, x))
    for each, given in others:
        read = form.read(y, each, given)
        assert read is not None and read.error.isnan() and not read.alone
