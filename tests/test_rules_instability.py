"""Instability while it happens: named in time, at the step where the rate passed the limit, with the limit's number."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.rules import _growth as growth
from diagnostics.rules import _harm as harm
from diagnostics.rules import _signals as signals
from diagnostics.rules._in_vain import in_vain
from diagnostics.run import Run

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


class Quadratic(nn.Module):
    """J(w) = 5 w_1^2 + w_2^2 / 2: lambda_max is 10."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(2))

    def forward(self):
        return 5 * self.w[0] ** 2 + 0.5 * self.w[1] ** 2


@pytest.mark.exhaustive
@pytest.mark.parametrize(("betas", "told"), [((0.999, 0.9), True), ((0.9, 0.999), False), ((0.5, 0.9), False)])
def test_adam_with_its_betas_the_other_way_round(betas, told, tmp_path):
    """Of a weight whose gradient is gone, the step grows by beta1 over the root of beta2 an update: by 5 %."""
    torch.manual_seed(0)
    x, model = torch.randn(256, 4), nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=betas)
    loss_of = lambda x, on: F.mse_loss(on * model(x), x[:, :1].sin())  # noqa: E731
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for update in range(300):
            rows, on = x[torch.randint(256, (32,))], float(update < 150)
            optimizer.zero_grad()
            loss = loss_of(rows, on)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda rows=rows, on=on: loss_of(rows, on))
    run = diagnostics.load(tmp_path)
    moved = run.table("scalars", ["update_norm"])["update_norm"].dropna()
    assert bool(moved.max() > 10 * 1e-3 * 97**0.5) is told  # 97 weights
    found = [each for each in diagnostics.diagnose(run).alarms if each.kind in ("lr-unstable", "cliff")]
    assert [(each.kind, each.cause) for each in found] == ([("lr-unstable", "betas")] if told else [])


@pytest.mark.parametrize("updates", [10, 24, 25, 26])
def test_a_rate_past_the_limit_is_told_however_short_the_run(updates, tmp_path):
    model = Quadratic()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)  # 1.25 times the limit
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(updates):
            optimizer.zero_grad()
            loss = model()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=model)
    found = diagnostics.diagnose(diagnostics.load(tmp_path))
    assert not found.crashed and [each.kind for each in found.alarms] == ["lr-unstable"]


def test_a_start_without_an_example_of_the_rare_class_is_no_start():
    """A batch costs 0.01 without one and 1 with one; what is learned makes both 0.15, which is less in the mean."""
    draw = np.random.default_rng(0)
    rare = draw.random(2000) < 0.3
    learned = 1 - np.exp(-np.arange(2000) / 60)
    losses = (1 - learned) * np.where(rare, 1.0, 0.01) + learned * draw.gamma(4, 0.15 / 4, 2000)
    losses[:8] = 0.01, 1.3, 1.2, 0.01, 0.0099, 1.1, 0.0099, 1.2
    losses[8:11] = 0.0098, 1.2, 0.0098
    assert not harm.harmed(noisy(losses), 5.0, 0.5, 0.2, False, 3)
    losses[1:11] = np.linspace(0.02, 1.3, 10)  # up, and not back
    assert harm.harmed(noisy(losses), 5.0, 0.5, 0.2, False, 3)


def test_a_first_loss_that_is_low_by_chance_is_no_start_to_tower_over():
    """Dropout of nine in ten at a two-class problem with nothing to learn."""
    draw = np.random.default_rng(0)
    losses = 0.69 + np.abs(draw.normal(size=700)) * np.exp(-np.arange(700) / 40)
    losses[0] = 0.64
    assert not harm.harmed(noisy(losses), 5.0, 0.5, 0.2, False, 3)
    losses[:40] = 0.69 + 0.02 * draw.normal(size=40) + np.where(np.arange(40) > 20, 1.08 ** np.arange(40) / 4, 0)
    assert harm.harmed(noisy(losses), 5.0, 0.5, 0.2, False, 3)


