"""Whether all steps of a run were too short, as far as that shows where no curvature was measured.

Source: lecture, "Learning Rate" ("α too small: slow progress").
"""

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _gradient_signal as signal
from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _reach as reaching
from diagnostics.rules import _signals as signals
from diagnostics.rules import _small_rate_words as sentences
from diagnostics.rules._explained import LITTLE, explained_late
from diagnostics.rules._finding import Finding
from diagnostics.rules._unmoved import as_initialized, downhill_as_before, moved_at_most
from diagnostics.rules._words import number
from diagnostics.run import Run

TRIED = 500  # updates: a shorter run may have been only tried
FROZEN = 0.2  # of a layer's size, had all updates gone one way: no more than it began with was tried
NEXT_TO_NOTHING = 1e-2  # of a gradient: clipping to its usual size leaves a tenth of the longest


def without_curvature(
    run: Run,
    history: signals.Loss,
    left: float,
    *,
    unmoved: float = 0.01,  # of a layer's size, by a thousand updates and by all: answers change by as little
    half: float = 0.5,  # of the starting loss
) -> Finding | None:
    """`left`: what clipping leaves of a typical gradient."""
    moved = moved_at_most(run)
    words = f", in which no layer's weights moved by more than {number(100 * moved)} % of their size."
    if moved <= unmoved and _ended_in_warm_up(run, history):
        return sentences.finding(run, words, cause="schedule", remedy=sentences.SHORTER)
    cut = left < NEXT_TO_NOTHING and moved <= FROZEN
    stuck = cut or moved_at_most(run, updates_at_least=1000) <= unmoved
    waits = (stuck and has_way_down(run, history, signals.NOTHING)) or _waits_at_its_start(run, history)
    if waits or (cut and _falls_as_said(run, history, half)):
        found = sentences.finding(run, words)
        return sentences.by_clipping(found, left) if cut else found
    if _straight_on(run, history):
        words = ", as steadily at the end as at the start: the gradient has neither turned nor become shorter."
        return sentences.finding(run, words)
    return None


def has_way_down(run: Run, history: signals.Loss, left: float) -> bool:
    """So much of the loss is left, and the gradient says where to."""
    return history.end > left * history.start > 0 and downhill_as_before(run, history)


def _waits_at_its_start(run: Run, history: signals.Loss, *, most: float = 0.03, common: float = 0.1) -> bool:
    """Of a loss that may have any sign, as a policy's, which does not tell how far it has to go: random weights still,
    which a thousand updates move by `most` of their size (where the rate fits, by several times it), and a gradient of
    which so much is `common` to all batches. (What is pretrained may be meant to move little.)"""
    if not moved_at_most(run, updates_at_least=1000) <= most:
        return False
    signless = history.start <= 0 or signals.of_both_signs(history.values)
    pulled = signless and signal.surely(run, history.first_step) >= common
    return pulled and as_initialized(run, tuple(by_layer.matrices(run))) and downhill_as_before(run, history)


def _falls_as_said(run: Run, history: signals.Loss, left: float, *, said: float = 0.5) -> bool:
    """So much of the loss is left, its later half surely falls, and by what the gradients say of steps this long: no
    curvature and no noise has been met."""
    falls = history.end > left * history.start > 0 and _falls(history) and history.late_trend.relative > LITTLE
    return falls and history.start - history.end >= said * reaching.reach(run, history, history.middle_step)


def _straight_on(run: Run, history: signals.Loss, *, mostly: float = 0.5) -> bool:
    """A run that ended on its way: the loss surely falls, still above that of the same answer to every input, along
    gradients most of which is common to all batches and that are as long as at the start."""
    ended = run.meta["status"] == "finished" and history.count >= TRIED
    return (
        ended
        and explained_late(run).share < LITTLE
        and _falls(history)
        and has_way_down(run, history, signals.NOTHING)
        and signal.surely(run, history.first_step) >= mostly
    )


def _ended_in_warm_up(run: Run, history: signals.Loss, *, rising: float = 1.5) -> bool:
    """At its highest rate, far above half of all others, and with nothing learned."""
    rates = optimizer.learning_rates(run)[1]
    ended = run.meta["status"] == "finished" and history.count >= TRIED
    nothing = history.end > signals.NOTHING * history.start > 0
    return ended and nothing and len(rates) > 0 and bool(rates[-1] == rates.max() >= rising * np.median(rates))


def _falls(history: signals.Loss) -> bool:
    return history.late_trend.z > 3
