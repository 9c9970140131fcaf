"""What a forward or a loss does that nobody meant, each beside what looks like it and is right: small real runs."""

import copy

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics import stats
from diagnostics.rules._norms import norms_of_few
from diagnostics.run import Run

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def classes(count=256):
    torch.manual_seed(0)
    y = torch.randint(4, (count,))
    return torch.randn(4, 8)[y] * 2 + torch.randn(count, 8), y


def network(*end, norm=nn.Identity):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 32), norm(), nn.ReLU(), nn.Linear(32, 4), *end)


def diagnosed(path, model, loss_of, x, y, steps=120, rate=1e-2, batch=32, closure=True, before=lambda step: None):
    optimizer = torch.optim.Adam(model.parameters(), rate)
    draw = torch.Generator().manual_seed(1)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for step in range(steps):
            before(step)
            chosen = torch.randint(len(x), (batch,), generator=draw)
            a, b = x[chosen], y[chosen]
            optimizer.zero_grad()
            loss = loss_of(model(a), b)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=(lambda a=a, b=b: loss_of(model(a), b)) if closure else None)
    return diagnostics.diagnose(diagnostics.load(path))


def alarms(diagnosis):
    return [(finding.kind, finding.cause) for finding in diagnosis.alarms]


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("end", "loss", "expected"),
    [
        ((), F.nll_loss, [("wiring", "log-scores")]),
        ((nn.LogSoftmax(1),), F.nll_loss, []),
        pytest.param(
            *((), lambda scores, y: -scores[torch.arange(len(y)), y].mean(), [("wiring", "log-scores")]),
            marks=pytest.mark.exhaustive,
        ),
        pytest.param((), F.cross_entropy, [], marks=pytest.mark.exhaustive),
        pytest.param((nn.Tanh(),), lambda outputs, y: -outputs.mean(), [], marks=pytest.mark.exhaustive),
    ],
)
def test_scores_that_are_taken_for_log_probabilities(end, loss, expected, tmp_path):
    assert alarms(diagnosed(tmp_path, network(*end), loss, *classes())) == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("axis", [1, 2])
def test_log_softmax_along_time_in_place_of_classes(axis, tmp_path):
    """Tags of the points in time: scores (batch, time, class), compared as rows of classes."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4), nn.LogSoftmax(axis))
    x, tags = torch.randn(512, 6, 8), torch.randint(4, (512, 6))
    x = torch.randn(4, 8)[tags] + 0.7 * x
    diagnosis = diagnosed(tmp_path, model, lambda scores, y: F.nll_loss(scores.flatten(0, 1), y.flatten()), x, tags)
    found = [finding for finding in diagnosis.findings if finding.cause == "log-scores"]
    assert ["log_softmax is taken along another" in finding.summary for finding in found] == [True] * (axis == 1)


def test_the_logarithm_of_the_sum_is_that_of_the_outputs(tmp_path):
    x, y = classes(32)
    model = network()
    with torch.no_grad():
        expected = model(x).logsumexp(1).abs().mean()
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with diagnostics.watch(model, optimizer, tmp_path, every=1, budget=ANY) as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.nll_loss(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.nll_loss(model(x), y))
    totals = diagnostics.load(tmp_path).table("scalars")["log_total"].dropna()
    assert len(totals) and totals.to_numpy() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.exhaustive
def test_a_probability_that_is_raised_on_purpose_is_information(tmp_path):
    """Minus the target's probability is the mean absolute error of one-hot targets, which some prefer under noise."""
    diagnosis = diagnosed(tmp_path, network(nn.Softmax(1)), F.nll_loss, *classes())
    assert alarms(diagnosis) == []
    assert "log-scores" in [finding.cause for finding in diagnosis.findings]


@pytest.mark.exhaustive
def test_a_probability_that_is_hardly_raised_is_a_mistake(tmp_path):
    """Of one of fifty classes: its gradient is fifty times that of its logarithm's, over fifty."""
    torch.manual_seed(0)
    y = torch.randint(50, (512,))
    x = torch.randn(50, 16)[y] + 0.3 * torch.randn(512, 16)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 50), nn.Softmax(1))
    found = diagnosed(tmp_path, model, F.nll_loss, x, y, rate=1e-4)
    (told,) = [each for each in found.alarms if each.cause == "log-scores"]
    assert "minus the probability" in told.summary and "without end" not in told.summary