def noisy(losses):
    frame = pd.DataFrame({"step": np.arange(1, len(losses) + 1), "loss": losses})
    return signals.loss(Run.from_frames({}, {"scalars": frame}))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_rate_that_grows_past_the_limit_is_named_before_the_loss_is_ten_times_its_start(tmp_path, momentum):
    """s = 1 at lr 2(1 + mu)/10; grown 2 % a step from half of it, which crosses the limit at update 36."""
    model = Quadratic()
    limit = 2 * (1 + momentum) / 10
    opt = torch.optim.SGD(model.parameters(), lr=limit / 2, momentum=momentum)
    schedule = torch.optim.lr_scheduler.ExponentialLR(opt, 1.02)
    losses = []
    with diagnostics.watch(model, opt, tmp_path, budget=ANY) as monitor:
        for _ in range(120):
            opt.zero_grad()
            loss = model() + 0.3
            loss.backward()
            opt.step()
            monitor.step(loss, closure=lambda: model() + 0.3)
            schedule.step()
            losses.append(loss.item())
    tenfold = next(step for step, value in enumerate(losses, 1) if not value <= 10 * losses[0])
    run = diagnostics.load(tmp_path)
    found = diagnostics.diagnose(run.until(tenfold - 1)).alarms[0]
    assert (found.kind, found.cause) == ("lr-unstable", "schedule")
    assert found.first_step == pytest.approx(37, abs=1)
    assert found.evidence["learning rate"] / found.evidence["stability ratio"] == pytest.approx(limit, rel=0.02)
    assert "lr-unstable" not in [each.kind for each in diagnostics.diagnose(run.until(found.first_step)).findings]


@pytest.mark.parametrize(("measured", "ratio"), [(9, 0.2), (60, 2.2)])
def test_a_noise_term_after_which_the_loss_fell_explains_no_growth(measured, ratio):
    """The loss falls from 2 to 0.2 until update 60 and then grows; curvature alone is at a fifth of the limit."""
    loss = np.r_[np.linspace(2, 0.2, 60), 0.2 * 1.2 ** np.arange(1, 21)]
    steps = np.arange(1, 81)
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.1, "grad_norm": 1.0})
    curvature = pd.DataFrame({"step": [5, 60], "stability": [0.2, 0.2]})
    batches = pd.DataFrame({"step": [measured], "origin": [measured], "noise_term": [2.0]})
    tables = {"scalars": scalars, "curvature": curvature, "batches": batches}
    run = Run.from_frames({"name": "test", "status": "finished"}, tables)
    grown = growth.growth(run, signals.loss(run))
    assert growth.against_limit(run, grown, 4).ratio == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("estimate", "noise", "expected"),
    [
        ((50, 0.4), 0.2, "cliff"),
        ((50, 0.4), 30.0, "cliff"),  # a few examples' huge curvature, as before a wall
        ((20, 3.0), 0.0, "cliff"),  # 5^35: it would have blown up long before
        ((58, 3.0), 0.0, "lr-unstable"),
    ],
)
def test_a_wall_and_a_rate_past_the_limit(estimate, noise, expected):
    """The loss falls for 60 updates; then the gradient grows five hundred times within one, and the loss stays up."""
    steps = np.arange(1, 121)
    before, after = np.linspace(2, 0.5, 60), np.linspace(4.0, 2.2, 60)
    wobble = 0.02 * np.cos(3.0 * steps)
    norms = np.where(steps == 61, 500.0, 1.0) + wobble
    loss = np.r_[before, after] + wobble
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.1, "grad_norm": norms})
    curvature = pd.DataFrame({"step": [5, estimate[0]], "stability": [0.3, estimate[1]]})
    batches = pd.DataFrame({"step": [58], "origin": [57], "noise_term": [noise]})
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"lr": 0.1, "momentum": 0}]}
    run = Run.from_frames(meta, {"scalars": scalars, "curvature": curvature, "batches": batches})
    assert [found.kind for found in diagnostics.diagnose(run).alarms] == [expected]


