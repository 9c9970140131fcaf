"""Batches of one example, many times, as of one array that each new example was written to; of a few, again and again;
or texts of one token.

Source: NumPy and PyTorch, where a list of an array that is reused holds the same array throughout.
"""

from collections.abc import Iterator

from diagnostics.rules import _signals as signals
from diagnostics.rules._explained import LITTLE, explained_late
from diagnostics.rules._far_targets import COMPARISONS
from diagnostics.rules._finding import Finding
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import number
from diagnostics.run import Run

_WITH_TARGETS = (*COMPARISONS, "cross_entropy", "nll_loss")  # `binary_` and others too, by a part of their names


def one_example(run: Run, *, measured: int = 5) -> Iterator[Finding]:
    """In all that was measured, while from batch to batch it is another. Answers of which several are drawn for one
    example, as a policy's are, are compared with no targets: there it is information."""
    yield from _one_token(run, measured)
    yield from _nearly_one(run, measured)
    steps = signals.always(run, "equal_examples", measured)
    # Over all that was seen, and so between the batches; less is rounding.
    deviations, sizes = (run.matrix("inputs", column)[2][-1:] for column in ("std", "batch_rms"))
    if not len(steps) or not (deviations > 1e-6 * sizes).any():
        return
    compared = any(each in signals.loss_path(run) for each in _WITH_TARGETS)
    yield found(
        "one-example",
        run,
        (
            f"In each of the {len(steps)} batches that were measured all examples are the same one: the model is asked "
            "for many answers to one input, and can learn no more than their mean."
        ),
        (
            "store a copy: x.copy() of a NumPy array or x.clone() of a tensor that is written to again, as an "
            "environment's observation may be",
            "print a batch's rows as the model gets them",
        ),
        evidence={"batches": float(len(steps))},
        step=int(steps[0]),
        severity=unless_it_learns(run, "critical") if compared else "info",
    )


def _nearly_one(run: Run, measured: int, *, nearly: float = 0.9) -> Iterator[Finding]:
    """In a run that learned nothing, and does not: of sparse data most may be empty, and the rest tells something."""
    steps, shares = signals.column(run, "equal_examples")
    share = float(shares.mean()) if len(shares) >= measured else 0.0
    if not nearly <= share or (shares == 1).all() or not explained_late(run).is_nothing(LITTLE):
        return
    history = signals.loss(run)
    if signals.trend(history.after(history.middle_step)).z > 3:
        return
    yield found(
        "one-example",
        run,
        f"Of the examples of a batch {number(100 * share)} % are one and the same: there is next to nothing to tell.",
        (
            "print a batch's rows as the model gets them: scaled numbers that are written into an array of integers "
            "become 0, and so does what a wrong file or column holds",
            "convert before scaling: x.astype(np.float32)",
        ),
        evidence={"share of equal examples": share, "batches": float(len(shares))},
        step=int(steps[0]),
        severity="warning",
    )


def _one_token(run: Run, measured: int) -> Iterator[Finding]:
    steps = signals.always(run, "one_token", measured)
    if not len(steps):
        return
    yield found(
        "one-token",
        run,
        (
            f"In each of the {len(steps)} batches that were measured all texts are one token, again and again: they "
            "differ by their lengths at most."
        ),
        (
            "print the share of unknown tokens in a batch: the vocabulary and the texts may be of different case, or "
            "split into words in different ways",
            "decode a batch's numbers back into text",
        ),
        evidence={"batches": float(len(steps))},
        step=int(steps[0]),
        severity=unless_it_learns(run, "critical"),
    )


def few_examples(
    run: Run,
    *,
    measured: int = 5,  # batches: the next would bring others, if there were any
    times: float = 4.0,  # each example, in a batch: who has no more would give each once
) -> Iterator[Finding]:
    """Of a table, a game or a toy there may be no more: an alarm where examples are told into classes."""
    table = run.table("scalars", ["step", "examples_seen", "batch_size"]).dropna()
    if len(table) < measured or not signals.array(table, "examples_seen")[-1] > 1:
        return
    seen, size = int(table["examples_seen"].iloc[-1]), signals.median(signals.array(table, "batch_size"))
    if size < times * seen or table["step"].iloc[-1] < signals.loss(run).middle_step:
        return
    yield found(
        "few-examples",
        run,
        (
            f"In {len(table)} batches of {number(size)} examples there are {seen} different ones in all: whatever else "
            "the data hold, the model is never given it."
        ),
        (
            "look at the sampler: WeightedRandomSampler needs one weight an example, class_weight[y]; of one weight a "
            "class it draws the first examples alone",
            "print the places that are drawn, and len(dataset)",
        ),
        evidence={"different examples": float(seen), "examples of a batch": size},
        severity="warning" if any(each in signals.loss_path(run) for each in ("cross_entropy", "nll_loss")) else "info",
    )