@pytest.mark.exhaustive
@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize("loss", [F.smooth_l1_loss, F.l1_loss, lambda z, t: (z - t).abs().mean()])
@pytest.mark.parametrize(("lowest", "expected"), [(None, [("plateau", "target-range")]), (0.0, [])])
def test_a_relu_in_front_of_negative_targets(lowest, expected, loss, closure, tmp_path):
    """With and without a closure, which is what shows the targets themselves."""
    x, _ = classes()
    y = x[:, :4].clamp(min=lowest) if lowest is not None else x[:, :4]
    assert alarms(diagnosed(tmp_path, network(nn.ReLU()), loss, x, y / 4, closure=closure)) == expected


@pytest.mark.exhaustive
@pytest.mark.every_case
@pytest.mark.parametrize(("last", "share"), [(nn.ReLU(), 1.0), (nn.Identity(), None)], ids=str)
def test_a_straight_line_behind_a_relu(last, share, tmp_path):
    """Two of seven targets are below 0, and all of the loss that is left, a tenth of their variance, is theirs."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 5, 7)[:, None]
    model = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, 1), last)
    nn.init.ones_(model[2].weight)
    diagnosis = diagnosed(tmp_path, model, F.mse_loss, x, 2 * x - 1, steps=600)
    assert alarms(diagnosis) == ([("plateau", "target-range")] if share else [])
    run = diagnostics.load(tmp_path)
    if share:
        assert run.table("scalars")["loss"].iloc[-200:].mean() == pytest.approx(10 / 7, rel=0.1)
        assert run.table("scalars")["unreachable_error"].dropna().iloc[-1] == pytest.approx(share, abs=0.01)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("within", "expected"), [(False, [("plateau", "logistic-least-squares")]), (True, [])])
def test_a_tanh_in_front_of_far_targets_under_an_absolute_error(within, expected, tmp_path):
    """Which autograd knows as a difference, its size and a mean."""
    x, _ = classes()
    y = torch.tanh(x[:, :4]) if within else 100 * x[:, :4]
    assert alarms(diagnosed(tmp_path, network(nn.Tanh()), F.l1_loss, x, y)) == expected
    assert diagnostics.load(tmp_path).meta["loss_path"] == "tanh -> l1_loss"


@pytest.mark.exhaustive
@pytest.mark.every_case
@pytest.mark.parametrize(
    ("low", "noise", "expected"), [(-1.0, 0.0, [("plateau", "logistic-least-squares")]), (0.0, 0.2, [])]
)
def test_a_sigmoid_in_front_of_targets_that_only_noise_takes_beyond_it(low, noise, expected, tmp_path):
    """A tenth of a noisy picture's points may be brighter than white: that is not what the loss consists of."""
    torch.manual_seed(0)
    x = torch.randn(256, 8)
    y = low + (1 - low) * torch.sigmoid(2 * x[:, :4]) + noise * torch.randn(256, 4)
    assert y.max() > 1.1 or y.min() < -0.5
    assert alarms(diagnosed(tmp_path, network(nn.Sigmoid()), F.mse_loss, x, y, steps=300)) == expected


@pytest.mark.exhaustive
def test_sparse_codes_that_are_pushed_to_zero_are_none(tmp_path):
    x, _ = classes()
    torch.manual_seed(2)
    model, decoder = network(nn.ReLU()), torch.randn(4, 8)

    def loss(code, target):
        return F.mse_loss(code @ decoder, target) + 0.1 * code.sum(1).mean()

    assert alarms(diagnosed(tmp_path, model, loss, x, x, closure=False)) == []


@pytest.mark.exhaustive
def test_rates_of_counts_that_are_mostly_zero_are_none(tmp_path):
    """Poisson regression: a rate of 0 where the count is 0 is right, and the gradient still asks for less."""
    x, y = classes()
    counts = torch.poisson(F.one_hot(y, 4) * 3.0, generator=torch.Generator().manual_seed(3))
    loss = nn.PoissonNLLLoss(log_input=False, eps=1e-3)
    assert alarms(diagnosed(tmp_path, network(nn.ReLU()), loss, x, counts, closure=False)) == []