def growing(estimates):
    """The loss stays at 1 for 60 updates and then grows by a quarter an update, until it overflows."""
    steps = np.arange(1, 121)
    loss = np.r_[np.ones(60), 1.25 ** np.arange(1, 56), [np.inf] * 5] + 0.01 * np.cos(3.0 * steps)
    norms = np.r_[np.ones(60), 1.25 ** np.arange(1, 56), [np.inf] * 5]
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.1, "grad_norm": norms})
    events = pd.DataFrame({"step": [116], "kind": "non-finite", "subject": "overflow:mul", "message": "at update 116"})
    curvature = pd.DataFrame({"step": estimates, "stability": [0.1] * len(estimates)})
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"lr": 0.1, "momentum": 0}]}
    return Run.from_frames(meta, {"scalars": scalars, "curvature": curvature, "events": events})


@pytest.mark.parametrize(("estimates", "expected"), [([2, 3], "lr-unstable"), ([2, 60, 90], "non-finite")])
def test_a_gradual_growth_that_no_estimate_saw_is_an_instability(estimates, expected):
    """The curvature of the start says nothing of what it was there; one of the growth itself clears the rate."""
    assert [found.kind for found in diagnostics.diagnose(growing(estimates)).alarms] == [expected]


@pytest.mark.parametrize("times", [30.0, 3.0])
def test_the_gradient_before_a_number_that_is_not_finite(times):
    """Far longer than usual, it made the step; what batch noise makes of one is not spoken of."""
    norms = np.r_[1 + 0.1 * np.cos(np.arange(29.0)), times, [np.nan] * 30]
    scalars = pd.DataFrame({"step": np.arange(1, 61), "loss": 0 * norms + 1, "lr": 0.1, "grad_norm": norms})
    events = pd.DataFrame({"step": [31], "kind": "non-finite", "subject": "loss", "message": "at update 31: bad"})
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"lr": 0.1, "momentum": 0}]}
    (found,) = diagnostics.diagnose(Run.from_frames(meta, {"scalars": scalars, "events": events})).alarms
    told = times > 10
    assert (found.kind, found.first_step) == ("non-finite", 31)
    assert found.summary.startswith("At update 31 bad;")
    assert ("followed a gradient of norm 30, where 1" in found.summary) == told
    assert ("clip" in found.remedies[0]) == told


@pytest.mark.exhaustive
def test_a_rate_that_cycles_under_noise_of_heavy_tails(tmp_path):
    """Clipped at each step, as it should be; single batches cost three times what the first one did, and s is past 1 at
    the top of a cycle."""
    draw = np.random.default_rng(8)
    x = draw.uniform(-1, 1, size=(20_000, 6))
    y = 2 * np.sin(3 * x[:, 0]) + 3 * x[:, 1] * x[:, 2] + 2 * np.abs(x[:, 3]) + 0.7 * draw.standard_t(2.5, size=len(x))
    x, y = (torch.tensor(each, dtype=torch.float32) for each in (x, y))
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.005, 0.1, 100, mode="triangular2", cycle_momentum=False)

    def loss_of(chosen):
        return (model(x[chosen]).squeeze(1) - y[chosen]).square().mean()

    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=20) as monitor:
        for _ in range(800):
            chosen = torch.randint(len(x), (64,))
            optimizer.zero_grad()
            loss = loss_of(chosen)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            schedule.step()
            monitor.step(loss.detach(), closure=lambda chosen=chosen: loss_of(chosen))
    assert diagnostics.diagnose(diagnostics.load(tmp_path)).alarms == ()


@pytest.mark.parametrize(
    ("rate", "loss_of", "expected"),
    [
        (1.0, lambda w: (w.prod() - 1) ** 2, [("lr-unstable", "learning-rate")]),
        (0.02, lambda w: (w.prod() - 1) ** 2, []),
        (0.02, lambda w: (w.prod() - 1).log(), [("non-finite", None)]),
    ],
)
def test_numbers_lost_within_the_first_updates_without_a_closure(rate, loss_of, expected, tmp_path):
    """A product of four weights goes from the first long step to infinity in four updates; a logarithm of a difference
    that passes 0 had not grown."""
    weights = nn.Parameter(torch.full((4,), 1.3))
    model = nn.ParameterList([weights])
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY) as monitor:
        for _ in range(60):
            optimizer.zero_grad()
            loss = loss_of(weights)
            loss.backward()
            optimizer.step()
            monitor.step(loss.detach())
    assert [
        (each.kind, each.cause) for each in diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    ] == expected


