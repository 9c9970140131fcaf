"""Rules on tables written by hand, where no small training comes reliably to the edge in question."""

import numpy as np
import pandas as pd
import pytest

import diagnostics
from diagnostics.rules import _signals as signals
from diagnostics.rules import _steps as steps_made
from diagnostics.rules import cliff, dead_units, lr_too_small, lr_unstable, plateau, saddle_point, wiring, zero_gradient
from diagnostics.rules._noise_ball import too_far
from diagnostics.rules._one_gradient import one_gradient
from diagnostics.rules._ringing import momentum_ringing
from diagnostics.run import Run

STEPS = np.arange(1, 401)
META = {"name": "test", "status": "finished", "optimizer": "SGD", "hyperparameters": [{"momentum": 0.0}]}


def run_of(meta=None, **tables) -> Run:
    return Run.from_frames(META | (meta or {}), {name: pd.DataFrame(columns) for name, columns in tables.items()})


@pytest.mark.parametrize(
    ("clipped_at", "hard_batches", "severity"),
    [
        (None, False, "warning"),
        (2.0, False, "info"),  # a wall that clipping holds
        (900.0, False, "warning"),  # clipping that lets it through
        (None, True, "info"),  # of hard batches, which were there before
    ],
)
def test_walls_and_what_holds_them(clipped_at, hard_batches, severity):
    """A gradient that jumps to a thousand times its size in four places, after each of which the loss is up a while."""
    norms, loss = np.ones(400), 0.2 + 0.01 * np.sin(1e3 * STEPS)
    loss[0] = 2.0
    for at in (200, 250, 300, 350):
        norms[at] = 1000.0
        loss[at : at + (1 if hard_batches else 8)] = 1.5
    if hard_batches:
        loss[5::6] = 1.5
    received = norms if clipped_at is None else norms.clip(max=clipped_at)
    columns = {"step": STEPS, "loss": loss, "lr": 0.1, "grad_norm": received, "grad_norm_unclipped": norms}
    run = run_of(scalars=columns, curvature={"step": [100], "stability": [0.1]})
    (found,) = cliff.check(run)
    assert found.severity == severity
    assert ("Clipping" in found.summary) == (clipped_at == 2.0) != ("clip the gradient" in found.remedies[0])


@pytest.mark.parametrize(("update", "kinds"), [(0.1, []), (3.0, ["cliff"])])
def test_a_loss_that_becomes_another_one(update, kinds):
    """It rises by 200 with a gradient of 100: updates of 0.1 do not lift it so, and have met no wall."""
    after = STEPS >= 200
    columns = {"step": STEPS, "loss": 0.5 + 200.0 * after, "lr": 0.1, "grad_norm": 0.5 + 99.5 * after}
    columns |= {"grad_norm_unclipped": columns["grad_norm"], "update_norm": np.where(STEPS % 10 == 0, update, np.nan)}
    run = run_of(scalars=columns, curvature={"step": [100], "stability": [0.1]})
    assert [finding.kind for finding in cliff.check(run)] == kinds


@pytest.mark.parametrize(("begun", "told"), [(2.0, []), (0.5, ["cliff"])])
def test_a_gradient_as_long_as_at_the_start_is_no_wall(begun, told):
    """A policy that has become sure, and rare draws that surprise it: first steps had such gradients too."""
    norms = np.maximum(begun * np.exp(-STEPS / 20), 1e-4)
    norms[200::25] = 1.0
    loss = np.where(STEPS > 200, 1e-3, 1e-5) + norms / 100
    run = run_of(scalars={"step": STEPS, "loss": loss, "lr": 0.1, "grad_norm": norms, "update_norm": 0.1})
    assert [each.kind for each in cliff.check(run)] == told


def test_a_loss_that_becomes_another_one_has_an_echo_that_is_no_wall():
    """A target network's copy makes the loss far larger; on its way down the gradient has a second crest."""
    crest = np.where(STEPS < 204, 2.5, 2.5 * np.exp(-0.25 * (STEPS - 203))) + 2.0 * np.exp(-((STEPS - 216) ** 2) / 8)
    after = STEPS >= 201
    columns = {"step": STEPS, "loss": np.where(after, 0.5 * crest + 0.05, 5e-4), "lr": 1e-3, "update_norm": 0.01}
    columns |= {"grad_norm": np.where(after, crest + 0.1, 0.01)}
    columns["loss"][0] = 1.0
    assert not list(cliff.check(run_of(scalars=columns, curvature={"step": [100], "stability": [0.1]})))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, 1),
        ({"optimizer": "SGD"}, 0),  # which remembers none
        ({"betas": [0.9, 1.0]}, 0),  # whose mean never takes in anything
        ({"betas": [0.9, 0.5]}, 0),  # forgotten after thirty updates
        ({"size": 100.0}, 0),  # clipped, or no longer than ten times what the mean is of
        ({"at": 350}, 0),  # too late to matter
        ({"around": 1e3}, 0),  # not alone
        ({"updates": 0.05}, 0),  # of weights that had no part in it
    ],
    ids=str,
)
def test_a_gradient_that_the_mean_of_squares_remembers(change, expected):
    given = {
        "optimizer": "Adam",
        "betas": [0.9, 0.999],
        "size": 1e5,
        "at": 100,
        "around": 1.0,
        "updates": 1e-4,
    } | change
    norms = 1 + 0.1 * np.sin(1e3 * STEPS)
    norms[given["at"] + 20], norms[given["at"]] = given["around"], given["size"]
    updates = np.where(STEPS % 10 == 0, np.where(given["at"] < STEPS, given["updates"], 0.05), np.nan)
    run = run_of(
        {"optimizer": given["optimizer"], "hyperparameters": [{"betas": given["betas"]}]},
        scalars={"step": STEPS, "loss": 1.0, "lr": 1e-3, "grad_norm": norms, "update_norm": updates},
    )
    found = list(one_gradient("lr-too-small", run))
    assert len(found) == expected
    assert all(finding.first_step == 101 and "clip" in finding.remedies[1] for finding in found)


