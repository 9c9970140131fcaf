"""What another sign hides: a saddle point under batch noise, heads that are copies, inputs behind dead units."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.rules.cliff import explains
from diagnostics.run import Run
from tests.test_rules import finding

pytestmark = pytest.mark.exhaustive

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


class Factors(nn.Module):
    """Ratings: a bias a user and an item, and the scalar product of their factors."""

    def __init__(self, users: int, items: int, size: float):
        super().__init__()
        self.user, self.item = nn.Embedding(users, 6), nn.Embedding(items, 6)
        self.user_bias, self.item_bias = nn.Embedding(users, 1), nn.Embedding(items, 1)
        for factors in (self.user, self.item):
            nn.init.normal_(factors.weight, std=size)
        for bias in (self.user_bias, self.item_bias):
            nn.init.zeros_(bias.weight)

    def forward(self, u, i):
        return (self.user(u) * self.item(i)).sum(1) + self.user_bias(u)[:, 0] + self.item_bias(i)[:, 0]


def trained(path, model, optimizer, batches, loss_of):
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_of(model, *batch)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda batch=batch: loss_of(model, *batch))
    return [each for each in diagnostics.diagnose(diagnostics.load(path)).findings if each.alarm]


@pytest.mark.parametrize("size", [1e-5, pytest.param(0.3, marks=pytest.mark.by_hand)])
def test_factors_that_leave_a_saddle_point_while_biases_jump_with_the_noise(size, tmp_path):
    """The updates, nearly all noise of the biases, curve upwards; the factors grow as the negative eigenvalue says."""
    torch.manual_seed(0)
    taste = torch.randn(80, 3) @ torch.randn(3, 60) / 3**0.5
    u, i = torch.randint(80, (60000,)), torch.randint(60, (60000,))
    r = taste[u, i] + 0.2 * torch.randn(60000)
    model = Factors(80, 60, size)
    batches = ((u[k], i[k], r[k]) for _ in range(40) for k in torch.randperm(60000).split(2000))
    loss_of = lambda model, u, i, r: F.mse_loss(model(u, i), r)  # noqa: E731
    found = trained(tmp_path, model, torch.optim.SGD(model.parameters(), lr=0.5), batches, loss_of)
    assert [each.kind for each in found] == (["saddle-point"] if size < 0.1 else [])


class Recall(nn.Module):
    """The tokens one and two places back. `copied`: every head is made from the first."""

    def __init__(self, copied: bool):
        super().__init__()
        torch.manual_seed(0)
        self.token, self.place = nn.Embedding(8, 16), nn.Embedding(8, 16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 16)
        with torch.no_grad():
            for layer in (self.q, self.k, self.v) if copied else ():
                layer.weight.copy_(layer.weight[:4].repeat(4, 1))
                layer.bias.copy_(layer.bias[:4].repeat(4))
            if copied:
                self.out.weight.copy_(self.out.weight[:, :4].repeat(1, 4))

    def forward(self, tokens):
        h = self.token(tokens) + self.place.weight
        q, k, v = (layer(h).unflatten(-1, (4, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        return self.head(h + self.out(mixed)).unflatten(-1, (2, 8))


@pytest.mark.parametrize("copied", [True, pytest.param(False, marks=pytest.mark.by_hand)])
def test_attention_heads_that_are_copies(copied, tmp_path):
    def loss_of(model, tokens):
        scores = model(tokens)[:, 2:]
        back = torch.stack([tokens[:, 1:-1], tokens[:, :-2]], -1)
        return F.cross_entropy(scores.flatten(0, 2), back.flatten())

    model = Recall(copied)
    batches = ((torch.randint(8, (32, 8)),) for _ in range(300))
    found = trained(tmp_path, model, torch.optim.Adam(model.parameters(), lr=5e-3), batches, loss_of)
    assert [each.kind for each in found] == (["symmetry"] if copied else [])
    if copied:
        assert found[0].layers == ("v.heads",)
        assert "only 1 of 4 attention heads is distinct" in found[0].summary


@pytest.mark.parametrize("far", [200.0, 0.0])
def test_units_that_are_off_because_all_inputs_are_alike(far, tmp_path):
    """Inputs `far` deviations from zero; steps then turn off more of the units that are on for all of them."""
    torch.manual_seed(0)
    x = torch.randn(1600, 16)
    y = (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] > 0).long()
    x = x + far if not far else 0.005 * (x + far)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 4))
    batches = ((x[k], y[k]) for _ in range(12) for k in torch.randperm(1600).split(64))
    loss_of = lambda model, x, y: F.cross_entropy(model(x), y)  # noqa: E731
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    found = trained(tmp_path, model, optimizer, batches, loss_of)
    causes = [(each.kind, each.cause) for each in found]
    assert all(cause != "large-step" for _, cause in causes)
    assert bool(causes) == bool(far) and all(cause == "uncentered-inputs" for _, cause in causes)


def test_a_wall_that_a_rising_rate_ran_into_is_the_rates():
    """Past the limit only with the noise of batches: before a wall a few examples' huge curvature, else the rate's."""
    wall = finding("cliff", 100)
    past = {"stability ratio": 2.4, "noise term": 1.5}
    for cause, explained in (("learning-rate", True), ("schedule", False)):
        unstable = finding("lr-unstable", 30, **past)
        assert explains(wall, type(unstable)(**{**vars(unstable), "cause": cause})) == explained


class Mixture(nn.Module):
    def __init__(self, zero: bool):
        super().__init__()
        self.trunk, self.head = nn.Sequential(nn.Linear(1, 32), nn.Tanh()), nn.Linear(32, 12)
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x):
        return self.head(self.trunk(x)).chunk(3, 1)


@pytest.mark.parametrize("zero", [True, False])
def test_components_of_a_mixture_that_start_alike(zero, tmp_path):
    def loss_of(model, x, y):
        score, mean, log_size = model(x)
        apart = ((y - mean) / log_size.exp()).square()
        return -(score.log_softmax(1) - log_size - 0.5 * apart).logsumexp(1).mean()

    torch.manual_seed(0)
    y = torch.rand(1600, 1)
    x = y + 0.3 * torch.sin(6.28 * y) + 0.03 * torch.randn(1600, 1)
    model = Mixture(zero)
    batches = ((x[k], y[k]) for _ in range(12) for k in torch.randperm(1600).split(64))
    found = trained(tmp_path, model, torch.optim.Adam(model.parameters(), lr=3e-3), batches, loss_of)
    assert [each.kind for each in found] == (["symmetry"] if zero else [])
    if zero:
        assert found[0].cause == "zero-initialization"
        assert found[0].summary.startswith("Of the 4 outputs of head only 1 is distinct: each has a twin")


@pytest.mark.parametrize("size", [1e-5, 0.3])
def test_a_saddle_point_that_no_batch_shows_for_all(size, tmp_path):
    """A batch holds few users: what is smallest for one is flat for the next, and the pace of the weights tells."""
    torch.manual_seed(0)
    taste, kind = torch.randn(200, 6), torch.randn(120, 6)
    u, i = torch.randint(200, (6000,)), torch.randint(120, (6000,))
    y = (taste[u] * kind[i]).sum(1) / 6**0.5 + 0.2 * torch.randn(6000)
    model = Factors(200, 120, size)
    batches = ((u[k], i[k], y[k]) for _ in range(18) for k in torch.randint(6000, (48, 128)))
    loss_of = lambda model, u, i, y: F.mse_loss(model(u, i), y)  # noqa: E731
    found = trained(tmp_path, model, torch.optim.SGD(model.parameters(), lr=2.0), batches, loss_of)
    assert [each.kind for each in found] == (["saddle-point"] if size < 0.1 else [])


@pytest.mark.parametrize("eps", [1.0, 1e-8])
def test_an_epsilon_that_leaves_next_to_nothing_of_the_rate(eps, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2000, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    batches = ((x[k], y[k]) for _ in range(12) for k in torch.randperm(2000).split(64))
    loss_of = lambda model, x, y: F.cross_entropy(model(x), y)  # noqa: E731
    found = trained(tmp_path, model, torch.optim.Adam(model.parameters(), lr=2e-3, eps=eps), batches, loss_of)
    assert [(each.kind, each.cause) for each in found] == ([("lr-too-small", "epsilon")] if eps == 1 else [])


@pytest.mark.parametrize("every", [60, 300])
def test_a_rate_that_is_cut_tenfold_before_anything_is_learned(every, tmp_path):
    torch.manual_seed(0)
    x = torch.randn(2000, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, every)

    def batches():
        for _ in range(25):
            for chosen in torch.randperm(2000).split(64):
                yield x[chosen], y[chosen]
                schedule.step()

    found = trained(tmp_path, model, optimizer, batches(), lambda model, x, y: F.cross_entropy(model(x), y))
    assert [(each.kind, each.cause) for each in found] == ([("lr-too-small", "schedule")] if every == 60 else [])


@pytest.mark.parametrize("search", [None, "strong_wolfe"])
def test_lbfgs_whose_steps_nothing_bounds(search, tmp_path):
    """On another small batch at every update, differences of gradients are no curvature: a step has any length."""
    torch.manual_seed(1)
    x = torch.rand(2000, 2) * 4 - 2
    y = torch.sin(3 * x[:, :1]) * torch.cos(2 * x[:, 1:])
    model = nn.Sequential(nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=4, history_size=10, line_search_fn=search)
    chosen = torch.randint(2000, (150, 32 if search is None else 2000))
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY) as monitor:
        for k in chosen:

            def closure(k=k):
                optimizer.zero_grad()
                loss = F.mse_loss(model(x[k]), y[k])
                loss.backward()
                return loss

            loss = optimizer.step(closure)
            monitor.step(loss, closure=lambda k=k: F.mse_loss(model(x[k]), y[k]))
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    assert [each.kind for each in found] == (["lr-unstable"] if search is None else [])
    if found:
        assert "strong_wolfe" in found[0].remedies[0]


@pytest.mark.parametrize(("tallest", "told"), [(80.0, True), (np.nan, False)])
def test_the_tallest_loss_of_lbfgs_is_one_that_it_rose_to(tallest, told):
    """Not the first one, where the others are no numbers."""
    loss = np.r_[1 + 0.01 * np.cos(np.arange(20)), tallest, [np.nan] * 10]
    scalars = pd.DataFrame({"step": range(1, 32), "loss": loss, "lr": 1.0, "grad_norm": 1.0})
    meta = {"name": "test", "status": "finished", "optimizer": "LBFGS", "hyperparameters": [{"line_search_fn": None}]}
    diagnosis = diagnostics.diagnose(Run.from_frames(meta, {"scalars": scalars}))
    (found,) = diagnosis.alarms
    assert not diagnosis.crashed and found.kind == "lr-unstable"
    assert ("took the loss to 80 at step 21" in found.summary) == told
    assert ("took the loss to" in found.summary) == told


@pytest.mark.parametrize(("last", "thrown"), [(300.0, True), (1e-30, False)])
@pytest.mark.parametrize("slope", [0.0, 1e-4])
def test_gradients_that_are_gone_between_two_looks(last, thrown, slope):
    """With most of the loss gone, and three looks at the layers of which the last alone came after."""
    steps, norms = np.arange(1, 101), np.r_[np.full(19, 30.0), last, np.zeros(80)]
    scalars = pd.DataFrame({"step": steps, "loss": np.r_[18.0, np.full(99, 5.0)], "lr": 0.1, "grad_norm": norms})
    looks = [1, 2, 60]
    layers = pd.DataFrame({"step": looks, "layer": "net.weight", "grad_norm": [9.0, 9.0, 0.0], "weight_norm": 1.0})
    units = pd.DataFrame({"step": looks, "layer": "tanh#0", "activation": "tanh", "units": 1})
    units = units.assign(saturated_fraction=np.nan, dead_fraction=np.nan, derivative=[0.5, 0.4, slope], hidden=0.0)
    meta = {"name": "test", "status": "finished", "layers": [{"name": "net.weight", "shape": [1, 4], "parameters": 4}]}
    tables = {"scalars": scalars, "layers": layers, "units": units}
    diagnosis = diagnostics.diagnose(Run.from_frames(meta, tables))
    found = [each for each in diagnosis.alarms if each.kind == "zero-gradient"]
    assert not diagnosis.crashed and len(found) == (slope == 0)
    if found:
        assert found[0].first_step == 21 and "the tanh is at the flat end for every input" in found[0].summary
        assert ("a gradient of 300" in found[0].summary) == ("clip" in found[0].remedies[0]) == thrown


class Rounded(nn.Module):
    """Straight-through: rounding in steps of a size that is a parameter, and has its gradient later on or never."""

    def __init__(self, through: bool) -> None:
        super().__init__()
        self.first, self.last, self.step = nn.Linear(8, 32), nn.Linear(32, 4), nn.Parameter(torch.tensor(0.1))
        self.through = through

    def forward(self, x):
        h = torch.tanh(self.first(x))
        steps = torch.round(h / 0.1) * 0.1
        return self.last((h + (steps - h).detach() if self.through else steps) + 0 * self.step)


@pytest.mark.parametrize("through", [True, False])
@pytest.mark.every_case
def test_a_rounding_with_a_gradient_blocks_nothing(tmp_path, through):
    """What has no gradient there is the size of the steps alone."""
    torch.manual_seed(0)
    model = Rounded(through)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    centers = 2 * torch.randn(4, 8)
    with diagnostics.watch(model, optimizer, tmp_path, budget=100.0, curvature_every=1000) as monitor:
        for _ in range(100):
            y = torch.randint(4, (64,))
            x = centers[y] + torch.randn(64, 8)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y: F.cross_entropy(model(x), y))
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).alarms if each.kind == "zero-gradient"]
    assert [each.cause for each in found] == ([] if through else ["hard-threshold"])
