"""The loss of the same answer to every input: against direct minimization by torch's own losses, as it is recorded, and
what runs that get no further are told."""

import math
import time
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics import stats
from diagnostics.monitor.budget import Budget
from diagnostics.rules import plateau
from diagnostics.rules._explained import explained
from diagnostics.run import Run, RunWriter

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is
SQUARED, LOGITS, LOGITS_LAST, WEIGHTED, WEIGHTED_LAST, LOG, LOG_LAST, BINARY, PROBABILITIES = stats.FORMS[:9]
SUMMED, OF_EACH = ({form.name: form for form in reversed(stats.FORMS[at : at + 5])} for at in (9, 14))
HALVES, OF_EXAMPLES = stats.FORMS[19:22], stats.FORMS[22:]


def labels(n=6000, classes=5):
    t = torch.multinomial(torch.tensor([0.5, 0.2, 0.2, 0.1, 0.0]), n, replacement=True, generator=draw())
    t[::7] = -100
    return t


def draw():
    return torch.Generator().manual_seed(0)


def soft(n=6000):
    return torch.rand(n, 5, generator=draw()).softmax(1)


def numbers(n=6000):
    return torch.randn(n, 3, generator=draw()) * torch.tensor([1.0, 20.0, 0.1]) + torch.tensor([5.0, 0.0, -3.0])


def coins(n=6000):
    return torch.bernoulli(torch.tensor([0.5, 0.1, 0.9]).expand(n, 3), generator=draw())


WEIGHTS = torch.tensor([1.0, 3.0, 0.5, 10.0, 1.0])
CASES = {  # name: form, loss of outputs z and rows of targets, all targets, columns of an output
    "squared": (SQUARED, F.mse_loss, numbers(), 3),
    "by hand": (SQUARED, lambda z, t: (z - t).pow(2).mean(), numbers(), 3),
    "classes": (LOGITS, F.cross_entropy, labels(), 5),
    "smoothed": (LOGITS, lambda z, t: F.cross_entropy(z, t, label_smoothing=0.2), labels(), 5),
    "soft": (LOGITS, F.cross_entropy, soft(), 5),
    "weighted": (WEIGHTED, lambda z, t: F.cross_entropy(z, t, weight=WEIGHTS.to(z.dtype)), labels(), 5),
    "binary": (BINARY, F.binary_cross_entropy_with_logits, coins(), 3),
    "sum": (SUMMED["squared error"], lambda z, t: (z - t).pow(2).sum(), numbers(), 3),
    "sum of each": (OF_EACH["squared error"], lambda z, t: (z - t).pow(2).sum(1).mean(), numbers(), 3),
    "sum of examples": (OF_EXAMPLES[0], lambda z, t: sum(map(F.mse_loss, z, t)), numbers(), 3),
    "binary of examples": (
        OF_EXAMPLES[1],
        lambda z, t: F.binary_cross_entropy_with_logits(z, t, reduction="none").mean(1).sum(),
        coins(),
        3,
    ),
    "half": (HALVES[0], lambda z, t: 0.5 * F.mse_loss(z, t), numbers(), 3),
    "half of the sum": (HALVES[1], lambda z, t: 0.5 * F.mse_loss(z, t, reduction="sum"), numbers(), 3),
    "half of each": (HALVES[2], lambda z, t: (z - t).pow(2).sum(1).mean() / 2, numbers(), 3),
    "summed classes": (SUMMED["cross-entropy of logits"], nn.CrossEntropyLoss(reduction="sum"), labels(), 5),
    "summed binary": (SUMMED["binary cross-entropy of logits"], nn.BCEWithLogitsLoss(reduction="sum"), coins(), 3),
    "binary of each": (
        OF_EACH["binary cross-entropy of logits"],
        lambda z, t: F.binary_cross_entropy_with_logits(z, t, reduction="none").sum(1).mean(),
        coins(),
        3,
    ),
}


