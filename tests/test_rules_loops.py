"""Faults that people make in ordinary loops, and ordinary loops that look like them: small real runs, watched."""

import copy
import itertools
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.rules import saturated_units
from diagnostics.rules._given import BOUNDED, goes_into

pytestmark = pytest.mark.exhaustive  # minutes; `make test` has a few of each kind elsewhere

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def examples(n=256, features=8, classes=4):
    """Gaussian clusters whose centres lie two deviations apart."""
    torch.manual_seed(0)
    y = torch.randint(classes, (n,))
    return torch.randn(classes, features)[y] * 1.5 + torch.randn(n, features), y


def watched(path, model, optimizer, loss_of, steps=150, size=32, each=lambda: None, between=lambda: None, closure=True):
    """The diagnosis of a loop over random batches; `between` runs after backward, `each` after the update."""
    x, y = examples()
    draw = torch.Generator().manual_seed(1)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(steps):
            chosen = torch.randint(len(x), (size,), generator=draw)
            a, b = x[chosen], y[chosen]
            optimizer.zero_grad()
            loss = loss_of(model, a, b)
            loss.backward()
            between()
            optimizer.step()
            monitor.step(loss, closure=(lambda a=a, b=b: loss_of(model, a, b)) if closure else None)
            each()
    return diagnostics.diagnose(diagnostics.load(path))


def cross_entropy(model, x, y):
    return F.cross_entropy(model(x), y)


def network(*, inputs=8, outputs=4):
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(inputs, 32), nn.ReLU(), nn.Linear(32, outputs))


def alarms(diagnosis):
    return [(finding.kind, finding.cause) for finding in diagnosis.alarms]


SCHEDULES = {
    "step": lambda o: torch.optim.lr_scheduler.StepLR(o, 10, 0.1),
    "exponential": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
    "at once": lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.3),
    "polynomial": lambda o: torch.optim.lr_scheduler.PolynomialLR(o, 30),
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("decayed", [True, False])
def test_a_schedule_meant_for_epochs_but_stepped_each_update(tmp_path, name, decayed):
    """The rate is gone before a noisy loss shows any fall; stepped once in 100 updates the same schedule is silent."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    schedule, count = SCHEDULES[name](optimizer), [0]

    def each():
        count[0] += 1
        if decayed or count[0] % 100 == 0:
            schedule.step()

    found = watched(tmp_path, model, optimizer, cross_entropy, steps=300, each=each)
    assert alarms(found) == ([("lr-too-small", "schedule")] if decayed else [])
    assert not any("NaN" in finding.summary for finding in found.findings)


@pytest.mark.parametrize("squashed", [True, False])
def test_a_sigmoid_before_a_loss_on_logits(tmp_path, squashed):
    def loss(model, x, y):
        z = model(x).squeeze(1)
        return F.binary_cross_entropy_with_logits(torch.sigmoid(z) if squashed else z, (y > 1).float())

    model = network(outputs=1)
    found = watched(tmp_path, model, torch.optim.Adam(model.parameters(), lr=1e-2), loss)
    assert alarms(found) == ([("plateau", "double-softmax")] if squashed else [])


@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize("decayed", [True, False])
def test_a_rate_that_is_gone_after_a_fiftieth_of_the_run_with_some_learned(closure, decayed, tmp_path):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule, count = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.6), itertools.count(1)

    def each():
        if decayed or next(count) % 60 == 0:
            schedule.step()

    found = watched(tmp_path, model, optimizer, cross_entropy, steps=500, each=each, closure=closure)
    assert alarms(found) == ([("lr-too-small", "schedule")] if decayed else [])


class Stems(nn.Module):
    """Two stems, of which the first one is not used, or used but cut off."""

    def __init__(self, cut):
        super().__init__()
        self.words, self.pixels, self.head, self.cut = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 4), cut

    def forward(self, x):
        hidden = self.pixels(x) + (self.words(x).detach() if self.cut else 0)
        return self.head(torch.tanh(hidden))


@pytest.mark.parametrize(("cut", "expected"), [(True, [("wiring", "detached")]), (False, [])])
def test_a_layer_that_takes_no_part_is_not_cut_off(tmp_path, cut, expected):
    torch.manual_seed(13)
    model = Stems(cut)
    assert alarms(watched(tmp_path, model, torch.optim.Adam(model.parameters(), lr=1e-2), cross_entropy)) == expected
    unused = [] if cut else ["words.weight", "words.bias"]
    assert diagnostics.load(tmp_path).meta["idle"] == unused


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (lambda t: t.detach(), [("wiring", "detached")]),
        (lambda t: (2 - t.detach()).sqrt(), [("wiring", "detached")]),  # not a number once it is moved
        (None, []),
    ],
    ids=["factor", "root", "unused"],
)
@pytest.mark.every_case
def test_a_parameter_that_nothing_depends_on_is_not_cut_off(tmp_path, used, expected):
    """Of a module that takes part."""

    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.temperature, self.body = nn.Parameter(torch.ones(())), network()

        def forward(self, x):
            return self.body(x) * (used(self.temperature) if used else 1)

    model = Tempered()
    diagnosis = watched(tmp_path, model, torch.optim.Adam(model.parameters(), lr=1e-2), cross_entropy)
    assert alarms(diagnosis) == expected
    told = [finding.layers for finding in diagnosis.findings if finding.cause == "unused"]
    assert told == ([] if used else [("temperature",)])
    assert diagnostics.load(tmp_path).meta["unused"] == ([] if used else ["temperature"])


class Pair(nn.Module):
    """What the words' layer gives goes on to the head, or nowhere, between layers that learn."""

    def __init__(self, goes_on):
        super().__init__()
        self.pixels, self.words, self.head, self.goes_on = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(32, 4), goes_on

    def forward(self, x):
        return self.head(torch.cat([torch.tanh(self.pixels(x)), self.goes_on(self.words(x))], 1))


