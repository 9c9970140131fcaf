"""Shapes that fit though they mean something else: PyTorch broadcasts and reshapes without a word."""

from collections.abc import Iterator

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules import _signals as signals
from diagnostics.rules._explained import LITTLE, explained_late
from diagnostics.rules._finding import Finding, Severity
from diagnostics.rules._wiring_finding import found, unless_it_learns
from diagnostics.rules._words import names_of, number, shape_of
from diagnostics.run import Run

_HEED = "heed PyTorch's warning 'Using a target size that is different to the input size'"
Told = tuple[str, tuple[str, ...], str, Severity]  # what is seen, remedies, formula


def broadcast(run: Run) -> Iterator[Finding]:
    """The first of its kinds that the loss shows."""
    kinds = {
        "all_columns": _columns,
        "all_pairs": _pairs,
        "one_answer": _one_answer,
        "one_sum": _one_sum,
        "all_products": _products,
    }
    for entry, told in kinds.items():
        count = int(run.meta.get(entry) or 0)
        if count >= 2:
            what, remedies, formula, severity = told(count)
            if told is _one_answer:  # of one group, as the nodes of a graph, all targets may be the same
                severity = unless_it_learns(run, severity)
            evidence = {"outputs": float(count)}
            yield found("shapes-broadcast", run, what, remedies, evidence=evidence, formula=formula, severity=severity)
            return


def _pairs(count: int) -> Told:
    return (
        f"The loss compares each of {count} outputs with all {count} targets, because one of the two is a column "
        "and the other is not. Every output is pulled to the middle of the targets; nothing else is learned.",
        (
            "give both the same shape: criterion(model(x).squeeze(1), y), or y.unsqueeze(1)",
            _HEED,
        ),
        r"\frac{1}{N^2} \sum_{i,j} \ell(y_i, t_j), \quad\text{of squares}\quad "
        r"\frac{1}{N} \sum_i (y_i - \bar t\,)^2 + \text{const}",
        "critical",
    )


def _one_answer(count: int) -> Told:
    return (
        f"The loss compares one answer with {count} targets: the output has a single row, as if all examples of a "
        "batch were one, and is pulled to the middle of their targets.",
        (
            "look where the examples become one: a mean, sum or max over the first dimension, or a pooling that is not "
            "told which rows belong to which example, global_mean_pool(x, batch)",
            _HEED,
        ),
        r"\frac{1}{N} \sum_i (y - t_i)^2 = (y - \bar t\,)^2 + \text{const}",
        "critical",
    )


def _one_sum(count: int) -> Told:
    return (
        f"The loss compares one number with {count} targets: the answers to all {count} examples are added up before, "
        "and their sum is pulled to the middle of the targets.",
        ("add up along the dimension that is meant: (q * chosen).sum(dim=1), not .sum()", _HEED),
        r"\frac{1}{N} \sum_i \Bigl(\sum_j y_j - t_i\Bigr)^2 = \Bigl(\sum_j y_j - \bar t\Bigr)^2 + \text{const}",
        "critical",
    )


def _columns(count: int) -> Told:
    return (
        f"From each of {count} rows of the output the loss takes the columns that all {count} examples ask for, as "
        "q[:, a] does, in place of each example's own: every column is pulled to the targets of other examples.",
        ("take one column a row: q.gather(1, a[:, None]).squeeze(1), or q[torch.arange(len(a)), a]",),
        r"\frac{1}{N^2} \sum_{i,j} (q_{i a_j} - t_j)^2 \quad\text{instead of}\quad "
        r"\frac{1}{N} \sum_i (q_{i a_i} - t_i)^2",
        "critical",
    )