def least(loss, columns, t):
    """The best constant answer of all targets, by minimization."""
    answer = torch.zeros(columns, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([answer], max_iter=300, tolerance_grad=1e-10, tolerance_change=0)
    double = t.double() if t.is_floating_point() else t

    def closure():
        optimizer.zero_grad()
        value = loss(answer.expand(len(t), columns), double)
        value.backward()
        return value

    optimizer.step(closure)
    return answer.detach().float()


def read(form, loss, z, *target):
    z = z.detach().requires_grad_()
    value = loss(z, *target)
    (gradient,) = torch.autograd.grad(value, z)
    return form.read(z, gradient), value.item()


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_least_loss_of_a_constant(name):
    form, loss, t, columns = CASES[name]
    z = 2 * torch.randn(len(t), columns, generator=draw())
    first, value = read(form, loss, z[:2000], t[:2000])
    second, _ = read(form, loss, z[2000:], t[2000:])
    assert float(first.error) == pytest.approx(value, rel=1e-4)  # the proof that it is this loss
    whole = first.merged(second)
    assert float(whole.error / whole.times) == pytest.approx(float(second.error / second.times))  # the mean of any form
    found = float(first.constant_loss(whole))
    expected = float(loss(least(loss, columns, t).expand(2000, columns), t[:2000]))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])  # of the answers, a hundredth of it in the second batch
@pytest.mark.parametrize("name", ["squared", "weighted", "binary"])
def test_rounding_is_no_variance_of_the_targets(name, scale, dtype):
    """What is read off a gradient is a difference of answers and errors; it differs even where all targets are one."""
    form, loss, t, columns = CASES[name]
    real = t.is_floating_point()
    for own, varies in ((t, True), (t[:1].expand(t.shape) if name == "squared" else torch.zeros_like(t), False)):
        z = (scale * torch.randn(len(t), columns, generator=draw())).to(dtype)
        first, _ = read(form, loss, z[:3000], own[:3000].to(dtype) if real else own[:3000])
        second, _ = read(form, loss, z[3000:] / 100, own[3000:].to(dtype) if real else own[3000:])
        found = float(second.constant_loss(first.merged(second)))
        if not varies:
            assert math.isnan(found)
        elif dtype != torch.bfloat16 and (scale < 100 or name == "squared"):  # else right answers have no gradient left
            expected = loss(least(loss, columns, own).expand(3000, columns), own[3000:])
            assert found == pytest.approx(float(expected), rel=1e-2)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(
    ("forms", "loss"),
    [
        ((SQUARED, OF_EACH["squared error"]), F.mse_loss),
        ((BINARY, OF_EACH["binary cross-entropy of logits"]), F.binary_cross_entropy_with_logits),
    ],
)
def test_of_images_it_is_one_image(forms, loss, each):
    """Not one number: the mean image is what an answer that ignores its input comes to."""
    places = torch.rand(3, 4, 5, generator=draw())
    t = torch.bernoulli(places.expand(2000, 3, 4, 5), generator=draw())
    z = torch.randn(t.shape, generator=draw())

    def of(z, t):
        return loss(z, t) * (t[0].numel() if each else 1)

    first, value = read(forms[each], of, z[:500], t[:500])
    second, _ = read(forms[each], of, z[500:], t[500:])
    assert float(first.error) == pytest.approx(value, rel=1e-4)
    mean = t[500:].mean(0)  # of those before these, which it must not fit
    image = (mean if forms[0] is SQUARED else mean.logit()).expand(500, 3, 4, 5)
    found = first.constant_loss(second.merged(first), second)
    assert float(found) == pytest.approx(float(of(image, t[:500])), rel=1e-4)


def test_of_few_images_it_is_one_number():
    """A mean fitted to them would be too near."""
    t = torch.rand(200, 4, 5, generator=draw()) * torch.linspace(0, 1, 5)
    few, _ = read(SQUARED, F.mse_loss, torch.zeros_like(t), t)
    variance = pytest.approx(float(t.var(correction=0)), rel=1e-4)
    assert float(few.constant_loss(few)) == float(few.constant_loss(few.pooled())) == variance
    assert float(few.constant_loss(few.merged(few), few)) == variance
    assert float(few.spread()) == pytest.approx(1, abs=0.01)  # of the batch, wherever in an example


def test_sequences_beside_each_other_are_no_places():
    """Time first: each column is of one sequence, whose level the mean of a few would fit."""
    levels = 10 * torch.randn(8, 1, 16, generator=draw())  # of 8 batches
    t = (levels + torch.randn(8, 100, 16, generator=draw()))[..., None]
    seen = [read(SQUARED, F.mse_loss, torch.zeros_like(each), each)[0] for each in t]
    whole, constants = seen[0], []
    for each in seen[1:]:
        before, whole = whole, whole.merged(each)
        constants.append(float(each.constant_loss(whole, before)))
    assert float(np.mean(constants)) > 0.9 * float(t.var())
    assert float(whole.spread()) > 0.8