@pytest.mark.parametrize(
    ("goes_on", "expected"),
    [
        (lambda words: words.data, [("wiring", "detached")]),
        (lambda words: words.detach(), [("wiring", "detached")]),
        (lambda words: words, []),
        (torch.zeros_like, []),  # computed and not used, as a pooler's output
        (lambda words: (words.detach().sum(), torch.zeros_like(words))[1], []),  # only logged
        (lambda words: torch.detach(input=words), [("wiring", "detached")]),
        (lambda words: (words.detach().sum(), words.detach())[1], [("wiring", "detached")]),  # logged first
    ],
)
@pytest.mark.parametrize("closure", [True, False])
def test_a_layer_in_the_middle_whose_output_is_detached(tmp_path, goes_on, expected, closure):
    torch.manual_seed(13)
    model = Pair(goes_on)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    assert alarms(watched(tmp_path, model, optimizer, cross_entropy, closure=closure)) == expected
    names = diagnostics.load(tmp_path).meta["cut_off"]
    assert names == (["words.weight", "words.bias"] if expected else [])


class Pooled(nn.Module):
    """A query that attends to what an encoder gives."""

    def __init__(self, goes_on):
        super().__init__()
        self.encoder, self.head, self.goes_on = nn.Linear(1, 16), nn.Linear(16, 4), goes_on
        self.query, self.pool = nn.Parameter(torch.randn(1, 1, 16)), nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x):
        words = self.goes_on(torch.tanh(self.encoder(x[:, :, None])))
        return self.head(self.pool(self.query.expand(len(x), 1, 16), words, words)[0].squeeze(1))


@pytest.mark.parametrize(
    ("goes_on", "expected"),
    [(Tensor.detach, [("wiring", "detached")]), pytest.param(Tensor.clone, [], marks=pytest.mark.exhaustive)],
)
def test_what_attention_is_given_is_detached(tmp_path, goes_on, expected):
    torch.manual_seed(13)
    model = Pooled(goes_on)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    assert alarms(watched(tmp_path, model, optimizer, cross_entropy)) == expected


