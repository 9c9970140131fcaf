"""Targets in an order or of a kind that the loss does not expect, attention that is sure from the start: small real
runs, each beside the same loop without the mistake."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import diagnostics
from diagnostics import stats
from diagnostics.rules import _noise_ball as noise_ball
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.run import RunWriter

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is

MORE = pytest.mark.exhaustive


def trained(path, model, optimizer, loss_of, batches, close=True):
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for x, t in batches:
            optimizer.zero_grad()
            loss = loss_of(model(x), t)
            loss.backward()
            optimizer.step()
            monitor.step(loss, lambda x=x, t=t: loss_of(model(x), t))
    return diagnostics.load(path)


def alarms(run):
    return [(finding.kind, finding.cause) for finding in diagnostics.diagnose(run).alarms]


def classes(n=1200, kinds=6):
    draw = torch.Generator().manual_seed(0)
    t = torch.randint(kinds, (n,), generator=draw)
    return torch.randn(kinds, 8, generator=draw)[t] * 2 + torch.randn(n, 8, generator=draw), t


def network(outputs):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, outputs))


def epochs(x, t, order, size, count):
    for _ in range(count):
        at = order(len(x))
        for first in range(0, len(x) - size + 1, size):
            chosen = at[first : first + size]
            yield x[chosen], t[chosen]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("size", "in_order"),
    [
        (20, True),
        pytest.param(60, True, marks=pytest.mark.exhaustive),  # five batches of twenty are of two classes
        pytest.param(20, False, marks=pytest.mark.by_hand),
        pytest.param(1, False, marks=pytest.mark.by_hand),
    ],
)
def test_examples_sorted_by_class(size, in_order, tmp_path):
    x, t = classes()
    by_class = t.argsort()
    torch.manual_seed(0)
    model = network(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 if size > 1 else 0.003, momentum=0.9)
    order = (lambda n: by_class) if in_order else torch.randperm
    run = trained(tmp_path / "run", model, optimizer, F.cross_entropy, epochs(x, t, order, size, 10 if size > 1 else 1))
    assert alarms(run) == ([("wiring", "in-order")] if in_order else [])
    _, spread = signals.column(run, "target_spread")
    if size == 1:
        assert len(spread) == 0  # nothing differs within one
    else:
        means = torch.stack([F.one_hot(part, 6).double().var(0).sum() for part in t[by_class].split(size)])
        exact = float(means.mean() / F.one_hot(t, 6).double().var(0).sum()) if in_order else 1.0
        assert spread[-1] == pytest.approx(exact, abs=0.1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("norm", "expected"), [(True, [("wiring", "in-order")]), (False, [])])
def test_batches_of_one_class_each_at_a_rate_that_never_throws_the_loss_up(norm, expected, tmp_path):
    """The same losses come again in each epoch, but only where a batch norm takes out the class it is the order that
    holds them up: without one so low a rate learns as much from batches in any order."""
    x, t = classes()
    torch.manual_seed(0)
    model = network(6)
    if norm:
        model.insert(1, nn.BatchNorm1d(32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    batches = epochs(x, t, lambda n: t.argsort(), 20, 5)
    run = trained(tmp_path / "run", model, optimizer, F.cross_entropy, batches)
    assert [each for each in alarms(run) if each[0] == "wiring"] == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("in_order", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_numbers_in_order(in_order, tmp_path):
    x, _ = classes()
    t = (x[:, :1] * 3 + x[:, 1:2].square()) / 4
    sorted_by = t[:, 0].argsort()
    model = network(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    order = (lambda n: sorted_by) if in_order else torch.randperm
    torch.manual_seed(0)
    run = trained(tmp_path / "run", model, optimizer, F.mse_loss, epochs(x, t, order, 30, 10))
    assert (("wiring", "in-order") in alarms(run)) == in_order
    assert in_order or not alarms(run)


@pytest.mark.exhaustive
def test_a_class_that_is_rare_is_no_order(tmp_path):
    """Most batches hold but one class, by chance."""
    x, t = classes(4000)
    rare = ((t == 0) & (torch.arange(4000) % 12 == 0)).float()[:, None]
    model = network(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    batches = epochs(x, rare, torch.randperm, 16, 2)
    run = trained(tmp_path / "run", model, optimizer, F.binary_cross_entropy_with_logits, batches)
    _, spread = signals.column(run, "target_spread")
    assert spread[-1] > 0.8
    assert ("wiring", "in-order") not in alarms(run)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("labels", "expected"), [((-1, 1), True), pytest.param((1, 2), True, marks=pytest.mark.exhaustive), ((0, 1), False)]
)
def test_labels_that_are_no_probabilities(labels, expected, tmp_path):
    x, t = classes()
    t = torch.where(t[:, None] < 3, labels[0], labels[1]).float()
    model = network(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    batches = epochs(x, t, torch.randperm, 30, 8)
    run = trained(tmp_path / "run", model, optimizer, F.binary_cross_entropy_with_logits, batches)
    assert alarms(run) == ([("wiring", "targets-outside")] if expected else [])


@pytest.mark.exhaustive
@pytest.mark.every_case
@pytest.mark.parametrize("classes_", [10, 2])
def test_class_numbers_under_a_cross_entropy_by_hand_that_is_cut_off(classes_, tmp_path):
    """One output for all, as large as the cut allows, and no gradient any more."""

    def lost(z, t):
        p = torch.sigmoid(z).clamp(1e-7, 1 - 1e-7)
        return -(t * torch.log(p) + (1 - t) * torch.log(1 - p)).mean()

    x, t = classes()
    torch.manual_seed(0)
    t = torch.randint(0, classes_, (len(x), 1)).float() if classes_ > 2 else (t[:, None] < 3).float()
    model = nn.Linear(x.shape[1], 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.3)
    run = trained(tmp_path / "run", model, optimizer, lost, epochs(x, t, torch.randperm, 30, 20))
    assert alarms(run) == ([("wiring", "targets-outside")] if classes_ > 2 else [])


def watched(path, model, loss_of, labels, closure=True):
    """Thirty updates on noise whose labels are these of it."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with diagnostics.watch(model, optimizer, path / "run", budget=ANY) as monitor:
        for _ in range(30):
            x = torch.randn(32, 8)
            t = labels(x)
            optimizer.zero_grad()
            value = loss_of(x, t)
            value.backward()
            optimizer.step()
            monitor.step(value, closure=partial(loss_of, x, t) if closure else None)
    return diagnostics.diagnose(diagnostics.load(path / "run"))


