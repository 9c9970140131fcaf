"""A start so far off that most of a run goes by before the answers are worth more than one to everything."""

import numpy as np

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._far_targets import NEARER, far_targets, how_far
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._raw_inputs import given, normalizes, raw, standardize
from diagnostics.rules._rolling import recent_median
from diagnostics.rules._unmoved import moved_at_most
from diagnostics.rules._words import counted, number, tex
from diagnostics.run import Run

FAR = 3.0  # times the loss of a constant answer, at the start; log C is not as far from C classes' entropy
NEAR = 1.5  # times the loss of even chances: logits of a random network's size add a part of it
_MOVED = "way of the weights over their size, at most"
START_FAR_OFF, RARE_CLASSES = "start-far-off", "rare-classes"
INPUT_SCALE = "input-scale"
BY_INPUTS = frozenset({INPUT_SCALE, "uncentered-inputs"})  # causes of dead units
BESIDE_A_CONSTANT = Chart(
    "line", "scalars", ("loss", "constant_loss"), "Loss, and that of the same answer to every input", log=True
)
_START_AT_SHARES = (
    "start the last layer's bias where the classes are as frequent as they are: log(p / (1 - p)) for a positive share "
    "p, log p for each of several classes; or look at more examples of the rare ones",
)
_START_SMALL = (
    "begin with small answers: small weights in the last layer or tied embedding, by nn.init.normal_(w, "
    "std=0.02), or a norm before it",
    "compare the first loss with log(number of classes), or the variance of the targets: it should be near",
    "where weights are made by hand: of mean 0, and of size 1 / sqrt(inputs of the layer); torch.rand gives neither",
    "standardize inputs and targets",
)
_USUAL = 1.0  # mean square of what a network answers at first, at most: its last layer adds up numbers of size 1
_LARGER_TARGETS = (
    "standardize the targets: t = (t - mean) / std, and its inverse where answers are used; or give them in a smaller "
    "unit",
)


def worse_for_long(
    kind: str,
    run: Run,
    *,
    longest: float = 0.5,  # of the run
) -> Finding | None:
    """A start so far off that most of the run goes by before the answers are worth more than one to everything, or than
    guessing: a mean cross-entropy of C classes needs no measurement to be known as worse than log C."""
    history, constant = signals.loss(run), _of_a_constant(run)
    if not history.start > FAR * constant:
        return None
    count, last = _came_back(history, constant)
    if count < longest * history.count:
        return None
    if not run.meta["guessing"] and signals.column(run, "constant_loss")[0][-1] < last / 2:
        return None  # the loss has become another one
    by_inputs = _thrown_by_inputs(run, history.start, FAR * constant)
    even = history.start <= NEAR * _of_even_chances(run)  # of classes that are not as frequent as each other
    targets = far_targets(run)
    if by_inputs or (targets and history.start > max(each**2 for each in targets)):
        targets = None  # the answers are far from 0, not the targets
    cause, words, remedies = START_FAR_OFF, "", _START_SMALL
    if by_inputs:
        cause, words = INPUT_SCALE, _of_raw_inputs(run)
        remedies = (standardize(run), f"or put a norm before {given(run).layer or 'the first layer'}: nn.BatchNorm1d")
    elif targets:
        cause, words, remedies = "target-scale", f" {how_far(run, targets)}.", NEARER
    elif history.start < _USUAL and "mse_loss" in signals.loss_calls(run):
        words = " The first answers were of the usual size: it is the targets that are small."
        remedies = _LARGER_TARGETS
    elif even:
        cause, remedies = RARE_CLASSES, _START_AT_SHARES
    last_one = f"To the last step, {history.last_step},"
    until = f"Until step {last} of {history.last_step}" if count < history.count else last_one
    return Finding(
        kind,
        cause,
        "info" if cause == RARE_CLASSES else "warning",
        history.first_step,
        last if count < history.count else None,
        (),
        f"{until} the answers were worse than one that ignores the inputs: the loss started at "
        f"{number(history.start)}, and the same answer to every input would have {number(constant)}.{words}",
        {
            "loss at start": history.start,
            "loss at end": history.end,
            "loss of a constant answer": constant,
            "share of the run": count / history.count,
            _MOVED: np.nan if run.table("layers", ["step"]).empty else moved_at_most(run),
        },
        remedies,
        (BESIDE_A_CONSTANT,),
        rf"\mathcal{{L}}_1 = {tex(history.start)} \gg \mathcal{{L}}_\text{{constant}} = {tex(constant)}",
    )