@pytest.mark.parametrize(
    ("overshoots", "expected"),
    [([0.28, 0.51, 0.67], False), ([0.6, 0.62, 0.64], True), ([0.28, 0.51, 0.67] * 12, False), ([0.6] * 30, True)],
)
def test_updates_that_surely_go_past_the_minimum(overshoots, expected):
    """By the spread of the few that were measured: three of them tell little."""
    measured = np.full(400, np.nan)
    measured[210 : 210 + 5 * len(overshoots) : 5] = overshoots
    loss = np.exp(np.random.default_rng(5).normal(0, 0.1, 400))
    loss[0] = 2.0
    columns = {"step": STEPS, "loss": loss, "lr": 0.1, "grad_norm": 1.0, "update_norm": 1.0, "overshoot": measured}
    cosines = np.where(np.isnan(measured), np.nan, 0.1 * (-1.0) ** STEPS)
    run = run_of(scalars=columns | {"gradient_cosine": cosines})
    assert too_far(run, signals.loss(run), np.array([1]), np.array([0.9])) is expected


@pytest.mark.parametrize(
    ("update", "cause"),
    [
        (4e-4, "large-step"),  # many short updates that together move the weights by a good part
        (1e-8, "initialization"),  # that move nothing: the biases alone decide
    ],
)
def test_units_that_die_slowly(update, cause):
    layers = [{"name": f"{at}.weight", "shape": [50, 50], "parameters": 2500} for at in (0, 2)]
    steps = np.arange(1, 2001, 100)
    both = {"step": np.repeat(steps, 2), "layer": ["0.weight", "2.weight"] * len(steps)}
    units = {"step": steps, "layer": "1", "activation": "relu", "units": 50, "hidden": 1.0, "zero_fraction": 0.6}
    units |= {"dead_fraction": np.linspace(0.0, 0.6, len(steps)), "input_mean": 0.1}
    run = run_of(
        {"layers": layers, "modules": [{"name": name, "type": "Linear"} for name in ("0", "1", "2")]},
        scalars={"step": np.arange(1, 2001), "loss": 1.0, "lr": 0.1},
        layers=both | {"grad_norm": 1.0, "weight_norm": 1.0, "update_norm": update},
        units=units,
    )
    (found,) = dead_units.check(run)
    assert found.cause == cause


@pytest.mark.parametrize(
    ("crest", "wide", "falls", "restarted", "rings"),
    [
        (0.45, 0.07, 0.5, 1.0, True),
        (0.1, 0.07, 0.5, 1.0, False),  # at the start
        (0.45, 0.003, 0.5, 1.0, False),  # at once, as other data,
        (0.45, 0.0, 0.5, 1.0, False),  # after a slow climb
        (0.45, 0.07, 0.0, 1.0, False),  # and over
        (0.45, 0.07, 0.5, 3.0, False),  # made by the rate
    ],
)
def test_a_crest_that_comes_within_the_first_half_but_after_one_memory(crest, wide, falls, restarted, rings):
    """Momentum 0.995 remembers 400 updates of 1200."""
    steps = np.arange(1, 1201)
    noise = 1 + 0.02 * np.random.default_rng(0).standard_normal(len(steps))
    rise = 0.2 * np.exp(-(((steps / 1200 - crest) / np.where(steps < 1200 * crest, wide or 1e-3, 0.07)) ** 2))
    rise += (0.0 if wide else 0.05) * np.clip(steps / 1200 - crest + 0.1, 0, 0.1) / 0.1 * (steps < 1200 * crest)
    loss = noise * (np.exp(-steps / 200) + 0.05 + rise) * (1 - falls * np.clip(steps / 400 - 2, 0, 1))
    columns = {"step": steps, "loss": loss, "lr": np.where(steps < 480, 0.01, 0.01 * restarted), "grad_norm": 1.0}
    run = run_of({"hyperparameters": [{"lr": 0.01, "momentum": 0.995}]}, scalars=columns)
    found = momentum_ringing("lr-oscillation", run, signals.loss(run), memory=0.3, swing=0.5)
    assert (found is not None) == rings


@pytest.mark.parametrize(
    ("period", "lone", "restarts", "rings"),
    [
        (30, False, False, True),
        (13, False, False, True),  # smooth, however short
        (None, True, False, False),  # single batches of a heavy-tailed loss
        (30, False, True, False),  # the rate returns to what it was a moment ago
    ],
)
def test_a_swing_is_more_than_one_batch_or_one_restart(period, lone, restarts, rings):
    """Momentum 0.95 remembers 40 updates of 130."""
    steps = np.arange(1, 131)
    loss = 1.6 * np.exp(-steps / 150) * (1 + 0.05 * np.random.default_rng(0).standard_normal(len(steps)))
    loss *= 1 + (0.6 * np.sin(2 * np.pi * steps / period) if period else 0.0) + 2.0 * (lone * (steps % 23 == 0))
    rate = 0.01 * (1.0 - (restarts * ((steps > 85) & (steps < 95))) * 0.5)
    run = run_of(
        {"hyperparameters": [{"lr": 0.01, "momentum": 0.95}]},
        scalars={"step": steps, "loss": loss, "lr": rate, "grad_norm": 1.0},
    )
    found = momentum_ringing("lr-oscillation", run, signals.loss(run), memory=0.3, swing=0.5)
    assert (found is not None) == rings


