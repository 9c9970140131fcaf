"""Mistakes that people make with optimizers and modules, each beside the same loop without it: small real runs."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.monitor.linear import is_linear_model, linear_layers
from diagnostics.monitor.wiring import unregistered
from diagnostics.rules import wiring
from diagnostics.run import RunWriter

pytestmark = pytest.mark.exhaustive  # minutes; `make test` has a few of each kind elsewhere

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def clusters(n=256, features=8, classes=4):
    torch.manual_seed(0)
    y = torch.randint(classes, (n,))
    return torch.randn(classes, features)[y] * 1.5 + torch.randn(n, features), y


def network():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))


def diagnosed(
    path,
    model,
    optimizer,
    loss_of=lambda model, x, y: F.cross_entropy(model(x), y),
    steps=120,
    step=True,
    each=lambda update: None,
    zero_every=1,
    scale=1.0,
    closure=True,
):
    x, y = clusters()
    draw = torch.Generator().manual_seed(1)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for update in range(steps):
            chosen = torch.randint(len(x), (32,), generator=draw)
            a, b = scale * x[chosen], y[chosen]
            if update % zero_every == 0:
                optimizer.zero_grad()
            loss = loss_of(model, a, b)
            loss.backward()
            if step:
                optimizer.step()
            monitor.step(loss.detach(), closure=(lambda a=a, b=b: loss_of(model, a, b)) if closure else None)
            each(update)
    return diagnostics.diagnose(diagnostics.load(path))


def alarms(diagnosis):
    return [(finding.kind, finding.cause) for finding in diagnosis.alarms]


@pytest.mark.parametrize("step", [True, False])
def test_an_optimizer_that_never_steps(step, tmp_path):
    model = network()
    found = diagnosed(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.1), step=step)
    assert alarms(found) == ([] if step else [("wiring", "no-step")])


@pytest.mark.parametrize(
    ("anew", "severity"),
    [
        (lambda update: True, "warning"),
        (lambda update: update % 20 == 19, "warning"),
        (lambda update: update == 100, "info"),
    ],
    ids=["each update", "each epoch", "a second stage"],
)
@pytest.mark.every_case
def test_an_optimizer_that_is_made_anew_in_the_loop(anew, severity, tmp_path):
    """Not the one that was given to `watch`."""
    model = network()

    first = torch.optim.Adam(model.parameters(), lr=3e-3)
    with diagnostics.watch(model, first, tmp_path / "run", budget=ANY) as monitor:
        x, y = clusters()
        optimizer = first
        for update, chosen in enumerate(torch.randint(len(x), (200, 32))):
            optimizer = torch.optim.Adam(model.parameters(), lr=3e-3) if anew(update) else optimizer
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            monitor.step(loss.detach(), closure=lambda chosen=chosen: F.cross_entropy(model(x[chosen]), y[chosen]))
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run"))
    (told,) = (each for each in found.findings if each.cause == "no-step")
    assert told.severity == severity and "another one" in told.summary
    assert alarms(found) == [("wiring", "no-step")] * (severity == "warning")


def test_a_second_stage_of_a_loss_that_does_not_fall(tmp_path):
    """Where labels tell nothing: the first optimizer had its part of the run, and is no reason."""
    model = network()
    first, second = (torch.optim.SGD(model.parameters(), lr=1e-4) for _ in range(2))
    with diagnostics.watch(model, first, tmp_path / "run", budget=ANY) as monitor:
        for update in range(200):
            x, y = torch.randn(32, 8), torch.randint(4, (32,))
            model.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            (first if update < 100 else second).step()
            monitor.step(loss.detach(), closure=lambda x=x, y=y: F.cross_entropy(model(x), y))
    (told,) = (
        each for each in diagnostics.diagnose(diagnostics.load(tmp_path / "run")).findings if each.cause == "no-step"
    )
    assert told.severity == "info" and "or another one moves them" in told.summary


@pytest.mark.parametrize("zero_every", [1, 4])
def test_gradients_zeroed_once_an_epoch(zero_every, tmp_path):
    model = network()
    found = diagnosed(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=0.05), zero_every=zero_every)
    assert alarms(found) == ([] if zero_every == 1 else [("wiring", "gradients-accumulate")])


@pytest.mark.parametrize(
    ("squash", "confined"),
    [(torch.sigmoid, True), (torch.tanh, True), (lambda z: 10 * torch.tanh(z), False)],
)
def test_outputs_confined_before_a_cross_entropy(squash, confined, tmp_path):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    found = diagnosed(tmp_path / "run", model, optimizer, lambda model, x, y: F.cross_entropy(squash(model(x)), y))
    assert alarms(found) == ([("plateau", "double-softmax")] if confined else [])


def _average_written_back(model):
    average = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def each(update):
        for kept, p in zip(average, model.parameters(), strict=True):
            p.copy_(kept.lerp_(p, 0.001))

    return each


def _average_beside(model):
    average = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def each(update):
        for kept, p in zip(average, model.parameters(), strict=True):
            kept.lerp_(p, 0.001)

    return each


def _restored(model):
    first = {name: value.clone() for name, value in model.state_dict().items()}
    return lambda update: model.load_state_dict(first) if update % 5 == 4 else None


def _pruned(model):
    masks = [(torch.rand_like(p) < 0.3).float() for p in model.parameters()]

    @torch.no_grad()
    def each(update):
        for mask, p in zip(masks, model.parameters(), strict=True):
            p.mul_(mask)

    return each


def _bounded(model):
    """As a Wasserstein critic's, of a classifier: next to nothing passes."""

    @torch.no_grad()
    def each(update):
        for p in model.parameters():
            p.clamp_(-0.01, 0.01)

    return each