class Maker(nn.Module):
    """Makes its last layer in `forward`; `assigned`: as its own; `lazy`: so once; `kept`: in a plain list, once;
    `copied`: from its own; `renewed`: a parameter that it keeps."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.inside, self.own = kind, nn.Linear(8, 32), nn.Linear(32, 4, bias=False)  # it has none: None
        self.held = [nn.Linear(32, 4)]
        if kind == "renewed":
            self.code = nn.Parameter(torch.zeros(4))

    def forward(self, x):
        if self.kind == "assigned" or (self.kind == "lazy" and not hasattr(self, "last")):
            self.last = nn.Linear(32, 4)
        if self.kind == "copied":
            return copy.deepcopy(self.own)(torch.relu(self.inside(x)))
        if self.kind == "renewed":
            self.code = nn.Parameter(self.code.detach().clone())
            return self.own(torch.relu(self.inside(x))) + self.code
        kinds = {"made": lambda: nn.Linear(32, 4), "kept": lambda: self.held[0], "own": lambda: self.own}
        last = kinds.get(self.kind, lambda: self.last)()
        return last(torch.relu(self.inside(x)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("made", [("wiring", "made-in-forward")]),
        ("assigned", [("wiring", "made-in-forward")]),
        ("lazy", []),
        ("kept", [("wiring", "unregistered")]),
        ("own", []),
        ("copied", []),
        ("renewed", []),
    ],
)
def test_a_layer_that_is_made_in_forward(kind, expected, closure, tmp_path):
    torch.manual_seed(3)
    model = Maker(kind)
    if kind == "lazy":
        model(torch.zeros(1, 8))
    found = diagnosed(tmp_path, model, F.cross_entropy, *classes(), closure=closure)
    causes = [(finding.kind, finding.cause) for finding in found.findings if finding.kind == "wiring"]
    beside = [("wiring", "detached"), ("wiring", "stale-parameters"), ("wiring", "not-in-optimizer")]  # what is copied
    assert [each for each in causes if kind not in ("copied", "renewed") or each not in beside] == expected


@pytest.mark.exhaustive
def test_a_teacher_that_is_copied_for_each_update_is_none(tmp_path):
    model = network()

    def loss(scores, y):
        return F.cross_entropy(scores, y) + 0.1 * F.mse_loss(scores, copy.deepcopy(model)(x[:32]).detach())

    x, y = classes()
    diagnosis = diagnosed(tmp_path, model, loss, x, y)
    assert alarms(diagnosis) == []
    assert "made-in-forward" not in [finding.cause for finding in diagnosis.findings]
    told = diagnostics.load(tmp_path).table("events")  # a copy in the loss is at work in no module of ours
    assert told["message"].str.contains("detach").all()


@pytest.mark.exhaustive
class Decoded(nn.Module):
    """Answers from a state that a layer of its own makes of the input, and from what was answered before."""

    def __init__(self, given):
        super().__init__()
        torch.manual_seed(2)
        self.given = given
        self.before, self.state, self.out = nn.Linear(4, 16), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        return self.out(torch.tanh(self.before(self.given(x[:, :4])) + self.state(self.given(x))))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (torch.zeros_like, True),
        (lambda x: x * 0, True),
        (lambda x: F.relu(x - 2), False),  # now and then there is something
        (lambda x: x, False),
    ],
)
def test_layers_that_are_given_zeros(given, wrong, tmp_path):
    found = diagnosed(tmp_path / "run", Decoded(given), F.cross_entropy, *classes())
    assert ([each for each in alarms(found) if each[0] != "plateau"] == [("wiring", "zero-inputs")]) == wrong
    if wrong:
        assert found.alarms[0].layers == ("before.weight", "state.weight") and len(found.alarms) == 1


@pytest.mark.exhaustive
def test_zeros_beside_what_is_learned_from_are_information(tmp_path):
    class Beside(Decoded):
        def forward(self, x):
            return self.out(torch.tanh(self.before(0 * x[:, :4]) + self.state(x)))

    found = diagnosed(tmp_path / "run", Beside(None), F.cross_entropy, *classes())
    assert [(each.severity, each.cause) for each in found.findings] == [("info", "zero-inputs")]


@pytest.mark.exhaustive
def test_biases_that_are_tuned_alone_tell_nothing_of_inputs(tmp_path):
    model = network()
    for layer in (model[0], model[3]):
        layer.weight.register_hook(torch.zeros_like)
    found = diagnosed(tmp_path / "run", model, F.cross_entropy, *classes())
    assert "zero-inputs" not in {each.cause for each in found.findings}


@pytest.mark.exhaustive
def test_a_recurrent_net_of_one_step_is_information(tmp_path):
    """It has no state to multiply."""

    class OneStep(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.lstm, self.out = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 4)

        def forward(self, x):
            return self.out(self.lstm(x[:, None])[0][:, 0])

    found = diagnosed(tmp_path / "run", OneStep(), F.cross_entropy, *classes(), rate=3e-2)
    assert alarms(found) == []
    told = [(each.severity, each.layers) for each in found.findings if each.cause == "zero-inputs"]
    assert told == [("info", ("lstm.weight_hh_l0",))]


class BothWays(nn.Module):
    """Of sequences of 6 inputs, read by `read(out, h)`."""

    def __init__(self, kind, read, layers=1):
        super().__init__()
        torch.manual_seed(2)
        self.rnn, self.read = kind(8, 16, layers, batch_first=True, bidirectional=True), read
        self.out = nn.Linear(32, 4)

    def forward(self, x):
        out, state = self.rnn(x[:, None].repeat(1, 6, 1))
        return self.out(self.read(out, state[0] if isinstance(state, tuple) else state))


@pytest.mark.parametrize(
    ("kind", "read", "direction"),
    [
        (nn.LSTM, lambda out, h: out[:, -1], "reverse"),
        pytest.param(nn.GRU, lambda out, h: out[:, 0], "forward", marks=pytest.mark.exhaustive),
        pytest.param(nn.LSTM, lambda out, h: torch.cat([h[-2], h[-1]], 1), None, marks=pytest.mark.exhaustive),
        pytest.param(nn.RNN, lambda out, h: out.mean(1), None, marks=pytest.mark.exhaustive),
    ],
)
def test_a_direction_that_is_read_where_it_starts(kind, read, direction, tmp_path):
    found = diagnosed(tmp_path / "run", BothWays(kind, read, layers=2), F.cross_entropy, *classes(), steps=60)
    told = [(each.severity, each.layers) for each in found.findings if each.kind == "wiring"]
    name = {"reverse": "rnn.weight_hh_l1_reverse", "forward": "rnn.weight_hh_l1", None: ""}[direction]
    assert told == ([("info", (name,))] if direction else [])
    for each in found.findings[:1] if direction else ():
        assert each.cause == "read-at-start" and f"The {direction} direction" in each.summary


@pytest.mark.exhaustive
def test_a_direction_that_is_read_where_it_starts_is_an_alarm_where_nothing_is_learned(tmp_path):
    """The class is told by the first input, which noise follows."""

    class First(BothWays):
        def forward(self, x):
            out, _ = self.rnn(torch.cat([x[:, None], torch.randn(len(x), 60, 8)], 1))
            return self.out(self.read(out, None))

    model = First(nn.RNN, lambda out, h: out[:, -1])
    found = diagnosed(tmp_path / "run", model, F.cross_entropy, *classes(), steps=60)
    assert alarms(found) == [("wiring", "read-at-start")] and "zero-gradient" not in found.clean


@pytest.mark.exhaustive
@pytest.mark.parametrize(("batch", "expected"), [(2, ["norm-of-two"]), (3, [])])
def test_a_batch_norm_of_pairs(batch, expected, tmp_path):
    model = network(norm=lambda: nn.BatchNorm1d(32))
    found = diagnosed(tmp_path, model, F.cross_entropy, *classes(), batch=batch, steps=60)
    assert [finding.cause for finding in found.findings if finding.kind == "wiring"] == expected


@pytest.mark.parametrize(("norms", "expected"), [(2, "warning"), (5, "info")])
def test_one_norm_of_two_among_many_is_information_where_the_run_learns(norms, expected):
    modules = [{"name": f"norm{number}", "type": "BatchNorm1d"} for number in range(norms)]
    meta = {"name": "test", "status": "finished", "modules": modules, "norms_of_two": ["norm0", "norm1"]}
    table = pd.DataFrame({"step": range(1, 101), "loss": [1.0] * 20 + [0.1] * 80})
    found = norms_of_few(Run.from_frames(meta, {"scalars": table}))
    assert [(each.cause, each.severity) for each in found] == [("norm-of-two", expected)]


class Mode(nn.Module):
    """A deep net with batch norms that it cannot do without: twenty layers that each shrink their input."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        blocks = [nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()) for _ in range(10)]
        self.blocks, self.out = nn.Sequential(*blocks), nn.Linear(8, 4)

    def forward(self, x):
        return self.out(self.blocks(x))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("goes over", 42),
        ("tuned", None),
        *(pytest.param(*each, marks=pytest.mark.by_hand) for each in (("train", None), ("begins", 2))),
        *(pytest.param(kind, None, marks=pytest.mark.by_hand) for kind in ("comes back", "norms held")),
    ],
)
def test_a_model_that_trains_in_evaluation_mode(kind, expected, tmp_path):
    """Norms that saw data before may be held, as in fine-tuning; a model as a whole that goes over was forgotten. Told
    at the first measured update of it."""
    model, (x, y) = Mode(), classes()
    if kind in ("tuned", "norms held"):
        model(x)
    if kind in ("begins", "tuned"):
        model.eval()
    if kind == "norms held":
        model.blocks.eval()

    def before(step):
        if kind in ("goes over", "comes back") and step == 40:
            model.eval()
        if kind == "comes back" and step == 80:
            model.train()

    found = diagnosed(tmp_path, model, F.cross_entropy, x, y, rate=1e-5, before=before)
    told = [each for each in found.findings if each.cause == "evaluation-mode"]
    assert [(each.first_step, each.severity) for each in told] == ([(expected, "critical")] if expected else [])
    if told:
        assert told[0].layers == tuple(f"blocks.{at}.1" for at in range(10))


