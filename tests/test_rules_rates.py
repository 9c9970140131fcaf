"""Learning rates and starts as people get them wrong, in real loops beside the same loop put right."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import nn

import diagnostics
from diagnostics.rules import _quadratic as quadratic
from diagnostics.rules import _signals as signals
from diagnostics.rules._optimizer import learning_rates
from diagnostics.run import Run
from tests.test_rules_loops import ANY, alarms, cross_entropy, examples, network, watched

pytestmark = pytest.mark.exhaustive  # minutes; `make test` has a few of each kind elsewhere


def fitted(path, model, optimizer, x, y, steps, each=lambda: None):
    """The diagnosis of a loop of least squares over all of the data at once; `each` runs after the update."""
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.mse_loss(model(x), y))
            each()
    return diagnostics.diagnose(diagnostics.load(path))


@pytest.mark.parametrize(("peak", "expected"), [(1e-4, [("lr-too-small", "learning-rate")]), (0.1, [])])
def test_a_schedule_does_not_hide_that_its_highest_rate_is_far_too_small(tmp_path, peak, expected):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=peak)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 300)
    assert alarms(watched(tmp_path, model, optimizer, cross_entropy, steps=300, each=schedule.step)) == expected


@pytest.mark.parametrize(
    ("rate", "expected"),
    [(1e-6, [("lr-too-small", "learning-rate")]), pytest.param(3e-3, [], marks=pytest.mark.by_hand)],
)
def test_a_rate_of_adamw_so_small_that_the_fall_is_lost_in_the_noise_of_the_batches(tmp_path, rate, expected):
    """`LambdaLR` that was given a rate where it wants a factor; a twentieth of the targets is far off."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)

    def loss_of(model, x, y):
        targets = torch.tanh(x[:, :1]) + torch.where(x[:, 1:2] > 3, 3.0, 0.0)
        return F.mse_loss(model(x), targets)

    assert alarms(watched(tmp_path, model, optimizer, loss_of, steps=1500)) == expected


@pytest.mark.parametrize(("until", "expected"), [(40, [("lr-too-small", "schedule")]), (150, [])])
@pytest.mark.every_case
def test_a_rate_that_is_lowered_before_and_after_the_loss_has_come_to_rest(tmp_path, until, expected):
    """By then all but 1e-6 of it is noise of the targets, however long the gradient still is beside what it was."""
    torch.manual_seed(0)
    x = torch.randn(256, 8, dtype=torch.float64) * torch.tensor([1.0] * 4 + [0.5] * 4)
    y = x.sum(1, keepdim=True) + 0.5 * torch.randn(256, 1)
    model = nn.Linear(8, 1).double()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step < until else 1e-3)
    assert alarms(fitted(tmp_path, model, optimizer, x, y, 600, schedule.step)) == expected


@pytest.mark.parametrize(("updates", "expected"), [(100_000, [("lr-too-small", "schedule")]), (100, [])])
def test_a_warm_up_that_outlasts_the_run(tmp_path, updates, expected):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-4, total_iters=updates)
    found = watched(tmp_path, model, optimizer, cross_entropy, steps=300, each=schedule.step)
    assert alarms(found) == expected


@pytest.mark.parametrize(("gain", "expected"), [(0.15, [("plateau", "vanishing-gradient")]), (1.0, [])])
def test_weights_so_small_that_no_signal_gets_through(tmp_path, gain, expected):
    torch.manual_seed(3)
    layers = [nn.Linear(8 if at == 0 else 32, 32) for at in range(6)] + [nn.Linear(32, 4)]
    for layer in layers:
        nn.init.xavier_normal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    model = nn.Sequential(*[each for layer in layers[:-1] for each in (layer, nn.Tanh())], layers[-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    assert alarms(watched(tmp_path, model, optimizer, cross_entropy, steps=300)) == expected


@pytest.mark.parametrize(("size", "expected"), [(1e-3, [("plateau", "vanishing-gradient")]), (0.3, [])])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_weights_so_small_that_two_layers_pass_nothing(tmp_path, size, expected, scale):
    """Larger inputs with weights smaller by as much are no such case."""
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4))
    torch.manual_seed(3)
    for at in (0, 2, 4):
        nn.init.normal_(model[at].weight, std=size / (scale if at == 0 else 1.0))
        nn.init.zeros_(model[at].bias)
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.05 / scale**2}, {"params": model[2:].parameters()}], lr=0.05
    )
    found = watched(tmp_path, model, optimizer, lambda model, x, y: cross_entropy(model, scale * x, y), steps=300)
    assert alarms(found) == expected