@pytest.mark.parametrize(("rate", "undone"), [(5e-4, 0.5), (2e-3, 0.95)])
def test_a_critic_whose_weights_are_bounded(rate, undone, tmp_path):
    """The first Wasserstein GANs: a bound takes back most or all of an update, and the loss, a difference, rises
    towards 0 as the generator learns."""
    torch.manual_seed(1)
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizers = [torch.optim.RMSprop(each.parameters(), lr=lr) for each, lr in ((generator, 5e-4), (critic, rate))]
    with diagnostics.watch(critic, optimizers[1], tmp_path / "run", budget=ANY) as monitor:
        for update in range(200):
            angle = 6.283 * torch.rand(64)
            real = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(64, 2)
            made = generator(torch.randn(64, 4)).detach()

            def closure(real=real, made=made):
                return critic(made).mean() - critic(real).mean()

            optimizers[1].zero_grad()
            loss = closure()
            loss.backward()
            optimizers[1].step()
            for p in critic.parameters():
                p.data.clamp_(-0.01, 0.01)
            monitor.step(loss.detach(), closure=closure)
            if update % 5 == 4:
                optimizers[0].zero_grad()
                (-critic(generator(torch.randn(64, 4))).mean()).backward()
                optimizers[0].step()
    run = diagnostics.load(tmp_path / "run")
    assert run.table("scalars")["undone"].median() > undone
    assert not {"wiring", "lr-unstable"} & {finding.kind for finding in diagnostics.diagnose(run).alarms}


@pytest.mark.parametrize(
    ("writes", "expected"),
    [
        (_average_written_back, [("wiring", "weights-put-back")]),
        (_restored, [("wiring", "weights-put-back")]),
        (_bounded, [("wiring", "weights-put-back")]),
        (_average_beside, []),
        (_pruned, []),  # takes back most of an update, and learns all the same
    ],
)
def test_what_else_writes_to_the_weights(writes, expected, tmp_path):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    found = diagnosed(tmp_path / "run", model, optimizer, each=writes(model))
    assert alarms(found) == expected
    shares = diagnostics.load(tmp_path / "run").table("scalars")["undone"].dropna()
    assert (shares == 0).all() if writes is _average_beside else shares.mean() > 0.4
    if writes is _restored:  # of five updates, all
        assert shares[shares > 1].median() == pytest.approx(5, rel=0.1)


class Heads(nn.Module):
    def __init__(self, make):
        super().__init__()
        torch.manual_seed(1)
        self.trunk, self.heads = nn.Linear(8, 16), nn.ModuleList(make())

    def forward(self, x):
        h = torch.tanh(self.trunk(x))
        return torch.cat([head(h) for head in self.heads], 1)


