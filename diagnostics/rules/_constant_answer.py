"""A loss no lower than that of one answer to everything: nothing was learned from the inputs, or not for long."""

import numpy as np

from diagnostics.rules import _optimizer as optimizer
from diagnostics.rules import _signals as signals
from diagnostics.rules._charts import LOG_LOSS
from diagnostics.rules._explained import LITTLE, explained
from diagnostics.rules._far_targets import NEARER, far_targets, how_far
from diagnostics.rules._finding import Chart, Finding
from diagnostics.rules._raw_inputs import first_length, normalizes, raw, standardize, summed_size
from diagnostics.rules._rolling import recent_median
from diagnostics.rules._stretches import Flat
from diagnostics.rules._unmoved import moved_at_most
from diagnostics.rules._words import counted, number, tex
from diagnostics.run import Run

FAR = 3.0  # times the loss of a constant answer, at the start; log C is not as far from C classes' entropy
NEAR = 1.5  # times the loss of even chances: logits of a random network's size add a part of it
_MOVED = "way of the weights over their size, at most"
NOTHING_LEARNED, START_FAR_OFF, RARE_CLASSES = "nothing-learned", "start-far-off", "rare-classes"
INPUT_SCALE = "input-scale"
BY_INPUTS = frozenset({INPUT_SCALE, "uncentered-inputs"})  # causes of dead units
_LOSS = Chart(
    "line", "scalars", ("loss", "constant_loss"), "Loss, and that of the same answer to every input", log=True
)
_OF_PART = Chart(
    "line",
    "scalars",
    ("partial_loss", "partial_constant_loss"),
    "The part of the loss that compares, and that of the same answer to every input",
    log=True,
)
_OF_MEAN = Chart(
    "line",
    "scalars",
    ("answered_loss", "averaged_loss"),
    "The loss after each update, and that of the mean of the answers, given to every input",
    log=True,
)
_WEIGH = (
    "weigh the other terms of the loss less, or let them come in slowly: a divergence summed over a batch beside an "
    "error averaged over it pays for a code that says nothing"
)
_WORSE = (
    "bring the answers to the size of the targets, whose mean would do better: standardize the targets, normalize "
    "before the last layer, start it with smaller weights, or take noise such as dropout out"
)
BEND = "put a non-linearity between the layers, such as nn.ReLU()"
_START_LARGER = (
    "start with larger weights: all began so small that next to nothing of the inputs reaches the output; PyTorch's "
    "own initialization, or nn.init.xavier_uniform_, keeps their size from layer to layer"
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


def learned_nothing(
    kind: str,
    run: Run,
    stretch: Flat,
    *,
    within: float = 0.5,  # of the run, warm-up apart: a network that reads its inputs at all starts in the first half
    updates: int = 100,  # fewer do not tell a slow start from a loss that stays
    measured: int = 5,  # fewer have no standard error worth the name
    little: float = LITTLE,
) -> Finding | None:
    """For a loss that stands still at last: an alarm without a mechanism, which gives way to any that has one."""
    steps = signals.loss(run).steps
    first, last = _warmed_up(run), int(steps[-1])
    half = int(last - within * (last - first))
    found = explained(run, half, last, measured)
    if stretch.escaped or last - half < updates or not found.is_nothing(little):
        return None
    worse = found.share + 3 * found.error < -little
    what = "The answers are worse than one that ignores the inputs" if worse else "Nothing was learned from the inputs"
    return Finding(
        kind,
        NOTHING_LEARNED,
        "warning",
        stretch.first_step,
        None,
        (),
        f"{what}: from step {half} to {last} the {found.what} is {number(found.loss)}, and {found.constant_answer} "
        f"would have {number(found.constant)} on the same batches.{of_linear_layers(run)}",
        {
            "loss": found.loss,
            "loss of a constant answer": found.constant,
            "R squared": found.share,
            "its standard error": found.error,
        },
        (
            *([_WORSE] if worse else []),
            *([BEND] if of_linear_layers(run) else []),
            *([_START_LARGER] if _began_small(run) else []),
            *_longer_steps(run, half),
            *([_WEIGH] if len(signals.column(run, "partial_loss")[0]) and not found.averaged else []),
            "look at one batch as the loss gets it: does each target belong to its input, or were the two shuffled, "
            "sorted or shifted apart?",
            "train on ten examples alone: if the loss reaches 0 there, the network can read its inputs, and it is the "
            "targets that do not follow from them",
            "where the loss does not reach 0 on ten examples, the inputs are lost on the way: a state that is detached "
            "at every step, a dimension that is averaged away, gradients that do not come back through time",
        ),
        (
            _OF_PART if found.partial else _OF_MEAN if found.averaged else _LOSS,
            Chart("line", "scalars", ("gradient_cosine",), "Cosine of successive gradients: 0 is noise"),
        ),
        r"R^2 = 1 - \frac{\mathcal{L}}{\mathcal{L}_\text{constant}} = "
        rf"{tex(found.share)} \pm {tex(found.error)}",
    )


def _longer_steps(run: Run, since: int, *, far: float = 0.03) -> tuple[str, ...]:
    """A remedy where thirty times the rate would still be stable: what grows out of nothing may only be slow."""
    table = run.table("curvature", ["step", "stability"])
    late = table.loc[table["step"] >= since]
    ratio, rate = signals.median(signals.array(late, "stability")), optimizer.rate_at(run, late["step"].to_numpy())
    if not 0 < ratio < far or optimizer.last_rate(run) < rate:  # of a rate that was lowered it is the schedule's
        return ()
    return (
        f"raise the learning rate: {number(rate)} is {number(100 * ratio)} % of the largest stable one, and what grows "
        "from next to nothing, as at a saddle point, grows with the rate",
    )


def of_linear_layers(run: Run) -> str:
    layers = run.meta["linear_layers"]
    return (
        f" No non-linearity lies between its {layers} layers: together they are one, and what is not linear in the "
        "inputs is out of their reach."
        if layers
        else ""
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
    last_one = f"To the last step, {history.last_step},"
    until = f"Until step {last} of {history.last_step}" if count < history.count else last_one
    return Finding(
        kind,
        INPUT_SCALE if by_inputs else "target-scale" if targets else RARE_CLASSES if even else START_FAR_OFF,
        "info" if even else "warning",
        history.first_step,
        last if count < history.count else None,
        (),
        f"{until} the answers were worse than one that ignores the inputs: the loss started at "
        f"{number(history.start)}, and the same answer to every input would have {number(constant)}."
        + (_of_raw_inputs(run) if by_inputs else f" {how_far(run, targets)}." if targets else ""),
        {
            "loss at start": history.start,
            "loss at end": history.end,
            "loss of a constant answer": constant,
            "share of the run": count / history.count,
            _MOVED: np.nan if run.table("layers", ["step"]).empty else moved_at_most(run),
        },
        (standardize(run), "or put a norm before the first layer: nn.BatchNorm1d")
        if by_inputs
        else NEARER
        if targets
        else _START_AT_SHARES
        if even
        else _START_SMALL,
        (_LOSS,),
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
    length, features = first_length(run)
    return start <= allowed * length**2 / features


def _of_raw_inputs(run: Run) -> str:
    length, features = first_length(run)
    said = (
        f" The inputs are not standardized: one is {number(length)} long, where initializations are made for "
        f"{number(features**0.5)}"
    )
    if not optimizer.adaptive(run):
        return f"{said}."
    rate = optimizer.highest_rate(run, signals.loss(run).last_step)
    return (
        f"{said}, and an update of {run.meta['optimizer']}, which moves each weight by about the rate "
        f"{number(rate)}, moves what a unit of the first layer is given by up to {number(rate * summed_size(run))}."
    )


def _began_small(run: Run, *, passes: float = 0.1, least: int = 2) -> bool:
    """Whether each of several layers began by passing on less than a tenth of the size of what it was given."""
    _, names, norms = run.matrix("layers", "weight_norm", copy=False)
    shapes = {each["name"]: each["shape"] for each in run.meta["layers"]}
    gains = [
        float(norms[0, at]) / shapes[name][0] ** 0.5
        for at, name in enumerate(map(str, names))
        if len(norms) and len(shapes.get(name, [])) > 1
    ]
    return len(gains) >= least and max(gains) < passes


def _warmed_up(run: Run, *, arrived: float = 0.9) -> int:
    """The update at which the learning rate came to `arrived` of its largest value so far."""
    steps, rates = optimizer.learning_rates(run)
    return int(steps[np.argmax(rates >= arrived * rates.max())]) if len(rates) else signals.first_step(run)
