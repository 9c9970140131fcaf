"""Runs that stop short of what they could reach: a schedule that begins anew, steps cut short by clipping or under an
optimizer without a known limit, a decay that holds the weights, outputs that nothing asks for."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.rules import _signals as signals
from diagnostics.rules import plateau
from diagnostics.rules._constant_answer import _longer_steps
from diagnostics.rules._explained import Explained
from diagnostics.rules._raised_again import raised_again
from diagnostics.rules._stretches import Flat
from diagnostics.rules._unexplained import unexplained
from diagnostics.run import Run

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def alarms(run: Run) -> list[tuple[str, str | None]]:
    return [(each.kind, each.cause) for each in diagnostics.diagnose(run).alarms]


def scheduled(rates: np.ndarray, risen: float, others: bool = False) -> Run:
    """Two hundred updates at a full rate and a hundred at a tenth, which take the loss to 0.1; then it is as it is.
    `others`: the loss is up before the first update at the new rate."""
    steps = np.arange(1, 501)
    noise = 0.01 * np.random.default_rng(0).standard_normal(500)
    loss = np.where(steps <= 200, np.exp(-steps / 40) + 0.2, 0.1) + noise
    loss[300 if others else 301 :] += risen
    table = pd.DataFrame({"step": steps, "loss": loss, "grad_norm": 0.1, "lr": rates})
    return Run.from_frames({"name": "test", "status": "finished", "optimizer": "SGD"}, {"scalars": table})


STEPS = np.arange(500)
FULL = np.ones(500)
LOWERED = np.where(STEPS < 200, 1.0, 0.1)
BACK = np.where((STEPS >= 200) & (STEPS < 300), 0.1, 1.0)
CYCLE = np.where(STEPS < 300, LOWERED, np.linspace(1, 0.01, 700)[np.maximum(STEPS - 300, 0) * 3])
FIRST = np.where(STEPS < 300, 0.1, 1.0)


@pytest.mark.parametrize(
    ("rates", "risen", "others", "told"),
    [
        (BACK, 0.05, False, True),
        (BACK, 0.0, False, False),
        (BACK, 0.05, True, False),  # other data, which the loss shows before the first such update
        (CYCLE, 0.05, False, False),  # to its end
        (LOWERED, 0.05, False, False),
        (FULL, 0.05, False, False),
        (FIRST, 0.05, False, False),  # a warm-up: it had not been there before
    ],
)
def test_a_rate_that_was_lowered_and_came_back(rates, risen, others, told):
    run = scheduled(rates, risen, others)
    found = raised_again("lr-oscillation", run, signals.loss(run))
    assert (found is not None) == told
    assert not told or (found.cause, found.first_step) == ("schedule", 301)


@pytest.mark.parametrize("used", [1, 3])
def test_outputs_that_no_term_of_the_loss_takes(used, tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(64, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with diagnostics.watch(model, optimizer, tmp_path, every=1, budget=ANY) as monitor:
        for _ in range(20):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x)[:, :used], x[:, :used])
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if each.cause == "unused"]
    assert [each.severity for each in found] == ["info"] * (used < 3)
    assert all("2 of the 3 outputs of 2:" in each.summary for each in found)


def trained(path, model, optimizer, loss_of, steps, clip=None) -> Run:
    draw = torch.Generator().manual_seed(1)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(steps):
            k = torch.randint(1024, (64,), generator=draw)
            optimizer.zero_grad()
            loss = loss_of(model, k)
            loss.backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            monitor.step(loss, closure=lambda k=k: loss_of(model, k))
    return diagnostics.load(path)


def of_classes():
    torch.manual_seed(0)
    y = torch.randint(4, (1024,))
    x = torch.randn(4, 8)[y] + 2 * torch.randn(1024, 8)
    return lambda model, k: F.cross_entropy(model(x[k]), y[k])


@pytest.mark.exhaustive
@pytest.mark.parametrize(("clip", "told"), [(3e-3, True), (5.0, False)])
def test_clipping_under_a_rate_that_would_be_right(clip, told, tmp_path):
    """Without it, an update would go past the minimum along the steepest direction."""
    loss_of, model = of_classes(), nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 4))
    run = trained(tmp_path, model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), loss_of, 500, clip)
    assert alarms(run) == [("lr-too-small", "learning-rate")] * told


@pytest.mark.exhaustive
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this PyTorch has no Muon")
@pytest.mark.parametrize(("rate", "told"), [(2e-4, True), (1e-2, False)])
def test_a_rate_far_too_small_for_an_optimizer_without_a_known_limit(rate, told, tmp_path):
    loss_of, model = of_classes(), nn.Sequential(nn.Linear(8, 32, bias=False), nn.Tanh(), nn.Linear(32, 4, bias=False))
    run = trained(tmp_path, model, torch.optim.Muon(model.parameters(), lr=rate), loss_of, 500)
    assert alarms(run) == [("lr-too-small", "learning-rate")] * told


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("decay", "optimizer", "told"),
    [(0.2, torch.optim.Adam, True), (1e-4, torch.optim.Adam, False), (0.2, torch.optim.AdamW, False)],
)
def test_a_decay_that_is_added_to_the_gradient_and_holds_the_loss_up(decay, optimizer, told, tmp_path):
    """At a fifth off the loss of one answer to all, where two fifths are to be had."""
    layers = (nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    loss_of, model = of_classes(), nn.Sequential(*layers)
    run = trained(tmp_path, model, optimizer(model.parameters(), 3e-3, weight_decay=decay), loss_of, 600)
    found = [each for each in diagnostics.diagnose(run).findings if each.cause == "weight-decay"]
    assert [(each.kind, each.severity) for each in found] == [("plateau", "info")] * told
    assert not told or ("holds the loss up" in found[0].summary and alarms(run) == [])


@pytest.mark.exhaustive
@pytest.mark.every_case
@pytest.mark.parametrize(("decay", "told"), [(30.0, True), (0.1, False)])
def test_a_decay_beside_the_gradient_that_undoes_it(decay, told, tmp_path):
    """AdamW's weights stay below 1 / 30 where each step takes 30 times the rate off them."""
    layers = (nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    loss_of, model = of_classes(), nn.Sequential(*layers)
    run = trained(tmp_path, model, torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=decay), loss_of, 600)
    found = [each for each in diagnostics.diagnose(run).findings if each.cause == "weight-decay"]
    assert alarms(run) == [("plateau", "weight-decay")] * told
    assert not told or "it takes back" in found[0].summary