@pytest.mark.parametrize(
    ("stability", "overshoot", "held_up"),
    # near its limit it settles by itself, and below it each step is as long
    [(3.0, 0.4, True), (1.2, 0.4, False), (3.0, 0.1, False), (1.2, 0.6, True), (0.7, 0.6, False)],
)
def test_updates_of_adam_at_twice_its_limit_that_go_most_of_the_way(stability, overshoot, held_up):
    noise = 1 + 0.05 * np.random.default_rng(0).standard_normal(400)
    columns = {"step": STEPS, "loss": np.where(STEPS < 40, 4.0, 2.0) * noise, "lr": 0.1, "grad_norm": 0.3 * noise}
    columns |= {"update_norm": 2.0, "overshoot": overshoot * noise, "gradient_cosine": 0.2}
    curvature = {"step": [2, 50, 120], "stability": [10.0, stability, stability]}
    run = run_of({"optimizer": "Adam", "hyperparameters": [{}]}, scalars=columns, curvature=curvature)
    assert too_far(run, signals.loss(run), *steps_made.stability(run)) == held_up


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, True),
        ({"began": 1.5}, False),  # where such an optimizer goes by itself
        ({"constant": 3.0}, False),  # a third of what a constant answer costs was learned
        ({"overshoot": 0.05}, False),  # short steps by now
        ({"optimizer": "SGD"}, False),
    ],
    ids=str,
)
def test_first_updates_of_adam_far_past_its_limit(change, told):
    """They throw a network where it learns only what its biases can, and no later estimate need show it."""
    given = {"began": 9.0, "constant": 2.02, "overshoot": 0.4, "optimizer": "Adam"} | change
    noise, looked = np.random.default_rng(0).standard_normal(400), np.where(STEPS % 10 == 0, 1.0, np.nan)
    columns = {"step": STEPS, "loss": np.where(STEPS < 40, 4.0, 2.0) + 0.05 * noise, "lr": 0.03, "grad_norm": 0.3}
    columns |= {"update_norm": 2.0 * looked, "overshoot": given["overshoot"] * looked, "gradient_cosine": 0.2 * looked}
    columns |= {"constant_loss": (given["constant"] + 0.05 * noise) * looked}
    curvature = {"step": [2, 50, 120], "stability": [given["began"], 0.3, 0.3]}
    run = run_of({"optimizer": given["optimizer"], "hyperparameters": [{}]}, scalars=columns, curvature=curvature)
    assert too_far(run, signals.loss(run), *steps_made.stability(run)) == told


@pytest.mark.parametrize(
    ("ended", "gone_since", "flat", "told"),
    [
        (0.5, 200, "1", True),
        (0.5, 200, "loss.clamp", False),  # a margin that every example keeps, and a constant
        (1.6, 200, "loss.clamp", True),  # most of the loss is left
        (0.0, 200, "1", False),  # no loss is left
        (0.5, 380, "1", False),  # for a short while
        (0.5, None, "1", False),
    ],
)
def test_gradients_that_are_gone_for_good(ended, gone_since, flat, told):
    steps = np.arange(1, 401, 10)
    gone = np.repeat(steps >= (gone_since or np.inf), 2)
    both = {"step": np.repeat(steps, 2), "layer": ["0.weight", "2.weight"] * len(steps), "weight_norm": 1.0}
    layers = [{"name": f"{at}.weight", "shape": [50, 50], "parameters": 2500} for at in (0, 2)]
    run = run_of(
        {"layers": layers},
        scalars={"step": STEPS, "loss": np.where(STEPS < 100, 2.0, ended), "lr": 0.1},
        layers=both | {"grad_norm": np.where(gone, 0.0, 1.0), "silent_fraction": np.where(gone, 1.0, 0.0)},
        units={
            "step": steps,
            "layer": flat,
            "activation": "hardtanh" if "clamp" in flat else "sigmoid",
            "units": 1,
            "hidden": 0.0,
        }
        | {"saturated_fraction": 1.0, "dead_fraction": np.nan},
    )
    found = list(zero_gradient.check(run))
    assert [each.severity for each in found] == ["critical"] * told and all(each.first_step == 201 for each in found)


@pytest.mark.parametrize(
    ("units", "dead", "end", "severity"),
    [
        (50, 0.8, 0.05, "warning"),
        (10, 0.8, 0.05, "info"),  # of ten directions of which half are off eight are in a twentieth of all layers
        (10, 0.9, 0.05, "critical"),
        (50, 0.6, 0.5, "info"),
        (50, 0.6, 0.8, "info"),  # so from the start: twenty units learn what they can
        (50, 0.8, 0.8, "warning"),
    ],
)
def test_how_many_units_may_die_in_a_run_that_learns(units, dead, end, severity):
    steps = np.arange(1, 401, 20)
    columns = {"step": steps, "layer": "1", "activation": "relu", "units": units, "hidden": 1.0}
    run = run_of(
        scalars={"step": STEPS, "loss": np.linspace(1.0, end, 400), "lr": 0.1},
        units=columns | {"dead_fraction": dead, "zero_fraction": dead, "input_mean": 0.1},
    )
    (found,) = dead_units.check(run)
    assert found.severity == severity


@pytest.mark.parametrize(
    ("path", "severity"),
    [("relu -> cross_entropy", "warning"), ("relu -> mse_loss", "info")],  # each a class; what 0 is right for
)
def test_dead_outputs_in_a_run_that_learns(path, severity):
    steps = np.arange(1, 401, 10)
    columns = {"step": steps, "layer": "relu", "activation": "relu", "units": 10, "hidden": 0.0, "input_mean": 0.1}
    run = run_of(
        {"loss_path": path, "layers": [{"name": "0.weight", "shape": [10, 8], "parameters": 80}]},
        scalars={"step": STEPS, "loss": np.linspace(2.3, 1.1, 400), "lr": np.where(STEPS < 9, 1e-4, 0.1)},
        layers={"step": steps, "layer": "0.weight", "update_norm": 0.1, "weight_norm": 1.0, "grad_norm": 1.0},
        units=columns | {"dead_fraction": np.where(steps < 9, 0.1, 0.5), "zero_fraction": 0.5},
    )
    (found,) = dead_units.check(run)
    assert (found.severity, found.remedies[0].startswith("leave the activation relu out")) == (severity, True)
    assert "raised the rate from 1.0e-4 to 0.1." in found.summary


@pytest.mark.parametrize(
    ("end", "told"),
    [(0.5, True), (0.1, False)],  # two of ten classes with a probability of 1/10 at most cost 0.46
)
@pytest.mark.every_case
def test_few_classes_whose_scores_are_dead(end, told):
    steps = np.arange(1, 401, 10)
    columns = {"step": steps, "layer": "relu", "activation": "relu", "units": 10, "hidden": 0.0, "input_mean": 0.1}
    run = run_of(
        {"loss_path": "relu -> cross_entropy"},
        scalars={"step": STEPS, "loss": np.linspace(2.3, end, 400), "lr": 0.1},
        units=columns | {"dead_fraction": 0.2, "zero_fraction": 0.5},
    )
    found = list(dead_units.check(run))
    assert [(each.severity, "a probability of 1/10" in each.summary) for each in found] == [("warning", True)] * told