def _products(count: int) -> Told:
    return (
        f"A term of the loss multiplies a column of {count} numbers with a row of {count}. Its mean over all pairs "
        "is, but for what is clipped, the product of the two means: which number belongs to which example does not "
        "count.",
        (
            "give both the same shape: log_probability.squeeze(1) * advantage",
            "print the shapes of both before they are multiplied",
        ),
        r"\frac{1}{N^2} \sum_{i,j} a_i\,b_j = \bar a\,\bar b \quad\text{instead of}\quad "
        r"\frac{1}{N} \sum_i a_i\,b_i",
        "warning",  # another term may be what matters
    )


def scrambled(run: Run) -> Iterator[Finding]:
    shapes = run.meta["scrambled"]
    if len(shapes) != 2:
        return
    before, after = map(shape_of, shapes)
    # What reads the view may have come to terms with it, but not with other examples in the place of each.
    mixes_examples = len(shapes[0]) == 3 and shapes[0][0] != shapes[0][1] == shapes[1][0]
    yield found(
        "scrambled-view",
        run,
        (
            f"A view turns an output of shape {before} into {after}. It keeps the numbers' order in memory, so "
            "that each place gets those of other samples, positions or units; only a transpose moves the axes."
        ),
        (
            "x.transpose(1, 2), or x.permute(...), in place of x.view(...) or x.reshape(...)",
            "of the last states of a recurrent net, torch.cat((h[-2], h[-1]), dim=1)",
        ),
        severity=unless_it_learns(run, "critical", "warning" if mixes_examples else "info"),
    )


def crossed(run: Run) -> Iterator[Finding]:
    """Outputs and targets flattened from axes in another order."""
    axes = run.meta["crossed"]
    if len(axes) != 2:
        return
    outputs, targets = map(shape_of, axes)
    yield found(
        "scrambled-view",
        run,
        (
            f"The loss compares outputs with targets of other places: the outputs were made one row from {outputs}, "
            f"and the targets from {targets}. Each view keeps the numbers' order in memory, and the first axis of one "
            "is the second of the other."
        ),
        (
            "transpose one of them before both are flattened: y.t().reshape(-1), or logits.transpose(0, 1)",
            "or make the layer with batch_first=True, so that outputs come in the order of the targets",
        ),
        severity=unless_it_learns(run, "critical", "warning"),
    )


def scrambled_inputs(run: Run) -> Iterator[Finding]:
    """The same before the model: inferred from the numbers, which leaves it a warning. A series that is learned all
    the same may jump by chance; pixels of three colours do not lie as those of another shape, both ways, by any."""
    shapes = run.meta["input_order"]
    if len(shapes) != 2:
        return
    before, after = map(shape_of, shapes)
    sign, transpose = "where one channel of those ends and the next begins they jump", "x.transpose(1, 2)"
    if len(shapes[0]) == 4:
        sign = f"each is more like the one {int(shapes[0][-1])} places on, its pixel's neighbour, than like the next"
        transpose = "x.permute(0, 3, 1, 2)"
    elif not shapes[0]:
        before = "(height, width, channels, examples)"
        sign = "those of one example are alike as those of one pixel are, and no more so for lying side by side"
        transpose = "x.permute(3, 2, 0, 1), or of grey images x.permute(2, 0, 1),"
    yield found(
        "scrambled-view",
        run,
        (
            f"The inputs seem to be scrambled: they have the shape {after}, but their numbers follow each other as "
            f"those of {before} do; {sign}. A view or reshape deals numbers out to other axes; only a transpose moves "
            "the axes."
        ),
        (f"{transpose} in place of x.view(...) or x.reshape(...), where the inputs are prepared",),
        severity=unless_it_learns(run, "warning", "warning" if len(shapes[0]) == 4 else "info"),
    )


_NOT_ON_ORDER = ", and the order of the tokens of each does not count"