def pairs(model, x):
    """Two vectors of each example."""
    return model(x[:, :4]), model(x[:, 4:])


OF_PAIRS = {
    "cosine": lambda model, x, t: F.cosine_embedding_loss(*pairs(model, x), t),
    "cosine, by name": lambda model, x, t: nn.CosineEmbeddingLoss()(*pairs(model, x), target=t),
    "hinge": lambda model, x, t: F.hinge_embedding_loss((pairs(model, x)[0] - pairs(model, x)[1]).norm(dim=1), t),
    "soft margin": lambda model, x, t: F.soft_margin_loss(pairs(model, x)[0][:, 0], t),
}


@pytest.mark.parametrize("loss", ["cosine", *(pytest.param(each, marks=MORE) for each in OF_PAIRS if each != "cosine")])
@pytest.mark.parametrize(("labels", "expected"), [((0.0, 1.0), True), ((-1.0, 1.0), False), ((-1.0, 0.0), False)])
def test_labels_of_zero_where_they_are_1_and_minus_1(loss, labels, expected, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))
    found = watched(tmp_path, model, partial(OF_PAIRS[loss], model), lambda x: torch.where(x[:, 0] > x[:, 4], *labels))
    assert any(each.cause == "targets-outside" for each in found.findings) == expected


def test_a_model_that_computes_its_loss_itself_is_looked_at_without_a_closure(tmp_path):
    class Pairs(nn.Linear):
        def forward(self, x, t):
            return F.cosine_embedding_loss(*pairs(super().forward, x), t)

    model = Pairs(4, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(32, 8), torch.arange(32) % 2)
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    run = diagnostics.load(tmp_path / "run")
    assert "measurement-failed" not in set(run.table("events")["kind"])
    assert not run.meta["unsigned"]


HINGES = {
    "mean": lambda y, t: torch.clamp(1 - t * y, min=0).mean(),
    "sum": lambda y, t: F.relu(1 - t * y).sum(),
    "squared": lambda y, t: F.relu(1 - t * y).square().mean(),
    "and a penalty": lambda y, t: F.relu(1 - t * y).mean() + 0.013 * y.square().mean(),
    "absolute": lambda y, t: (y - t).abs().mean(),
    "wider": lambda y, t: F.relu(2 - t * y).mean(),
    "clipped": lambda y, t: torch.clamp(1 - t * y, 0, 1).mean(),
    "thrice": lambda y, t: 3 * F.relu(1 - t * y).mean(),
    "and one more": lambda y, t: F.relu(1 - t * y).sum() + 1000,
}