@pytest.mark.parametrize(
    ("gone", "severity"),
    [(2, "warning"), (30, "info")],  # before anything could be learned; of the 40, long after nothing had been
)
def test_units_that_die_where_nothing_was_learned(gone, severity):
    steps = np.arange(1, 401, 10)
    columns = {"step": steps, "layer": "1", "activation": "relu", "units": 32, "hidden": 1.0, "input_mean": 0.1}
    dead = np.where(np.arange(40) < gone, 0.55, 0.8)  # half of the units are dead all along
    loss = 1.4 + 0.01 * np.random.default_rng(0).standard_normal(400)
    constant = np.where(np.isin(STEPS, steps), 1.4, np.nan)
    run = run_of(
        scalars={"step": STEPS, "loss": loss, "constant_loss": constant, "lr": 0.1},
        units=columns | {"dead_fraction": dead, "zero_fraction": dead},
    )
    (found,) = dead_units.check(run)
    assert found.severity == severity


@pytest.mark.parametrize(("later", "told"), [(0.1, False), (1.0, True)])
def test_units_that_are_given_nothing_at_first_are_not_dead(later, told):
    """A state that begins at 0, as that of a fixed point; its units live in the second call, or in none."""
    steps = np.arange(1, 401, 10)
    columns = {"activation": "relu", "units": 24, "hidden": 1.0}
    calls = [
        {"layer": "f.relu#0", "dead_fraction": 1.0, "zero_fraction": 1.0, "input_mean": 0.0, "input_std": 0.0},
        {"layer": "f.relu#1", "dead_fraction": later, "zero_fraction": later, "input_mean": -0.1, "input_std": 1.0},
    ]
    units = pd.concat([pd.DataFrame({"step": steps} | columns | call) for call in calls]).sort_values("step")
    run = run_of(scalars={"step": STEPS, "loss": 1.4, "lr": 0.1}, units=units)
    assert [each.kind for each in dead_units.check(run)] == ["dead-units"] * told


def test_a_layer_that_is_given_nothing_after_it_lived_is_dead():
    """It has no other call that would show that its units live."""
    steps = np.arange(1, 401, 10)
    gone = (steps > 20).astype(float)
    columns = {"step": steps, "layer": "1", "activation": "relu", "units": 24, "hidden": 1.0}
    units = columns | {"dead_fraction": gone, "zero_fraction": gone, "input_mean": 0.0, "input_std": 1 - gone}
    layers = {"step": steps, "layer": "0.weight", "weight_norm": 1.0, "update_norm": 0.1, "grad_norm": 1.0}
    run = run_of(scalars={"step": STEPS, "loss": 1.4, "lr": 0.1}, units=units, layers=layers)
    assert [each.first_step for each in dead_units.check(run)] == [21]


@pytest.mark.parametrize(
    ("rise", "expected"),
    [(10, "warning"), (400, "info")],  # in one interval; over all of the run, as where a target that moves lifts a loss
)
def test_units_that_a_rising_loss_killed(rise, expected):
    steps = np.arange(1, 401, 10)
    dead = 0.1 + 0.5 * np.clip((steps - 40) / rise, 0, 1)
    loss = np.where((STEPS > 40) & (STEPS < 60), 5.0, np.where(STEPS < 40, 1.0, 0.1))
    columns = {"step": steps, "layer": "1", "activation": "relu", "units": 100, "hidden": 1.0, "input_mean": 0.1}
    run = run_of(
        {"layers": [{"name": "0.weight", "shape": [100, 8], "parameters": 800}]},
        scalars={"step": STEPS, "loss": loss, "lr": 0.1},
        layers={"step": steps, "layer": "0.weight", "update_norm": 0.1, "weight_norm": 1.0, "grad_norm": 1.0},
        units=columns | {"dead_fraction": dead, "zero_fraction": dead},
    )
    found = list(dead_units.check(run))
    assert [each.severity for each in found] == [expected]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, True),
        ({"clipped": 0.2}, False),  # no more than spikes
        ({"moved": 0.01}, False),  # far enough to have learned something
        ({"constant": 2.0}, False),  # as was learned
        ({"stability": 10.0}, False),  # with the clipping still within reach of the limit
    ],
    ids=str,
)
def test_gradients_clipped_to_next_to_nothing(change, told):
    """All of one length, their cosine that of noise, in a run that learns nothing."""
    given = {"clipped": 0.005, "moved": 1e-4, "constant": 1.4, "stability": 0.01} | change
    looked = np.where(STEPS % 10 == 0, 1.0, np.nan)
    noise = np.random.default_rng(0).standard_normal(400)
    columns = {"step": STEPS, "loss": 1.4 + 0.01 * noise, "lr": 0.1, "grad_norm": 0.2 * given["clipped"]}
    columns |= {"grad_norm_unclipped": 0.2 + 0.02 * noise, "update_norm": given["moved"] * looked, "weight_norm": 1.0}
    columns |= {"constant_loss": (given["constant"] + 0.01 * noise) * looked, "overshoot": 1e-3 * looked}
    columns |= {"gradient_cosine": 0.2 * np.resize([-1, 1, -1], 400) * looked, "update_cosine": 0.1 * looked}
    steps = STEPS[STEPS % 10 == 0]
    layers = {"step": steps, "layer": "0.weight", "update_norm": given["moved"], "weight_norm": 1.0, "grad_norm": 1e-3}
    estimates = np.array([50, 150, 250, 350])
    curvature = {"step": estimates, "eigenvalues": [[0.5]] * 4, "stability": given["stability"], "progress": 0.1}
    meta = {"layers": [{"name": "0.weight", "shape": [8, 8], "parameters": 64}]}
    found = list(lr_too_small.check(run_of(meta, scalars=columns, layers=layers, curvature=curvature)))
    assert [each.kind for each in found] == ["lr-too-small"] * told
    assert all("Clipping leaves 0.5" in each.summary and "clipping threshold" in each.remedies[0] for each in found)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, True),
        ({"factor": 0.995}, False),  # next to nothing only in the end
        ({"constant": 1.5}, False),  # enough was learned
        ({"least": 0.3}, False),  # no further down
    ],
    ids=str,
)
def test_a_rate_that_is_gone_before_anything_was_learned(change, told):
    """By a schedule meant for epochs that counts updates; what is left of the gradient is noise."""
    given = {"factor": 0.95, "constant": 1.402, "least": 0.0} | change
    looked = np.where(STEPS % 2 == 0, 1.0, np.nan)
    noise = np.random.default_rng(0).standard_normal(400)
    rates = 0.01 * np.maximum(given["factor"] ** STEPS, given["least"])
    columns = {"step": STEPS, "loss": 1.4 + 0.001 * noise, "lr": rates, "grad_norm": 0.2 + 0.02 * noise}
    columns |= {"update_norm": 2 * rates * looked, "weight_norm": 1.0, "overshoot": 1e-3 * looked}
    columns |= {"constant_loss": (given["constant"] + 0.001 * noise) * looked, "update_cosine": 0.9 * looked}
    columns |= {"gradient_cosine": 0.3 * np.resize([-1, 1, -1], 400) * looked}
    steps = STEPS[STEPS % 2 == 0]
    layers = {"step": steps, "layer": "0.weight", "update_norm": 2 * rates[steps - 1], "weight_norm": 1.0}
    curvature = {"step": [5, 50], "eigenvalues": [[0.5]] * 2, "stability": [0.01, 0.01 * given["factor"] ** 45]}
    meta = {"optimizer": "Adam", "layers": [{"name": "0.weight", "shape": [8, 8], "parameters": 64}]}
    run = run_of(meta, scalars=columns, layers=layers, curvature=curvature | {"progress": 0.1})
    found = [(each.kind, each.cause) for each in lr_too_small.check(run)]
    assert found == [("lr-too-small", "schedule")] * told


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({}, "target-scale"),
        ({"optimizer": "SGD"}, "start-far-off"),  # whose steps grow with the error
        ({"targets": [-2.0, 2.0]}, "start-far-off"),
        ({"targets": [100.0, 150.0]}, "start-far-off"),  # less far than the first answers, by their error
    ],
    ids=str,
)
def test_a_start_far_off_because_the_targets_are(change, cause):
    targets = {"targets": [1e3, 4e3], "loss_path": "mse_loss", "optimizer": "Adam"} | change
    scalars = {"step": STEPS, "loss": np.linspace(9e6, 5e6, 400), "constant_loss": 1e6, "lr": 1e-3}
    (found,) = plateau.check(run_of(targets, scalars=scalars))
    assert (found.kind, found.cause) == ("plateau", cause)
    assert ("The targets lie between" in found.summary) == (cause == "target-scale")


