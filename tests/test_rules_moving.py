"""Losses that become others, and what happens in runs that had learned nothing before: on tables written by hand."""

import numpy as np
import pandas as pd
import pytest

from diagnostics.rules import cliff, dead_units, edge_of_stability, saturated_units
from diagnostics.rules._in_order import _downhill, in_order
from diagnostics.rules._moving import is_moving
from diagnostics.rules._recurrence import recurrence
from diagnostics.rules._stretches import flat
from diagnostics.run import Run

STEPS = np.arange(1, 401)
MEASURED = STEPS[::10]


def run_of(meta=None, **tables) -> Run:
    given = {"name": "test", "status": "finished", "optimizer": "Adam", "hyperparameters": [{"lr": 0.1}]}
    return Run.from_frames(given | (meta or {}), {name: pd.DataFrame(columns) for name, columns in tables.items()})


def every_tenth(values):
    return np.where((STEPS - 1) % 10 == 0, values, np.nan)


def inputs(sizes):
    """Two features; of the second one the root mean square of each measured batch is given."""
    ordinary = 1 + 0.1 * np.sin(1e3 * MEASURED)
    return {
        "step": np.repeat(MEASURED, 2),
        "feature": np.tile(["0", "1"], len(MEASURED)),
        "mean": 0.0,
        "std": 1.0,
        "batch_rms": np.stack([ordinary, sizes], 1).ravel(),
    }


HEAVY = np.exp(np.random.default_rng(0).normal(0, 1, len(MEASURED)))  # a feature of rare, large values


@pytest.mark.parametrize(
    ("sizes", "constant", "expected"),
    [
        (np.linspace(0.05, 1.0, len(MEASURED)), np.nan, True),  # what a better policy comes to see
        (np.geomspace(1.0, 0.05, len(MEASURED)), np.nan, True),
        (np.linspace(0.05, 1.0, len(MEASURED)), 1.0, False),  # targets are known: the loss has a measure of its own
        (np.ones(len(MEASURED)), np.nan, False),
        (HEAVY, np.nan, False),
        (np.linspace(0.8, 1.0, len(MEASURED)), np.nan, False),
    ],
)
def test_inputs_that_move_make_another_loss(sizes, constant, expected):
    scalars = {"step": STEPS, "loss": 1.0, "constant_loss": every_tenth(constant)}
    assert is_moving(run_of(scalars=scalars, inputs=inputs(sizes))) is expected
    assert not is_moving(run_of(scalars=scalars, inputs=inputs(sizes) | {"mean": 100.0}))  # raw: harm enough


@pytest.mark.parametrize(
    ("overshoot", "constant", "expected"),
    [(0.1, np.nan, True), (0.1, 1.0, False), (0.9, np.nan, False), (-0.1, np.nan, False)],
)
def test_a_loss_that_rises_while_its_updates_go_downhill_is_moved_by_its_targets(overshoot, constant, expected):
    loss = 0.1 + np.exp(-(((STEPS - 150) / 60) ** 2))  # as values are learned, one step from the goal after the other
    scalars = {"step": STEPS, "loss": loss, "overshoot": every_tenth(overshoot), "constant_loss": every_tenth(constant)}
    run = run_of(scalars=scalars)
    assert is_moving(run) is expected
    assert not is_moving(run_of(scalars=scalars | {"loss": np.sort(loss)[::-1]}))


UNITS = {"activation": "relu", "units": 64, "layer": "1", "input_mean": 0.0, "input_std": 1.0}


LAYERS = {"step": MEASURED, "layer": "0.weight", "grad_norm": 1.0, "weight_norm": 1.0, "update_norm": 0.1}


def dying(fraction, at):
    """A layer that loses this fraction of its units at an update."""
    dead = np.where(at > MEASURED, 0.0, fraction)
    return {"step": MEASURED, "dead_fraction": dead, "zero_fraction": 0.5 + dead / 2, "hidden": 1.0} | UNITS


@pytest.mark.parametrize(
    ("at", "fraction", "explained", "warmed", "severity"),
    [
        (300, 0.6, 0.0, 1, "info"),  # long after it was clear that nothing is learned
        (300, 0.6, 0.2, 1, "warning"),  # of what was learned
        (30, 0.6, 0.0, 1, "warning"),  # early enough to be why
        (300, 0.95, 0.0, 1, "info"),
        (300, 0.95, 0.0, 290, "critical"),  # a warm-up had let it learn nothing
    ],
)
def test_units_that_die_where_nothing_was_learned_are_not_why(at, fraction, explained, warmed, severity):
    constant = 1 + 0.02 * np.sin(1e3 * STEPS)
    scalars = {"step": STEPS, "loss": constant * (1 - explained), "constant_loss": every_tenth(constant)}
    scalars["lr"] = np.where(warmed > STEPS, 1e-4, 0.1)
    (found,) = dead_units.check(run_of(scalars=scalars, units=dying(fraction, at), layers=LAYERS))
    assert found.severity == severity