@pytest.mark.parametrize("loss", HINGES)
@pytest.mark.parametrize("labels", [(0.0, 1.0), (-1.0, 1.0), (-1.0, 0.0, 1.0), (1.0,)], ids=str)
def test_labels_of_a_hinge_loss_by_its_gradient(loss, labels):
    draw = torch.Generator().manual_seed(0)
    t = torch.tensor(labels)[torch.randint(len(labels), (200, 1), generator=draw)]
    y = (torch.randn(200, 1, generator=draw) + 0.5).requires_grad_()  # some are right by a margin
    value = HINGES[loss](y, t)
    (gradient,) = torch.autograd.grad(value, y)
    found = float(stats.labels_of_zero(y, gradient, value))
    if loss in ("mean", "sum") and -1 not in labels:
        assert found == pytest.approx(float((t == 0).float().mean()))
    elif loss != "clipped" or 0.0 not in labels:  # else they are there, and add 1 as they do in a hinge loss
        assert not found > 0


@pytest.mark.parametrize(("low", "told"), [(0.0, True), (-1.0, False)])
def test_a_hinge_loss_by_hand_whose_labels_are_0_and_1(low, told, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1))

    def loss_of(x, t):
        return HINGES["mean"](model(x).squeeze(1), t)

    found = watched(tmp_path, model, loss_of, lambda x: torch.where(x[:, 0] > 0, 1.0, low), closure=False).alarms
    assert ["takes labels of 1 and -1, but" in each.summary for each in found] == [True] * told


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["masked", "another term"])
def test_labels_of_zero_that_leave_pairs_out(case, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 4))

    def loss_of(x, t):
        a, b = pairs(model, x)
        if case == "masked":
            return (F.cosine_embedding_loss(a, b, t, reduction="none") * t).sum() / t.sum()
        return F.cosine_embedding_loss(a, b, t) + torch.pdist(F.normalize(a)).square().mul(-2).exp().mean().log()

    found = watched(tmp_path, model, loss_of, lambda x: (x[:, 0] > x[:, 4]).float())
    assert not any(each.cause == "targets-outside" for each in found.findings)