@pytest.mark.parametrize("targets", [None, [1e3, 4e3], [-2.0, 2.0]])
@pytest.mark.parametrize("measured", [400, 150])  # nothing after it, as the budget has it where updates are fast
def test_a_rate_too_small_for_targets_far_away(targets, measured):
    looked = np.where((STEPS % 10 == 0) & (measured >= STEPS), 1.0, np.nan)
    columns = {"step": STEPS, "loss": np.linspace(9e6, 8.9e6, 400), "lr": 1e-3, "grad_norm": 1e3}
    columns |= {"update_norm": 1e-3 * looked, "weight_norm": 1.0, "overshoot": 1e-5 * looked}
    columns |= {"gradient_cosine": np.where(STEPS % 10 == 1, 0.99, np.nan), "update_cosine": 0.9 * looked}
    layers = {"step": STEPS[9::10], "layer": "0.weight", "update_norm": 1e-3, "weight_norm": 1.0}
    curvature = {"step": [50, 150], "eigenvalues": [[0.5]] * 2, "stability": 1e-4, "progress": 1e-4}
    meta = {"optimizer": "Adam", "loss_path": "mse_loss", "targets": targets}
    meta |= {"layers": [{"name": "0.weight", "shape": [8, 8], "parameters": 64}]}
    (found,) = lr_too_small.check(run_of(meta, scalars=columns, layers=layers, curvature=curvature))
    far = targets is not None and targets[1] > 100
    assert found.cause == ("target-scale" if far else "learning-rate")
    assert found.summary.startswith("The targets are too far away for this rate: they lie between 1,000 and 4") == far
    assert found.remedies[0].startswith("standardize the targets" if far else "raise the learning rate")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, True),
        ({"level": 0.9}, False),  # it came down since
        ({"measured": 90}, False),  # long before
        ({"forwards": 400}, False),  # what is compared has become another loss
    ],
    ids=str,
)
def test_answers_that_were_last_compared_before_the_later_half(change, told):
    given = {"level": 1.4, "measured": 180, "forwards": 180} | change
    compared = np.where((STEPS % 10 == 0) & (given["measured"] >= STEPS), 1.4, np.nan)
    seen = np.where((STEPS % 10 == 0) & (given["forwards"] >= STEPS), 1.0 * STEPS, np.nan)
    noise = 0.001 * np.random.default_rng(0).standard_normal(400)
    columns = {"step": STEPS, "loss": np.where(STEPS <= 190, 1.4, given["level"]) + noise, "lr": 0.1}
    layers = {"step": STEPS[9::10], "layer": "0.weight", "grad_norm": 1.0, "weight_norm": 1.0}
    found = plateau.check(run_of(scalars=columns | {"constant_loss": compared, "input_sum": seen}, layers=layers))
    assert ("nothing-learned" in [each.cause for each in found]) == told


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, True),
        ({"largest": 0.6}, False),  # by one batch alone it curves down as much as up
        ({"square": 0.01}, False),  # batches have a gradient in common: the rate is too small
        ({"lr": 1e-3}, False),  # and here a saddle point would have had no time to be left
    ],
    ids=str,
)
def test_a_saddle_point_whose_updates_are_noise(change, told):
    """The updates curve upwards, and at the largest rate that is stable their noise would not be little."""
    given = {"largest": 0.19, "square": 1e-4, "lr": 0.04} | change
    loss = np.where(STEPS <= 300, 0.69, 0.69 - 0.4 * (STEPS - 300) / 100) + 1e-3 * np.random.default_rng(0).normal(
        size=400
    )
    columns = {"step": STEPS, "loss": loss, "lr": given["lr"], "grad_norm": 0.06}
    looked = np.where(STEPS % 10 == 0, 1.0, np.nan)
    columns |= {"overshoot": 5e-4 * (1 + 0.1 * np.resize([-1, 1], 400)) * looked}
    estimates = np.array([50, 150, 250, 350])
    curvature = {"step": estimates, "eigenvalues": [[0.34]] * 4, "smallest": -0.34, "smallest_residual": 1e-6}
    curvature |= {"stability": 0.17 * given["lr"], "progress": 0.34 * given["lr"]}
    batches = {"step": estimates + 8, "origin": estimates, "smallest": -0.19, "smallest_error": 0.01}
    batches |= {"largest": given["largest"], "gradient_square": given["square"], "gradient_square_error": 2e-4}
    layers = {"step": STEPS[9::10], "layer": "0.weight", "weight_norm": 1.0, "grad_norm": 0.06, "update_norm": 1e-3}
    run = run_of(scalars=columns, curvature=curvature, batches=batches, layers=layers)
    assert [each.kind for each in saddle_point.check(run)] == ["saddle-point"] * told


