"""Losses written out by hand: what meets what, in which order it was flattened, and where its gradient ends."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.monitor import ending
from diagnostics.monitor.broadcasts import Broadcasts
from diagnostics.monitor.looking import TRIES
from diagnostics.monitor.losspath import makes_pairs
from diagnostics.monitor.masks import Masks
from diagnostics.monitor.observe import Observer
from diagnostics.rules import plateau, wiring, zero_gradient
from diagnostics.run import Run

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is
STEPS = np.arange(1, 401)


def run_of(meta=None, **tables):
    given = {"name": "test", "status": "finished", "optimizer": "Adam", "hyperparameters": [{"lr": 0.1}]}
    return Run.from_frames(given | (meta or {}), {name: pd.DataFrame(columns) for name, columns in tables.items()})


def focal(p, y):
    right = p * y + (1 - p) * (1 - y)
    weight = 0.75 * y + 0.25 * (1 - y)
    return (-weight * (1 - right) ** 2 * torch.log(right.clamp_min(1e-6))).mean()


def binary(p, y):
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).sum() / len(y)


def hinge(p, y):
    return torch.clamp(1 - (2 * y - 1) * p, min=0).mean()


@pytest.mark.parametrize("loss", [focal, binary, hinge])
def test_a_column_of_outputs_that_meets_a_row_of_labels(loss):
    torch.manual_seed(0)
    x, y = torch.randn(32, 5), (torch.rand(32) < 0.3).float()
    layer = nn.Linear(5, 1)
    assert labelled(lambda: loss(torch.sigmoid(layer(x)), y)) == 32
    assert labelled(lambda: loss(torch.sigmoid(layer(x))[:, 0], y)) == 0
    assert labelled(lambda: loss(torch.sigmoid(layer(x)), y[:, None])) == 0


def labelled(closure):
    with Broadcasts() as seen:
        loss = closure()
    return seen.labelled if makes_pairs(loss) else 0


@pytest.mark.parametrize(
    "loss",
    [
        lambda out, y, t: torch.exp(-((out - t) ** 2)).mean(),  # a kernel of samples
        lambda out, y, t: torch.log(torch.cosh(out - out.t())).mean(),  # each output and each other one
        lambda out, y, t: (F.softplus(out * y) * (t[:, None] > t)).mean(),  # pairs that are chosen
        lambda out, y, t: torch.logsumexp(out * y, 1).mean(),
        lambda out, y, t: (torch.sigmoid(out * y) @ t).mean(),
        lambda out, y, t: (out * y).diagonal().mean(),
    ],
)
def test_pairs_that_are_meant(loss):
    torch.manual_seed(0)
    x, y, times = torch.randn(32, 5), (torch.rand(32) < 0.3).float(), torch.rand(32)
    layer = nn.Linear(5, 1)
    assert labelled(lambda: loss(layer(x), y, times)) == 0


def test_a_focal_loss_of_all_pairs_is_named(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 1), nn.Sigmoid()), torch.randn(32, 5)
    watch(tmp_path, model, lambda: focal(model(x), (x[:, 0] > 0).float()))
    (found,) = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "wiring"]
    assert (found.cause, found.severity) == ("shapes-broadcast", "critical")
    assert "each of 32 outputs with all 32 targets" in found.summary


def watch(path, model, loss, updates=30):
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(updates):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            monitor.step(value, closure=loss)


@pytest.mark.parametrize(
    ("outputs", "targets", "crossed"),
    [
        ((7, 4, 9), (4, 7), True),
        ((7, 4, 9), (7, 4), False),
        ((4, 4, 9), (4, 4), False),  # which nobody can tell
        ((28, 9), (4, 7), False),
        ((7, 4, 9), (28,), False),
    ],
)
def test_outputs_and_targets_flattened_in_other_orders(outputs, targets, crossed):
    x, y = torch.randn(outputs, requires_grad=True), torch.randint(0, 9, targets)
    with Observer(nn.Linear(1, 1), asking=True) as observer:
        F.cross_entropy(x.reshape(-1, 9), y.reshape(-1))
    assert observer.flattened.crossed == ([list(outputs[:2]), list(targets)] if crossed else [])


@pytest.mark.parametrize("transposed", [False, True])
def test_targets_in_another_order_are_named(transposed, tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9)), torch.randint(0, 9, (12, 6))

    def loss():
        logits, y = model(x.t()), x.t() if transposed else x
        return F.cross_entropy(logits.flatten(0, 1), y.flatten())

    watch(tmp_path, model, loss)
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "wiring"]
    assert [each.cause for each in found] == ["scrambled-view"] * (not transposed)
    assert transposed or "from (6, 12), and the targets from (12, 6)" in found[0].summary


def dice(p, t):
    return 1 - (2 * (p * t).sum((0, 2, 3)) / (p.sum((0, 2, 3)) + t.sum((0, 2, 3)))).mean()


def by_logs(p, t):
    return -(t * p.clamp(min=1e-6).log()).sum(1).mean()


ONE_HOT = F.one_hot(torch.arange(2 * 5 * 4).reshape(2, 5, 4) % 3, 3).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("loss", [dice, by_logs, F.mse_loss, F.binary_cross_entropy])
@pytest.mark.parametrize(
    ("axis", "targets", "told"),
    [
        (-1, ONE_HOT, [3, 1, 2, 3, 5, 4]),
        (2, ONE_HOT, [2, 1, 2, 3, 5, 4]),
        (1, ONE_HOT, []),
        (-1, ONE_HOT * 0.8 + 0.05, []),
        (-1, (ONE_HOT + ONE_HOT.roll(1, 1)).clamp(max=1), []),  # several classes at once
        (1, torch.eye(4)[[0, 2, 1, 3]].expand(2, 3, 4, 4), []),  # one along two axes, as a permutation is
    ],
)
def test_a_softmax_along_another_axis_than_the_classes(axis, targets, told, loss):
    torch.manual_seed(0)
    with Observer(nn.Linear(1, 1), asking=True) as observer:
        loss(torch.randn_like(targets).softmax(axis), targets)
    assert observer.axes.told == told


class Attention(nn.Module):
    """Of one head, written out, over places of a text or over parts of a picture."""

    def __init__(self, axis: int, causal: bool) -> None:
        super().__init__()
        self.embed, self.qkv, self.head = nn.Embedding(7, 8), nn.Linear(8, 24), nn.Linear(8, 7)
        self.axis, self.causal = axis, causal

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.embed(x)).chunk(3, -1)
        scores = q @ k.transpose(-2, -1)
        if self.causal:
            scores = scores.masked_fill(torch.ones_like(scores).tril() == 0, float("-inf"))
        return self.head(F.dropout(scores.softmax(self.axis), 0.0) @ v)


@pytest.mark.parametrize(
    ("axis", "causal", "told"),
    [(-1, True, []), (-2, True, [4, 6, 6]), (1, True, [4, 6, 6]), (-2, False, []), (-1, False, [])],
)
def test_attention_whose_softmax_is_taken_along_the_queries(axis, causal, told, tmp_path):
    """Without a mask it may be meant: slots share out the places among themselves."""
    torch.manual_seed(0)
    model, text = Attention(axis, causal), torch.randint(7, (4, 7))
    watch(tmp_path, model, lambda: F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()))
    run = diagnostics.load(tmp_path)
    assert run.meta["over_queries"] == told
    found = [each for each in diagnostics.diagnose(run).findings if each.cause == "softmax-axis"]
    assert [each.severity for each in found] == ["critical"] * bool(told)
    assert not told or "of shape (4, 6, 6), add up to 1 along axis 1, but values are summed along axis 2" in str(found)


@pytest.mark.parametrize("axis", [1, 3])
def test_the_axis_of_a_softmax_is_named(axis, tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Softmax(axis)), torch.randn(2, 1, 5, 4)
    watch(tmp_path, model, lambda: dice(model(x), ONE_HOT))
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.kind == "wiring"]
    assert [each.cause for each in found] == ["softmax-axis"] * (axis == 3)
    assert axis == 1 or "of shape (2, 3, 5, 4) along axis 3" in found[0].summary


@pytest.mark.parametrize(
    ("layers", "loss", "told"),
    [
        ([nn.Linear(5, 1), nn.Dropout(0.5)], F.mse_loss, [0.5, 1.0]),
        ([nn.Linear(5, 1), nn.Dropout(0.2), nn.Flatten(0)], lambda a, b: F.l1_loss(a, b[:, 0]), [0.2, 1.0]),
        ([nn.Linear(5, 3), nn.Dropout(0.5)], lambda a, b: F.cross_entropy(a, b[:, 0].long()), [0.5, 0.0]),
        ([nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 1)], F.mse_loss, []),
        ([nn.Linear(5, 1), nn.Dropout(0.0)], F.mse_loss, []),
        ([nn.Linear(5, 1), nn.Dropout(0.5).eval()], F.mse_loss, []),
    ],
    ids=range(6),
)
def test_dropout_behind_the_last_layer(layers, loss, told):
    torch.manual_seed(0)
    model, x = nn.Sequential(*layers), torch.randn(32, 5)
    with Observer(model, asking=True) as observer:
        loss(model(x), (x[:, :1] > 0).float())
    assert observer.dropped.told == told


@pytest.mark.parametrize(("numbers", "severities"), [(1.0, ["warning"]), (0.0, ["info"])])
def test_scores_outlive_a_dropout_that_numbers_do_not(numbers, severities):
    scalars = {"step": STEPS, "loss": np.linspace(3.0, 0.5, 400), "lr": 0.1, "grad_norm": 1.0, "carried_grad_norm": 0.0}
    found = list(wiring.check(run_of({"dropped_output": [0.5, numbers]}, scalars=scalars)))
    assert [each.severity for each in found] == severities
    assert found[0].summary.startswith("Dropout follows the last layer: 50 % of the")


def test_where_a_gradient_ends():
    torch.manual_seed(0)
    model, x = nn.Linear(5, 64), torch.randn(16, 5)

    def ends(loss):
        return ending.ends(lambda: loss(model(x)), model, list(model.parameters()), None)

    assert ends(lambda out: -torch.log(torch.exp(-4 - out**2).prod(1).clamp(min=1e-8)).mean()) == ["clamp"]
    assert ends(lambda out: torch.exp(-500 - out**2).mean()) == ["exp"]
    assert ends(lambda out: F.relu(-5 - out.sigmoid()).sum()) == ["relu"]
    assert ends(lambda out: (0 * out).sum()) == ["mul"]
    assert ends(lambda out: (out - model(x)).exp().mean()) == [ending.CANCELLED]  # as a policy over itself
    assert ends(lambda out: (out - model(x).detach()).exp().mean()) == []
    assert ends(lambda out: out.square().mean() + torch.exp(-500 - out**2).mean()) == []  # the rest gets one
    assert all(parameter.grad is None for parameter in model.parameters())


def test_where_the_gradient_of_one_head_ends():
    torch.manual_seed(0)
    body, idle, used, x = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(8, 4), torch.randn(16, 5)

    def closure():
        return used(body(x)).square().mean() + (idle(body(x)).sigmoid() - 3).clamp(min=0).sum()

    model = nn.ModuleList([body, idle, used])
    assert ending.ends(closure, model, list(idle.parameters()), None) == ["clamp"]
    assert ending.ends(closure, model, list(body.parameters()), None) == []


@pytest.mark.parametrize(
    ("ends", "severity"),
    [(["clamp"], "warning"), (["mul"], "info"), (["relu"], "info"), ([], "info"), ([ending.CANCELLED], "warning")],
)
def test_a_head_whose_gradient_a_clamp_takes(ends, severity, tmp_path):
    """In a run that learns beside it."""
    names = ["body.weight", "head.weight", "idle.weight"]
    layers = {"step": np.repeat(STEPS[::20], 3), "layer": names * 20, "grad_norm": [1.0, 1.0, 0.0] * 20}
    meta = {"layers": [{"name": name, "shape": [8, 8], "parameters": 64} for name in names], "gradient_ends": ends}
    scalars = {"step": STEPS, "loss": np.linspace(3.0, 1.5, 400), "lr": 0.1, "grad_norm": 1.0}
    (found,) = zero_gradient.check(run_of(meta, scalars=scalars, layers=layers | {"weight_norm": 1.0}))
    assert (found.layers, found.severity) == (("idle.weight",), severity)
    cancelled = ends == [ending.CANCELLED]
    assert (found.cause == "cancelled") == cancelled
    first = "Opposite gradients cancel exactly: " if cancelled else f"The gradient ends at {ends[0]}: " if ends else ""
    assert found.summary.startswith(first or "1 of 3 trainable tensors")


@pytest.mark.parametrize(("left", "cause"), [(0.0, "clipped-to-zero"), (1e-3, None)])
@pytest.mark.every_case
def test_clipping_that_leaves_nothing(left, cause):
    layers = {"step": np.repeat(STEPS[::20], 2), "layer": ["0.weight", "1.weight"] * 20, "weight_norm": 1.0}
    scalars = {"step": STEPS, "loss": 0.6, "lr": 0.1, "grad_norm": left, "grad_norm_unclipped": 0.8}
    run = run_of(scalars=scalars, layers=layers | {"grad_norm": 0.0})
    (found,) = zero_gradient.check(run)
    assert (found.cause, found.severity) == (cause, "critical")
    assert not cause or "its norm is 0.8 before, and 0 after" in found.summary


def test_an_offset_that_cancels_in_differences_of_answers_is_no_fault():
    layers = {"step": np.repeat(STEPS[::20], 2), "layer": ["head.weight", "offset"] * 20, "weight_norm": 1.0}
    told = [
        {"name": "head.weight", "shape": [1, 8], "parameters": 8},
        {"name": "offset", "shape": [1], "parameters": 1},
    ]
    scalars = {"step": STEPS, "loss": np.linspace(3.0, 1.5, 400), "lr": 0.1, "grad_norm": 1.0}
    run = run_of(
        {"layers": told, "gradient_ends": [ending.CANCELLED]},
        scalars=scalars,
        layers=layers | {"grad_norm": [1, 0] * 20},
    )
    assert [(found.layers, found.severity) for found in zero_gradient.check(run)] == [(("offset",), "info")]


def test_where_it_ends_is_asked_for_one_head_and_again_for_all(tmp_path):
    torch.manual_seed(0)
    body, idle, x = nn.Linear(5, 8), nn.Linear(8, 4), torch.randn(16, 5)
    model, updates = nn.ModuleList([body, idle]), []

    def loss():
        return (body(x).square().mean() if len(updates) < 12 else 0) + torch.exp(-500 - idle(body(x)) ** 2).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(30):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            monitor.step(value, closure=loss)
            updates.append(value)
            if len(updates) == 11:
                assert monitor._looking._ended == {"some": TRIES}
    assert monitor._looking._ended == {"some": TRIES, "all": TRIES}
    assert diagnostics.load(tmp_path).meta["gradient_ends"] == ["exp"]


def test_where_it_ends_is_asked_again_while_weights_leave_zero(tmp_path):
    torch.manual_seed(0)
    body, idle, used, x = nn.Linear(5, 8), nn.Linear(8, 4), nn.Linear(8, 4), torch.randn(16, 5)
    nn.init.zeros_(used.weight)  # so that no gradient comes to what lies before, at first
    model = nn.ModuleList([body, idle, used])

    def loss():
        return (used(body(x)) - 1).square().mean() + (idle(body(x)) - 99).relu().sum()

    watch(tmp_path, model, loss)
    assert diagnostics.load(tmp_path).meta["gradient_ends"] == ["relu"]


def test_a_clamp_that_all_likelihoods_are_below_is_named(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Linear(5, 64), torch.randn(16, 5)
    watch(tmp_path, model, lambda: -torch.log(torch.exp(-4 - model(x) ** 2).prod(1).clamp(min=1e-8)).mean())
    found = diagnostics.diagnose(diagnostics.load(tmp_path)).findings[0]
    assert (found.kind, found.severity) == ("zero-gradient", "critical")
    assert found.summary.startswith("The gradient ends at clamp: all that it was given lies beyond its bounds. 2 of 2")
    assert "logsumexp" in found.remedies[0]


def test_a_gradient_that_is_gone_later_says_where_it_ends():
    norms = np.where(STEPS < 100, 1.0, 0.0)
    rows = {"step": STEPS[::10], "layer": "0.weight", "grad_norm": norms[::10], "weight_norm": 1.0}
    scalars = {"step": STEPS, "loss": np.where(STEPS < 100, 18.0, 18.42), "lr": 0.1, "grad_norm": norms}
    meta = {"layers": [{"name": "0.weight", "shape": [8, 8], "parameters": 64}], "gradient_ends": ["clamp"]}
    (found,) = zero_gradient.check(run_of(meta, scalars=scalars, layers=rows))
    assert found.summary.endswith("18.4. The gradient ends at clamp: all that it was given lies beyond its bounds.")


@pytest.mark.parametrize("texts", [32, 8])  # 8: as many as tokens in each
@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.every_case
def test_a_mark_that_all_ask_is_no_padding(padding, texts):
    """The first token is the same in each text, and the only one in sight; of padding there would be more."""
    torch.manual_seed(0)
    tokens, q = torch.randint(2, 9, (texts, 8)), torch.randn(texts, 1, 8, 4)
    seen = torch.arange(8) < (2 if padding else 1)
    tokens[:, seen] = 1
    masks = Masks()
    masks.follow(F.embedding, (tokens, torch.randn(9, 4)), {})
    masks.follow(F.scaled_dot_product_attention, (q, q, q, seen.expand(texts, 1, 1, 8)), {})
    assert masks.padding_alone() == ([1, 7] if padding else [])


def test_rows_of_other_lengths_and_of_none_are_no_tokens():
    """Nested rows, an empty batch, and one that is no data."""
    masks, weight = Masks(), torch.randn(4, 3)
    nested = torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(5, 3)], layout=torch.jagged)
    for x in (nested, torch.randn(0, 5, 3), torch.randn(2, 5, 3, requires_grad=True), torch.randn(5, 3)):
        masks.follow(F.linear, (x, weight), {})
    assert not masks._tokens


@pytest.mark.parametrize(("end", "severity"), [(3.0, "critical"), (0.5, "warning")])
def test_a_mask_of_the_wrong_sign_is_an_alarm_while_it_learns_something_else(end, severity):
    scalars = {"step": STEPS, "loss": np.linspace(3.0, end, 400), "lr": 0.1, "grad_norm": 1.0, "carried_grad_norm": 0.0}
    found = list(wiring.check(run_of({"padding_alone": [0, 20]}, scalars=scalars)))
    assert [(each.cause, each.severity) for each in found] == [("mask-inverted", severity)]


@pytest.mark.parametrize(
    ("shapes", "severity"), [([[32, 9, 9, 3], [32, 3, 9, 9]], "warning"), ([[32, 42, 6], [32, 6, 42]], "info")]
)
def test_inputs_that_seem_scrambled_while_something_is_learned(shapes, severity):
    """Pixels cannot lie so by chance, a series can."""
    scalars = {"step": STEPS, "loss": np.linspace(3.0, 0.5, 400), "lr": 0.1, "grad_norm": 1.0, "carried_grad_norm": 0.0}
    found = list(wiring.check(run_of({"input_order": shapes}, scalars=scalars)))
    assert [(each.cause, each.severity) for each in found] == [("scrambled-view", severity)]


def test_what_decay_left_of_most_matrices_no_norm_makes_up_for():
    """Adam, which divides the decay by its size: half of the weights are gone, and what is not are norms' gains."""
    measured, names = STEPS[::20], [f"{at}.weight" for at in range(4)]

    def found(left, decoupled=False):
        sizes = np.where((measured[:, None] > 100) & (np.arange(4) < 3), 4 * left, 4.0)
        layers = {"step": np.repeat(measured, 4), "layer": names * len(measured), "grad_norm": 1.0}
        meta = {
            "layers": [{"name": name, "shape": [50, 50], "parameters": 2500} for name in names],
            "modules": [{"name": "4", "type": "LayerNorm"}],
            "hyperparameters": [{"weight_decay": 0.1, "decoupled_weight_decay": decoupled}],
        }
        scalars = {"step": STEPS, "loss": 1.6, "lr": 0.1, "weight_norm": 40.0}
        alarms = plateau.check(run_of(meta, scalars=scalars, layers=layers | {"weight_norm": sizes.ravel()}))
        return [each for each in alarms if each.alarm]

    (told,) = found(1e-3)
    assert told.cause == "weight-decay"
    assert "brought half of all matrices to 0.1 % of their initial size" in told.summary
    assert any("AdamW" in remedy for remedy in told.remedies)
    assert not any("AdamW" in remedy for remedy in found(1e-3, decoupled=True)[0].remedies)
    assert not found(0.05)


