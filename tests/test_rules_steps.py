"""Steps that are not what the gradient of the loss makes: of another loss, of a scaled one, clipped to next to nothing,
ended by a schedule, taken away by a decay, or under one rate for weights of very different sizes."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))


def classes(n=1024):
    torch.manual_seed(1)
    centers = 1.5 * torch.randn(4, 8)
    y = torch.randint(4, (n,))
    return centers[y] + torch.randn(n, 8), y


def trained(path, model, optimizer, between, steps=300, closure=True, scale=1.0, scheduler=None):
    """`between`: what is done with the gradients before the optimizer reads them."""
    x, y = classes()
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for at in range(steps):
            k = torch.arange(64) + 64 * (at % 16)
            loss_of = lambda k=k: F.cross_entropy(model(x[k]), y[k])  # noqa: E731
            optimizer.zero_grad()
            loss = loss_of()
            (scale * loss).backward()
            between(model)
            optimizer.step()
            if scheduler is not None and at % 16 == 15:
                scheduler.step()
            monitor.step(loss, closure=loss_of if closure else None)
    return diagnostics.load(path)


def of_all_data(path, model, optimizer, loss_of, steps):
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=loss_of)
    return diagnostics.load(path)


def alarms(run):
    return [(each.kind, each.cause) for each in diagnostics.diagnose(run).findings if each.alarm]


def unscaled(scale):
    def between(model):
        for parameter in model.parameters():
            parameter.grad /= scale

    return between


def clipped(longest):
    return lambda model: nn.utils.clip_grad_norm_(model.parameters(), longest)


@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.SGD(p, lr=0.1), lambda p: torch.optim.Adadelta(p, lr=1.0)],  # whose eps is 1e-6 of squares
    ids=["SGD", "Adadelta"],
)
def test_gradients_that_are_clipped_before_they_are_unscaled(optimizer, closure, tmp_path):
    model, scale = network(), 65536.0

    def between(model):
        clipped(1.0)(model)
        unscaled(scale)(model)

    run = trained(tmp_path, model, optimizer(model.parameters()), between, closure=closure, scale=scale)
    (found,) = [each for each in diagnostics.diagnose(run).findings if each.alarm]
    assert (found.kind, found.cause) == ("lr-too-small", "learning-rate")
    assert found.summary.startswith("Clipping leaves ") and any("unscale_" in each for each in found.remedies)


@pytest.mark.exhaustive
def test_a_loss_that_is_scaled_by_hand_says_nothing_of_the_overshoot(tmp_path):
    model, scale = network(), 65536.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = trained(tmp_path / "scaled", model, optimizer, unscaled(scale), scale=scale)
    assert steps_made.loss_scale(run) == pytest.approx(scale, rel=0.3)
    assert not len(steps_made.overshoots(run)[1]) and alarms(run) == []
    model = network()
    plain = trained(tmp_path / "plain", model, torch.optim.SGD(model.parameters(), lr=0.1), lambda model: None)
    assert steps_made.loss_scale(plain) == 1 and len(steps_made.overshoots(plain)[1]) > 5


@pytest.mark.parametrize(("longest", "told"), [(1e-4, True), (5e-4, True), (1.0, False)])
def test_clipping_that_leaves_next_to_nothing_of_a_run_without_a_closure(longest, told, tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = trained(tmp_path, model, optimizer, clipped(longest), closure=False, steps=400)
    assert alarms(run) == [("lr-too-small", "learning-rate")] * told


@pytest.mark.parametrize("longest", [2e-3, 5.0])
def test_clipping_that_lets_next_to_nothing_be_learned(longest, tmp_path):
    """A little, so that the constant answer is beaten, but nobody sees it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    x = torch.randn(2048, 8)
    y = 5 * torch.sin(2 * x[:, :1]) + torch.randn(2048, 1)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for k in torch.randint(2048, (800, 64)):
            loss_of = lambda k=k: F.huber_loss(model(x[k]), y[k])  # noqa: E731
            optimizer.zero_grad()
            loss = loss_of()
            loss.backward()
            clipped(longest)(model)
            optimizer.step()
            monitor.step(loss, closure=loss_of)
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.alarm]
    assert [(each.kind, each.cause) for each in found] == [("lr-too-small", "learning-rate")] * (longest < 1)
    assert all("clipping threshold" in each.remedies[0] for each in found)


def test_a_loss_that_bounces_at_the_edge_keeps_its_overshoot(tmp_path):
    """There r is 1 as well, and the next gradient points back."""
    w = nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = torch.optim.SGD([w], lr=0.9999)
    model = nn.Module()
    model.w = w
    run = of_all_data(tmp_path, model, optimizer, lambda: (w * w * torch.tensor([1.0, 1e-3])).sum(), 100)
    assert signals.median(steps_made.overshoots(run)[1]) == pytest.approx(1, abs=0.01)