@pytest.mark.parametrize(("moved", "told"), [(0.0, True), (1e-3, False)])
def test_lbfgs_that_takes_a_saddle_point_for_its_goal(moved, told):
    """However long: what makes no step does not come away from it, and has no largest stable rate."""
    estimates = np.array([50, 150, 250, 350])
    run = run_of(
        {"optimizer": "LBFGS", "hyperparameters": [{"lr": 1.0, "tolerance_grad": 1e-7}]},
        scalars={"step": STEPS, "loss": 0.69, "lr": 1.0, "grad_norm": 1e-8, "update_norm": moved},
        curvature={"step": estimates, "eigenvalues": [[0.34]] * 4, "smallest": -0.34, "smallest_residual": 1e-6},
        layers={"step": STEPS[9::10], "layer": "0.weight", "weight_norm": 1.0, "update_norm": moved},
    )
    assert [each.kind for each in saddle_point.check(run)] == ["saddle-point"] * told


@pytest.mark.parametrize(
    ("weights", "bias", "silent", "told"),
    [(1e-5, 0.1, 0.0, True), (0.0, 0.1, 0.0, True), (0.0, 0.1, 1.0, False), (0.0, 0.0, 0.0, False)],
    ids=["small", "underflown", "none", "nor for the bias"],
)
def test_weights_that_the_output_hears_nothing_of(weights, bias, silent, told):
    steps = STEPS[9::10]
    both = {"step": np.repeat(steps, 2), "layer": ["0.weight", "0.bias"] * len(steps), "weight_norm": 1.0}
    shapes = (("0.weight", [4, 8]), ("0.bias", [4]))
    run = run_of(
        {"layers": [{"name": name, "shape": shape, "parameters": 8} for name, shape in shapes]},
        scalars={"step": STEPS, "loss": 1.4, "lr": 0.1},
        layers=both
        | {
            "grad_norm": [weights, bias] * len(steps),
            "update_norm": 1e-6,
            "silent_fraction": [silent, np.nan] * len(steps),
        },
    )
    found = list(plateau.check(run))
    assert [each.cause for each in found if each.alarm] == ["vanishing-gradient"] * told


@pytest.mark.parametrize(
    ("decay", "left", "norms", "told"),
    [
        (0.1, 1e-3, False, True),
        (0.0, 1e-3, False, False),
        (0.1, 0.1, False, False),
        (0.1, 1e-3, True, False),  # which brings what comes through to its size
    ],
)
def test_one_layer_that_decayed(decay, left, norms, told):
    """Beside a large embedding whose weights are most of all."""
    steps = np.arange(1, 401, 20)
    shares = np.where(np.arange(len(steps)) < 5, 1.0, left)
    both = {"step": np.repeat(steps, 2), "layer": ["0.weight", "1.weight"] * len(steps), "grad_norm": 1.0}
    layers = [{"name": f"{at}.weight", "shape": [50, 50], "parameters": 2500} for at in (0, 1)]
    modules = [{"name": "2", "type": "LayerNorm"}] if norms else []
    run = run_of(
        {"layers": layers, "modules": modules, "hyperparameters": [{"weight_decay": decay}]},
        scalars={"step": STEPS, "loss": 1.6, "lr": 0.1, "weight_norm": 40.0},
        layers=both | {"weight_norm": np.stack([np.full(len(steps), 40.0), 4 * shares], 1).ravel()},
    )
    found = list(plateau.check(run))
    assert [each.cause for each in found if each.alarm] == ["weight-decay"] * told
    assert not told or "has brought the weights of 1 to 0.1 %" in found[0].summary


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, [("lr-too-small", "schedule")]),
        ({"lr": 1e-3}, [("lr-too-small", "learning-rate")]),
        ({"status": "running"}, []),  # it may be over soon
        ({"constant": 5.0}, []),  # as much as this was learned
        ({"cosine": 0.3}, []),  # longer steps would follow the batches' noise
        ({"stability": 0.2}, []),
    ],
    ids=str,
)
def test_a_run_that_ends_in_its_warm_up_on_a_straight_way_down(change, expected):
    """Above the loss of the same answer to all, at a twentieth of the limit; the Hessian itself was never afforded."""
    rising = 1e-3 * STEPS / 400
    given = {"lr": rising, "status": "finished", "constant": 2.9, "cosine": 0.95, "stability": 0.05} | change
    looked = np.where(STEPS % 10 == 0, 1.0, np.nan)
    columns = {"step": STEPS, "loss": 4.3 - 0.9 * STEPS / 400, "lr": given["lr"], "grad_norm": 1.0}
    columns |= {"update_norm": 0.005 * looked, "overshoot": 0.005 * looked, "constant_loss": given["constant"] * looked}
    columns |= {"gradient_cosine": given["cosine"] * looked, "update_cosine": 0.98 * looked}
    estimates = np.array([50, 150, 250, 350])
    ratios = given["stability"] * (estimates / 400 if np.ndim(given["lr"]) else np.ones(4))  # they follow the rate
    curvature = {"step": estimates, "eigenvalues": [[]] * 4, "stability": ratios, "progress": 1.2}
    layers = {"step": STEPS[9::10], "layer": "0.weight", "update_norm": 0.005, "weight_norm": 1.0}
    meta = {"optimizer": "AdamW", "status": given["status"]}
    meta |= {"layers": [{"name": "0.weight", "shape": [8, 8], "parameters": 64}]}
    run = run_of(meta, scalars=columns, layers=layers, curvature=curvature)
    assert [(finding.kind, finding.cause) for finding in lr_too_small.check(run)] == expected