@pytest.mark.parametrize(("ratio", "share", "told"), [(0.006, 0.02, True), (0.2, 0.02, False), (0.006, 0.8, False)])
def test_a_level_that_nothing_explains_tells_how_far_inside_the_rate_is(ratio, share, told):
    """Where little was learned: who has come far need not be told to hurry."""
    steps = np.arange(1, 101)
    scalars = pd.DataFrame({"step": steps, "loss": 2.0, "lr": 1e-3})
    curvature = pd.DataFrame({"step": [1, 50], "stability": ratio})
    run = Run.from_frames({"name": "r"}, {"scalars": scalars, "curvature": curvature})
    found = unexplained("plateau", run, Flat(1, 100, 2.0, 1.0, False), Explained(share, 0.01, 2.0, 2.1))
    assert found.severity == "info"
    assert ("0.6 % of the largest stable one" in found.summary) == told
    assert ("try ten times the learning rate, 0.01" in found.remedies) == told


@pytest.mark.parametrize(("body", "told"), [(np.nan, True), (0.1, False)])
def test_a_level_that_nothing_explains_tells_of_weights_that_were_frozen(body, told):
    steps = np.arange(1, 101)
    scalars = pd.DataFrame({"step": steps, "loss": 2.0, "lr": 1e-3})
    rows = [(step, name, norm) for step in (1, 50, 90) for name, norm in (("body.weight", body), ("head.weight", 0.1))]
    layers = pd.DataFrame(rows, columns=["step", "layer", "grad_norm"])
    sizes = {"body.weight": 900, "head.weight": 100}
    meta = {"name": "r", "layers": [{"name": name, "shape": [n], "parameters": n} for name, n in sizes.items()]}
    run = Run.from_frames(meta, {"scalars": scalars, "layers": layers})
    found = unexplained("plateau", run, Flat(1, 100, 2.0, 1.0, False), Explained(0.02, 0.01, 2.0, 2.1))
    assert ("90 % of the weights were frozen all along (body.weight)" in found.summary) == told
    assert any("requires_grad_(True)" in each for each in found.remedies) == told


@pytest.mark.parametrize(("ratio", "told"), [(0.0006, True), (0.006, False)])
def test_a_rate_that_even_at_its_highest_was_far_inside_the_limit(ratio, told):
    """Ten times the last one, at which the ratio was measured."""
    steps = np.arange(1, 401)
    scalars = pd.DataFrame({"step": steps, "loss": 2.0, "lr": np.where(steps < 100, 1e-3, 1e-4)})
    curvature = pd.DataFrame({"step": [1, 350], "stability": [10 * ratio, ratio]})
    run = Run.from_frames({"name": "r"}, {"scalars": scalars, "curvature": curvature})
    assert bool(_longer_steps(run, 300)) == told


@pytest.mark.parametrize(
    ("optimizer", "decay", "left", "told"),
    [("Adam", 0.1, 0.05, True), ("Adam", 0.001, 0.05, False), ("AdamW", 0.1, 0.05, False), ("Adam", 0.1, 0.5, False)],
)
@pytest.mark.every_case
def test_a_penalty_as_large_as_the_loss_may_hold_it_up(optimizer, decay, left, told):
    """Of a decay in the gradient it is half the decay times the square of the weights: 0.05 * 2 * 36 beside 4."""
    steps = np.arange(1, 401)
    groups = [{"weight_decay": decay, "decoupled_weight_decay": optimizer == "AdamW"}]
    layers = {"step": np.repeat([1, 100, 200, 300, 400], 2), "layer": ["0.weight", "2.weight"] * 5}
    sizes = 6.0 * np.repeat([1.0, left, left, left, left], 2)
    layers |= {"weight_norm": sizes, "grad_norm": 1.0, "update_norm": 0.01}
    shapes = [{"name": name, "shape": [8, 8]} for name in ("0.weight", "2.weight")]
    run = Run.from_frames(
        {"name": "r", "status": "finished", "optimizer": optimizer, "hyperparameters": groups, "layers": shapes},
        {"scalars": pd.DataFrame({"step": steps, "loss": 3 + 0.9**steps}), "layers": pd.DataFrame(layers)},
    )
    found = [each for each in plateau.check(run) if each.cause == "weight-decay"]
    assert [each.severity for each in found] == ["info"] * told
    assert not told or "may hold the loss up: its penalty on the first weights is 3.6" in found[0].summary
