"""Whether a model is linear: its output in the parameters, or each of its layers in what the one before gives.

Along the graph that autograd built, as in `losspath`.
"""

from typing import Any

from torch import Tensor

from diagnostics.monitor import losspath

_LINEAR = losspath.SHAPES | {
    "add", "sub", "neg", "mul", "div", "mean", "sum", "nativedropout", "nativebatchnorm", "avgpool2d", "avgpool1d",
    "adaptiveavgpool2d", "constantpadnd",
}  # fmt: skip


def is_linear_model(loss: Tensor) -> bool:
    """Whether the loss sees the parameters through one layer only, so that the output is linear in them.

    A bias may be added to it. Parameters that go into anything else, as positions into a distance, and two layers,
    whose outputs may be multiplied, are not: that the output is linear could not be seen.
    """
    holders = [
        node
        for node in losspath.walk(loss.grad_fn, set(), losspath.FAR, losspath.is_parameter)
        if losspath.holds_parameter(node) and losspath.function_of(node) not in ("add", "sub")
    ]
    if len(holders) != 1 or _multiplies_parameters(holders[0]):
        return False
    return losspath.function_of(holders[0]) in losspath.LAYERS | {"mul"}


def linear_layers(loss: Tensor) -> int:
    """How many layers with weights there are, where nothing that is not linear lies between and before them: together
    they are one. 0 where something does, or there is but one; a batch norm counts as linear, as its scale and shift."""
    seen, layers = set[Any](), 0
    for top in losspath.walk(loss.grad_fn, set(), losspath.FAR, losspath.is_parameter):
        if not _is_layer(top):
            continue
        for node in losspath.walk(top, seen, losspath.FAR, losspath.is_parameter):
            if not _is_linear(node):
                return 0
            layers += _is_layer(node)
    return layers if layers > 1 else 0


def _is_layer(node: Any) -> bool:
    return losspath.function_of(node) in losspath.LAYERS and losspath.holds_parameter(node)


def _is_linear(node: Any) -> bool:
    """A table of embeddings is any function of its tokens; a product of two that depend on the inputs is none. With a
    slope of 1 on both sides a leaky ReLU changes nothing: `nn.LeakyReLU(True)` was to work in place."""
    name = losspath.function_of(node)
    if name == "leakyrelu":
        return node._saved_negative_slope == 1
    factors = [each for each in losspath.inputs_of(node) if not losspath.is_parameter(each)]
    if name in losspath.LAYERS:
        return name != "embedding" and len(factors) < 2
    return name in _LINEAR and (name not in ("mul", "div") or len(factors) < 2)


def _multiplies_parameters(node: Any) -> bool:
    biased = losspath.function_of(node) in {"addmm", "linear", "baddbmm", "convolution", "addmv", "addbmm"}
    return len(losspath.inputs_of(node)) > (2 if biased else 1)