def test_of_large_images_it_is_one_number():
    t = torch.rand(4, 3, 150, 150, generator=draw())
    assert len(read(SQUARED, F.mse_loss, torch.zeros_like(t), t)[0].seen.mean) == 1


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", CASES)
def test_no_other_form_takes_it_for_its_own(name):
    form, loss, t, columns = CASES[name]
    z = 2 * torch.randn(len(t), columns, generator=draw())
    own, _ = read(form, loss, z, t)
    for other in stats.FORMS:
        targets, value = read(other, loss, z, t)
        twins = {form, other} == {LOGITS, WEIGHTED} and name == "classes"  # weights of 1
        twins |= targets is not None and other.name == form.name and targets.times == own.times  # one of each example
        if other is not form and targets is not None and not twins:
            assert not abs(float(targets.error) - value) <= stats.rounding(z) * value


@pytest.mark.parametrize(
    ("form", "shape", "loss"),
    [
        (LOGITS, (40, 5, 50), F.cross_entropy),
        (LOGITS_LAST, (40, 50, 5), lambda z, t: F.cross_entropy(z.flatten(0, 1), t.flatten())),
        (LOG, (2000, 5), lambda z, t: F.nll_loss(z, t)),
        (LOG_LAST, (40, 50, 5), lambda z, t: F.nll_loss(z.flatten(0, 1), t.flatten())),
    ],
)
def test_classes_in_either_dimension_and_log_probabilities(form, shape, loss):
    z = torch.randn(shape, generator=draw())
    z = z.log_softmax(form.classes) if form in (LOG, LOG_LAST) else z
    t = labels(2000).reshape([n for i, n in enumerate(shape) if i != form.classes % len(shape)])
    targets, value = read(form, loss, z, t)
    shares = torch.bincount(t[t >= 0], minlength=5) / (t >= 0).sum()
    assert float(targets.error) == pytest.approx(value, rel=1e-4)
    assert targets.seen.mean.float().tolist() == pytest.approx(shares.tolist(), abs=1e-5)


def test_outputs_that_are_probabilities():
    z = torch.rand(2000, 3, generator=draw())
    targets, value = read(PROBABILITIES, F.binary_cross_entropy, z, coins(2000))
    assert float(targets.error) == pytest.approx(value, rel=1e-4)
    assert targets.seen.mean.float().tolist() == pytest.approx(coins(2000).mean(0).tolist(), abs=1e-4)


@pytest.mark.parametrize("padded", [0, 700])
@pytest.mark.parametrize("size", [10.0, 100.0, 1000.0])
def test_answers_so_sure_that_the_right_ones_have_no_gradient(size, padded):
    """Rows of padding have none either, sure or not."""
    z, t = size * torch.randn(2000, 5, generator=draw()), soft(2000).argmax(1)
    z[: padded // 2] *= 1e-2 / size
    t[:padded] = -100
    targets, value = read(LOGITS, F.cross_entropy, z, t)
    shares = torch.bincount(t[t >= 0], minlength=5) / (t >= 0).sum()
    assert float(targets.error) == pytest.approx(value, rel=1e-3)
    assert targets.seen.mean.float().tolist() == pytest.approx(shares.tolist(), abs=0.02 if padded else 1e-5)


@pytest.mark.parametrize(
    ("form", "loss", "z", "t"),
    [
        (SQUARED, F.mse_loss, torch.randn(50, 1), torch.randn(50, 1)),  # too few
        (SQUARED, F.mse_loss, torch.randn(5000, 1), torch.full((5000, 1), 7.0)),  # all alike
        (SQUARED, lambda z, t: z.pow(2).mean(), torch.randn(5000, 1), torch.zeros(())),  # a residual that must vanish
        (LOGITS, F.cross_entropy, torch.randn(2000, 1000), torch.arange(2000) % 1000),  # two of each class
    ],
)
def test_where_targets_tell_nothing(form, loss, z, t):
    targets, value = read(form, loss, z, t)
    assert float(targets.error) == pytest.approx(value, rel=1e-3) and targets.constant_loss(targets).isnan()


@pytest.mark.parametrize("error", [F.smooth_l1_loss, F.mse_loss])
def test_values_of_actions_that_were_not_taken_have_no_target(error):
    """Half the squared error of the one taken of two is the mean of both's, and the whole their sum."""
    z, t = 0.1 * torch.randn(2000, 2, generator=draw()), 0.1 * torch.randn(2000, 1, generator=draw())
    taken = torch.arange(2000)[:, None] % 2
    for form in stats.FORMS:
        targets, value = read(form, lambda z, t: error(z.gather(1, taken), t), z, t)
        assert targets is None or not abs(float(targets.error) - value) <= 1e-3 * value


# -- as it is recorded ------------------------------------------------------------------------------------------------


def data(n=512):
    torch.manual_seed(0)
    x = torch.randn(n, 10)
    return x, (x[:, :3].sum(1) > 0).long()


def trained(path, loss_of, updates=150, batch=32, outputs=2, lr=0.05, closure=False, dtype=torch.float32):
    """`loss_of(outputs, chosen)`."""
    x, _ = data()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, outputs)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    order = torch.Generator().manual_seed(1)
    with diagnostics.watch(model, optimizer, path, budget=ANY, every=5) as monitor:
        for _ in range(updates):
            chosen = torch.randperm(len(x), generator=order)[:batch].sort().values
            again = lambda chosen=chosen: loss_of(model(x[chosen].to(dtype)), chosen)  # noqa: E731
            optimizer.zero_grad()
            loss = again()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=again if closure else None)
    return diagnostics.load(path)


