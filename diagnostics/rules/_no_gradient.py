"""Why weights get exactly no gradient, as far as a record shows it.

Source: lecture, "Plateaux" ("hard threshold activations").
"""

from typing import NamedTuple

import numpy as np

from diagnostics.rules import _by_layer as by_layer
from diagnostics.rules._words import names_of, number
from diagnostics.rules._zero_factors import AWAY_FROM_ZERO
from diagnostics.run import Run


class Reason(NamedTuple):
    """`where` ends the sentence that says which got none; `first` is one of its own before it. `never_meant`: nor where
    the rest learns."""

    cause: str | None
    where: str
    remedies: tuple[str, ...]
    formula: str = ""
    first: str = ""
    never_meant: bool = False


def reason(run: Run, layers: tuple[str, ...], thresholds: list[str]) -> Reason:
    """Of tensors `layers`; `thresholds`: hard ones that the model calls."""
    if thresholds:
        return _hard(thresholds)
    clipped = _clipped_away(run)
    return (
        clipped or _softmax_of_one(run) or _cancelled(run, layers) or _zeros(run, layers) or _ending(run) or _unknown()
    )


def _clipped_away(run: Run) -> Reason | None:
    """Where the norm before clipping is known, and nothing is left of it after."""
    table = run.table("scalars", ["grad_norm", "grad_norm_unclipped"]).dropna()
    before, after = (table[name].to_numpy() for name in ("grad_norm_unclipped", "grad_norm"))
    if not len(table) or after.any() or not (before > 0).all():
        return None
    return Reason(
        "clipped-to-zero",
        "",
        (
            "give the clipping a positive bound, as 1.0: clip_grad_norm_ and clip_grad_value_ with 0 leave 0",
            "where 0 is meant as 'no clipping', leave the call out: if max_norm > 0: ...",
        ),
        r"g \leftarrow g \cdot \min(1,\, c / \|g\|) = 0 \quad\text{where } c = 0",
        f"Clipping leaves nothing of the gradient: its norm is {number(float(np.median(before)))} before, and 0 after.",
    )


def _hard(functions: list[str]) -> Reason:
    return Reason(
        "hard-threshold",
        f"behind the hard threshold in {names_of(functions)}",
        (
            "replace the hard threshold by torch.sigmoid, torch.tanh or torch.relu",
            "or pass gradients through it: z + (hard(z) - z).detach()",
        ),
        r"\bar{z}_i = \bar{h}_i\,\phi'(z_i), \quad \phi'(z_i) = 0 \text{ for all } z_i \neq 0",
    )


def _softmax_of_one(run: Run) -> Reason | None:
    """In the model, or between its last layer and the loss."""
    names = [str(name) for name in run.meta["softmax_of_one"]]
    dim, *shape = [int(each) for each in run.meta["loss_softmax"] or [0]]
    if not names and not (dim < len(shape) and shape[dim] == 1):
        return None
    which = f"a softmax ({names_of(names)})" if names else "a softmax, between the output and the loss,"
    astray = [str(name) for name in run.meta["softmax_astray"]]
    along = ", along an axis that holds no more, though the last one does" if astray else ""
    return Reason(
        "softmax-of-one",
        f"since {which} is taken of one number at a time{along}: it gives 1, whatever that is",
        (
            "for two classes and one output: F.binary_cross_entropy_with_logits(output, target.float()), no softmax",
            "for C classes: C outputs in the last layer, and F.cross_entropy with the number of the class",
            "for weights, as of attention: softmax along the axis of what is weighed; print the shape it is given",
        ),
        r"\operatorname{softmax}(z)_1 = \frac{e^{z_1}}{e^{z_1}} = 1",
        never_meant=bool(astray),
    )


def _zeros(run: Run, layers: tuple[str, ...]) -> Reason | None:
    zeros = _all_zero(run, layers)
    if not zeros:
        return None
    them = f"{names_of(zeros)} {'is' if len(zeros) == 1 else 'are'}"
    return Reason(None, f"and {them} all zeros: each one's gradient has another as a factor", AWAY_FROM_ZERO)