def by_place(run: Run) -> Iterator[Finding]:
    """Where batches differ, so that places mean nothing: those of a graph's nodes do."""
    share, sums = float(run.meta["by_place"]), signals.column(run, "input_sum")[1]
    told = run.meta["along_batch"] or run.meta["scrambled"]
    fixed = len(sums) < 2 or not np.ptp(sums) > 0
    astray = bool(run.meta["order_blind"])  # positions are told, but not those of the tokens
    severity = unless_it_learns(run, "critical", "warning" if astray else "info")
    if not share or told or fixed or severity == "info":  # then its places may mean something
        return
    yield found(
        "by-place",
        run,
        (
            "The answer to an example depends on its place in the batch: when the examples change places, the answers "
            f"change by {number(share)} of what they differ by among each other{_NOT_ON_ORDER if astray else ''}. "
            "Somewhere the first dimension, the examples, is taken for another one."
        ),
        (
            "look for what runs along the wrong dimension: an encoding of positions, pe[:x.size(0)] where it should be "
            "pe[:x.size(1)], or a layer that expects time first",
            "or for a view or reshape that mixes the examples: compare model(x[:1]) with model(x)[:1] in evaluation "
            "mode, module by module",
        ),
        evidence={"change over spread": share},
        severity=severity,
        formula=r"f(x_{\pi(1)}, \dots, x_{\pi(n)})_i \ne f(x_1, \dots, x_n)_{\pi(i)}",
    )


def along_batch(run: Run) -> Iterator[Finding]:
    seen = [each for each in run.meta["along_batch"] if len(each) >= 3]
    if not seen:
        yield from _across_texts(run)
        return
    names = tuple(dict.fromkeys(str(name) or "the model" for name, *_ in seen))
    _, steps, sequences, *proof = seen[0]
    recurrent = any(each["name"] in names and each["type"] in by_layer.RECURRENT for each in run.meta["modules"])
    told = str(proof[0]) if proof else ""
    given_time_first = told == "batch_first"
    read = (
        f"batch_first=True is set, and the {int(sequences)} steps come first in what is given"
        if given_time_first
        else f"the input's first dimension, the {int(steps)} examples, is read as time, and its second, "
        f"{int(sequences)} long, as examples"
    )
    yield found(
        "along-batch",
        run,
        (
            f"{names_of(names)} {'runs' if len(names) == 1 else 'run'} along the batch: {read}. The answer to an "
            f"example is made from others of its batch.{_COUNTED if told == 'positions' else ''}"
        ),
        (
            f"leave batch_first=True out of {names[0]}, or of the layer that it is a part of"
            if given_time_first
            else f"make {names[0]}, or the layer that it is a part of, with batch_first=True",
            "or transpose its input, x.transpose(0, 1), and its output back",
        ),
        evidence={"examples read as time steps": float(steps), "read as examples": float(sequences)},
        layers=names,
        severity=_severity_along_batch(run, recurrent, bool(proof)),
    )


def _across_texts(run: Run) -> Iterator[Finding]:
    if not run.meta["across_texts"]:
        return
    yield found(
        "along-batch",
        run,
        (
            "The model runs along the batch: its targets are the tokens that it is given, one place on, but the answer "
            "at a place depends on none of the tokens before it in its own text, and on those of other texts."
        ),
        (
            "make the recurrent or attention layers with batch_first=True, and count positions along the second "
            "dimension",
            "or transpose the input, x.transpose(0, 1), and the output back",
        ),
        formula=(
            r"\frac{\partial y_{n,t}}{\partial x_{n,t'<t}} = 0, \quad "
            r"\frac{\partial y_{n,t}}{\partial x_{n'\ne n,t}} \ne 0"
        ),
        severity=unless_it_learns(run, "critical", "warning"),
    )


def _severity_along_batch(run: Run, recurrent: bool, proven: bool) -> Severity:
    """Attention between examples that belong together, as the agents of one scene, is a method of its own; but then
    nobody counts what it does not run along. What each token tells by itself is learned all the same."""
    if recurrent:
        return unless_it_learns(run, "critical", "warning")
    return "warning" if proven else _unless_anything_is_learned(run)


def _unless_anything_is_learned(run: Run) -> Severity:
    return "warning" if explained_late(run).share < LITTLE else "info"


_COUNTED = " Positions are counted along the second, which nothing runs along."