class Teacher(nn.Module):
    """Learns what a slow average of itself answers, as in BYOL; all of it is given to the optimizer."""

    def __init__(self):
        super().__init__()
        self.online, self.head = nn.Linear(8, 16), nn.Linear(16, 16)
        self.target, self.above = copy.deepcopy(self.online), copy.deepcopy(self.head)

    def loss(self, x):
        answer = self.above(torch.tanh(self.target(x)).detach()).detach()
        return (
            F.mse_loss(self.head(torch.tanh(self.online(x + 0.1 * torch.randn_like(x)))), answer)
            + (self.head.weight.norm() - 4).square()
        )

    @torch.no_grad()
    def follow(self):
        for slow, fast in ((self.target, self.online), (self.above, self.head)):
            for p, q in zip(slow.parameters(), fast.parameters(), strict=True):
                p.lerp_(q, 0.1)


def test_averages_have_no_gradient_and_are_not_cut_off(tmp_path):
    torch.manual_seed(13)
    model = Teacher()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = watched(tmp_path, model, optimizer, lambda model, x, y: model.loss(x), each=model.follow)
    assert alarms(found) == []


class InTurns(nn.Module):
    """A generator that learns in one update of five, and a codebook that is written to; one optimizer for all."""

    def __init__(self):
        super().__init__()
        self.unused, self.update = nn.Parameter(torch.ones(3)), 0
        self.generator, self.codes, self.critic = nn.Linear(8, 8), nn.Parameter(torch.randn(4, 8)), nn.Linear(8, 1)

    def loss(self, x):
        made = self.generator(x)
        made = made if self.update % 5 == 3 else made.detach()
        nearest = self.codes[torch.cdist(made, self.codes).argmin(1)].detach()
        return F.softplus(self.critic(made + 0.1 * nearest)).mean() + F.softplus(-self.critic(x)).mean()

    @torch.no_grad()
    def after(self):
        self.update += 1
        self.codes.mul_(0.999)


@pytest.mark.parametrize("unused", [True, False])
def test_what_is_trained_in_turns_or_written_to_is_not_cut_off(tmp_path, unused):
    torch.manual_seed(13)
    model = InTurns()
    if not unused:
        del model.unused
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    found = watched(tmp_path, model, optimizer, lambda model, x, y: model.loss(x), each=model.after)
    told = [finding for finding in found.findings if finding.kind == "wiring"]
    assert [(finding.cause, finding.severity) for finding in told] == [("unused", "info")] * unused


class Experts(nn.Module):
    """Logits of four experts, weighted by a softmax gate, or what a gate lets through to a squared error."""

    def __init__(self, gate):
        super().__init__()
        self.gate, self.choose, self.experts = gate, nn.Linear(8, 4), nn.Linear(8, 16)

    def forward(self, x):
        return (self.gate(self.choose(x))[:, :, None] * self.experts(x).view(-1, 4, 4)).sum(1)


@pytest.mark.parametrize(
    ("gate", "loss"),
    [
        (nn.Softmax(1), cross_entropy),
        (lambda z: torch.sigmoid(z - 5), lambda model, x, y: F.mse_loss(model(x), F.one_hot(y, 4).float())),
    ],
)
def test_a_gate_on_the_way_to_the_loss_is_no_squashed_output(tmp_path, gate, loss):
    torch.manual_seed(12)
    model = Experts(gate)
    found = watched(tmp_path, model, torch.optim.Adam(model.parameters(), lr=1e-2), loss, steps=300)
    assert not any(finding.kind == "plateau" and finding.cause for finding in found.findings)


@pytest.mark.parametrize(
    ("path", "squashed"),
    [
        ("softmax -> cross_entropy", True),
        ("softmax -> add -> cross_entropy", True),  # an epsilon
        ("softmax -> add -> div -> cross_entropy", True),  # the mean answer of several networks
        ("softmax -> mean -> cross_entropy", True),
        ("softmax -> product -> sum -> cross_entropy", False),
        ("softmax -> mul -> sum -> cross_entropy", False),  # as it was recorded before products were told apart
        ("softmax -> log -> cross_entropy", False),  # whose softmax gives the probabilities back
        ("relu -> cross_entropy -> softmax", False),
        ("cross_entropy", False),
    ],
)
def test_what_squashes_must_be_what_the_loss_gets(path, squashed):
    assert goes_into(path, "softmax", "cross_entropy", BOUNDED) is squashed