def _alike():
    heads = [nn.Linear(16, 1) for _ in range(4)]
    for head in heads[1:]:
        head.load_state_dict(heads[0].state_dict())
    return heads


@pytest.mark.parametrize(
    ("make", "shared"),
    [
        (lambda: [nn.Linear(16, 1)] * 4, True),
        (lambda: [nn.Linear(16, 1) for _ in range(4)], False),
        (_alike, False),  # until the first update
    ],
)
@pytest.mark.parametrize("loss", [F.mse_loss, F.smooth_l1_loss])
def test_heads_that_are_one_module(make, shared, loss, tmp_path):
    model = Heads(make)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss_of(model, x, y):
        return loss(model(x), torch.stack([x[:, 0], 2 * x[:, 1], x[:, 2] - 1, x[:, 3]], 1))

    assert alarms(diagnosed(tmp_path / "run", model, optimizer, loss_of)) == [("wiring", "shared-head")] * shared


@pytest.mark.parametrize("repeated", [True, False])
def test_answers_that_are_to_be_the_same_number(repeated, tmp_path):
    """Where the targets are, too, or where one class is told by one number alone."""
    model = Heads((lambda: [nn.Linear(16, 1)] * 4) if repeated else (lambda: [nn.Linear(16, 4)]))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def loss_of(model, x, y):
        return F.mse_loss(model(x), x[:, :1].expand(-1, 4))

    assert alarms(diagnosed(tmp_path / "run", model, optimizer, loss_of)) == []


class OwnAdam(torch.optim.Optimizer):
    def __init__(self, parameters, lr, stores):
        super().__init__(parameters, {"lr": lr})
        self.stores = stores

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            state = self.state[p]
            if not state:
                state["t"], state["m"], state["v"] = 0, torch.zeros_like(p), torch.zeros_like(p)
            state["t"] += 1
            m, v = 0.9 * state["m"] + 0.1 * p.grad, 0.999 * state["v"] + 0.001 * p.grad**2
            if self.stores:
                state["m"], state["v"] = m, v
            correct = (1 - 0.999 ** state["t"]) ** 0.5 / (1 - 0.9 ** state["t"])
            p.sub_(self.param_groups[0]["lr"] * correct * m / (v.sqrt() + 1e-8))


@pytest.mark.parametrize("stores", [True, False])
def test_an_optimizer_that_does_not_store_its_averages(stores, tmp_path):
    model = network()
    found = diagnosed(tmp_path / "run", model, OwnAdam(model.parameters(), 3e-3, stores))
    assert alarms(found) == ([] if stores else [("wiring", "state-unstored")])
    assert stores or "(m, v) is still zero after 3 updates" in found.alarms[0].summary


class Residual(OwnAdam):
    """Keeps what a compression would leave out, and compresses nothing; or a velocity, of weights that are not moved
    yet."""

    @torch.no_grad()
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p] = {"residual" if self.stores else "velocity": torch.zeros_like(p)}
            p.sub_(p.grad, alpha=0.05 if self.stores else 0.0)


@pytest.mark.parametrize("moves", [True, False])
def test_a_state_that_may_be_zero(moves, tmp_path):
    model = network()
    optimizer = Residual(model.parameters(), 0.05, moves)
    diagnosed(tmp_path / "run", model, optimizer, steps=12)
    assert "state-unstored" not in set(diagnostics.load(tmp_path / "run").table("events")["kind"])


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
        lambda p: torch.optim.Adam(p, 3e-3, amsgrad=True),
        lambda p: torch.optim.Rprop(p, 1e-3),
        lambda p: torch.optim.Adadelta(p),
        lambda p: torch.optim.ASGD(p, 0.05),
        lambda p: torch.optim.LBFGS(p, max_iter=2),
    ],
)
def test_what_optimizers_of_pytorch_store(make, tmp_path):
    model = network()
    x, y = clusters()
    optimizer = make(model.parameters())

    def with_backward():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with diagnostics.watch(model, optimizer, tmp_path / "run", curvature_every=0) as monitor:
        for _ in range(6):
            monitor.step(optimizer.step(with_backward), closure=lambda: F.cross_entropy(model(x), y))
    assert "state-unstored" not in set(diagnostics.load(tmp_path / "run").table("events")["kind"])