@pytest.mark.parametrize(
    ("moves", "fraction", "severity"),
    [
        (True, 0.6, "info"),
        (False, 0.6, "warning"),
        (True, 0.95, "critical"),
    ],
)
def test_units_that_die_under_a_moving_loss(moves, fraction, severity):
    """Most of a layer is too much for any."""
    sizes = np.linspace(0.05, 1.0, len(MEASURED)) if moves else np.ones(len(MEASURED))
    scalars = {"step": STEPS, "loss": 1.0, "lr": 0.1}
    (found,) = dead_units.check(
        run_of(scalars=scalars, units=dying(fraction, 100), inputs=inputs(sizes), layers=LAYERS)
    )
    assert found.severity == severity


@pytest.mark.parametrize(("end", "severity"), [(0.2, "info"), (0.5, "critical")])
@pytest.mark.every_case
def test_units_that_a_step_killed_while_most_was_learned(end, severity):
    loss = np.interp(STEPS, [1, 300, 400], [1.0, end, end]) + 0.001 * np.sin(1e3 * STEPS)
    scalars = {"step": STEPS, "loss": loss, "lr": 0.1}
    (found,) = dead_units.check(run_of(scalars=scalars, units=dying(0.95, 150), layers=LAYERS))
    assert (found.cause, found.severity) == ("large-step", severity)


@pytest.mark.parametrize(("end", "severity"), [(0.02, "info"), (0.3, "warning")])
@pytest.mark.every_case
def test_units_that_a_step_killed_as_it_threw_the_loss_up(end, severity):
    """However far up: a run that ends where a good one does has trained well by the others."""
    loss = np.interp(STEPS, [1, 95, 100, 105, 400], [1.0, 0.8, 5.0, 0.8, end]) + 0.001 * np.sin(1e3 * STEPS)
    scalars = {"step": STEPS, "loss": loss, "lr": 0.1}
    (found,) = dead_units.check(run_of(scalars=scalars, units=dying(0.6, 100), layers=LAYERS))
    assert (found.cause, found.severity) == ("large-step", severity)


@pytest.mark.parametrize(("moves", "severity"), [(True, "info"), (False, "critical")])
def test_units_that_saturate_under_a_moving_loss(moves, severity):
    """The units of a critic, which has returns to tell that grow as the policy gets better."""
    sizes = np.linspace(0.05, 1.0, len(MEASURED)) if moves else np.ones(len(MEASURED))
    saturated = np.where(MEASURED < 50, 0.0, 1.0)
    units = {"step": MEASURED, "saturated_fraction": saturated, "derivative": 1 - saturated, "layer": "1"}
    units |= {"activation": "tanh", "units": 64, "hidden": 1.0}
    described = [{"name": "2.weight", "shape": [1, 64], "module": "Linear"}]
    modules = [{"name": "1", "type": "Tanh"}, {"name": "2", "type": "Linear"}]
    run = run_of(
        {"layers": described, "modules": modules},
        scalars={"step": STEPS, "loss": 1.0, "lr": 0.1},
        units=units,
        inputs=inputs(sizes),
        layers=LAYERS | {"layer": "2.weight"},
    )
    (found,) = saturated_units.check(run)
    assert found.severity == severity


@pytest.mark.parametrize(("back", "height", "kinds"), [(True, 1e6, ["cliff"]), (True, 10.0, []), (False, 1e6, [])])
def test_a_wall_after_a_tower_is_one_of_its_own_if_the_loss_had_come_back(back, height, kinds):
    """And is no echo of it, which is lower."""
    loss, norms = np.full(400, 0.9), np.ones(400)
    loss[0], loss[20] = 1.0, 20.0
    if not back:
        loss[21:100] = 5.0
    loss[100:130], norms[100:130] = height, 1e6
    scalars = {"step": STEPS, "loss": loss, "lr": 0.1, "grad_norm": norms, "grad_norm_unclipped": norms}
    run = run_of(scalars=scalars, curvature={"step": [50], "stability": [0.1]})
    found = list(cliff.check(run))
    assert [each.kind for each in found] == kinds
    assert all(each.severity == "warning" for each in found)  # thirty updates lost at one wall