def test_only_classes_tell_of_scores():
    """Weights that are given with the data may be a score on purpose."""
    form = next(form for form in stats.FORMS if form.of_logs)
    z, y = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 4
    hard, soft = F.one_hot(y, 4).float(), torch.full((300, 4), 0.25)
    assert form.read(z, -hard / 300).log_total.item() == pytest.approx(z.logsumexp(1).abs().mean().item(), rel=1e-5)
    assert form.read(z, -soft / 300).log_total.isnan()


class Reader(nn.Module):
    """A recurrent net or attention over rows of pictures; `along`: what it runs along."""

    def __init__(self, kind, along, last):
        super().__init__()
        torch.manual_seed(3)
        first = {"batch_first": along == "time"}
        self.kind, self.along, self.last = kind, along, last
        self.core = nn.GRU(4, 16, **first) if kind == "gru" else nn.MultiheadAttention(4, 2, **first)
        self.out = nn.Linear(16 if kind == "gru" else 4, 4)

    def forward(self, x):
        x = x.unflatten(1, (2, 4)).repeat(1, 3, 1)  # (32, 6, 4)
        turned = x.transpose(0, 1) if self.along == "time first" else x
        y = self.core(turned)[0] if self.kind == "gru" else self.core(turned, turned, turned)[0]
        y = y.transpose(0, 1) if self.along == "time first" else y
        return self.out(y[:, -1] if self.last else y)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "along", "last", "closure", "expected"),
    [
        ("gru", "batch", True, True, ["along-batch"]),
        pytest.param("gru", "batch", True, False, ["along-batch"], marks=pytest.mark.by_hand),
        ("attention", "batch", True, True, ["along-batch"]),
        ("gru", "time", True, True, []),
        ("gru", "time first", True, False, []),
        ("attention", "time", True, False, []),
        ("gru", "batch", False, True, []),  # an answer for each step and sequence, as where time comes first on purpose
    ],
)
def test_what_runs_along_the_batch(kind, along, last, closure, expected, tmp_path):
    x, y = classes()

    def loss(outputs, y):
        return F.cross_entropy(outputs if last else outputs.mean(1), y)

    found = diagnosed(tmp_path, Reader(kind, along, last), loss, x, y, closure=closure, steps=60)
    told = [each for each in found.findings if each.kind == "wiring"]
    assert [each.cause for each in told] == expected
    for each in told:
        assert each.layers == ("core",) and each.evidence == {"examples read as time steps": 32, "read as examples": 6}
        assert each.alarm or kind == "attention"