class Held(nn.Module):
    """Layers in a container that PyTorch does or does not look into; `used` tells whether gradients flow there."""

    def __init__(self, container, used=True):
        super().__init__()
        torch.manual_seed(2)
        self.used, self.layers = used, container([nn.Linear(8, 16), nn.Linear(16, 16)])
        self.first, self.out = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        layers = list(self.layers.values()) if isinstance(self.layers, dict) else self.layers
        h = torch.tanh(layers[0](x)) if self.used else torch.tanh(self.first(x))
        with torch.set_grad_enabled(self.used and torch.is_grad_enabled()):
            side = layers[1](h)
        return self.out(torch.tanh(side + h))


@pytest.mark.parametrize(
    ("container", "used", "expected"),
    [
        (list, True, [("wiring", "unregistered")]),
        (lambda layers: dict(enumerate(layers)), True, [("wiring", "unregistered")]),
        (nn.ModuleList, True, []),
        (list, False, []),  # a teacher kept out of parameters() on purpose gets no gradient
    ],
)
def test_modules_in_plain_containers(container, used, expected, tmp_path):
    model = Held(container, used)
    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-2))
    assert alarms(found) == expected
    if expected:
        assert found.alarms[0].layers[:1] == ("layers[0].weight",) and len(found.alarms[0].layers) == 4


def test_containers_within_containers():
    model = nn.Linear(2, 2)
    model.blocks = [[nn.Linear(2, 3), nn.ReLU()], {"b": (nn.Linear(3, 2, bias=False),)}]
    model.far = [[[[nn.Linear(2, 2)]]]]
    names = [name for name, _ in unregistered(model)]
    assert names == ["blocks[0][0].weight", "blocks[0][0].bias", "blocks[1]['b'][0].weight"]


@pytest.mark.parametrize("dampening", [0.0, 1.0])
def test_momentum_that_takes_nothing_of_a_gradient(dampening, tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, dampening=dampening)
    found = diagnosed(tmp_path / "run", model, optimizer)
    assert alarms(found) == ([("lr-too-small", "learning-rate")] if dampening else [])
    assert not dampening or "dampening of 1" in found.alarms[0].summary


@pytest.mark.parametrize(("decay", "expected"), [(1e-3, []), (1.0, [("plateau", "weight-decay")])])
def test_a_weight_decay_that_takes_the_weights_away(decay, expected, tmp_path):
    """After 400 updates nothing is left but rounding, where all units are alike."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, weight_decay=decay)
    found = diagnosed(tmp_path / "run", model, optimizer, steps=400)
    assert alarms(found) == expected


@pytest.mark.parametrize(("bias", "expected"), [(0.0, []), (25.0, [("plateau", "logistic-least-squares")])])
def test_least_squares_on_a_softmax_that_is_sure_and_wrong(bias, expected, tmp_path):
    model = network()
    with torch.no_grad():
        model[2].bias[3] += bias

    def brier(model, x, y):
        return (model(x).softmax(1) - F.one_hot(y, 4)).square().sum(1).mean()

    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-2), brier)
    assert alarms(found) == expected


@pytest.mark.parametrize(("rate", "expected"), [(1e-8, []), (0.02, [("lr-unstable", "learning-rate")])])
def test_weights_flung_beyond_float32_by_the_first_updates(rate, expected, tmp_path):
    """A sum over many members makes large outputs; no function overflows before the weights do."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))

    def summed(model, x, y):
        return (400 * model(x).mean(0) - 100).square().mean()

    found = diagnosed(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=rate), summed)
    assert [each for each in alarms(found) if each[0] in ("lr-unstable", "non-finite")] == expected