@pytest.mark.parametrize(("times", "expected"), [(1000, [("lr-unstable", "schedule")]), (1, [])])
def test_the_ruins_of_one_huge_step(tmp_path, times, expected):
    """Of units that cannot die: nothing else tells of it, and the walls in the ruins are no cliffs of the loss."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(8, 32), nn.LeakyReLU(), nn.Linear(32, 32), nn.LeakyReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    count = [0]

    def each():
        count[0] += 1
        optimizer.param_groups[0]["lr"] = 0.01 * (times if count[0] == 30 else 1)

    assert alarms(watched(tmp_path, model, optimizer, cross_entropy, steps=150, each=each)) == expected


def test_a_loss_that_another_player_holds_up(tmp_path):
    """A generator's loss rises as its discriminator learns; its updates do not raise it."""
    torch.manual_seed(5)
    generator = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 2))
    judge = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(generator.parameters(), lr=3e-3, betas=(0.5, 0.99))
    against = torch.optim.Adam(judge.parameters(), lr=3e-3, betas=(0.5, 0.99))

    def fooled(net, x, y):
        return F.softplus(-judge(net(x))).mean()

    def each():
        real = torch.randn(32, 2) * 0.3 + torch.tensor([1.0, -1.0])
        fake = generator(torch.randn(32, 8)).detach()
        against.zero_grad()
        (F.softplus(-judge(real)).mean() + F.softplus(judge(fake)).mean()).backward()
        against.step()

    assert alarms(watched(tmp_path, generator, optimizer, fooled, steps=400, each=each)) == []