@pytest.mark.exhaustive
def test_labels_corrected_for_noise_lie_outside_by_design(tmp_path):
    """Natarajan et al. 2013: (t - rho) / (1 - 2 rho) of labels of which rho are wrong is right on average."""
    x, t = classes()
    wrong = torch.rand(len(t), 1, generator=torch.Generator().manual_seed(3)) < 0.3
    seen = torch.where(wrong, t[:, None] >= 3, t[:, None] < 3).float()
    torch.manual_seed(2)
    model = nn.Linear(8, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    batches = epochs(x, (seen - 0.3) / 0.4, torch.randperm, 60, 20)
    assert not alarms(trained(tmp_path / "run", model, optimizer, F.binary_cross_entropy_with_logits, batches))


@pytest.mark.exhaustive
def test_a_cross_entropy_weighted_by_advantages_is_below_zero_by_design(tmp_path):
    x, t = classes()
    model = network(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    torch.manual_seed(0)
    target = torch.cat([(t[:, None] < 3).float(), torch.randn(len(t), 1) - 0.5], 1)
    loss_of = lambda z, each: F.binary_cross_entropy_with_logits(z, each[:, :1], weight=each[:, 1:])  # noqa: E731
    run = trained(tmp_path / "run", model, optimizer, loss_of, epochs(x, target, torch.randperm, 30, 8))
    assert ("wiring", "targets-outside") not in alarms(run)


@pytest.mark.exhaustive
def test_the_pixels_of_one_example_are_no_batch(tmp_path):
    """One image an update, all of one class, in random order, some labels wrong."""
    draw = torch.Generator().manual_seed(0)
    kind = torch.randint(2, (300,), generator=draw).float()
    images = kind[:, None, None, None] * 2 - 1 + torch.randn(300, 1, 8, 8, generator=draw) / 2
    wrong = torch.rand(300, generator=draw) < 0.04
    masks = torch.where(wrong, 1 - kind, kind)[:, None, None, None].expand(-1, 1, 8, 8)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 1, 3, padding=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    batches = ((images[at : at + 1], masks[at : at + 1]) for at in range(300))
    run = trained(tmp_path / "run", model, optimizer, F.binary_cross_entropy_with_logits, batches)
    assert len(signals.column(run, "constant_loss")[1]) and not len(signals.column(run, "target_spread")[1])
    assert not alarms(run)


class Recall(nn.Module):
    """Which value stands beside the key that is asked for."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale
        self.query, self.key = (nn.Linear(32, 32, bias=False) for _ in range(2))
        self.value, self.head = nn.Embedding(8, 32), nn.Linear(32, 8)
        nn.init.eye_(self.query.weight)
        nn.init.normal_(self.key.weight, std=8.0)

    def forward(self, inputs):
        query, keys, values = inputs
        scores = (self.key(keys) @ self.query(query)[:, :, None]).squeeze(-1) * self.scale
        return self.head((F.softmax(scores, -1)[:, None] @ self.value(values)).squeeze(1))


def padded(x):
    """Rescaled in place, and then a part of another image in its place, as of a crop that goes beyond the edge."""
    read = x.sub_(2).div_(2).clone()
    read[:, :24] = torch.where(torch.rand(len(x), 1) < 0.5, 0.0, 1.0)
    return read


def by_channel(x):
    """Each half of the features by a deviation of its own."""
    x[:, :32].sub_(0.5).div_(0.3)
    x[:, 32:].sub_(0.4).div_(0.2)
    return x


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("rescale", "expected"),
    [
        (lambda x: x.div_(16), [("wiring", "inputs-change")]),
        pytest.param(lambda x: x.sub_(0.5).div_(0.3), [("wiring", "inputs-change")], marks=pytest.mark.exhaustive),
        (lambda x: x.sub_(2).div_(2), [("wiring", "inputs-change")]),  # to the constant that this leaves alone
        (padded, [("wiring", "inputs-change")]),
        (by_channel, [("wiring", "inputs-change")]),
        (lambda x: x / 16, []),
    ],
)
def test_data_that_each_reading_rescales(rescale, expected, tmp_path):
    """Six epochs of digits, read as views of the stored ones."""
    pixels, classes = load_digits(return_X_y=True)
    stored, y = torch.tensor(pixels, dtype=torch.float32), torch.tensor(classes)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)

    def batches():
        for _ in range(6):
            for at in torch.randperm(28).tolist():
                rows = slice(64 * at, 64 * at + 64)
                yield rescale(stored[rows]), y[rows]

    run = trained(tmp_path / "run", model, optimizer, F.cross_entropy, batches())
    assert alarms(run) == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("widths", [(0.02, 1.0), (1.0, 0.02)], ids=["widening", "narrowing"])
def test_a_curriculum_of_ranges_is_no_rescaling(widths, tmp_path):
    """About the same middle, however much the target is noise."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def batches():
        for width in torch.linspace(*widths, 300).tolist():
            x = 1 + width * torch.randn(64, 8)
            yield x, x[:, :1] + torch.randn(64, 1)

    assert ("wiring", "inputs-change") not in alarms(trained(tmp_path / "run", model, optimizer, F.mse_loss, batches()))


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["stored", *(pytest.param(each, marks=MORE) for each in ("fresh", "ramp", "drift"))])
def test_noise_that_each_reading_adds_to_the_stored_data(case, tmp_path):
    """Information. Beside fresh noise on every batch, a schedule that raises its deviation, and features that drift by
    themselves: in all but the second the loss rises as the inputs grow."""
    torch.manual_seed(0)
    x = torch.randn(1280, 8)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3]
    model = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    own = torch.rand(8) ** 2

    def batches():
        for epoch in range(40):
            for at in torch.randperm(20).tolist():
                rows = slice(64 * at, 64 * at + 64)
                noise = torch.randn(64, 8)
                if case == "stored":
                    yield x[rows].add_(0.2 * noise), y[rows]
                else:
                    size = {"fresh": 0.2, "ramp": epoch / 25, "drift": own * (epoch / 10) ** 0.5}[case]
                    yield x[rows] + size * noise, y[rows]

    run = trained(tmp_path / "run", model, optimizer, F.mse_loss, batches())
    assert ("wiring", "inputs-change") not in alarms(run)
    found = [each for each in diagnostics.diagnose(run).findings if each.cause == "inputs-change"]
    assert len(found) == (case == "stored")