@pytest.mark.parametrize(
    ("loss", "guessing"),
    [
        (lambda z, y: F.cross_entropy(z, y), True),
        (lambda z, y: F.cross_entropy(z, y, label_smoothing=0.1), True),
        (lambda z, y: F.cross_entropy(z, y, reduction="sum"), False),
        (lambda z, y: F.cross_entropy(z, y, torch.rand(7)), False),
        (lambda z, y: F.cross_entropy(z, y) + 1, False),
        (lambda z, y: F.cross_entropy(z, y) + F.cross_entropy(z[:, :6], y % 6), False),
    ],
    ids=range(6),
)
def test_where_guessing_has_a_known_loss(loss, guessing, tmp_path):
    torch.manual_seed(0)
    model, x, y = nn.Linear(5, 7), torch.randn(16, 5), torch.arange(16) % 7
    watch(tmp_path, model, lambda: loss(model(x), y), updates=3)
    assert diagnostics.load(tmp_path).meta["guessing"] == (pytest.approx(np.log(7)) if guessing else None)


@pytest.mark.parametrize(("guessing", "end", "told"), [(1.95, 30.0, True), (1.95, 1e-9, False), (None, 30.0, False)])
def test_a_loss_that_stays_worse_than_guessing(guessing, end, told):
    """What a constant answer would have was not measured: scores so large have no gradient to read it from."""
    losses = np.geomspace(5e4, end, 400)
    layers = {"step": STEPS[9::10], "layer": "0.weight", "grad_norm": 1.0, "weight_norm": 1.0}
    run = run_of({"guessing": guessing}, scalars={"step": STEPS, "loss": losses, "lr": 0.1}, layers=layers)
    found = [each for each in plateau.check(run) if each.alarm]
    assert [each.cause for each in found] == ["start-far-off"] * told
    assert not told or "the same answer to every input would have 1.95" in found[0].summary