def test_a_bias_that_cancels_in_the_loss_is_no_fault(tmp_path):
    """A loss on differences of one layer's outputs does not depend on its bias."""

    def loss(model, x, y):
        z = model(x)
        apart = (z[::2] - z[1::2]).square().sum(1)
        same = (y[::2] == y[1::2]).float()
        return (same * apart + (1 - same) * F.relu(4 - apart)).mean()

    model = network(outputs=2)
    assert alarms(watched(tmp_path, model, torch.optim.Adam(model.parameters(), lr=3e-3), loss)) == []


def test_gradients_erased_before_the_step(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = watched(tmp_path, model, optimizer, cross_entropy, steps=40, between=optimizer.zero_grad)
    assert alarms(found) == [("wiring", "detached")]
    assert "erased" in found.alarms[0].summary and "zero_grad" in found.alarms[0].remedies[0]


def test_erased_gradients_are_known_without_a_look_at_the_layers(tmp_path):
    """Of two updates alone, where they cost the budget much."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = examples()
    with diagnostics.watch(model, optimizer, tmp_path, every=1000) as monitor:
        for _ in range(40):
            loss = cross_entropy(model, x, y)
            loss.backward()
            optimizer.zero_grad()
            optimizer.step()
            monitor.step(loss)
    found = diagnostics.diagnose(diagnostics.load(tmp_path))
    assert alarms(found) == [("wiring", "detached")] and "erased" in found.alarms[0].summary


class Functional(nn.Module):
    """Its ReLUs are functions, which have no place among the modules."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.out = nn.Linear(8, 24), nn.Linear(24, 16), nn.Linear(16, 4)
        nn.init.constant_(self.first.bias, -20.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.second(F.relu(self.first(x)))))


def test_the_bias_before_a_functional_relu_is_found(tmp_path):
    model = Functional()
    found = watched(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.05), cross_entropy, steps=60)
    assert ("dead-units", "bias") in alarms(found)


def test_an_absolute_error_that_bounces_has_no_curvature_to_divide_by(tmp_path):
    """Curvature is 0 wherever it exists, and the steps are what holds the loss up."""

    def loss(model, x, y):
        return (model(x).squeeze(1) - x.sum(1)).abs().mean()

    torch.manual_seed(4)
    model = nn.Linear(8, 1)
    found = watched(tmp_path, model, torch.optim.SGD(model.parameters(), lr=1.0), loss, steps=300)
    assert not found.crashed and alarms(found) == [("lr-oscillation", "learning-rate")]
    assert "to 0.1" in found.alarms[0].remedies[0]


def test_remedies_lower_what_they_say_they_lower(tmp_path):
    """No sentence may call a higher rate a lower one, whatever the stability ratio."""

    def loss(model, x, y):
        return (model(x).squeeze(1) - x.sum(1) - 3 * torch.randn(len(x))).square().mean()

    torch.manual_seed(5)
    model = nn.Linear(8, 1)
    found = watched(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.15), loss, steps=300, size=8)
    for finding in found.findings:
        words = finding.remedies[0].split()
        if words[:4] == ["lower", "the", "learning", "rate"]:
            before, after = (float(words[at + 1].rstrip(":;,")) for at in (words.index("from"), words.index("to")))
            assert np.isfinite(after) and after < before


@pytest.mark.parametrize("offset", [30.0, 0.0], ids=["in Kelvin", "centred"])
def test_noise_across_a_ravine_does_not_hide_it(tmp_path, offset):
    """Batches throw the weights across the steep direction; what is left along the floor shows in their gradients."""
    torch.manual_seed(6)
    z = torch.randn(600, 12)
    y = z @ torch.randn(12, 1) / 3 + 0.1 * torch.randn(600, 1)
    x = z + offset
    model = nn.Linear(12, 1)
    steepest = float(torch.linalg.eigvalsh(2 * x.T @ x / 600)[-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.7 / steepest)
    draw = torch.Generator().manual_seed(1)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(300):
            rows = torch.randint(600, (100,), generator=draw)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda rows=rows: F.mse_loss(model(x[rows]), y[rows]))
    found = diagnostics.diagnose(diagnostics.load(tmp_path))
    assert alarms(found) == ([("ravine", "uncentered-inputs")] if offset else [])