T = data()[1]
BY_FUNCTION = "seen in a closure alone, which calls a function that says what it compares"
ROWS = torch.arange(32) % 2  # of a batch whose first half is real and whose second is not


@pytest.mark.parametrize("closure", [pytest.param(True, marks=pytest.mark.exhaustive), False])
@pytest.mark.parametrize(
    ("loss_of", "batch", "outputs", "expected"),
    [
        (lambda z, chosen: F.cross_entropy(z, T[chosen]), 32, 2, 0.69),
        (lambda z, chosen: nn.NLLLoss()(z.log_softmax(1), T[chosen]), 32, 2, 0.69),
        (lambda z, chosen: -z.log_softmax(1)[range(32), T[chosen]].mean(), 32, 2, 0.69),
        (lambda z, chosen: nn.BCEWithLogitsLoss()(z[:, 0], T[chosen].float()), 32, 1, 0.69),
        (lambda z, chosen: nn.MSELoss()(z[:, 0], T[chosen].float()), 32, 1, 0.25),
        (lambda z, chosen: ((T[chosen] - z.squeeze()) ** 2).mean(), 32, 1, 0.25),
        (lambda z, chosen: F.cross_entropy(z, T), 512, 2, 0.69),  # all data at every update: the targets never change
        (lambda z, chosen: F.mse_loss(z[:, 0], T[chosen].float(), reduction="sum"), 32, 1, 8.0),
        (lambda z, chosen: 0.5 * (z[:, 0] - T[chosen]).square().mean(), 32, 1, 0.125),
        (lambda z, chosen: F.cross_entropy(z, T[chosen], reduction="sum"), 32, 2, 22.2),
        (lambda z, chosen: F.cross_entropy(z, ROWS), 32, 2, None),  # these do not come from the data
        (lambda z, chosen: F.cross_entropy(z, T[chosen]) + z.square().mean(), 32, 2, None),
        (lambda z, chosen: F.cross_entropy(z, T[chosen], weight=torch.tensor([1.0, 2.0])), 32, 2, 0.64),
        (lambda z, chosen: F.mse_loss(z, torch.zeros(32, 2)), 32, 2, None),  # a residual that must vanish
        (lambda z, chosen: F.l1_loss(z[:, 0], T[chosen].float()), 32, 1, BY_FUNCTION),
        (lambda z, chosen: F.mse_loss(z, T[chosen].float()), 32, 1, None),  # shapes that broadcast
        (lambda z, chosen: -z.mean(), 32, 1, None),  # a critic
    ],
)
def test_it_is_recorded_where_the_loss_is_one_mean_error_against_data(
    loss_of, batch, outputs, expected, closure, tmp_path
):
    expected = (0.48 if closure else None) if expected is BY_FUNCTION else expected
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Using a target size")  # where shapes broadcast
        run = trained(tmp_path / "run", loss_of, 80, batch, outputs, closure=closure)
    values = run.table("scalars")["constant_loss"].dropna()
    assert (expected is None) == values.empty
    assert expected is None or abs(values.mean() / expected - 1) < 0.05
    assert not len(run.table("events").query("kind == 'measurement-failed'"))


@pytest.mark.parametrize("lengths", [(6,), (6, 4, 5)])
def test_examples_of_several_lengths_have_one_number(lengths, tmp_path):
    torch.manual_seed(0)
    t = torch.randn(1000, 6, 1) + torch.tensor([0.0, 3.0, 0.0, 3.0, 0.0, 3.0])[:, None]
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, every=1) as monitor:
        for step in range(60):
            rows = torch.randint(len(t), (32,))
            batch = t[rows, : lengths[step % len(lengths)]]
            optimizer.zero_grad()
            loss = F.mse_loss(model(torch.randn(batch.shape)), batch)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    constants = diagnostics.load(tmp_path).table("scalars")["constant_loss"].to_numpy()[-12:]
    variance = float(t.var()) if len(lengths) > 1 else float(t.var(0).mean())
    assert constants.mean() == pytest.approx(variance, rel=0.1)