def began_sure_and_wrong(kind: str, run: Run) -> Finding | None:
    """As information, of a run that soon came back: worse than guessing among classes by so much is never meant."""
    history, guessing = signals.loss(run), float(run.meta["guessing"] or np.nan)
    if not history.start > FAR * guessing:
        return None
    count, last = _came_back(history, guessing)
    times = history.start / guessing
    return Finding(
        kind,
        START_FAR_OFF,
        "info",
        history.first_step,
        last if count < history.count else None,
        (),
        f"The first loss, {number(history.start)}, is {number(times)} times that of guessing, {number(guessing)}: the "
        f"network begins sure, and wrong. Its first {counted(count, 'update')} went into taking that back.",
        {"loss at start": history.start, "loss of guessing": guessing, "share of the run": count / history.count},
        (*_START_SMALL, "where weights were loaded: are the classes still the same, and in the same order?"),
        (LOG_LOSS,),
        rf"\mathcal{{L}}_1 = {tex(history.start)} \gg \log C = {tex(guessing)}",
    )


def too_large_at_first(run: Run, *, times: float = 10.0) -> tuple[str, ...]:
    """A remedy where the loss grew from a start that was `times` that of one answer to all, as gradients then are."""
    start, constant = signals.loss(run).start, _of_a_constant(run)
    if not start > times * constant:
        return ()
    return (
        f"make the first answers smaller: the loss began at {number(start)}, where the same answer to every input "
        f"would have {number(constant)}. Weights of size 1 / sqrt(inputs), inputs of size 1, means in place of sums, "
        "or a norm between the layers",
    )


def _of_even_chances(run: Run) -> float:
    """The loss where all classes are taken to be as frequent, as they are before anything is learned; 0 if unknown."""
    binary = any(call.startswith("binary_cross_entropy") for call in signals.loss_calls(run))
    return float(run.meta["guessing"] or (np.log(2) if binary else 0))


def _of_a_constant(run: Run, *, measured: int = 2) -> float:
    """The loss of the same answer to every input, or of guessing; NaN where neither is known."""
    constants = signals.column(run, "constant_loss")[1]
    known = [float(np.median(constants))] if len(constants) >= measured else []
    known += [float(run.meta["guessing"])] if run.meta["guessing"] else []
    return min(known) if known and min(known) > 0 else np.nan


def _came_back(history: signals.Loss, constant: float, *, smooth: int = 25) -> tuple[int, int]:
    """How many updates the loss of the last `smooth` took to come below that of a constant answer, all if it never did,
    and the step of the last of them."""
    below = np.flatnonzero(recent_median(history.values, smooth) < constant)
    count = int(below[0]) if len(below) else history.count
    return count, int(history.steps[min(count, history.count - 1)])


def never_came_back(finding: Finding, *, moved: float = 0.2) -> bool:
    """From a start so far off that it takes the updates, not the rate, though the weights could have gone a good part
    of their size."""
    return finding.cause == START_FAR_OFF and _stayed_far_off(finding) and finding.evidence[_MOVED] > moved


def drowned(finding: Finding) -> bool:
    """Whether inputs far too large kept the answers far off from first to last: what else was seen is of that."""
    return finding.cause == INPUT_SCALE and _stayed_far_off(finding)


def _stayed_far_off(finding: Finding, *, times: float = 100.0) -> bool:
    """Of a squared error, answers ten times as far from the targets as these are from each other at first."""
    names = ("loss at start", "loss at end", "loss of a constant answer")
    if finding.last_step is not None or not finding.evidence.keys() >= set(names):
        return False
    start, end, constant = (finding.evidence[name] for name in names)
    return start > times * constant and end > FAR * constant


def _thrown_by_inputs(run: Run, start: float, allowed: float) -> bool:
    """Whether the start would be within what is `allowed`, were the inputs of size 1: answers grow with them, and a
    squared error with their square."""
    if not raw(run) or normalizes(run):
        return False
    return start <= allowed * given(run).size ** 2


def _of_raw_inputs(run: Run) -> str:
    found = given(run)
    layer = found.layer or "the first layer"
    said = (
        f" The inputs{f' of {layer}' if found.layer else ''} are not standardized: one is {number(found.length)} long, "
        f"where initializations are made for {number(found.features**0.5)}"
    )
    if not optimizer.adaptive(run):
        return f"{said}."
    rate = optimizer.highest_rate(run, signals.loss(run).last_step)
    return (
        f"{said}, and an update of {run.meta['optimizer']}, which moves each weight by about the rate "
        f"{number(rate)}, moves what a unit of {layer} is given by up to {number(rate * found.total)}."
    )