def batches_of(**changed) -> dict:
    """Four brackets: curvature that any rate could bear, and noise that passes the budget by seven errors."""
    terms = {"curvature_term": 0.01, "curvature_term_error": 0.001, "noise_term": 1.7, "noise_term_error": 0.1}
    return {"step": [20, 80, 150, 300], "origin": [10, 70, 140, 290], **terms, **changed}


@pytest.mark.parametrize(
    ("changed", "falls", "optimizer", "expected"),
    [
        ({}, False, "SGD", ["momentum"]),
        ({"noise_term": 0.9}, False, "SGD", []),
        ({"noise_term_error": 0.4}, False, "SGD", []),
        ({"noise_term": [1.7, 1.7, 0.5, 0.5]}, False, "SGD", []),  # over
        ({"curvature_term": 1.8, "noise_term": 0.2}, False, "SGD", []),  # bounces at the edge
        ({}, True, "SGD", []),
        ({}, False, "Adam", []),  # advice only
    ],
)
def test_noise_past_the_budget_that_holds_the_loss_up(changed, falls, optimizer, expected):
    wobble = 0.1 * np.sin(1e3 * STEPS)
    loss = 2.0 * np.exp(-STEPS / 200) + wobble if falls else np.r_[2.0, 0.8 + wobble[1:]]
    groups = [{"lr": 0.01, "momentum": 0.99}]
    columns = {"step": STEPS, "loss": loss, "lr": 0.01, "grad_norm": 1.0}
    run = run_of(
        {"optimizer": optimizer, "hyperparameters": groups},
        scalars=columns,
        batches=pd.DataFrame(batches_of(**changed)),
    )
    found = list(lr_unstable.check(run))
    assert [finding.cause for finding in found] == expected
    if found:
        assert "batches this small" in found[0].summary and "lower the momentum" in found[0].remedies[0]


@pytest.mark.parametrize(
    ("ratios", "end", "times", "remedy"),
    [
        ([1.1, 7.0, 4.0, 4.0, 0.6], 2.3, 8.0, "divide the loss by 8"),
        ([1.1, 7.0, 4.0, 4.0, 0.6], 2.3, 2.0, "divide the loss by 2"),
        ([1.1, 7.0, 4.0, 4.0, 0.6], 2.3, 1.0, "set the learning rate to 0.0225"),
        ([1.1, 1.2, 1.2, 1.2, 0.6], 2.3, 1.0, None),  # hovers at the edge
        ([1.1, 7.0, 4.0, 4.0, 0.6], 1.2, 1.0, None),  # and has learned
    ],
)
def test_a_rate_past_the_limit_before_anything_was_learned(ratios, end, times, remedy):
    loss = np.linspace(2.3, end, 400) + 0.02 * np.sin(1e3 * STEPS)
    columns = {"step": STEPS, "loss": loss, "lr": 0.1, "grad_norm": 1.0}
    curvature = {"step": [2, 5, 11, 33, 67], "stability": ratios}
    run = run_of({"accumulated": {"times": times}}, scalars=columns, curvature=curvature)
    found = list(lr_unstable.check(run))
    assert len(found) == (remedy is not None)
    if found:
        assert remedy in found[0].remedies[0]
        assert ("added up" in found[0].summary) == (times > 1)
        assert any("set the learning rate" in each for each in found[0].remedies) == (times < 4.0 / 0.9)


@pytest.mark.parametrize(("factor", "found"), [(1.01, False), (1.1, True)])
def test_growth_that_no_estimate_saw_is_as_fast_as_past_the_limit(factor, found):
    """The gradient grows twentyfold in each: a task that gets harder takes its time."""
    grown = np.minimum(20.0, factor ** np.maximum(0, STEPS - 80))
    columns = {"step": STEPS, "loss": grown + 0.01 * np.sin(1e3 * STEPS), "lr": 0.1, "grad_norm": grown}
    run = run_of(scalars=columns, curvature={"step": [2, 5], "stability": [0.1, 0.1]})
    assert bool(list(lr_unstable.check(run))) == found


@pytest.mark.parametrize(("explained", "expected"), [(0.0, "anything"), (0.03, "much"), (0.2, None)])
def test_a_schedule_that_is_gone_early_needs_no_closure(explained, expected):
    measured = np.where(STEPS % 10 == 0, 2.0, np.nan)
    loss = 2.0 * (1 - explained) + 0.003 * np.sin(1e3 * STEPS)
    columns = {"step": STEPS, "loss": loss, "lr": 0.1 * 0.9**STEPS, "grad_norm": 1.0, "constant_loss": measured}
    layers = {"step": STEPS[9::10], "layer": "weight", "weight_norm": 1.0, "update_norm": 0.1, "grad_norm": 1.0}
    found = []
    try:
        found = list(lr_too_small.check(run_of(scalars=columns, layers=layers)))
    except signals.Missing:  # without an estimate nothing else can be said
        assert expected is None
    assert [finding.cause for finding in found] == ["schedule"] * (expected is not None)
    assert not found or f"before {expected} was learned" in found[0].summary