class Tagger(nn.Module):
    """The class of each token, by attention along `along`; positions as people write them."""

    def __init__(self, along, way):
        super().__init__()
        torch.manual_seed(1)
        self.way, self.tokens, self.places = way, nn.Embedding(9, 16), nn.Embedding(12, 16)
        self.register_buffer("pe", torch.randn(1, 30, 16))
        self.cores = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=each == "time") for each in along
        )
        self.out = nn.Linear(16, 9)

    def forward(self, x):
        h, steps = self.tokens(x), x.shape[1]
        if self.way == "buffer":
            h = h + self.pe[:, :steps]
        elif self.way == "embedding":
            h = self.places(torch.arange(steps)) + h
        elif self.way == "embedding of each":
            h += self.places(torch.arange(steps).expand(len(x), -1))
        elif self.way == "sum of tokens":  # of its shape, and no table
            h = h + h.sum(0)
        for core in self.cores:
            h = core(h)
        return self.out(h)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("along", "way", "told"),
    [
        (["batch"], "buffer", True),
        (["batch", "batch"], "embedding", True),
        (["batch"], "embedding of each", True),
        (["time"], "buffer", False),
        (["time", "batch"], "buffer", False),  # along both, as rows and columns of an alignment
        (["batch"], "sum of tokens", False),
        (["batch"], "none", False),  # time may come first on purpose
    ],
)
def test_attention_along_the_batch_where_every_token_has_its_answer(along, way, told, tmp_path):
    torch.manual_seed(0)
    x = torch.randint(9, (256, 12))
    y = x.roll(1, 1)  # the token before

    def loss(outputs, y):
        return F.cross_entropy(outputs.flatten(0, 1), y.flatten())

    found = diagnosed(tmp_path, Tagger(along, way), loss, x, y, steps=60)
    assert not found.crashed
    assert [(each.cause, each.severity) for each in found.findings if each.kind == "wiring"] == (
        [("along-batch", "warning")] if told else []
    )