@pytest.mark.parametrize(
    ("noise", "steps", "found"), [(5e-4, 150, True), (1e-3, 500, True), (1e-3, 900, False), (1.0, 150, False)]
)
def test_units_that_begin_nearly_alike(noise, steps, found, tmp_path):
    """Noise of less than a thousandth parts them late, after eighty updates; of the weights' own size, at once."""
    model = network()
    torch.manual_seed(5)
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.fill_(0.1).mul_(1 + noise * torch.randn_like(layer.weight))
            layer.bias.zero_()
    diagnosis = watched(tmp_path, model, torch.optim.SGD(model.parameters(), 0.2), cross_entropy, steps=steps)
    assert alarms(diagnosis) == ([("symmetry", "constant-initialization")] if found else [])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_net_with_constant_weights(kind, tmp_path):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.recurrent, self.head = kind(1, 16, batch_first=True), nn.Linear(16, 4)

        def forward(self, x):
            return self.head(self.recurrent(x[..., None])[0][:, -1])

    model = Reader()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    diagnosis = watched(tmp_path, model, optimizer, cross_entropy)
    assert alarms(diagnosis) == [("symmetry", "constant-initialization")]
    assert diagnosis.alarms[0].layers == ("recurrent.weight_ih_l0",)


@pytest.mark.parametrize(("scale", "expected"), [(1000.0, [("lr-unstable", "learning-rate")]), (1.0, [])])
def test_large_inputs_before_a_softmax(scale, expected, tmp_path):
    """Thrown far into the flat region there is no curvature to be past: every update is undone by the next."""
    torch.manual_seed(4)
    model = nn.Linear(8, 4)
    sizes = torch.tensor([scale, *[1.0] * 7])

    def loss_of(net, x, y):
        return F.cross_entropy(net(x * sizes), y)

    diagnosis = watched(tmp_path, model, torch.optim.SGD(model.parameters(), 0.5), loss_of, size=256)
    assert alarms(diagnosis) == expected
    assert all(found.remedies[0].startswith("centre and scale each input feature") for found in diagnosis.alarms)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    ("scale", "offset", "cause"),
    [(1.0, 0.0, None), (300.0, 0.0, "feature-scale"), (1.0, 100.0, "uncentered-inputs")],
)
def test_inputs_that_make_a_ravine_in_mini_batches(scale, offset, cause, momentum, tmp_path):
    """The noise of the batches throws the weights across the valley, so that their path does not show its floor; with
    momentum the rate could be raised a few times, which would not do either."""
    torch.manual_seed(5)
    model = nn.Linear(8, 4)
    nn.init.zeros_(model.weight)
    sizes = torch.tensor([scale, *[1.0] * 7])
    inputs = examples()[0] * sizes + offset
    steepest = float(torch.linalg.eigvalsh(inputs.T @ inputs / len(inputs))[-1]) / 4  # of a softmax at its start
    optimizer = torch.optim.SGD(model.parameters(), 0.4 / steepest, momentum=momentum)

    def loss_of(net, x, y):
        return F.cross_entropy(net(x * sizes + offset), y)

    expected = [("ravine", cause)] if cause else []
    assert alarms(watched(tmp_path, model, optimizer, loss_of, steps=300)) == expected


def test_a_hinge_loss_at_its_zero_has_no_dead_units(tmp_path):
    """Of batches of 16 that are all beyond the margin."""
    torch.manual_seed(6)
    model = nn.Linear(8, 1)

    def hinge(net, x, y):
        signs = 2.0 * (y < 2) - 1
        return F.relu(1 - signs * net(x)[:, 0]).mean()

    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    assert alarms(watched(tmp_path, model, optimizer, hinge, steps=300, size=16)) == []