@pytest.mark.exhaustive
def test_a_step_that_is_given_as_a_gradient(tmp_path):
    """Levenberg and Marquardt's: whatever the curvature, it is no rate that the steepest direction pins."""
    torch.manual_seed(0)
    x = torch.linspace(-2, 2, 300)[:, None]
    y = torch.sin(2.5 * x) * torch.exp(-0.3 * x) + 0.02 * torch.randn(300, 1)
    model = nn.Sequential(nn.Linear(1, 12), nn.Tanh(), nn.Linear(12, 1))
    optimizer, names, damping = torch.optim.SGD(model.parameters(), lr=1.0), dict(model.named_parameters()), 1e-2

    def residuals(values):
        return torch.func.functional_call(model, values, (x,))[:, 0] - y[:, 0]

    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(120):
            values = {name: p.detach() for name, p in names.items()}
            rows = torch.func.jacrev(residuals)(values)
            jacobian = torch.cat([rows[name].flatten(1) for name in names], 1).double()
            r = residuals(values).double()
            h = jacobian.T @ jacobian / len(r) + damping * torch.eye(jacobian.shape[1], dtype=torch.float64)
            step = torch.linalg.solve(h, jacobian.T @ r / len(r)).float()
            for p, part in zip(names.values(), step.split([p.numel() for p in names.values()]), strict=True):
                p.grad = part.view_as(p)
            better = residuals({n: p - p.grad for n, p in names.items()}).square().mean() < r.square().mean()
            if better:
                optimizer.step()
            damping = max(damping * (0.3 if better else 4.0), 1e-6)
            monitor.step(r.square().mean(), closure=lambda: (model(x) - y).square().mean())
    diagnosis = diagnostics.diagnose(diagnostics.load(tmp_path))
    assert not diagnosis.alarms
    assert "other gradients" in diagnosis.skipped["ravine"]


@pytest.mark.parametrize(("factor", "told"), [(0.2, True), (0.98, False)])
def test_a_rate_that_is_cut_while_the_loss_falls_without_a_closure(factor, told, tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3, factor)
    run = trained(tmp_path, model, optimizer, lambda model: None, 500, closure=False, scheduler=scheduler)
    assert alarms(run) == [("lr-too-small", "schedule")] * told
    if told:
        (found,) = [each for each in diagnostics.diagnose(run).findings if each.alarm]
        assert "mode='max'" in found.remedies[1]


class Decayed(torch.optim.SGD):
    """SGD whose decoupled decay is multiplied by the learning rate, or not."""

    def __init__(self, parameters, lr, weight_decay, by_rate):
        super().__init__(parameters, lr=lr)
        self.by_rate = by_rate
        for group in self.param_groups:
            group["weight_decay"] = weight_decay

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            factor = 1 - group["weight_decay"] * (group["lr"] if self.by_rate else 1)
            for p in group["params"]:
                p.mul_(factor).sub_(group["lr"] * p.grad)


@pytest.mark.parametrize("by_rate", [False, True])
def test_a_decay_that_is_not_multiplied_by_the_rate(by_rate, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = Decayed(model.parameters(), 0.05, 0.1, by_rate)
    run = trained(tmp_path, model, optimizer, lambda model: None, closure=False)
    found = [each for each in diagnostics.diagnose(run).findings if each.alarm]
    assert [(each.kind, each.cause) for each in found] == [("plateau", "weight-decay")] * (not by_rate)
    if not by_rate:
        assert found[0].remedies[0].startswith("multiply the decay by the learning rate")


class Compartment(nn.Module):
    """A dose that is taken up and excreted; the volume is in liters or in units of a thousandth."""

    def __init__(self, unit):
        super().__init__()
        self.unit = unit
        self.theta = nn.Parameter(torch.tensor([15.0 / unit, 1.0, 0.12], dtype=torch.float64))

    def forward(self, t):
        volume, taken, excreted = self.theta[0] * self.unit, self.theta[1], self.theta[2]
        return 320 * taken / (volume * (taken - excreted)) * (torch.exp(-excreted * t) - torch.exp(-taken * t))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("unit", "told"), [(1e-3, True), (3.0, False)])
def test_weights_of_very_different_sizes_under_one_rate(unit, told, tmp_path):
    t = torch.tensor([0.25, 0.5, 1, 2, 3.5, 5, 7, 9, 12, 24], dtype=torch.float64)
    truth = Compartment(1.0)
    truth.theta.data = torch.tensor([32.0, 1.5, 0.085], dtype=torch.float64)
    y, model = truth(t).detach(), Compartment(unit)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-4, momentum=0.9)
    loss_of = lambda: F.mse_loss(model(t), y)  # noqa: E731
    run = of_all_data(tmp_path, model, optimizer, loss_of, 1500)
    assert alarms(run) == [("ravine", "weight-scale")] * told
    if told:  # what is left goes with the volume in liters
        assert run.table("scalars", ["loss"])["loss"].iloc[-1] > 1