class Padded(nn.Module):
    """The class of a sentence, by a head that attends to what `mask` has: as PyTorch's module wants it, fused, by hand,
    or as numbers to add."""

    def __init__(self, way, inverted):
        super().__init__()
        torch.manual_seed(1)
        self.way, self.inverted = way, inverted
        self.tokens, self.out = nn.Embedding(9, 16, padding_idx=0), nn.Linear(16, 4)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        padding, h = (x == 0) != self.inverted, self.tokens(x)
        alone = padding[:, None, None]
        if self.way == "module":
            h = h + self.attend(h, h, h, key_padding_mask=padding, need_weights=False)[0]
        elif self.way == "by hand":
            scores = (h @ h.transpose(1, 2) / 4)[:, None].masked_fill(alone, float("-inf"))
            h = h + (scores.softmax(-1) @ h[:, None])[:, 0]
        else:
            mask = ~alone if self.way == "fused" else torch.zeros(alone.shape).masked_fill(alone, -1e9)
            q = h[:, None]
            h = h + F.scaled_dot_product_attention(q, q, q, attn_mask=mask)[:, 0]
        return self.out(h[:, 0])


def sentences(count=256):
    torch.manual_seed(0)
    x = torch.randint(1, 9, (count, 8))
    y = x[:, 1:3].sum(1) % 4
    return x.masked_fill(torch.arange(8) >= torch.randint(3, 8, (count, 1)), 0), y


@pytest.mark.parametrize("inverted", [True, False])
@pytest.mark.parametrize(
    "way", ["module", *(pytest.param(way, marks=pytest.mark.exhaustive) for way in ("fused", "by hand", "added"))]
)
def test_a_mask_that_leaves_the_padding_alone_in_sight(way, inverted, tmp_path):
    diagnosis = diagnosed(tmp_path, Padded(way, inverted), F.cross_entropy, *sentences(), steps=40)
    told = [finding.cause for finding in diagnosis.findings if finding.kind == "wiring"]
    assert told == (["mask-inverted"] if inverted else [])


class PaddedRows(Padded):
    """The same of rows of numbers, as the particles of an event, padded with zeros."""

    def __init__(self, inverted):
        super().__init__("fused", inverted)
        self.tokens, self.read = nn.Identity(), nn.Linear(3, 16)

    def forward(self, x):
        alone, q = ((x == 0).all(-1) != self.inverted)[:, None, None], self.read(x)[:, None]
        h = q + F.scaled_dot_product_attention(q, q, q, attn_mask=~alone)
        return self.out(h[:, 0, 0])


