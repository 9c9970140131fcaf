"""Shapes that fit though they mean something else, each beside the same loop with the right ones."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.monitor.losspath import all_columns, all_pairs, one_answer, one_sum, products
from diagnostics.monitor.observe import Observer
from diagnostics.monitor.places import scrambles
from diagnostics.run import Run
from tests.test_rules_mistakes import alarms, diagnosed

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is
pytestmark = pytest.mark.exhaustive  # minutes; `make test` has a few of each kind elsewhere


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("compared", "told"),
    [
        (F.mse_loss, False),
        (lambda out, target: F.mse_loss(out, target[:, 0]), True),
        (lambda out, target: F.mse_loss(out.mean(0, keepdim=True), target), True),
    ],
    ids=["columns", "a column and a row", "all examples pooled into one"],
)
def test_outputs_and_targets_that_broadcast(compared, told, tmp_path):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))

    def squared(model, x, y):
        return compared(model(x), x[:, :1] - x[:, 1:2] * x[:, 2:3])

    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-2), squared)
    assert alarms(found) == ([("wiring", "shapes-broadcast")] if told else [])


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_which_losses_compare_every_output_with_every_target():
    column, row, x = torch.randn(7, 1, requires_grad=True), torch.randn(7, requires_grad=True), torch.randn(7, 3)
    y, out, other = torch.randn(7), nn.Linear(3, 1)(x), torch.randn(7, 2, requires_grad=True)
    wrong = [
        F.mse_loss(out, y), F.l1_loss(out, y), F.smooth_l1_loss(out, y), F.huber_loss(out, y),
        ((out - y) ** 2).mean(), (y - out).abs().sum() / 7, (out - y).square().mean().sqrt(),
        F.mse_loss(out, y) + column.square().sum(), F.mse_loss(row, y[:, None]),
        (out.t() - y[:, None]).abs().mean(),
    ]  # fmt: skip
    between = (column - y).abs().mean()
    right = [
        F.mse_loss(out[:, 0], y), F.mse_loss(out, y[:, None]), F.mse_loss(other, torch.randn(2)), F.mse_loss(row, y[0]),
        F.mse_loss(column, torch.randn(3)), (column - row).square().mean(), (column * torch.rand(7, 7)).sum(),
        torch.exp(-(column - y).square()).mean(), between - (column - column.t()).abs().mean() / 2,
        torch.logsumexp((column - y).abs(), 1).mean(), F.cross_entropy(other @ other.t(), torch.arange(7)),
        F.mse_loss(row[:1], y[:1, None]), -between,
    ]  # fmt: skip
    assert [all_pairs(loss) for loss in wrong] == [7] * len(wrong)
    assert [all_pairs(loss) for loss in right] == [0] * len(right)


@pytest.mark.filterwarnings("ignore:Using a target size")
def test_which_losses_compare_one_answer_with_many_targets():
    out, y = nn.Linear(3, 2)(torch.randn(1, 3)), torch.randn(7, 2)
    given, own = nn.Parameter(torch.randn(1, 2)), torch.randn(1, 2, requires_grad=True)
    rows, some = nn.Linear(3, 2)(torch.randn(7, 3)), nn.Linear(3, 2)(torch.randn(4, 3))
    wrong = [
        F.mse_loss(out, y), F.l1_loss(out, y), F.huber_loss(out, y), ((y - out) ** 2).sum() / 7,
        (out[:, 0] - y[:, 0]).abs().mean(), F.smooth_l1_loss(out[:, None], y[:, None]),
    ]  # fmt: skip
    summed = [(torch.sum(rows * y.sign()) - y[:, 0]).square().mean(), F.smooth_l1_loss(rows.sum(), y[:, 0])]
    right = [
        (rows.sum() - y.sum()).square(), (some.sum() - y[:, 0]).square().mean(), F.mse_loss(given.sum(), y[:, 0]),
        F.mse_loss(rows.mean(), y[:, 0]),
        F.mse_loss(out, y[:1]), F.mse_loss(given, y), F.mse_loss(own, y), F.mse_loss(out, y[0]),
        torch.exp(-(out - y).square()).mean(), (out - nn.Linear(2, 2)(y)).square().mean(),
    ]  # fmt: skip
    assert [one_answer(loss) for loss in wrong] == [7] * len(wrong)
    assert [one_answer(loss) for loss in right + summed] == [0] * (len(right) + len(summed))
    assert [one_sum(loss) for loss in wrong + right + summed] == [0] * len(wrong + right) + [7] * len(summed)


def test_which_losses_multiply_every_number_with_every_other():
    column, row, many = torch.randn(7, 1, requires_grad=True), torch.randn(7, requires_grad=True), torch.randn(7, 5)
    a, out = torch.randn(7), nn.Linear(5, 1)(many)
    wrong = [
        -(column * a).mean(), (out * a).sum() / 7, (-out * a).mean() + 0.5 * (row - a).square().mean(),
        (row - a).square().mean() - (row * a[:, None]).mean(), 0.1 * row.square().mean() + (a * out).mean(),
        (out * (a / 3)).mean() - 0.01 * row.sum(),
    ]  # fmt: skip
    right = [
        -(row * a).mean(), (column * a[:, None]).mean(), (column * a).exp().mean(), (out.exp() * many).mean(),
        (column * torch.randn(5)).mean(), (row @ a) / 7, row.mean() * a.mean(),
        ((column - a).square() * torch.rand(7, 7)).mean(), (column * column.t() * torch.rand(7, 7)).sum(),
        (column * row).mean(), (column * column.t()).mean(), (column * a / torch.rand(7, 7)).mean(),
        (row[:1] * a[:1, None]).mean(), (column * a).logsumexp(1).mean(), F.mse_loss(row, a),
    ]  # fmt: skip
    assert [[count for _, count in products(loss)] for loss in wrong] == [[7]] * len(wrong)
    assert [[count for _, count in products(loss)] for loss in right] == [[]] * len(right)


def paid(model, x):
    """What each pays to each other."""
    return (model(x).tanh() * (x @ x.t()).softmax(1)).mean()


def masked(model, x):
    """Where both of a pair are there; the mask is a column times a row."""
    there = (x[:, 0] > 0).float()
    pairs = there[:, None] * there[None, :]
    return (pairs * model(x).square()).sum() / pairs.sum()


def balanced(model, x):
    answers = model(x).tanh()
    return (answers - x[:, :1]).square().mean() + 0.1 * (answers * answers.t()).mean()


def differentiated(model, x):
    """A closure that differentiates by itself."""
    x = x.clone().requires_grad_(True)
    y = model(x)
    slope = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    return slope.square().mean() + (y.tanh() * torch.ones(len(x), len(x))).mean()


@pytest.mark.parametrize("loss_of", [paid, masked, balanced, differentiated])
def test_products_of_pairs_that_are_meant(loss_of, tmp_path):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    run = diagnosed(tmp_path / "run", model, optimizer, lambda model, x, _: loss_of(model, x))
    assert ("wiring", "shapes-broadcast") not in alarms(run)
    assert diagnostics.load(tmp_path / "run").meta["loss_path"]  # what else the loss tells is not lost


@pytest.mark.parametrize("wrong", [True, False])
def test_ratios_in_a_row_and_advantages_in_a_column(wrong, tmp_path):
    """Of which the smaller is taken, clipped or not, in proximal policy optimization."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8))

    def policy(model, x, _):
        chosen = torch.arange(len(x)) % 8
        picked = F.log_softmax(model(x), 1).gather(1, chosen[:, None])[:, 0]
        advantage = (x.argmax(1) == chosen).float()[:, None] - 1 / 8
        ratio = (picked - picked.detach()).exp() if wrong else (picked - picked.detach()).exp()[:, None]
        return -torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean() - 0.01 * picked.exp().mean()

    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-3), policy)
    assert (("wiring", "shapes-broadcast") in alarms(found)) == wrong