@pytest.mark.parametrize(("rate", "expected"), [(1e-4, [("lr-too-small", "learning-rate")]), (0.05, [])])
def test_a_small_rate_in_much_noise_is_told_by_all_independent_batches_together(tmp_path, rate, expected):
    """Each of them alone cannot tell so weak a gradient from none."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    assert alarms(watched(tmp_path, model, optimizer, cross_entropy, steps=600, size=4)) == expected


@pytest.mark.parametrize("optimizer", [lambda p: torch.optim.SGD(p, lr=1e-4), lambda p: Lion(p, 1e-6)])
def test_a_small_rate_at_the_floor_is_no_fault(tmp_path, optimizer):
    """Fine-tuning what has converged on labels that are noise: nothing more is to be had at any rate."""
    torch.manual_seed(6)
    model = nn.Linear(8, 1)
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)

    def noisy(model, x, y):
        return F.mse_loss(model(x)[:, 0], torch.sin(1e3 * x.sum(1)))

    assert alarms(watched(tmp_path, model, optimizer(model.parameters()), noisy, steps=400, size=8)) == []


@pytest.mark.parametrize(("scale", "expected"), [(1000.0, [("ravine", "feature-scale")]), (1.0, [])])
def test_one_large_feature_of_a_logistic_regression(tmp_path, scale, expected):
    """Whose steep start makes the loss fall far, though along the floor nothing has been learned."""
    torch.manual_seed(7)
    model = nn.Linear(8, 4)
    largest = torch.ones(8)
    largest[0] = scale
    with torch.no_grad():
        model.weight[:, 0] *= 10 / scale

    def loss(model, x, y):
        return F.cross_entropy(model(x * largest), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=2.0 / scale**2)
    assert alarms(watched(tmp_path, model, optimizer, loss, steps=400)) == expected


@pytest.mark.parametrize(("scale", "expected"), [(2000.0, [("ravine", "feature-scale")]), (1.0, [])])
@pytest.mark.parametrize("ratio", [0.15, 0.01])
def test_a_ravine_that_no_rate_gets_along(tmp_path, scale, expected, ratio):
    """Half the limit or a hundredth of it: beside a feature that large nothing is learned from the others."""
    torch.manual_seed(10)
    model = nn.Linear(8, 1)
    nn.init.zeros_(model.weight)
    sizes = torch.tensor([scale, *[1.0] * 7])

    def loss(model, x, y):
        return F.mse_loss(model(x * sizes)[:, 0], x[:, 1:].sum(1))

    rate = ratio / (3 * scale**2) if scale > 1 else 0.03
    assert alarms(watched(tmp_path, model, torch.optim.SGD(model.parameters(), rate), loss, steps=300)) == expected


@pytest.mark.parametrize(("rate", "expected"), [(3e-5, [("lr-too-small", "learning-rate")]), (0.01, [])])
def test_a_loss_so_noisy_that_its_fall_is_hidden(tmp_path, rate, expected):
    """That the gradient is signal, and that all updates together do not get once to the minimum, is seen all the same.
    A tenth of a good rate is slow, and no fault."""
    torch.manual_seed(8)
    model, truth = nn.Linear(8, 1), torch.randn(8)

    def loss(model, x, y):
        return F.mse_loss(model(x)[:, 0], x @ truth + 3 * torch.sin(1e3 * x.sum(1)))

    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    assert alarms(watched(tmp_path, model, optimizer, loss, steps=600, size=8)) == expected


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023: a step of the rate's length in each coordinate, by the sign of a mean of gradients."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                parameter.sub_(torch.sign(mean.mul(0.9).add(parameter.grad, alpha=0.1)), alpha=group["lr"])
                mean.mul_(0.99).add_(parameter.grad, alpha=0.01)


@pytest.mark.parametrize(("rate", "expected"), [(1e-7, [("lr-too-small", "learning-rate")]), (3e-3, [])])
def test_a_tiny_rate_of_an_optimizer_without_a_known_limit(tmp_path, rate, expected):
    model = network()
    diagnosis = watched(tmp_path, model, Lion(model.parameters(), rate), cross_entropy, steps=200)
    assert alarms(diagnosis) == expected
    assert all("NaN" not in found.summary and "nan" not in found.formula for found in diagnosis.alarms)


@pytest.mark.parametrize(("rate", "expected"), [(1e-6, [("lr-too-small", "learning-rate")]), (5e-3, [])])
def test_a_rate_so_small_that_no_layer_moves_is_no_vanishing_gradient(tmp_path, rate, expected):
    """Of an embedding a batch moves a few rows only: its gradient is small beside its weights, as it should be."""
    torch.manual_seed(9)

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.read, self.out = nn.Embedding(500, 24), nn.LSTM(24, 32, batch_first=True), nn.Linear(32, 4)

        def forward(self, x):
            words = ((x + 4) * 60).long().clamp(0, 499)
            return self.out(self.read(self.embed(words))[0][:, -1])

    model = Reader()
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    assert alarms(watched(tmp_path, model, optimizer, cross_entropy, steps=200)) == expected


@pytest.mark.parametrize(("steps", "severity"), [(300, "info"), (200, "warning")])
@pytest.mark.every_case
def test_a_small_rate_that_has_most_of_the_loss_behind_it_is_no_alarm(steps, severity, tmp_path):
    """Ten times the rate would be faster, which is worth a word; the run is well, unless a linear model of the same
    inputs has half of its loss."""
    model = network()
    diagnosis = watched(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.01), cross_entropy, steps=steps)
    assert [(found.kind, found.severity) for found in diagnosis.findings] == [("lr-too-small", severity)]


def test_nor_is_one_whose_limit_is_not_known(tmp_path):
    """Nobody knows then whether the run was too short to shrink even the steepest direction."""
    model = network()
    watched(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.01), cross_entropy, steps=300)
    run = diagnostics.load(tmp_path)
    tables = {name: run.table(name) for name in ("scalars", "layers", "units", "inputs", "events", "batches")}
    tables["curvature"] = run.table("curvature").assign(stability=np.nan, progress=np.nan, limit=np.nan)
    found = diagnostics.diagnose(Run.from_frames(dict(run.meta), tables)).findings
    assert [(each.kind, each.severity) for each in found] == [("lr-too-small", "info")]


def test_a_rate_that_falls_at_the_balance_with_a_soft_threshold_is_no_alarm(tmp_path):
    """The gradient rests where the threshold takes back what it adds; the loss has long come down."""
    torch.manual_seed(0)
    x, truth = torch.randn(3000, 40), torch.zeros(40, 20)
    truth[:2] = torch.randn(2, 20)
    y = (torch.rand(3000, 20) < torch.sigmoid(x @ truth)).float()
    model = nn.Linear(40, 20)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step / 100))
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=50) as monitor:
        for _ in range(600):
            at = torch.randint(3000, (200,))

            def loss_of(at=at):
                return F.binary_cross_entropy_with_logits(model(x[at]), y[at], reduction="none").sum(1).mean()

            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.weight.copy_(F.softshrink(model.weight, optimizer.param_groups[0]["lr"] * 0.05))
            schedule.step()
            monitor.step(loss, closure=loss_of)
    assert not diagnostics.diagnose(diagnostics.load(tmp_path)).alarms


@pytest.mark.parametrize(("rate", "severities"), [(3e-4, ["warning"]), (0.03, [])])
def test_a_rate_that_would_be_too_small_ten_times_over(tmp_path, rate, severities):
    """Two thirds of the loss are gone; the good rate takes another half of the rest."""
    x, y = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32), torch.tensor(y)
    torch.manual_seed(0)
    model = nn.Linear(30, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)
    found = watched(tmp_path, model, optimizer, lambda model, *_: F.cross_entropy(model(x), y), steps=300)
    assert [each.severity for each in found.findings if each.kind == "lr-too-small"] == severities


def in_noise(model, x, y):
    """A squared error whose floor is the noise of the labels."""
    return F.mse_loss(model(x)[:, 0], x[:, 0] + torch.sin(1e3 * x.sum(1)))


OPTIMIZERS = {
    "SGD": lambda p, rate: torch.optim.SGD(p, rate),
    "heavy ball": lambda p, rate: torch.optim.SGD(p, rate / 10, 0.9),
    "Adam": lambda p, rate: torch.optim.Adam(p, 5 * rate),
    "AdamW": lambda p, rate: torch.optim.AdamW(p, 5 * rate, betas=(0.8, 0.99)),
}


@pytest.mark.parametrize(
    ("name", "rate", "expected"),
    [
        pytest.param(
            *(name, 0.03, [("lr-oscillation", "learning-rate")]), marks=() if name == "AdamW" else pytest.mark.by_hand
        )
        for name in OPTIMIZERS
    ]
    + [("Adam", 0.003, [])],
)
def test_how_much_of_a_settled_quadratic_loss_is_motion(tmp_path, name, rate, expected):
    """Against the least squares solution, which all that motion is around."""
    torch.manual_seed(11)
    model = nn.Linear(8, 1)
    optimizer = OPTIMIZERS[name](model.parameters(), rate)
    x, y = examples()
    inputs = torch.cat([x, torch.ones(len(x), 1)], 1)
    solution = torch.linalg.lstsq(inputs, (x[:, 0] + torch.sin(1e3 * x.sum(1)))[:, None]).solution
    floor, levels = float(in_noise(lambda _: inputs @ solution, x, y)), []

    def each():
        levels.append(float(in_noise(model, x, y).detach()))

    found = watched(tmp_path, model, optimizer, in_noise, steps=1200, size=2, each=each)
    late = torch.tensor(levels[600:]).mean()
    run = diagnostics.load(tmp_path)
    share, error = quadratic.held_by_noise(run, signals.loss(run), 600)
    assert share == pytest.approx(float(1 - floor / late), abs=3 * error + 0.1 * share)
    assert alarms(found) == expected


@pytest.mark.parametrize(("rate", "expected"), [(0.5, [("lr-oscillation", "learning-rate")]), (0.02, [])])
def test_how_much_of_a_settled_cross_entropy_is_motion(tmp_path, rate, expected):
    """Against the minimum over all examples, whose labels are drawn from a linear model's probabilities."""
    torch.manual_seed(5)
    x, _ = examples()
    labels = torch.distributions.Categorical(logits=x @ torch.randn(8, 4) / 2).sample()
    rows = {tuple(row): label for row, label in zip(x.tolist(), labels, strict=True)}

    def loss_of(model, x, y):
        return F.cross_entropy(model(x), torch.stack([rows[tuple(row)] for row in x.tolist()]))

    best = nn.Linear(8, 4)
    search = torch.optim.LBFGS(best.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        search.zero_grad()
        loss = F.cross_entropy(best(x), labels)
        loss.backward()
        return loss

    search.step(closure)
    model, levels = nn.Linear(8, 4), []

    def each():
        levels.append(float(F.cross_entropy(model(x), labels).detach()))

    optimizer = torch.optim.SGD(model.parameters(), rate)
    found = watched(tmp_path, model, optimizer, loss_of, steps=1500, size=4, each=each)
    late = torch.tensor(levels[750:]).mean()
    run = diagnostics.load(tmp_path)
    share, error = quadratic.held_by_noise(run, signals.loss(run), 750)
    assert quadratic.has_minimum(run)
    if expected:  # else it has not come down yet
        assert share == pytest.approx(float(1 - closure().detach() / late), abs=3 * error + 0.2 * share)
    assert alarms(found) == expected


@pytest.mark.parametrize(("rate", "kinds"), [(1.0, ["lr-unstable"]), (0.01, [])])
def test_a_rate_that_threw_the_run_up_for_long_before_it_came_back(tmp_path, rate, kinds):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.LeakyReLU(0.3), nn.Linear(16, 1))

    def loss_of(model, x, y):
        return F.mse_loss(model(x), torch.tanh(x.mean(1, keepdim=True)))

    optimizer = torch.optim.Adam(model.parameters(), rate)
    found = watched(tmp_path, model, optimizer, loss_of, steps=300, size=64)
    assert [finding.kind for finding in found.alarms] == kinds
    for finding in found.alarms:
        losses = diagnostics.load(tmp_path).table("scalars").set_index("step")["loss"]
        assert losses.iloc[-20:].median() < losses.iloc[0]
        assert losses[finding.last_step] > 2 * losses.iloc[0]
        assert (losses[finding.last_step + 1 :] <= 2 * losses.iloc[0]).all()