def recalled(updates):
    for _ in range(updates):
        keys, values = torch.randn(64, 12, 32), torch.randint(8, (64, 12))
        asked = torch.randint(12, (64,))
        rows = torch.arange(64)
        yield (keys[rows, asked], keys, values), values[rows, asked]


@pytest.mark.exhaustive
@pytest.mark.parametrize("scale", [1.0, pytest.param(1 / 256, marks=pytest.mark.exhaustive)])
def test_attention_that_is_sure_from_the_start(scale, tmp_path):
    torch.manual_seed(0)
    model = Recall(scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    run = trained(tmp_path / "run", model, optimizer, F.cross_entropy, recalled(300))
    assert alarms(run) == ([("plateau", "hard-attention")] if scale == 1 else [])


@pytest.mark.exhaustive
@pytest.mark.parametrize("sharpness", [8.0, pytest.param(0.05, marks=pytest.mark.exhaustive)])
def test_attention_that_is_sure_from_the_start_of_what_is_right(sharpness, tmp_path):
    """It learns all the same, which is no alarm."""
    torch.manual_seed(0)
    model = Recall(1.0)
    nn.init.eye_(model.key.weight).data.mul_(sharpness)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    run = trained(tmp_path / "run", model, optimizer, F.cross_entropy, recalled(60))
    assert alarms(run) == []
    told = [finding.cause for finding in diagnostics.diagnose(run).findings if finding.kind == "saturated-units"]
    assert told == (["initialization"] if sharpness == 8 else [])


@pytest.mark.parametrize(("growth", "held_up"), [(1.0, True), (3.0, False)])
def test_a_gradient_that_grows_is_no_motion_around_a_minimum(growth, held_up, tmp_path):
    draw = torch.Generator().manual_seed(0)
    writer = RunWriter(tmp_path / "run", {"optimizer": "Adam", "closure": True})
    for step in range(1, 401):
        noise = 1 + 0.1 * float(torch.randn((), generator=draw))
        loss = noise * (1.0 if step < 20 else 0.2)
        row = {"loss": loss, "lr": 0.01, "grad_norm": noise * growth ** (step / 400), "update_norm": 0.1}
        writer.append("scalars", step, row | {"overshoot": noise, "gradient_cosine": -0.3})
        if step % 50 == 0:
            writer.append("curvature", step, {"eigenvalues": [1.0], "stability": 0.8})
    writer.close("finished")
    run = diagnostics.load(tmp_path / "run")
    assert noise_ball.too_far(run, signals.loss(run), *steps_made.stability(run)) == held_up


@pytest.mark.parametrize(("update", "expected"), [(0.009, []), (2.0, [("cliff", None)])])
def test_other_data_that_take_two_updates_to_come_are_no_wall(update, expected, tmp_path):
    """What an update as long as the ones before cannot have lifted the loss by, is in the data."""
    draw = torch.Generator().manual_seed(0)
    quiet, burst = [(0.01, 0.09)] * 40, [(8.5, 7.0), (11.0, 17.0), (10.0, 16.0), (1.0, 2.0)]
    writer = RunWriter(tmp_path / "run", {"optimizer": "Adam", "closure": False})
    for step, (loss, norm) in enumerate([*quiet, *burst, *[(0.05, 0.3)] * 60], 1):
        noise = 1 + 0.05 * float(torch.randn((), generator=draw))
        row = {"loss": loss * noise, "lr": 0.003, "grad_norm": norm * noise, "update_norm": update}
        writer.append("scalars", step, row)
    writer.close("finished")
    found = alarms(diagnostics.load(tmp_path / "run"))
    assert [each for each in found if each[0] == "cliff"] == expected


@pytest.mark.parametrize(("unit", "told"), [(1e-5, True), (1.0, False)])
@pytest.mark.every_case
def test_targets_in_a_unit_so_large_that_they_are_next_to_nothing(tmp_path, unit, told):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    with diagnostics.watch(model, optimizer, tmp_path, budget=100.0, curvature_every=1000) as monitor:
        for _ in range(300):
            x = torch.randn(64, 4)
            y = unit * (x[:, :1] + x[:, 1:2] * x[:, 2:3])
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y: F.mse_loss(model(x), y))
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).alarms if each.kind == "plateau"]
    assert [each.cause for each in found] == (["start-far-off"] if told else [])
    assert all("the targets that are small" in each.summary for each in found)