def test_in_half_precision(tmp_path):
    run = trained(tmp_path / "run", lambda z, chosen: F.cross_entropy(z, T[chosen]), 80, dtype=torch.bfloat16)
    values = run.table("scalars")["constant_loss"].dropna()
    assert len(values) > 5 and abs(values.mean() / 0.69 - 1) < 0.05


def watched(path, model, loss_of, told=lambda update, loss: loss, scaler=None):
    """40 updates; `told` is what the monitor is given for a loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, path, budget=ANY, every=5) as monitor:
        for update in range(1, 41):
            optimizer.zero_grad()
            loss = loss_of(model, slice(update * 10, update * 10 + 64))
            (scaler.scale(loss) if scaler else loss).backward()
            scaler.step(optimizer) if scaler else optimizer.step()
            if scaler:
                scaler.update()
            monitor.step(told(update, loss))
    run = diagnostics.load(path)
    assert not len(run.table("events").query("kind == 'measurement-failed'"))
    return run.table("scalars").set_index("step")["constant_loss"].dropna()


def test_gradients_of_another_loss_spoil_no_later_one(tmp_path):
    times = {"update": 0}

    def at_times_another(model, rows):
        times["update"] += 1
        return outside(model, rows) * (50 if 8 < times["update"] < 22 else 1)

    values = watched(tmp_path / "run", nn.Linear(10, 2), at_times_another)
    assert {10, 15, 20}.isdisjoint(values.index) and len(values.loc[25:]) >= 2
    assert values.between(0.5, 0.9).all()


def outside(model, rows):
    x, t = data()
    return F.cross_entropy(model(x[rows]), t[rows])


def test_with_a_gradient_scaler(tmp_path):
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    values = watched(tmp_path / "run", nn.Linear(10, 2), outside, scaler=scaler)
    assert len(values) > 2 and 0.6 < values.mean() < 0.8


def test_what_reading_a_gradient_takes_is_counted(tmp_path, monkeypatch):
    """It is done in the user's backward pass, outside everything else that is timed."""
    original, slept = stats.Form.read, []

    def slow(*arguments):
        time.sleep(0.01)
        slept.append(0.01)
        return original(*arguments)

    monkeypatch.setattr(stats.Form, "read", slow)
    charged = []
    monkeypatch.setattr(Budget, "add", lambda self, kind, seconds: charged.append(seconds))
    watched(tmp_path / "run", nn.Linear(10, 2), outside)
    assert slept and sum(charged) >= sum(slept)