@pytest.mark.parametrize("mixed", ["probabilities", "logits"])
def test_a_mixture_of_softmaxes_given_as_logits(mixed, tmp_path):
    """Known by the values: the way from the softmax to the loss is that of a gated mixture of logits."""

    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(8, 4) for _ in range(3)])
            self.gate = nn.Linear(8, 3)

        def forward(self, x):
            answers = torch.stack([expert(x) for expert in self.experts], 1)
            answers = answers.softmax(-1) if mixed == "probabilities" else answers
            return (self.gate(x).softmax(-1)[..., None] * answers).sum(1)

    torch.manual_seed(4)
    model = Mixture()
    found = watched(tmp_path, model, torch.optim.Adam(model.parameters(), 0.02), cross_entropy)
    assert alarms(found) == ([("plateau", "double-softmax")] if mixed == "probabilities" else [])
    assert diagnostics.load(tmp_path).meta["probabilities"] == (mixed == "probabilities")


@pytest.mark.parametrize("output", [nn.Sigmoid, nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("reachable", [True, False])
def test_targets_that_the_output_cannot_reach(output, reachable, tmp_path):
    def loss_of(model, x, y):
        targets = torch.sigmoid(x.sum(1, keepdim=True))
        return F.mse_loss(model(x), targets if reachable else 8 * targets - 4)

    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 1), output())
    found = watched(tmp_path, model, torch.optim.Adam(model.parameters(), 0.01), loss_of)
    cause = "target-range" if output is nn.ReLU else "logistic-least-squares"
    assert alarms(found) == ([] if reachable else [("plateau", cause)])


@pytest.mark.parametrize("output", [nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize("peak", [1.0, 3.0])
def test_targets_beyond_the_output_that_the_first_batch_lacks(output, peak, tmp_path):
    """A quarter of them in every later batch, compared by hand; below 1 there is noise at the edge."""
    batches = itertools.count()

    def loss_of(model, x, y):
        first = next(batches) < 3  # of its loss and of what is measured
        targets = torch.where(x[:, :1] > 0.67, 0.95 if first else peak, 0.1) + 0.02 * torch.randn(len(x), 1)
        return (model(x) - targets).pow(2).mean()

    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 1), output())
    found = watched(tmp_path, model, torch.optim.Adam(model.parameters(), 0.01), loss_of)
    assert alarms(found) == ([("plateau", "logistic-least-squares")] if peak > 1 else [])
    assert "% of the targets lie well outside" in "".join(finding.summary for finding in found.alarms) or peak == 1


@pytest.mark.parametrize(("threshold", "expected"), [(1e-4, [("lr-too-small", "learning-rate")]), (1.0, [])])
def test_clipping_that_leaves_next_to_nothing(threshold, expected, tmp_path):
    """Its short gradients are no saddle point; the remedy is the threshold."""
    model = network()
    found = watched(
        tmp_path,
        model,
        torch.optim.SGD(model.parameters(), 0.2),
        cross_entropy,
        steps=250,
        between=lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), threshold),
    )
    assert alarms(found) == expected
    assert all("clipping threshold" in finding.remedies[0] for finding in found.alarms)


def test_clipping_to_nothing_makes_no_minimum(tmp_path):
    model, thresholds = network(), iter(10.0 ** -np.arange(0, 20, 0.05))
    found = watched(
        tmp_path,
        model,
        torch.optim.SGD(model.parameters(), 0.1),
        cross_entropy,
        steps=300,
        between=lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), next(thresholds)),
    )
    assert "local-minimum" not in {finding.kind for finding in found.findings}


@pytest.mark.parametrize("biased", [True, False])
def test_rectified_units_that_the_signal_does_not_reach(biased, tmp_path):
    """Half of them are dead and the others on for all inputs: their biases alone decide, from the start or after the
    first updates, which move nothing else."""
    torch.manual_seed(1)
    layers = [nn.Linear(8 if at == 0 else 32, 32) for at in range(6)] + [nn.Linear(32, 4)]
    for layer in layers:
        layer.weight.data.mul_(0.05)
        layer.bias.data.mul_(biased)
    model = nn.Sequential(*[each for layer in layers[:-1] for each in (layer, nn.ReLU())], layers[-1])
    found = watched(tmp_path, model, torch.optim.SGD(model.parameters(), 0.05), cross_entropy, steps=300)
    assert alarms(found) == [("plateau", "vanishing-gradient")]
    assert "explains dead-units since step" in found.alarms[0].evidence
    assert "kaiming" in found.alarms[0].remedies[0]