@pytest.mark.parametrize(
    ("eps", "expected"), [(0.1, [("lr-too-small", "epsilon")]), pytest.param(1e-8, [], marks=pytest.mark.by_hand)]
)
def test_steps_so_short_that_most_of_the_run_only_finds_the_mean_target(tmp_path, eps, expected):
    """Pixels, say: all near 1/2, so that any start from small answers is far off, and soon corrected."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, eps=eps)
    x = torch.randn(512, 8)
    y = 0.5 + 0.05 * torch.tanh(x @ torch.randn(8, 8)) + 0.05 * torch.randn(512, 8)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=100.0) as monitor:
        for _ in range(1500):
            chosen = torch.randint(512, (32,))
            optimizer.zero_grad()
            loss = F.mse_loss(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            monitor.step(loss.detach(), lambda chosen=chosen: F.mse_loss(model(x[chosen]), y[chosen]))
    assert alarms(diagnostics.diagnose(diagnostics.load(tmp_path / "run"))) == expected


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        pytest.param(0.01, [("lr-too-small", "learning-rate")], marks=pytest.mark.by_hand),
        pytest.param(3.0, [], marks=pytest.mark.by_hand),
    ],
)
def test_a_rate_at_which_the_answers_stay_at_the_mean(tmp_path, rate, expected):
    """Four examples of an exclusive or, which has to be found from where all answers are one half."""
    torch.manual_seed(0)
    x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    y = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    model = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 1), nn.Sigmoid())
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    assert alarms(fitted(tmp_path, model, optimizer, x, y, 4000)) == expected


@pytest.mark.parametrize(("amsgrad", "told"), [(False, True), pytest.param(True, False, marks=pytest.mark.by_hand)])
def test_steps_of_adam_that_grow_when_the_loss_is_gone(tmp_path, amsgrad, told):
    """More weights than examples: nothing is left, and after thousands of updates a little comes back."""
    torch.manual_seed(0)
    x, y = torch.randn(32, 200), torch.randn(32, 1)
    model = nn.Linear(200, 1)
    optimizer = torch.optim.Adam(model.parameters(), amsgrad=amsgrad)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(5000):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y, reduction="sum")
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.mse_loss(model(x), y, reduction="sum"))
    found = diagnostics.diagnose(diagnostics.load(tmp_path))
    assert alarms(found) == []
    assert ("edge-of-stability" in {each.kind for each in found.findings}) == told


def test_a_unit_that_ends_where_it_began_to_be_wrong_is_no_small_rate(tmp_path):
    """relu(w x) from w = -10 to where relu(x) is wanted: w goes to 0, where there is no gradient on the right side."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    nn.init.constant_(model[0].weight, -10.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(3000):
            x = torch.randn(500, 1)
            y = x.clamp(min=0)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y: F.mse_loss(model(x), y))
    assert alarms(diagnostics.diagnose(diagnostics.load(tmp_path))) == [("plateau", "nothing-learned")]