def test_a_loss_that_is_another_one_at_times_spoils_no_other(tmp_path):
    torch.manual_seed(0)
    start = nn.Linear(10, 2).state_dict()
    found = []
    for name, told in {
        "whole": lambda update, loss: loss,
        "some": lambda update, loss: loss * (1 + update // 20),
    }.items():
        model = nn.Linear(10, 2)
        model.load_state_dict(start)
        found.append(watched(tmp_path / name, model, outside, told))
    whole, some = found
    assert list(some.index) == [step for step in whole.index if step < 20] and (some == whole[some.index]).all()


@pytest.mark.parametrize("times", [1, 2])
def test_a_model_that_computes_its_own_loss_and_one_that_is_called_twice(times, tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(10, 2)

        def forward(self, x, t):
            z = self.layer(x)
            return {"loss": F.cross_entropy(z, t), "logits": z}

    def inside(model, rows):
        x, t = data()
        return sum(model(x[rows], t[rows])["loss"] for _ in range(times))

    values = watched(tmp_path / "run", Model(), inside)
    assert values.empty if times == 2 else 0.6 < values.mean() < 0.8


def test_a_loss_that_becomes_another_one_says_nothing_of_its_later_half():
    """A penalty that begins to count: the constant is known of the first updates alone."""
    steps = range(1, 401)
    constant = [42.0 if step < 50 and step % 10 == 1 else float("nan") for step in steps]
    columns = {"step": steps, "loss": [50.0 if step < 100 else 25.0 for step in steps], "constant_loss": constant}
    run = Run.from_frames({"name": "test"}, {"scalars": pd.DataFrame(columns | {"lr": 0.1})})
    assert np.isnan(explained(run, 200, 400, 5).share)
    assert explained(run, 1, 50).share == pytest.approx(1 - 50 / 42)


# -- what is said -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shuffled", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_labels_of_other_samples(shuffled, tmp_path):
    order = torch.Generator().manual_seed(3)

    def loss_of(z, chosen):
        return F.cross_entropy(z, T[chosen])

    def apart(z, chosen):  # a second loader with an order of its own
        order.manual_seed(int(chosen[0]) * 1000 + int(chosen[-1]))
        return F.cross_entropy(z, T[torch.randint(len(T), (len(chosen),), generator=order)])

    run = trained(tmp_path / "run", apart if shuffled else loss_of, 400)
    (finding,) = diagnostics.diagnose(run).alarms if shuffled else [None]
    if not shuffled:
        assert not diagnostics.diagnose(run).alarms
        return
    assert (finding.kind, finding.cause, finding.severity) == ("plateau", "nothing-learned", "warning")
    assert -0.1 < finding.evidence["R squared"] < 0.02
    minimum, valley = (replace(finding, kind=kind, severity="info") for kind in ("local-minimum", "ravine"))
    assert plateau.explains(finding, minimum)  # "stop here if the loss is good enough"
    assert not plateau.explains(finding, valley)


def record(path, levels, rates=None, constant=1.0, noise=0.01, **meta):
    """A run of given losses; the rules are given numbers here, not trainings."""
    draw = torch.Generator().manual_seed(0)
    with_noise = [level * (1 + noise * float(torch.randn((), generator=draw))) for level in levels]
    writer = RunWriter(path, {"optimizer": "SGD", "closure": True, "hyperparameters": [{"lr": 0.1}], **meta})
    for step, loss in enumerate(with_noise, 1):
        row = {"loss": loss, "lr": 0.1 if rates is None else rates[step - 1], "grad_norm": 1.0}
        measured = {"constant_loss": constant, "update_norm": 0.1, "weight_norm": 1.0} if step % 10 == 0 else {}
        writer.append("scalars", step, row | measured)
        if measured:
            norms = {"grad_norm": [1.0], "weight_norm": [1.0], "update_norm": [0.1]}
            writer.append_many("layers", step, ["layer.weight"], norms)
    writer.close("finished")
    return diagnostics.load(path)


@pytest.mark.parametrize(("ratio", "told"), [(0.015, True), (0.3, False)])
def test_a_rate_far_below_the_limit_is_raised_first_where_nothing_was_learned(ratio, told, tmp_path):
    record(tmp_path, [1.0] * 400)
    tables = {name: diagnostics.load(tmp_path).table(name) for name in ("scalars", "layers")}
    tables["curvature"] = pd.DataFrame({"step": [1, 200, 300, 390], "stability": [0.5, ratio, ratio, ratio]})
    (finding,) = plateau.check(Run.from_frames(diagnostics.load(tmp_path).meta, tables))
    assert finding.cause == "nothing-learned"
    assert finding.remedies[0].startswith("raise the learning rate: 0.1 is 1.5 %") == told


@pytest.mark.parametrize(("level", "told"), [(0.0, []), (0.5, [("info", "plateau")])])
def test_a_loss_that_keeps_changing_its_sign_is_no_plateau(level, told, tmp_path):
    """As that of a policy whose advantages are centered; a value's is of one sign."""
    levels = [level - 0.05, *(level + 0.1 * np.cos(1e3 * step) for step in range(399))]
    assert found(record(tmp_path / "run", levels, constant=np.nan, noise=0.0)) == told


@pytest.mark.parametrize(
    ("loss", "step", "expected"),
    [
        (math.log(2), 0.1, [("info", "constant-value")]),  # two scores that are one
        (math.log(2), 1e-7, [("info", None)]),  # weights that do not move
        (0.0, 0.1, [("info", None)]),  # as of advantages, whatever the policy
    ],
)
def test_a_loss_that_is_the_same_whatever_the_weights_are(loss, step, expected, tmp_path):
    record(tmp_path, [loss] * 400, constant=np.nan, noise=0.0)
    tables = {name: diagnostics.load(tmp_path).table(name) for name in ("scalars", "layers")}
    tables["scalars"] = tables["scalars"].assign(update_norm=step)
    run = Run.from_frames(diagnostics.load(tmp_path).meta, tables)
    assert [(each.severity, each.cause) for each in plateau.check(run)] == expected


@pytest.mark.parametrize("size", [1.0, 255.0])
def test_a_plateau_that_nothing_explains_asks_for_standardized_inputs_where_they_are_raw(size, tmp_path):
    record(tmp_path, [1.0] * 400, constant=np.nan)
    tables = {name: diagnostics.load(tmp_path).table(name) for name in ("scalars", "layers")}
    tables["inputs"] = pd.DataFrame({"step": [1] * 3, "feature": range(3), "mean": size, "std": size})
    (finding,) = plateau.check(Run.from_frames(diagnostics.load(tmp_path).meta, tables))
    assert (finding.severity, finding.cause) == ("info", None)
    assert finding.remedies[0].startswith("standardize the inputs") == (size > 1)


def found(run):
    return [(f.severity, f.kind) for f in diagnostics.diagnose(run).findings if f.kind == "plateau"]


@pytest.mark.parametrize(
    ("levels", "rates", "constant", "severity"),
    [
        ([1.0] * 400, None, 1.0, "warning"),
        ([30.0] * 400, None, 1.0, "warning"),  # worse than a constant
        ([50.0] * 40 + [1.0] * 360, None, 1.0, "warning"),  # most of the first loss is gone, and nothing was learned
        ([0.985] * 400, None, 1.0, "info"),  # little is learned, as where labels are noisy
        ([0.99] * 400, None, 1.0, "info"),  # less still, but surely more than nothing
        ([2.5] * 280 + [1.0] * 120, None, 1.0, "info"),  # on its way
        ([1.0] * 400, None, float("nan"), "info"),
        ([1.0] * 90, None, 1.0, "info"),  # too early to tell
        ([1.0] * 400, [0.1 * min(1, step / 300) for step in range(400)], 1.0, "info"),  # the rate has just arrived
        ([1.0] * 250 + [0.3] * 150, None, 1.0, "info"),  # it did start
    ],
)
def test_how_much_is_nothing(levels, rates, constant, severity, tmp_path):
    assert found(record(tmp_path / "run", levels, rates, constant)) == [(severity, "plateau")]


@pytest.mark.parametrize(
    ("start", "below", "expected"), [(60.0, 300, [1]), (60.0, 80, []), (6.5, 300, []), (60.0, None, [1])]
)
def test_a_start_so_far_off_that_most_of_the_run_is_spent_on_it(start, below, expected, tmp_path):
    """A tied embedding of unit normal weights starts at 60 where log C is 6.7 and the entropy of the words 4.5."""
    steps = range(400)
    levels = [4 + (start - 4) * 0.9 ** (step * 60 / (below or 800)) for step in steps]
    alarms = diagnostics.diagnose(record(tmp_path / "run", levels, None, 4.4)).alarms
    assert [finding.first_step for finding in alarms if finding.cause == "start-far-off"] == expected
    if expected and below:
        assert alarms[0].last_step == pytest.approx(below * 47 / 60, abs=25)  # 56 * 0.9^47 is 0.4


@pytest.mark.parametrize(("start", "expected"), [(0.69, ("info", "rare-classes")), (6.9, ("warning", "start-far-off"))])
def test_even_chances_of_rare_pixels_are_no_fault_of_the_start(start, expected, tmp_path):
    """ln 2 is where a binary cross-entropy begins; where 2 of 100 pixels are lesions, their share has 0.1."""
    levels = [0.04 + (start - 0.04) * 0.9 ** (step / 10) for step in range(400)]
    run = record(tmp_path / "run", levels, None, 0.1, loss_path="binary_cross_entropy_with_logits")
    (finding,) = [each for each in diagnostics.diagnose(run).findings if "worse than one" in each.summary]
    assert (finding.severity, finding.cause) == expected
    assert ("as frequent as they are" in finding.remedies[0]) == (finding.severity == "info")


@pytest.mark.parametrize(
    ("by_hand", "lr", "causes"),
    [
        (True, 1e-3, ["start-far-off"]),
        (True, 1e-6, ["learning-rate"]),  # by which no start could be undone
        (False, 1e-3, []),
    ],
    ids=["torch.rand", "and a rate too small", "nn.Linear's"],
)
@pytest.mark.exhaustive
@pytest.mark.every_case
def test_weights_that_are_all_positive_and_too_large_explain_a_rate_too_small_for_the_way_back(
    by_hand, lr, causes, tmp_path
):
    torch.manual_seed(0)
    x = torch.randn(512, 6, generator=draw())
    y = torch.sin(2 * x).sum(1, keepdim=True)
    layers = [nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1)]
    model = nn.Sequential(*layers)
    if by_hand:
        for weight in model.parameters():
            nn.init.uniform_(weight) if weight.dim() > 1 else nn.init.zeros_(weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY) as monitor:
        for step in range(300):
            chosen = slice(64 * (step % 8), 64 * (step % 8) + 64)
            loss = F.mse_loss(model(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss, lambda chosen=chosen: F.mse_loss(model(x[chosen]), y[chosen]))
    alarms = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    assert [each.cause for each in alarms] == causes
    assert all("torch.rand" in " ".join(each.remedies) for each in alarms if each.cause == "start-far-off")


def test_what_the_noise_would_hide_is_not_called_nothing(tmp_path):
    assert found(record(tmp_path / "run", [1.0] * 400, noise=0.2)) == [("info", "plateau")]


def test_it_gives_way_to_an_alarm_that_says_why(tmp_path):
    run = trained(tmp_path / "run", lambda z, chosen: F.cross_entropy(z, T[chosen]), 300, lr=1e-9)
    assert run.table("scalars")["constant_loss"].median() <= run.table("scalars")["loss"].median()
    assert [finding.kind for finding in diagnostics.diagnose(run).alarms] == ["lr-too-small"]


PATTERNS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0], [1.0], [1.0], [0.0]])