@pytest.mark.parametrize(("answered", "severity"), [(1.0, "warning"), (0.5, "info")])
@pytest.mark.every_case
def test_layers_whose_results_are_thrown_away(answered, severity):
    """An alarm where what is left learns nothing from the inputs."""
    steps, names = np.arange(1, 401, 10), ["block.weight", "head.weight"]
    layers = {"step": np.repeat(steps, 2), "layer": names * 40, "grad_missing": [1.0, 0.0] * 40, "weight_norm": 1.0}
    run = run_of(
        {"unused": ["block.weight"], "layers": [{"name": name, "shape": [8, 8]} for name in names]},
        scalars={"step": STEPS, "loss": answered + 1e-3 * np.sin(STEPS), "lr": 0.1, "constant_loss": 1.0},
        layers=layers | {"grad_norm": [np.nan, 1.0] * 40},
    )
    (found,) = wiring.check(run)
    assert (found.cause, found.layers, found.severity) == ("unused", ("block.weight",), severity)


@pytest.mark.parametrize(
    ("crowded", "end", "told"),
    [([14, 14, 0.005], 0.98, True), ([14, 3, 0.005], 0.98, False), ([14, 14, 0.005], 0.4, False), ([], 0.98, False)],
)
@pytest.mark.every_case
def test_inputs_most_of_which_can_hardly_be_told_apart(crowded, end, told):
    loss = end + 0.005 * np.random.default_rng(0).standard_normal(400)
    layers = {"step": STEPS[::10], "layer": "0.weight", "weight_norm": 1.0, "grad_norm": 1.0}
    scalars = {"step": STEPS, "loss": loss, "lr": 0.1, "constant_loss": 1.0}
    run = run_of({"crowded": crowded}, scalars=scalars, layers=layers)
    found = [each for each in plateau.check(run) if each.cause == "crowded-inputs"]
    assert [each.severity for each in found] == ["critical"] * told


@pytest.mark.parametrize(
    ("path", "start", "kinds"),
    [
        ("log_softmax -> mul -> mean", -0.4, []),
        ("mul -> mean", -0.4, ["lr-unstable"]),
        ("log_softmax -> mul -> mean", 0.4, ["lr-unstable"]),  # an error, less a bonus for entropy
    ],
)
@pytest.mark.every_case
def test_a_policy_that_becomes_sure(path, start, kinds):
    """Its loss, advantages times logarithms of probabilities, comes up to 0."""
    loss = -0.4 * np.exp(-STEPS / 50) - 0.05 if start < 0 else np.where(STEPS < 100, 0.4 - STEPS / 200, STEPS / 100)
    run = run_of(
        {"loss_path": path, "optimizer": "Adam"},
        scalars={"step": STEPS, "loss": loss, "lr": 1e-3, "grad_norm": np.exp(-STEPS / 100)},
        curvature={"step": [2 if start < 0 else 99], "stability": [19.0], "preconditioned": [1.0], "limit": [1 / 19]},
    )
    assert [each.kind for each in lr_unstable.check(run)] == kinds


@pytest.mark.parametrize(("another", "kinds"), [(True, []), (False, ["cliff"])])
@pytest.mark.every_case
def test_a_gradient_that_jumps_where_another_task_begins(another, kinds):
    steps = np.arange(1, 401, 20)
    noise = 0.1 * np.random.default_rng(0).standard_normal((len(steps), 3))
    sizes = 1.0 + noise + 2.0 * another * (steps[:, None] >= 200) * np.array([1.0, -0.5, 0.5])
    inputs = {
        "step": np.repeat(steps, 3),
        "feature": ["0", "1", "2"] * len(steps),
        "batch_rms": sizes.ravel(),
        "mean": 0.0,
        "std": 1.0,
    }
    after = STEPS >= 200
    columns = {"step": STEPS, "loss": 0.02 + 2.0 * after, "lr": 1e-3, "grad_norm": 0.1 + 20.0 * after}
    run = run_of(scalars=columns | {"update_norm": 0.5}, inputs=inputs, curvature={"step": [100], "stability": [0.1]})
    assert [each.kind for each in cliff.check(run)] == kinds


@pytest.mark.parametrize(
    ("function", "remedy", "logits"),
    [("std", "leave out batches of one row", False), ("pow", "keep the argument of pow", False), ("log", "keep", True)],
)
@pytest.mark.every_case
def test_what_is_outside_a_domain_though_the_loss_was_at_its_lowest(function, remedy, logits):
    """No rate too large, though one was measured past the limit at first."""
    loss = np.where(STEPS < 101, 2.0 * np.exp(-STEPS / 50), np.nan)
    events = {"step": [101], "kind": "non-finite", "subject": f"op:{function}", "message": "at update 101: it was not"}
    run = run_of(
        scalars={"step": STEPS, "loss": loss, "lr": 1e-3, "grad_norm": np.where(STEPS < 101, 1.0, np.nan)},
        curvature={"step": [99], "stability": [2.0], "preconditioned": [2.0], "limit": [1.0]},
        events=events,
    )
    (alarm,) = diagnostics.diagnose(run).alarms
    assert (alarm.kind, alarm.cause) == ("non-finite", "domain-error") and alarm.remedies[0].startswith(remedy)
    assert any("logits" in each for each in alarm.remedies) == logits


@pytest.mark.parametrize(("moved", "told"), [(1e-5, True), (1e-2, False)])
def test_a_gradient_that_vanishes_holds_up_what_stays_where_it_is(moved, told):
    """Adam divides by the gradient's own size, and moves a first layer that gets a thousandth as far as any other."""
    steps, names = STEPS[9::10], [f"{at}.weight" for at in range(5)]
    rows = {"step": np.repeat(steps, 5), "layer": names * len(steps), "weight_norm": 1.0}
    rows |= {"grad_norm": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1] * len(steps)}
    rows |= {"update_norm": [moved, 1e-2, 1e-2, 1e-2, 1e-2] * len(steps)}
    run = run_of(
        {
            "optimizer": "Adam",
            "layers": [{"name": name, "shape": [8, 8], "parameters": 64} for name in names],
            "modules": [{"name": str(at), "type": "Linear"} for at in range(5)],
        },
        scalars={"step": STEPS, "loss": 1.4, "lr": 0.01},
        layers=rows,
    )
    assert [each.cause for each in plateau.check(run) if each.alarm] == ["vanishing-gradient"] * told