@pytest.mark.parametrize("wrong", [True, False])
def test_log_probabilities_in_a_column_and_advantages_in_a_row(wrong, tmp_path):
    """A policy that is rewarded for naming the largest of its inputs."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8))

    def policy(model, x, _):
        chosen = torch.arange(len(x))[:, None] % 8
        picked = F.log_softmax(model(x), 1).gather(1, chosen)
        advantage = (x.argmax(1) == chosen[:, 0]).float() - 1 / 8
        return -(picked * advantage).mean() if wrong else -(picked[:, 0] * advantage).mean()

    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-3), policy)
    assert (("wiring", "shapes-broadcast") in alarms(found)) == wrong


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize(
    ("taken", "wrong"),
    [
        (lambda q, a: q[:, a], True),
        (lambda q, a: q.index_select(1, a), True),
        (lambda q, a: q[torch.arange(len(a)), a], False),
        (lambda q, a: q.gather(1, a[:, None])[:, 0], False),
    ],
)
def test_columns_that_all_rows_ask_for(taken, wrong, tmp_path):
    """Values of four actions, of which each example took one."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    def squared(model, x, y):
        return (taken(model(x), y) - x[:, 0] * x[:, 1]).square().mean()

    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-2), squared)
    assert alarms(found) == ([("wiring", "shapes-broadcast")] if wrong else [])