@pytest.mark.exhaustive
@pytest.mark.parametrize("loss", [F.binary_cross_entropy_with_logits, F.mse_loss])
@pytest.mark.parametrize(("std", "causes"), [(0.01, ["nothing-learned"]), (1.0, [])])
def test_four_examples_that_are_all_there_are(loss, std, causes, tmp_path):
    """The exclusive or, whose network started next to zero stays there: 1/4, or log 2."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std) if parameter.dim() > 1 else nn.init.zeros_(parameter)
    optimizer, (x, y) = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), PATTERNS
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(600):
            optimizer.zero_grad()
            value = loss(model(x), y)
            value.backward()
            optimizer.step()
            monitor.step(value, closure=lambda: loss(model(x), y))
    run = diagnostics.load(tmp_path)
    known = run.table("scalars", ["constant_loss"])["constant_loss"].dropna()
    assert len(known) > 20 and np.allclose(known, 0.25 if loss is F.mse_loss else np.log(2))
    alarms = diagnostics.diagnose(run).alarms
    assert [each.cause for each in alarms] == causes
    assert all(each.remedies[0].startswith("start with larger weights") for each in alarms)


class Scored(nn.Module):
    """Answers with an embedding; scores are made of it by the loss."""

    def __init__(self):
        super().__init__()
        self.layer, self.proxies = nn.Linear(10, 4), nn.Parameter(torch.randn(2, 4))

    def forward(self, x):
        return F.normalize(self.layer(x), dim=1)

    def scores(self, x):
        return 4 * self(x) @ self.proxies.t()


class Own(nn.Module):
    """Returns its loss alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(10, 2)

    def forward(self, x, t):
        return F.cross_entropy(self.layer(x), t)