@pytest.mark.parametrize(("shrink", "expected"), [(1, [("non-finite", "overflow")]), (12, [])])
def test_a_recurrence_whose_gradient_overflows_though_it_is_clipped(shrink, expected, tmp_path):
    torch.manual_seed(2)
    inside, over, out = nn.Linear(8, 64), nn.Linear(64, 64, bias=False), nn.Linear(64, 4)
    nn.init.normal_(over.weight, std=1 / shrink)
    model = nn.ModuleList([inside, over, out])

    def unrolled(model, x, y):
        state = x.new_zeros(len(x), 64)
        for _ in range(20):
            state = torch.relu(inside(x) + over(state))
        return (out(state) - F.one_hot(y, 4)).square().mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(model.parameters(), 1.0) and None)
    found = diagnosed(tmp_path / "run", model, optimizer, unrolled, closure=False)
    assert alarms(found) == expected
    assert [(each.last_step, each.layers) for each in found.alarms] == [(None, ())] * len(expected)


def test_complex_parameters_are_measured_whole(tmp_path):
    class Spectral(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.body, self.out = nn.Linear(8, 8), nn.Linear(8, 4)
            self.filter = nn.Parameter(0.3 * torch.randn(5, dtype=torch.cfloat))

        def forward(self, x):
            spectrum = torch.fft.rfft(torch.relu(self.body(x)))
            return self.out(torch.fft.irfft(spectrum * self.filter, n=8))

    model = Spectral()
    diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-2), steps=40)
    run = diagnostics.load(tmp_path / "run")
    assert not {"measurement-failed", "measurement-off"} & set(run.table("events")["kind"])
    assert run.table("scalars")["top_projection"].notna().any()


def test_complex_inputs_and_answers_are_no_error(tmp_path):
    """With warnings as errors: a cast to real numbers would be one, and would leave half of each number out."""

    class Equalizer(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(2)
            self.first = nn.Parameter(0.3 * torch.randn(9, 16, dtype=torch.cfloat))
            self.last = nn.Parameter(0.3 * torch.randn(16, 9, dtype=torch.cfloat))

        def forward(self, x):
            return torch.tanh(x @ self.first) @ self.last

    model, x = Equalizer(), torch.randn(64, 9, dtype=torch.cfloat)

    def off(model, *_):
        return (model(x) - x.conj()).abs().square().mean()

    diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-3), off, steps=40)
    assert not {"measurement-failed", "measurement-off"} & set(
        diagnostics.load(tmp_path / "run").table("events")["kind"]
    )


def test_an_activation_of_nothing_is_no_error(tmp_path):
    model, turn = network(), iter(range(10**6))

    def some(model, x, y):
        rows = model(x)[torch.zeros(len(x), dtype=torch.bool) if next(turn) % 3 == 0 else y >= 0]
        return F.softplus(rows).sum() + 0 * model(x).sum()

    diagnosed(tmp_path / "run", model, torch.optim.SGD(model.parameters(), lr=1e-3), some, steps=40)
    assert "measurement-failed" not in set(diagnostics.load(tmp_path / "run").table("events")["kind"])


def test_which_models_are_linear():
    """Only where it can be seen: the parameters go into one layer, and into nothing else."""
    torch.manual_seed(0)
    x, target = torch.randn(8, 3), torch.randn(8, 1)
    layer, w, b = nn.Linear(3, 1), nn.Parameter(torch.randn(3, 1)), nn.Parameter(torch.randn(1))
    places, table, at = nn.Parameter(torch.randn(6, 2)), nn.Embedding(5, 4), torch.arange(5)
    linear = [F.mse_loss(layer(x), target), F.mse_loss(x @ w + b, target), F.cross_entropy(table(at), at % 4)]
    other = [
        (places[:, None] - places).square().sum(),
        (places @ places.T).sum(),
        (table(at) * table(at.flip(0))).sum(),
        torch.matrix_exp(places[:2]).sum(),
        F.mse_loss(layer(torch.relu(nn.Linear(3, 3)(x))), target),
    ]
    assert all(map(is_linear_model, linear)) and not any(map(is_linear_model, other))