@pytest.mark.parametrize(
    ("kind", "beside", "expected"),
    [("resumed", False, ["lr-unstable"]), ("gradients-cleared", False, []), ("resumed", True, [])],
)
def test_a_loss_that_rises_while_another_network_learns_through_this_one(kind, beside, expected):
    """A discriminator's loss rises again as its generator gets better, and goes no higher than it began."""
    steps = np.arange(1, 121)
    loss = np.r_[np.linspace(2, 0.5, 60), 0.5 * 1.025 ** np.arange(1, 61)] + 0.01 * np.cos(3.0 * steps)
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.1, "grad_norm": loss})
    curvature = pd.DataFrame({"step": [5, 58], "stability": [0.3, 1.5]})
    events = pd.DataFrame({"step": [2], "kind": kind, "subject": "", "message": ""})
    meta = {
        "trained_beside": beside,
        "name": "test",
        "status": "finished",
        "optimizer": "SGD",
        "hyperparameters": [{"lr": 0.1, "momentum": 0}],
    }
    run = Run.from_frames(meta, {"scalars": scalars, "curvature": curvature, "events": events})
    assert [found.kind for found in diagnostics.diagnose(run).alarms] == expected


@pytest.mark.parametrize(("level", "expected"), [(0.0, []), (0.5, ["lr-unstable"]), (5.0, ["lr-unstable"])])
def test_a_loss_of_both_signs_has_no_scale_but_its_noise(level, expected):
    """A policy's begins at -0.3 by chance and hovers about 0; one that rises by four times its noise and more is
    another thing, and one that begins with one sign has its first value."""
    steps = np.arange(1, 401)
    noise = 0.15 * np.random.default_rng(0).normal(size=400) * np.exp(-steps / 100)
    loss = np.where(steps == 1, -0.3, noise + level * (steps > 100))
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.1, "grad_norm": 1.0})
    curvature = pd.DataFrame({"step": [2, 3, 100, 300], "stability": [3.1, 1.4, 1.2, 1.2]})
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"lr": 0.1, "momentum": 0}]}
    run = Run.from_frames(meta, {"scalars": scalars, "curvature": curvature})
    assert [found.kind for found in diagnostics.diagnose(run).alarms] == expected


@pytest.mark.parametrize(
    ("measured", "overshoot", "expected"), [(10, 0.1, []), (10, 1.2, ["lr-unstable"]), (2, 0.1, ["lr-unstable"])]
)
def test_a_loss_that_grows_because_its_task_does(measured, overshoot, expected):
    """Twice as many terms are summed from update 61 on; one estimate is past the limit. Past it updates overshoot."""
    steps = np.arange(1, 121)
    loss = np.where(steps <= 60, 1 - 2e-3 * steps, 2.3 + 1e-3 * steps) + 0.01 * np.cos(3.0 * steps)
    overshoots = np.where(np.isin(steps, np.linspace(62, 110, measured, dtype=int)), overshoot, np.nan)
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.1, "grad_norm": 1.0, "overshoot": overshoots})
    curvature = pd.DataFrame({"step": [5, 62], "stability": [0.3, 1.8]})
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"lr": 0.1, "momentum": 0}]}
    run = Run.from_frames(meta, {"scalars": scalars, "curvature": curvature})
    assert [found.kind for found in diagnostics.diagnose(run).alarms] == expected