INSIDE = {
    "scores of embeddings": (Scored, lambda model, x, t: F.cross_entropy(model.scores(x), t)),
    "a loss alone": (Own, lambda model, x, t: model(x, t)),
    "squared": (Scored, lambda model, x, t: F.mse_loss(model.scores(x)[:, 0], t.float())),
    "probabilities": (Scored, lambda model, x, t: F.binary_cross_entropy(model.scores(x)[:, 0].sigmoid(), t.float())),
    "two terms": (Scored, lambda model, x, t: F.cross_entropy(model.scores(x), t) + model.layer.weight.square().sum()),
    "twice": (Scored, lambda model, x, t: F.cross_entropy(model.scores(x), t) + F.cross_entropy(model.scores(x), t)),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", INSIDE)
def test_what_a_closure_compares_where_it_is_not_the_output(name, tmp_path):
    """Of squared errors nothing is told: values learned from later ones are compared with the network's own."""
    made, loss_of = INSIDE[name]
    x, t = data()
    torch.manual_seed(0)
    model = made()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(300):
            rows = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            loss = loss_of(model, x[rows], t[rows])
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda rows=rows: loss_of(model, x[rows], t[rows]))
    known = diagnostics.load(tmp_path).table("scalars", ["constant_loss"])["constant_loss"].dropna()
    share = float(t.float().mean())
    truth = -share * np.log(share) - (1 - share) * np.log(1 - share)
    if name in ("squared", "two terms", "twice"):
        assert known.empty
    else:
        assert len(known) > 15 and known.mean() == pytest.approx(truth, rel=0.02)