def test_a_gradient_whose_square_underflows_is_none_that_is_zero(tmp_path):
    class Tiny(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 4)

        def forward(self, x):
            return self.second(x) + 1e-25 * self.first(x)

    torch.manual_seed(1)
    model = Tiny()
    found = watched(tmp_path, model, torch.optim.SGD(model.parameters(), 0.5), cross_entropy)
    norms = diagnostics.load(tmp_path).table("layers").groupby("layer")["grad_norm"].max()
    assert norms["first.weight"] == 0 < norms["second.weight"]
    assert alarms(found) == []


@pytest.mark.parametrize(("make", "rate"), [(torch.optim.Adam, 0.003), (torch.optim.SGD, 0.001)])
def test_a_lower_momentum_keeps_the_step_stable(make, rate, tmp_path):
    """Adam's steps have the rate's length at any momentum; those of SGD may be longer, within half the limit."""
    momentum = {"betas": (0.999, 0.999)} if make is torch.optim.Adam else {"momentum": 0.998}
    model = network()
    found = watched(tmp_path, model, make(model.parameters(), rate, **momentum), cross_entropy, steps=250)
    assert alarms(found) == [("lr-oscillation", "momentum")]
    told = re.search(r"with a learning rate of ([\d.e-]+)", found.alarms[0].remedies[0])
    if make is torch.optim.Adam:
        assert told is None
        return
    ratio = diagnostics.load(tmp_path).table("curvature")["stability"].iloc[-1]
    assert rate < float(told.group(1)) <= min(0.51 * rate / ratio * 1.9 / 1.998, 1.01 * rate * 0.1 / 0.002)