def test_layers_that_are_linear_together():
    torch.manual_seed(0)
    x, layers = torch.randn(8, 6, requires_grad=True), [nn.Linear(6, 6) for _ in range(3)]
    table, at = nn.Embedding(5, 6), torch.arange(5)

    def stacked(*between):
        return nn.Sequential(*(each for pair in zip(layers, between, strict=True) for each in pair))(x).square().mean()

    no, dropped = nn.Identity(), nn.Dropout(0.5)
    assert linear_layers(stacked(no, no, no)) == 3
    assert linear_layers(stacked(dropped, nn.BatchNorm1d(6), nn.Sigmoid())) == 3  # the last one is the loss's
    assert linear_layers(stacked(no, nn.ReLU(), no)) == linear_layers(stacked(no, nn.LeakyReLU(), no)) == 0
    assert linear_layers(stacked(nn.LeakyReLU(True), nn.LeakyReLU(1.0, inplace=True), no)) == 3
    assert linear_layers((layers[0](x) * layers[1](x)).sum() + layers[2](layers[0](x) * layers[1](x)).sum()) == 0
    assert linear_layers(layers[1](layers[0](table(at))).sum()) == 0
    assert linear_layers(layers[0](x).sum()) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("bend", [nn.Identity(), nn.Tanh()], ids=str)
def test_a_network_without_a_non_linearity(bend, tmp_path):
    """Which of two inputs is positive, but not both (exclusive or)."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), bend, nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=100.0) as monitor:
        for _ in range(400):
            x = torch.randn(64, 2)
            y = (x.prod(1, keepdim=True) > 0).float()
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y: F.binary_cross_entropy_with_logits(model(x), y))
    alarms = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    assert [each.cause for each in alarms] == (["nothing-learned"] if isinstance(bend, nn.Identity) else [])
    assert all("No non-linearity lies between its 2 layers" in each.summary for each in alarms)
    assert all("nn.ReLU" in each.remedies[0] for each in alarms)


class Converted(nn.Module):
    """`nn.Parameter(...).to(...)` is what was made from a parameter, and no parameter."""

    def __init__(self, late):
        super().__init__()
        torch.manual_seed(2)
        start = torch.randn(8, 16, dtype=torch.float64)
        self.table = nn.Parameter(start).float() if late else nn.Parameter(start.float())
        self.out, self.seen = nn.Linear(16, 4), None

    def forward(self, x):
        self.seen = torch.tanh(x @ self.table)  # kept, as some do to look at it
        return self.out(self.seen)


@pytest.mark.parametrize("late", [True, False])
def test_a_parameter_that_was_converted(late, tmp_path):
    model = Converted(late)
    model(torch.randn(3, 8))
    found = diagnosed(tmp_path / "run", model, torch.optim.Adam(model.parameters(), lr=1e-2))
    assert alarms(found) == ([("wiring", "unregistered")] if late else [])
    assert not late or found.alarms[0].layers == ("table",)


@pytest.mark.parametrize("after", ["clip", "zero", "set to none", "backward", "nothing"])
def test_gradients_written_to_after_the_step(after, tmp_path):
    """Zeroing them is no mistake, nor is another backward pass, of the next accumulation or of another loss."""
    (x, y), model = clusters(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY) as monitor:
        for _ in range(60):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            if after == "clip":
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            elif after == "backward":
                F.cross_entropy(model(x + 1), y).backward()
            elif after != "nothing":
                optimizer.zero_grad(set_to_none=after == "set to none")
            monitor.step(loss.detach())
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run"))
    assert alarms(found) == ([("wiring", "clipped-after-step")] if after == "clip" else [])
    for late in found.alarms:
        thrown = replace(late, kind="saturated-units", cause="large-step")
        assert wiring.explains(late, thrown) and not wiring.explains(late, replace(thrown, cause="input-scale"))


class HandmadeCell(nn.Module):
    def __init__(self, positive):
        super().__init__()
        torch.manual_seed(0)
        draw = torch.rand if positive else lambda rows, columns: torch.randn(rows, columns) / rows**0.5
        self.read, self.again = nn.Parameter(draw(3, 40)), nn.Parameter(draw(40, 40))
        self.out = nn.Parameter(draw(40, 1))

    def forward(self, x):
        h = x.new_zeros(len(x), 40)
        for t in range(x.shape[1]):
            h = torch.tanh(x[:, t] @ self.read + h @ self.again)
        return (h @ self.out).squeeze(-1)


@pytest.mark.parametrize("positive", [True, False])
def test_a_start_far_above_what_a_constant_answer_has_is_no_measure_of_learning(positive, tmp_path):
    """Positive weights saturate the cell and make outputs of size 40: that the loss falls to 1 is the last layer's."""
    torch.manual_seed(0)
    x = torch.randn(512, 8, 3)
    y = (x[..., 0] * 0.7 ** torch.arange(7, -1, -1)).sum(1)
    y, model = (y - y.mean()) / y.std(), HandmadeCell(positive)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.003)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY) as monitor:
        for update in range(400):
            rows = slice(64 * (update % 8), 64 * (update % 8) + 64)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda rows=rows: F.mse_loss(model(x[rows]), y[rows]))
    run = diagnostics.load(tmp_path / "run")
    found = diagnostics.diagnose(run).alarms
    assert [finding.kind for finding in found] == (["saturated-units"] if positive else [])
    assert not positive or run.table("scalars")["loss"].iloc[-1] < 0.02 * run.table("scalars")["loss"].iloc[0]