@pytest.mark.exhaustive
@pytest.mark.parametrize("summed", [True, pytest.param(False, marks=pytest.mark.by_hand)])
def test_first_updates_that_leave_nothing_of_the_start(summed, tmp_path):
    """Pairs of views, told apart by cosines: where only directions count, long weights hardly turn any more."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    centres = torch.randn(400, 16)

    def loss_of(a, b):
        scores = F.normalize(model(a), dim=1) @ F.normalize(model(b), dim=1).T / 0.2
        return F.cross_entropy(scores, torch.arange(len(a)), reduction="sum" if summed else "mean")

    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY, curvature_every=20) as monitor:
        for _ in range(500):
            x = centres[torch.randint(400, (64,))]
            a, b = x + 0.3 * torch.randn_like(x), x + 0.3 * torch.randn_like(x)
            optimizer.zero_grad()
            loss = loss_of(a, b)
            loss.backward()
            optimizer.step()
            monitor.step(loss.detach(), lambda a=a, b=b: loss_of(a, b))
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    assert [(each.kind, each.cause) for each in found] == ([("lr-unstable", "learning-rate")] if summed else [])


class Recurrence(nn.Module):
    """An LSTM written out, with weights of a size of its own."""

    def __init__(self, size: float, hidden: int = 96):
        super().__init__()
        self.inward = nn.Parameter(torch.randn(4, 3, hidden))
        self.onward = nn.ParameterList(size * torch.randn(hidden, hidden) for _ in range(4))
        self.out = nn.Linear(hidden, 3)

    def forward(self, x):
        h = c = torch.zeros(len(x), self.out.in_features)
        for each in x.unbind(1):
            i, f, o, g = (each @ self.inward[k] + h @ self.onward[k] for k in range(4))
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
        return self.out(h)


@pytest.mark.exhaustive
@pytest.mark.every_case
@pytest.mark.parametrize(
    ("size", "expected"), [(1.0, [("lr-unstable", "initialization")]), pytest.param(0.1, [], marks=pytest.mark.by_hand)]
)
def test_a_recurrence_that_began_with_large_weights(size, expected, tmp_path):
    """Gradients of thousands at a loss of log 3, and no update comes to anything."""
    torch.manual_seed(1)
    kind, time = torch.randint(0, 3, (600,)), torch.arange(30) * 0.42 * (0.9 + 0.4 * torch.rand(600, 1))
    waves = torch.stack([time.cos(), time.sin(), torch.zeros_like(time)], 2)
    x = torch.stack([waves, waves * torch.tensor([1, -1, 1]), waves.roll(1, 2)])[kind, torch.arange(600)]
    x = x + 0.15 * torch.randn(600, 30, 3)
    model = Recurrence(size)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=40) as monitor:
        for _ in range(80):
            rows = torch.randint(600, (40,))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[rows]), kind[rows])
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda rows=rows: F.cross_entropy(model(x[rows]), kind[rows]))
    found = diagnostics.diagnose(diagnostics.load(tmp_path)).alarms
    assert [(each.kind, each.cause) for each in found] == expected
    for each in found:
        assert all(name.startswith("onward") for name in each.layers) and len(each.layers) == 4
        assert each.evidence["size of weights at start"] == pytest.approx(1, rel=0.1)
        assert each.evidence["size that fits"] == pytest.approx(96**-0.5)


@pytest.mark.parametrize(
    ("slope", "ratio", "end", "told"),
    [(-50.0, 40.0, 1.0, True), (-50.0, 0.1, 1.0, False), (-5.0, 40.0, 1.0, False), (-50.0, 40.0, 0.5, False)],
)
def test_slopes_that_promise_far_more_than_there_is(slope, ratio, end, told):
    """Not where the ratio says that the gradient is another loss's, as of one that was scaled; nor where it falls."""
    steps = np.arange(1, 201)
    losses = np.linspace(1.0, end, 200) + 0.01 * np.cos(steps)
    scalars = {
        "step": steps,
        "loss": losses,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "slope": np.where(steps % 20, np.nan, slope),
    }
    curvature = pd.DataFrame({"step": [2, 50], "stability": ratio})
    meta = {"name": "test", "optimizer": "Adam", "closure": True, "status": "finished"}
    history = signals.loss(run := Run.from_frames(meta, {"scalars": pd.DataFrame(scalars), "curvature": curvature}))
    found = [*in_vain("lr-unstable", run, history)]
    assert [each.cause for each in found] == ["learning-rate"] * told
    for each in found:
        assert each.remedies[0].startswith("try a learning rate of 2.0e-5 at most")