@pytest.mark.parametrize(
    ("falls", "overshoot", "said"),
    [(True, 0.9, ["normal"]), (True, 0.2, ["normal"]), (False, 0.9, ["falls no more"]), (False, 0.2, [])],
)
def test_a_loss_that_stands_at_the_limit_is_not_called_normal(falls, overshoot, said):
    loss = 0.3 * np.exp(0.05 * np.sin(1e3 * STEPS) - (0.003 * STEPS if falls else 0))
    loss[0] = 1.0
    curvature = {"step": [50, 100, 150, 200], "stability": [0.95, 1.0, 0.97, 1.02], "eigenvalues": [[1.0]] * 4}
    scalars = {"step": STEPS, "loss": loss, "lr": 0.1, "overshoot": every_tenth(overshoot)}
    found = list(edge_of_stability.check(run_of(scalars=scalars, curvature=curvature)))
    assert len(found) == len(said) and all(words in each.summary for each, words in zip(found, said, strict=True))
    assert all((each.severity, "nothing" in each.remedies[0]) == ("info", falls) for each in found)


@pytest.mark.parametrize(
    ("first", "rest", "said"),
    [
        (200.0, np.linspace(-15.0, -1.5, 399), []),  # a density's: there is no 0 to be ten times as far from
        (200.0, np.geomspace(1e-3, 0.5, 399), [" again: ", "is nothing"]),
        (-1.0, np.linspace(-0.9, -0.95, 399), []),
        (-1.0, np.linspace(-2.0, -3.0, 399), ["normal"]),
    ],
)
@pytest.mark.every_case
def test_a_loss_below_zero_at_the_limit(first, rest, said):
    loss = np.array([first, *rest])
    curvature = {"step": [50, 100, 150, 200], "stability": [0.95, 1.0, 0.97, 1.02], "eigenvalues": [[1.0]] * 4}
    scalars = {"step": STEPS, "loss": loss, "lr": 0.1, "overshoot": every_tenth(0.2)}
    found = list(edge_of_stability.check(run_of(scalars=scalars, curvature=curvature)))
    assert len(found) == bool(said) and all(words in each.summary for each in found for words in said)


NOISE = np.random.default_rng(1).normal(0, 0.1, 400)


@pytest.mark.parametrize(
    ("losses", "again", "sawtooth"),
    [
        (1 + np.tile(NOISE[:50], 8), True, False),  # the same batches in each epoch
        (2 - (STEPS % 50) / 25 + 0.2 * NOISE, True, True),  # which unlearn each other
        (1 + NOISE, False, False),
        (1 + NOISE - STEPS / 500, False, False),
        (1 + np.cumsum(NOISE) / 20, False, False),
        (np.ones(400), False, False),
        (1 + np.tile(NOISE[:40], 2), False, False),  # too few to tell
        (2 - STEPS / 400, False, False),  # a loss that falls
        (np.concatenate([np.linspace(2, 1, n) for n in (31, 70, 12, 58, 95, 41, 27, 66)]), False, True),  # other teeth
    ],
    ids=range(9),
)
def test_losses_that_come_again(losses, again, sawtooth):
    assert (recurrence(losses).correlation > 0.6) == again
    assert (_downhill(losses) > 3) == sawtooth


EPOCH = 0.3 * np.sin(2 * np.pi * STEPS / 50)  # easy batches, then hard ones


@pytest.mark.parametrize(
    ("losses", "level"),
    [(1 + EPOCH + NOISE / 10, True), (1 + EPOCH + NOISE / 10 - STEPS / 500, False), (2 - STEPS / 400, False)],
)
def test_batches_that_come_in_the_same_order_are_no_progress(losses, level):
    run = run_of(scalars={"step": STEPS, "loss": losses, "lr": 0.1})
    found = flat(run)
    assert (found is not None and found.share > 0.9) == level


TEETH = np.concatenate([np.linspace(2.6, 2.0, n) for n in (31, 70, 12, 58, 95, 41, 27, 66)])


@pytest.mark.parametrize(
    ("losses", "spread", "told"),
    [
        (TEETH, 0.02, True),  # never the same again, and none twice as high as that of one answer to all
        (TEETH, 0.9, False),  # a rate that goes up and down, say
        (2.3 + NOISE, 0.02, False),
        (TEETH - 0.3 * STEPS / 100, 0.02, False),  # which falls all the same
    ],
)
def test_examples_in_order_by_the_teeth_of_the_loss(losses, spread, told):
    columns = {"constant_loss": every_tenth(2.2), "target_spread": every_tenth(spread)}
    run = run_of(scalars={"step": STEPS, "loss": losses, "lr": 0.1, "grad_norm": 1.0, **columns})
    assert [each.cause for each in in_order(run)] == (["in-order"] if told else [])