@pytest.mark.parametrize(("cosine", "expected"), [(0.8, [("lr-too-small", "schedule")]), (0.0, [])])
def test_a_rate_that_is_gone_early_under_a_loss_of_several_terms(cosine, expected):
    """No constant answer is known to compare with, and no estimate came later: what tells it from a floor is a gradient
    as long as at first whose batches agree."""
    steps = np.arange(1, 301)
    loss = 1 - 0.2 * (1 - 0.9**steps) + 0.1 * np.cos(3.0 * steps)
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.1 * 0.9**steps, "grad_norm": 1.0})
    scalars["gradient_cosine"] = np.where(np.isin(steps, [2, 3, 19, 63]), cosine + 0.1 * np.cos(steps), np.nan)
    curvature = pd.DataFrame({"step": [2], "stability": [0.3]})
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"lr": 0.1, "momentum": 0}]}
    found = diagnostics.diagnose(Run.from_frames(meta, {"scalars": scalars, "curvature": curvature}))
    assert not found.crashed
    assert alarms(found) == expected


@pytest.mark.parametrize(("cosine", "expected"), [(0.8, [("lr-too-small", "schedule")]), (0.0, [])])
def test_a_schedule_for_epochs_that_counts_updates_when_half_of_the_loss_is_gone(cosine, expected):
    """The rate halves every seven updates; the loss is above where it stays while it has any."""
    steps = np.arange(1, 501)
    loss = 0.4 + 0.6 * 0.9**steps + 0.02 * np.cos(3.0 * steps)
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": 0.1 * 0.9**steps, "grad_norm": 1.0})
    scalars["gradient_cosine"] = np.where(steps % 40 == 3, cosine + 0.1 * np.cos(steps), np.nan)
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"lr": 0.1, "momentum": 0}]}
    layers = scalars[["step", "grad_norm"]].assign(layer="w", weight_norm=1.0, update_norm=scalars["lr"])
    found = diagnostics.diagnose(Run.from_frames(meta, {"scalars": scalars, "layers": layers}))
    assert not found.crashed
    assert alarms(found) == expected


