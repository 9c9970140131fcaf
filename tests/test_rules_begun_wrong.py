"""Runs that begin or go the wrong way: uphill, from answers that are sure and wrong, to the end of what cosines allow,
or without the order of their tokens. Small trainings against what is known of them, and records of a few columns."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.rules import lr_unstable, plateau, wiring
from diagnostics.run import Run

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is
STEPS = np.arange(1, 401)


class ByHand(torch.optim.Optimizer):
    def __init__(self, parameters, lr, mu=0.9, sign=-1.0, own=-1.0, decay=0.0):
        """`sign`: of the velocity; `own`: of the newest gradient, as in Nesterov's."""
        super().__init__(parameters, {"lr": lr, "mu": mu, "sign": sign, "own": own, "decay": decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                velocity = self.state[p].setdefault("velocity", torch.zeros_like(p)).mul_(group["mu"]).add_(p.grad)
                p.mul_(1 - group["decay"])
                p.add_(velocity, alpha=group["sign"] * group["lr"]).add_(p.grad, alpha=group["own"] * group["lr"])


def error(model, x, y):
    return F.cross_entropy(model(x), y)


def reward(model, x, y):
    """At most 1."""
    return model(x).softmax(1).gather(1, y[:, None]).mean()


def trained(path, make, loss, updates=120, pretrained=0, linear=False, written=lambda gradient: None):
    """`linear`: a logistic regression. `written`: what the loop does to each gradient."""
    torch.manual_seed(0)
    x = torch.randn(512, 8)
    y = (x[:, 0] > 0).long() + (0 if linear else (x[:, 1] > 0).long())
    model = nn.Linear(8, 3) if linear else nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    first = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(pretrained):
        first.zero_grad()
        error(model, x, y).backward()
        first.step()
    optimizer = make(model.parameters())
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(updates):
            chosen = torch.randint(512, (64,))
            optimizer.zero_grad()
            value = loss(model, x[chosen], y[chosen])
            value.backward()
            for parameter in model.parameters():
                written(parameter.grad)
            optimizer.step()
            monitor.step(value, closure=lambda chosen=chosen: loss(model, x[chosen], y[chosen]))
    return diagnostics.diagnose(diagnostics.load(path)).findings


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("make", "loss", "severity"),
    [
        (lambda p: ByHand(p, 0.03, sign=1.0), error, "critical"),
        (lambda p: ByHand(p, 0.03, mu=0.0, sign=1.0, own=0.0), error, "critical"),
        (lambda p: ByHand(p, 0.03, mu=0.0, sign=1.0, own=0.0), reward, "info"),  # it may be meant
        (lambda p: ByHand(p, 0.03), error, None),
        (lambda p: torch.optim.SGD(p, 0.03, maximize=True), reward, None),
        (lambda p: torch.optim.SGD(p, 0.03, momentum=0.99), error, None),
        (lambda p: torch.optim.SGD(p, 30.0, momentum=0.9), error, None),
    ],
)
@pytest.mark.every_case
def test_updates_that_go_up_the_gradient(make, loss, severity, tmp_path):
    found = [each.severity for each in trained(tmp_path, make, loss) if each.cause == "uphill"]
    assert found == [severity] * (severity is not None)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda p: ByHand(p, 0.03, mu=0.0, own=0.0, sign=1.0), False),  # adds what the loop has turned about
        (lambda p: torch.optim.SGD(p, 0.03), True),
    ],
    ids=["by convention", "by mistake"],
)
@pytest.mark.every_case
def test_gradients_that_the_loop_turns_about(make, told, tmp_path):
    """What counts is the gradient that the backward pass gave."""

    def harder(model, x, y):
        harder.updates += 1
        return error(model, x, y) * (1 + 0.02 * harder.updates)

    harder.updates = 0
    found = trained(tmp_path, make, error if told else harder, written=lambda gradient: gradient.neg_())
    assert [each.cause for each in found if each.cause == "uphill"] == ["uphill"] * told


@pytest.mark.parametrize(
    "make",
    [
        lambda p: ByHand(p, 0.05, mu=0.0, own=0.0, decay=0.01),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=3.0),
    ],
    ids=["by hand", "SGD", "AdamW"],
)
@pytest.mark.exhaustive
@pytest.mark.every_case
def test_a_decay_that_the_loss_holds_up_is_not_uphill(make, tmp_path):
    """It makes the loss of good weights grow, along their gradient: those of a logistic regression."""
    found = trained(tmp_path, make, error, pretrained=1000, linear=True)
    history = diagnostics.load(tmp_path).table("scalars")["loss"]
    assert history.iloc[-10:].mean() > 1.1 * history.iloc[:10].mean()
    assert "uphill" not in [each.cause for each in found]