@pytest.mark.parametrize("inverted", [True, False])
def test_a_mask_that_leaves_rows_of_zeros_alone_in_sight(inverted, tmp_path):
    tokens, y = sentences()
    x = torch.randn(*tokens.shape, 3) * (tokens != 0)[..., None]
    diagnosis = diagnosed(tmp_path, PaddedRows(inverted), F.cross_entropy, x, y, steps=40)
    told = [finding for finding in diagnosis.findings if finding.kind == "wiring"]
    assert [each.cause for each in told] == (["mask-inverted"] if inverted else [])
    assert not told or "zeros are all that it leaves in sight" in told[0].summary


class Gathering(Padded):
    """Reads past the padding, and then asks the first words alone, which are marks."""

    def forward(self, x):
        h = self.tokens(x)
        h = h + self.attend(h, h, h, key_padding_mask=x == 0, need_weights=False)[0]
        scores = h.sum(2)[:, None].masked_fill((x != 1)[:, None], float("-inf"))
        return self.out((scores.softmax(-1) @ h)[:, 0])


@pytest.mark.exhaustive
def test_marks_that_gather_what_was_read_are_no_padding(tmp_path):
    x, y = sentences()
    x = torch.where(x == 1, 2, x)
    x[:, 0] = 1
    diagnosis = diagnosed(tmp_path, Gathering("module", False), F.cross_entropy, x, y, steps=40)
    assert [finding.cause for finding in diagnosis.findings if finding.kind == "wiring"] == []


@pytest.mark.exhaustive
@pytest.mark.parametrize("inverted", [True, False])
def test_without_padding_a_mask_is_no_mistake(inverted, tmp_path):
    """One kind of token beside what is left out: a text of one word, of which two kinds are in sight."""
    x, y = sentences()
    x = torch.where(x > 4, 5, x.clamp(max=1))  # 0, 1 and 5
    diagnosis = diagnosed(tmp_path, Padded("module", inverted), F.cross_entropy, x, y, steps=40)
    assert [finding.cause for finding in diagnosis.findings if finding.kind == "wiring"] == []


@pytest.mark.parametrize("closure", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda scores: scores.softmax(1), [("wiring", "log-scores")]),
        (lambda scores: scores.log_softmax(1), []),
        (lambda scores: (scores.softmax(1) + 1e-9).log(), []),
    ],
)
def test_probabilities_that_are_taken_for_their_logarithms(answer, expected, closure, tmp_path):
    """Of the loss itself, which only a closure shows; and of the model's answer."""
    x, y = classes()
    soft = F.one_hot(y, 4) * 0.8 + 0.05
    model = network() if closure else nn.Sequential(network(), Answering(answer))
    of = answer if closure else lambda scores: scores

    def loss(scores, y):
        return F.kl_div(of(scores), y, reduction="batchmean")

    found = diagnosed(tmp_path, model, loss, x, soft, closure=True)
    assert alarms(found) == expected


class Answering(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, scores):
        return self.answer(scores)


@pytest.mark.exhaustive
def test_a_distribution_for_each_action(tmp_path):
    """As of returns: along the actions, of which one is compared, the probabilities do not sum to 1."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2 * 51), nn.Unflatten(1, (2, 51)), nn.LogSoftmax(-1)
    )
    x, returns = torch.randn(512, 8), torch.linspace(-2, 2, 51)
    wanted = (-2 * (x[:, :1] - returns).square()).softmax(1)

    def loss(scores, wanted):
        taken = (wanted.argmax(1) > 25).long()
        return -(wanted * scores[torch.arange(len(wanted)), taken]).sum(1).mean()

    diagnosis = diagnosed(tmp_path, model, loss, x, wanted, batch=64)
    constant = diagnostics.load(tmp_path).table("scalars")["constant_loss"].dropna()
    mean = wanted.mean(0)
    assert alarms(diagnosis) == []
    assert constant.iloc[-1] == pytest.approx(float(-(mean * mean.log()).sum()), rel=0.1)


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.every_case
def test_a_model_that_is_never_called_itself(tmp_path, closure):
    """As a list of networks, or one whose loss is a method: what could be seen, and how, is said."""
    x, y = classes()
    model = nn.ModuleDict({"body": network()})
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def loss_now():
        return F.cross_entropy(model["body"](x), y)

    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(12):
            optimizer.zero_grad()
            loss = loss_now()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=loss_now if closure else None)
    run = diagnostics.load(tmp_path)
    reasons = dict(diagnostics.diagnose(run).skipped)
    assert len(run.table("units")) == 0 or closure
    assert ("never called" in reasons.get("dead-units", "")) == (not closure)