def _all_zero(run: Run, layers: tuple[str, ...]) -> list[str]:
    """Weights without a gradient that were zero from the start."""
    _, names, norms = by_layer.matrix(run, "layers", "weight_norm")
    return [name for name in layers if not name.endswith("bias") and norms[0, names.index(name)] == 0]


# Why a function passes on nothing: its derivative is zero for all that it was given.
_FLAT = {
    "clamp": "all that it was given lies beyond its bounds",
    "exp": "all that it returned is 0, or next to it",
    "prod": "all products are 0, or next to it",
    "mul": "what it multiplies by is 0",
    "sigmoid": "all that it returned is 0 or 1",
    "tanh": "all that it returned is 1 or -1",
    "softmax": "all that it returned is 0 or 1",
    "relu": "all that it was given is below 0",
}
_BEYOND = (
    "take the logarithm term by term, not of a product or an exponential that is clamped above 0: a sum of "
    "log-densities, torch.logsumexp, F.log_softmax, F.logsigmoid",
)


def ending(run: Run) -> str:
    """At which functions the gradient was seen to end, and why, as a sentence; empty where that was not seen."""
    names = _ends(run)
    if _cancels(run):
        return "Gradients come from two uses of the weights, and cancel exactly."
    reasons = dict.fromkeys(_FLAT.get(name, "its derivative is 0 for all that it was given") for name in names)
    return f"The gradient ends at {names_of(names)}: {'; '.join(reasons)}." if names else ""


def ends_in_the_flat(run: Run) -> bool:
    """Whether a clamp or rounding was seen to end it: not a factor that may leave 0, nor a ReLU, as of a branch that
    has died in a run that learns."""
    return bool(_ends(run)) and set(_ends(run)) <= {"clamp", "hardtanh", "exp", "prod"}


def beyond(run: Run) -> tuple[str, ...]:
    """What to do about numbers so small that a clamp or rounding makes constants of them."""
    return _BEYOND if {"clamp", "exp", "prod"} & set(_ends(run)) else ()


def _ends(run: Run) -> list[str]:
    names = map(str, run.meta["gradient_ends"])
    return list(dict.fromkeys(name.removesuffix("min").removesuffix("max") for name in names))


def _cancels(run: Run) -> bool:
    return _ends(run) == ["cancellation"]


def is_an_offset(run: Run, layers: tuple[str, ...]) -> bool:
    """Whether these move all answers alike, and only differences of answers count: as they are is as good as any."""
    return _cancels(run) and not by_layer.matrices(run) & set(layers)


def _cancelled(run: Run, layers: tuple[str, ...]) -> Reason | None:
    if not _cancels(run):
        return None
    return Reason(
        "cancelled",
        "",
        (
            "store what an answer is compared with, as old log-probabilities, when it is made, under torch.no_grad()",
            "where another network is meant, copy it: old = copy.deepcopy(model); old = model is only a second name",
        ),
        r"\nabla_\theta\left(f_\theta(x) - f_\theta(x)\right) = 0",
        "Opposite gradients cancel exactly: the same weights are used twice, one result compared with the other.",
        never_meant=not is_an_offset(run, layers),
    )


def _ending(run: Run) -> Reason | None:
    sentence = ending(run)
    if not sentence:
        return None
    return Reason(
        None,
        "",
        (
            *beyond(run),
            "print what that function is given in the first batch, and bring it to where the function is not flat: "
            "other bounds, smaller numbers, or no such function between the last layer and the loss",
        ),
        r"\bar{z}_i = \bar{h}_i\,\phi'(z_i), \quad \phi'(z_i) = 0",
        sentence,
    )


def _unknown() -> Reason:
    return Reason(
        None,
        "for a reason the record does not show",
        (
            "print loss.grad_fn and follow the graph back to the layer: something between them has derivative zero, "
            "such as a clamp whose bounds all values are beyond, or a scale of a branch that starts at 0 and is a "
            "buffer where it should be a parameter",
        ),
    )
