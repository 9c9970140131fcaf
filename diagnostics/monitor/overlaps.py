"""The masks of a loss that divides an overlap, probabilities times a mask, by a size: Dice's, Jaccard's, Tversky's."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from diagnostics.monitor import losspath

_PROBABILITIES = {"sigmoid", "softmax"}
NEAR = 20  # nodes from the quotient to the product: sums, a factor of two, what keeps it from 0 / 0


def told(loss: Tensor) -> dict[str, Any]:
    """As an entry of the run: the height of masks that hold nothing else but 0; none where they are at most 1, or hold
    other numbers. `loss`: of a new graph, as a backward pass lets go of the masks."""
    heights = [float(_height(mask)) for mask in _masks(loss)]
    return {"mask_height": max(heights, default=0.0)}


def may_be_one(loss: Tensor) -> bool:
    """By the functions alone, which a backward pass leaves."""
    return any(True for _ in _products(loss))


def _products(loss: Tensor) -> Iterator[Any]:
    """Of probabilities with something fixed, in what is divided by another result."""
    for node in losspath.walk(loss.grad_fn, set(), losspath.FAR, losspath.is_layer):
        if losspath.function_of(node) != "div" or len(set(losspath.inputs_of(node))) < 2:
            continue
        for below in losspath.walk(node.next_functions[0][0], set(), NEAR, losspath.is_layer):
            multiplied = losspath.inputs_of(below) if losspath.function_of(below) == "mul" else []
            if len(multiplied) == 1 and losspath.last_before(multiplied[0]) in _PROBABILITIES:
                yield below


def _masks(loss: Tensor) -> Iterator[Tensor]:
    for node in _products(loss):
        mask = losspath.constant(node)
        if mask is not None and mask.numel() > 1:
            yield mask


def _height(mask: Tensor) -> Tensor:
    high = mask.max()
    of_two = ((mask == 0) | (mask == high)).all() & (mask == 0).any() & (high > 1)
    return high * of_two