@pytest.mark.parametrize(
    ("change", "severity"),
    [
        ({}, "critical"),
        ({"loss": np.linspace(1.0, 5.0, 400)}, "info"),  # it may be meant
        ({"loss": np.linspace(10.0, 1.0, 400)}, None),  # it falls
        ({"slope": np.where(STEPS % 3, 0.9, -0.1)}, None),  # a third of them go down
        ({"slope": 0.4}, None),  # mostly across
        ({"downhill": -0.9, "grad_norm_unclipped": 1.0}, None),
        ({"slope": np.where(STEPS < 5, 0.9, np.nan)}, None),  # few
    ],
    ids=str,
)
@pytest.mark.every_case
def test_what_is_uphill(change, severity):
    columns = {"step": STEPS, "loss": np.linspace(1.0, 50.0, 400), "lr": 0.1, "grad_norm": 1.0, "update_norm": 1.0}
    run = run_of({"guessing": 1.0}, scalars=columns | {"slope": 0.9} | change)
    assert [each.severity for each in wiring.check(run) if each.cause == "uphill"] == [severity] * (
        severity is not None
    )
    meant = run_of({"guessing": 1.0, "hyperparameters": [{"weight_decay": 0.1}]}, scalars=columns | {"slope": 0.9})
    assert "uphill" not in [each.cause for each in wiring.check(meant)]


def run_of(meta, **tables) -> Run:
    plain = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"momentum": 0.0}]}
    tables |= {"layers": {"step": STEPS[9::10], "layer": "0.weight", "grad_norm": 0.1, "weight_norm": 1.0}}
    return Run.from_frames(plain | meta, {name: pd.DataFrame(columns) for name, columns in tables.items()})


@pytest.mark.parametrize(
    ("bound", "classes", "end", "told"),
    [
        (1.0, 48, 2.95, True),
        (1.0, 48, 3.6, False),  # it has a way to go
        (2.0, 256, 3.8, True),
        (20.0, 256, 0.1, False),  # what is least is next to nothing
        (None, 48, 2.95, False),
    ],
)
def test_a_loss_that_comes_near_the_least_that_cosines_allow(bound, classes, end, told):
    start = np.log(classes)
    loss = end + (start - end) * 0.9**STEPS
    run = run_of({"score_bound": [bound, classes] if bound else []}, scalars={"step": STEPS, "loss": loss})
    found = [each for each in plateau.check(run) if each.cause == "bounded-scores"]
    assert [each.severity for each in found] == ["info"] * told
    if told:
        best = torch.full((classes, classes), -1 / (classes - 1)).fill_diagonal_(1.0)  # corners of a simplex
        least = float(F.cross_entropy(bound * best, torch.arange(classes)))
        assert found[0].evidence["least cross-entropy"] == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize(
    ("activation", "end", "told"),
    [("softmax", 0.7, True), ("softmax", 0.05, False), ("relu", 0.7, False)],  # little is left; a bag of words
)
def test_attention_that_cannot_tell_the_order_where_much_of_the_loss_is_left(activation, end, told):
    name = {"softmax": "blocks.0.attention", "relu": "blocks.0.relu"}[activation]
    units = {"step": STEPS[9::10], "layer": name, "activation": activation, "units": 4, "dead_fraction": 0.0}
    loss = end + (2.3 - end) * 0.9**STEPS
    run = run_of({"order_blind": True}, scalars={"step": STEPS, "loss": loss}, units=units)
    found = [(each.severity, each.cause) for each in plateau.check(run)]
    assert (("info", "order-blind") in found) == told


@pytest.mark.parametrize(
    ("start", "guessing", "told"), [(32.0, 4.56, True), (5.0, 4.56, False), (32.0, None, False)], ids=str
)
def test_a_first_loss_far_above_that_of_guessing(start, guessing, told):
    loss = 2.0 + (start - 2.0) * 0.9**STEPS
    run = run_of({"guessing": guessing}, scalars={"step": STEPS, "loss": loss})
    found = [each for each in plateau.check(run) if each.cause == "start-far-off"]
    assert [each.severity for each in found] == ["info"] * told
    if told:
        assert found[0].evidence["loss at start"] == pytest.approx(loss[0], rel=0.1)
        assert loss[found[0].last_step - 1] < guessing < loss[0]


@pytest.mark.parametrize("guessing", [1.6, None])
def test_a_loss_that_grew_from_a_start_far_off(guessing):
    loss = np.r_[500.0 * 3.0 ** np.arange(12), np.full(388, np.nan)]
    columns = {"step": STEPS, "loss": loss, "lr": 0.1, "grad_norm": np.where(np.isfinite(loss), 10 * loss, np.nan)}
    (found,) = lr_unstable.check(run_of({"guessing": guessing}, scalars=columns))
    assert found.remedies[0].startswith("make the first answers smaller" if guessing else "set the learning rate")