def test_columns_against_as_many_targets_are_meant(tmp_path):
    """The chance of a link between two nodes is that of their blocks."""
    torch.manual_seed(2)
    block = torch.arange(32) % 4
    links = torch.bernoulli(torch.where(block[:, None] == block, 0.8, 0.1))
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    nodes = torch.randn(4, 8)[block] + 0.1 * torch.randn(32, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = diagnosed(
        tmp_path / "run", model, optimizer, lambda model, x, y: (model(nodes)[:, block] - links).square().mean()
    )
    assert alarms(found) == []


def test_which_losses_take_the_columns_of_others():
    q, a = nn.Linear(3, 4)(torch.randn(7, 3)), torch.randint(4, (7,))
    square, inner = nn.Linear(3, 7)(torch.randn(7, 3)), nn.Linear(4, 1)
    right = [
        q[:, [3, 1]], square[:, torch.randperm(7)], q[a], q[:, a[:5]], q[a][:, [0, 1]],
        inner(q[:, torch.arange(4)]), nn.Linear(7, 1)(q[:, a]),  # a layer reads all of them
    ]  # fmt: skip
    difference, advantage = (q[:, a] - torch.randn(7)).square().mean(), torch.randn(7)
    assert all_columns(difference) == all_columns(-(q.log_softmax(1)[:, a] * advantage).mean()) == 7
    assert all_columns(F.cross_entropy(q[:, a], torch.arange(7))) == 0  # against the others of the batch
    assert [all_columns(each.square().mean()) for each in right] == [0] * len(right)


@pytest.mark.parametrize(
    ("arrange", "expected"),
    [
        (lambda out: out.view(32, 4, 6), [("wiring", "scrambled-view")]),
        (lambda out: out.reshape(32, 4, 6), [("wiring", "scrambled-view")]),
        (lambda out: out.transpose(1, 2), []),
        (lambda out: out.view(32, 2, 12).view(32, 6, 4).permute(0, 2, 1), []),
    ],
)
def test_a_view_where_a_transpose_was_meant(arrange, expected, tmp_path):
    """Labels of positions: logits (batch, position, class), which cross_entropy wants as (batch, class, position)."""
    torch.manual_seed(2)
    model, given = nn.Sequential(nn.Conv1d(8, 32, 1), nn.ReLU(), nn.Conv1d(32, 16, 1)), torch.randn(4, 8)
    model.append(nn.Linear(16, 4))

    def labelled(model, x, y):
        classes = (5 * x[:, :6].abs()).long() % 4
        seen = given[classes].transpose(1, 2) + 0.1 * x[:, :, None]
        features = model[:3](seen).transpose(1, 2)
        return F.cross_entropy(arrange(model[3](features)), classes)

    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-2), labelled)
    assert alarms(found) == expected
    assert diagnostics.load(tmp_path / "run").table("events").empty