@pytest.mark.parametrize(("until", "told"), [(150, True), (40, False)])
@pytest.mark.every_case
def test_a_rate_that_is_lowered_while_a_noisy_loss_falls_is_told_as_information(until, told):
    """Whether longer steps would have lowered it further the gradients do not say; a loss at rest does."""
    steps = np.arange(1, 501)
    loss = 2.4 - 0.008 * np.minimum(steps, until) * 150 / until + 0.05 * np.cos(3.0 * steps)
    rates = np.where(steps <= 150, 0.1, 1e-3)
    scalars = pd.DataFrame({"step": steps, "loss": loss, "lr": rates, "grad_norm": 2.0 + 0.1 * np.cos(steps)})
    measured = steps % 20 == 1
    scalars["gradient_cosine"] = np.where(measured, 0.3 * np.cos(2.0 * steps), np.nan)
    scalars["overshoot"] = np.where(measured, 0.2 * rates / 0.1, np.nan)
    scalars["update_norm"] = np.where(measured, rates, np.nan)
    curvature = pd.DataFrame({"step": [2, 300], "stability": [0.15, 0.02], "progress": [2.0, 0.3]})
    meta = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"lr": 0.1, "momentum": 0}]}
    found = diagnostics.diagnose(Run.from_frames(meta, {"scalars": scalars, "curvature": curvature}))
    assert not found.crashed and not found.alarms
    assert [each.first_step for each in found.findings if each.cause == "schedule"] == ([151] if told else [])


def test_the_rate_of_adagrad_is_what_its_own_decay_leaves(tmp_path):
    """By its updates: of a gradient that is always 1 they are the rate over the root of the number of them."""
    w = torch.nn.Linear(1, 1, bias=False)
    optimizer = torch.optim.Adagrad(w.parameters(), lr=0.1, lr_decay=0.5, eps=0)
    moved = []
    with diagnostics.watch(w, optimizer, tmp_path) as monitor:
        for _ in range(6):
            optimizer.zero_grad()
            loss = w(torch.ones(1, 1)).sum()
            loss.backward()
            before = w.weight.item()
            optimizer.step()
            moved.append(before - w.weight.item())
            monitor.step(loss)
    steps, rates = learning_rates(diagnostics.load(tmp_path))
    assert rates == pytest.approx(np.array(moved) * np.sqrt(steps), rel=1e-5)