@pytest.mark.parametrize(
    ("branches", "behind", "severity"), [(1, True, "info"), (4, True, "warning"), (4, False, "info")]
)
def test_a_branch_that_is_never_taken_in_a_run_that_learns(branches, behind, severity, tmp_path):
    """Its gradients are exactly zero, since what it says is multiplied by zero. Most of a network is no branch, unless
    nothing lies behind, as behind heads of which one is in use."""

    class Routed(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, last = nn.Linear(8, 16), nn.Linear(16, 4)
            if not behind:
                self.last = last
            self.idle = nn.ModuleList([nn.Linear(8, 16) for _ in range(branches)])
            self.last = last

        def forward(self, x):
            return self.last(torch.tanh(self.used(x)) + sum(0 * torch.tanh(idle(x)) for idle in self.idle))

    torch.manual_seed(1)
    model = Routed()
    found = watched(tmp_path, model, torch.optim.Adam(model.parameters(), 0.02), cross_entropy)
    assert [(finding.kind, finding.severity) for finding in found.findings if finding.kind == "zero-gradient"] == [
        ("zero-gradient", severity)
    ]
    assert alarms(found) == ([] if severity == "info" else [("zero-gradient", None)])


def test_factors_that_are_all_zero(tmp_path):
    class Factors(nn.Module):
        def __init__(self):
            super().__init__()
            self.users, self.items = nn.Embedding(16, 3), nn.Embedding(16, 3)
            for each in (self.users, self.items):
                nn.init.zeros_(each.weight)

        def forward(self, x):
            places = (4 * x[:, :2].abs()).long().clamp(max=15)
            return (self.users(places[:, 0]) * self.items(places[:, 1])).sum(1)

    model = Factors()
    found = watched(
        tmp_path, model, torch.optim.SGD(model.parameters(), 0.1), lambda model, x, y: F.mse_loss(model(x), y.float())
    )
    assert alarms(found) == [("symmetry", "zero-initialization")]
    assert "began as zeros" in found.alarms[0].summary and "small random" in found.alarms[0].remedies[0]


@pytest.mark.parametrize(("scale", "rate", "expected"), [(300.0, 3e-6, [("ravine", "feature-scale")]), (1.0, 0.1, [])])
def test_raw_inputs_of_hidden_units(scale, rate, expected, tmp_path):
    """Two columns three hundred times as large as the six that tell the target pin the rate."""
    sizes = torch.tensor([scale, scale, *[1.0] * 6])

    def loss_of(model, x, y):
        return F.mse_loss(model(sizes * x)[:, 0], torch.tanh(x[:, 2:].sum(1)))

    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    found = watched(tmp_path, model, torch.optim.SGD(model.parameters(), rate), loss_of, steps=300)
    assert alarms(found) == expected
    assert all("linear model" not in finding.summary for finding in found.alarms)


@pytest.mark.parametrize(("gain", "rate", "cause"), [(1.0, 3.0, "large-step"), (30.0, 1e-3, "initialization")])
def test_who_saturated_the_units(gain, rate, cause, tmp_path):
    """The first record is of after the first update: where that threw the weights, the start is not to blame."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    model[0].weight.data.mul_(gain)
    watched(tmp_path, model, torch.optim.Adam(model.parameters(), rate), cross_entropy)
    (found,) = saturated_units.check(diagnostics.load(tmp_path))
    assert (found.first_step, found.cause) == (1, cause)
    assert ("lower the learning rate" in found.remedies[0]) == (cause == "large-step")


def test_a_log_softmax_of_probabilities_inside_a_model(tmp_path):
    """Odd, but none of the loss's business: only what the loss squashes again keeps it from 0."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 4), nn.Softmax(-1), nn.LogSoftmax(-1), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    found = watched(tmp_path, model, optimizer, lambda model, x, y: F.mse_loss(model(x)[:, 0], (y > 1).float()))
    assert diagnostics.load(tmp_path).meta["probabilities"] is True
    assert all(finding.cause != "double-softmax" for finding in found.findings)


class Weighed(nn.Module):
    """Two losses, of which a parameter learns how much each counts."""

    def __init__(self, collect):
        super().__init__()
        torch.manual_seed(2)
        self.counts, self.collect = nn.Parameter(torch.zeros(2)), collect
        self.model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x, y):
        scores = self.model(x)
        losses = self.collect([F.cross_entropy(scores, y), scores.square().mean()])
        return (losses * torch.exp(-self.counts) + self.counts).sum()


@pytest.mark.parametrize(("collect", "expected"), [(torch.tensor, [("wiring", "detached")]), (torch.stack, [])])
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
def test_losses_that_are_collected_without_their_graph(collect, expected, tmp_path):
    model = Weighed(collect)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    assert alarms(watched(tmp_path, model, optimizer, lambda model, x, y: model(x, y))) == expected


def test_a_teacher_among_the_parameters_is_not_detached(tmp_path):
    class Distilled(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.student, self.teacher = nn.Linear(8, 4), nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))

        def forward(self, x):
            with torch.no_grad():
                wanted = self.teacher(x).softmax(1)
            return F.cross_entropy(self.student(x), wanted)

    model = Distilled()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = watched(tmp_path, model, optimizer, lambda model, x, y: model(x))
    assert ("wiring", "detached") not in alarms(found)


@pytest.mark.parametrize(("scale", "expected"), [(300.0, [("zero-gradient", None)]), (1.0, [])])
def test_a_sigmoid_that_is_sure_and_wrong_behind_a_clamp(scale, expected, tmp_path):
    """Cross-entropy by hand, of classes 0 to 3 by one number and of two classes."""
    model = network(outputs=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss_of(model, x, y):
        p = torch.sigmoid(model(scale * x)).clamp(1e-7, 1 - 1e-7)
        t = (y if scale > 1 else y % 2)[:, None]
        return -(t * p.log() + (1 - t) * (1 - p).log()).mean()

    assert alarms(watched(tmp_path, model, optimizer, loss_of, steps=300)) == expected