@pytest.mark.parametrize("wrong", [True, False])
def test_pixels_scores_viewed_as_rows_of_classes(wrong, tmp_path):
    """Scores (batch, class, height, width), which cross_entropy may be given as (pixel, class)."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Unflatten(1, (1, 2, 4)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 3, 1))

    def labelled(model, x, y):
        scores = model(x)
        rows = scores.view(-1, 3) if wrong else scores.permute(0, 2, 3, 1).reshape(-1, 3)
        return F.cross_entropy(rows, (5 * x.abs()).long().flatten() % 3)

    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-2), labelled)
    assert alarms(found) == ([("wiring", "scrambled-view")] if wrong else [])


class Bidirectional(nn.Module):
    def __init__(self, kind, join):
        super().__init__()
        torch.manual_seed(2)
        self.core = kind(2, 12, batch_first=True, bidirectional=True)
        self.join, self.out = join, nn.Linear(24, 4)

    def forward(self, x):
        _, last = self.core(x.unflatten(1, (4, 2)))
        return self.out(self.join(last[0] if isinstance(last, tuple) else last))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize(
    ("join", "wrong"),
    [
        (lambda last: last.view(last.shape[1], -1), True),
        (lambda last: last.reshape(-1, 24), True),
        (lambda last: torch.cat([last[0], last[1]], 1), False),
        (lambda last: last.transpose(0, 1).reshape(-1, 24), False),
        (lambda last: last.view(1, 2, *last.shape[1:])[-1].transpose(0, 1).flatten(1), False),
        (lambda last: last.permute(1, 0, 2).flatten(1), False),
    ],
)
def test_last_states_of_two_directions_viewed_as_one_row_each(kind, join, wrong, tmp_path):
    """They come as (direction, example, unit): each row of the view is of two examples, and of one direction."""
    torch.manual_seed(2)
    model = Bidirectional(kind, join)
    x = torch.randn(32, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), torch.arange(32) % 4)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.cross_entropy(model(x), torch.arange(32) % 4))
    assert diagnostics.load(tmp_path).meta["scrambled"] == ([[2, 32, 12], [32, 24]] if wrong else [])


@pytest.mark.parametrize("wrong", [True, False])
def test_last_states_of_packed_sequences(wrong):
    """Which are put back into the order that the sequences came in."""
    lstm, x = nn.LSTM(3, 12, bidirectional=True, batch_first=True), torch.randn(32, 7, 3)
    lengths = torch.randint(1, 8, (32,))
    with Observer(lstm, asking=True) as observer:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        last = lstm(packed)[1][0]
        (last if wrong else last.transpose(0, 1)).reshape(32, 24)
    assert observer.views.scrambled == ([([2, 32, 12], [32, 24])] if wrong else [])


@pytest.mark.parametrize(
    ("before", "after", "channels_first", "wrong"),
    [
        ((16, 3, 28, 28), (16, 784, 3), True, True),
        ((16, 10, 6), (96, 10), True, True),
        ((16, 10, 6), (16, 60), True, False),
        ((16, 16, 4, 4), (16, 16, 16), True, False),  # height and width joined
        ((64, 12, 64), (64, 4, 12, 16), False, True),
        ((64, 12, 64), (256, 12, 16), False, True),
        ((64, 4, 12, 16), (64, 12, 64), False, True),
        ((64, 12, 64), (64, 12, 4, 16), False, False),
        ((12, 64, 64), (12, 256, 16), False, False),  # time first, as fairseq's attention has it
        ((64, 1, 64), (64, 4, 1, 16), False, False),
        ((64, 24), (64, 2, 3, 4), False, False),
        ((8, 576, 4), (8, 4, 24, 24), False, True),  # pixels by classes, as (class, height, width)
        ((8, 12, 12, 5), (8, 5, 9, 16), False, True),
        ((16, 64, 16), (16, 16, 4, 4, 4), False, False),  # windows of tokens, and heads
        ((8, 8, 4), (8, 4, 2, 4), False, False),  # positions in four groups
        ((8, 4, 4), (8, 4, 2, 2), False, False),  # of one size: nobody can tell
        ((8, 1, 512), (8, 512, 1, 1), False, False),
        ((8, 576, 4), (8, 24, 24, 4), False, False),
        ((8, 6, 48), (8, 6, 3, 4, 4), False, False),
    ],
)
def test_which_views_scramble(before, after, channels_first, wrong):
    assert scrambles(torch.Size(before), torch.Size(after), channels_first) == wrong


def test_a_scrambled_view_that_a_model_learns_through_is_information(tmp_path):
    """What reads it may come to terms with it: here every place of the view holds one number of the same sample."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 24), nn.Unflatten(1, (6, 4)), nn.Flatten(), nn.ReLU(), nn.Linear(24, 4))

    def through(model, x, y):
        return F.cross_entropy(model[3:](model[:2](x).view(-1, 4, 6).flatten(1)), y)

    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-2), through)
    assert alarms(found) == []
    assert [(each.severity, each.cause) for each in found.findings if each.kind == "wiring"] == [
        ("info", "scrambled-view")
    ]


@pytest.mark.parametrize(
    ("shapes", "severity"), [([[2, 32, 12], [32, 24]], "warning"), ([[32, 6, 4], [32, 4, 6]], "info")]
)
def test_a_view_that_gives_each_example_others_numbers_is_told_though_the_run_learns(shapes, severity):
    steps = np.arange(1, 101)
    scalars = pd.DataFrame({"step": steps, "loss": 0.2 + 2 * 0.95**steps, "lr": 0.1, "grad_norm": 1.0})
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{}], "scrambled": shapes}
    found = diagnostics.diagnose(Run.from_frames(meta, {"scalars": scalars})).findings
    assert [each.severity for each in found if each.cause == "scrambled-view"] == [severity]


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (nn.LayerNorm(1), [("wiring", "norm-of-one")]),
        (nn.Sequential(nn.Flatten(), nn.GroupNorm(8, 8), nn.Unflatten(1, (8, 1))), [("wiring", "norm-of-one")]),
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(8), nn.GroupNorm(2, 8), nn.Unflatten(1, (8, 1))), []),
        (nn.LayerNorm([8, 1]), []),
    ],
)
def test_a_norm_of_one_number(norm, expected, tmp_path):
    torch.manual_seed(2)
    model = nn.Sequential(nn.Unflatten(1, (8, 1)), norm, nn.Flatten(), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-2))
    assert alarms(found) == expected


def test_outputs_against_all_targets_are_told_before_a_term_that_multiplies_pairs():
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"lr": 0.1}]}
    scalars = pd.DataFrame({"step": np.arange(1, 31), "loss": 1.0, "lr": 0.1, "grad_norm": 0.1})
    run = Run.from_frames(meta | {"all_pairs": 8, "all_products": 8}, {"scalars": scalars})
    (found,) = [each for each in diagnostics.diagnose(run).findings if each.cause == "shapes-broadcast"]
    assert found.severity == "critical"
    assert found.summary.startswith("The loss compares each of 8 outputs")