class RoundsAtRandom(torch.optim.SGD):
    """Not of torch: what it leaves as it was is not lost."""


@pytest.mark.parametrize(
    ("optimizer", "rate", "dtype", "expected"),
    [
        (torch.optim.Adam, 1e-4, torch.bfloat16, [("wiring", "lost-to-rounding")]),
        (torch.optim.Adam, 1e-2, torch.bfloat16, []),
        (torch.optim.Adam, 1e-4, torch.float32, []),
        (RoundsAtRandom, 1e-3, torch.bfloat16, []),
    ],
)
def test_updates_lost_to_rounding(optimizer, rate, dtype, expected, tmp_path):
    model = network().to(dtype)
    loss_of = lambda model, x, y: F.cross_entropy(model(x.to(dtype)), y)  # noqa: E731
    found = diagnosed(tmp_path / "run", model, optimizer(model.parameters(), lr=rate), loss_of, steps=150)
    assert [each for each in alarms(found) if each[0] == "wiring"] == expected


@pytest.mark.parametrize(
    ("lost_late", "decays", "end", "cosine", "expected"),
    [
        (1.0, True, 1.0, 0.0, []),  # at the end of a schedule nothing moves, and nothing needs to
        (1.0, False, 1.0, 0.0, ["warning"]),
        (1.0, False, 0.3, 0.0, ["info"]),  # it has learned all the same, and stands at a floor of noise
        (1.0, False, 0.3, 0.4, ["warning"]),  # it stands, though gradients agree on a way down
        (0.6, False, 1.0, 0.4, ["info"]),  # most are lost, and a typical one is not
        (0.4, False, 1.0, 0.4, []),
    ],
)
def test_when_lost_updates_matter(lost_late, decays, end, cosine, expected, tmp_path):
    layers = [{"name": "a", "shape": [100], "parameters": 100}, {"name": "full", "shape": [9], "parameters": 9}]
    writer = RunWriter(tmp_path / "run", {"optimizer": "SGD", "hyperparameters": [{"lr": 0.1}], "layers": layers})
    for step in range(1, 201):
        late = step > 60
        row = {"loss": end if late else 1.0, "lr": 0.001 if late and decays else 0.1}
        writer.append("scalars", step, row | ({"gradient_cosine": cosine} if step % 10 == 0 else {}))
        if step % 10 == 0:
            lost = [lost_late if late else 0.2, float("nan")]
            writer.append_many("layers", step, ["a", "full"], {"grad_norm": [1.0, 1.0], "lost_fraction": lost})
    writer.close("finished")
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).findings
    assert [finding.severity for finding in found if finding.cause == "lost-to-rounding"] == expected


@pytest.mark.parametrize(("slope", "told"), [(True, True), (1.0, True), (0.01, False)])
@pytest.mark.every_case
def test_a_leaky_relu_that_changes_nothing(slope, told, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(2, 32), nn.LeakyReLU(slope), nn.Linear(32, 32), nn.LeakyReLU(slope), nn.Linear(32, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path) as monitor:
        for _ in range(300):
            x = torch.randn(64, 2)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), x.prod(1, keepdim=True).sign())
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    found = [(each.cause, each.layers) for each in diagnostics.diagnose(diagnostics.load(tmp_path)).alarms]
    assert found == ([("identity-activation", ("1", "3"))] if told else [])
