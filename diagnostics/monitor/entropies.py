"""The sign of an entropy in a policy's loss: taken off it, the entropy keeps the policy trying; added, it ends that.

The graph is walked from the loss through what adds and scales, with the sign that each term comes out with.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch import Tensor, nn

from diagnostics.monitor import advantages, losspath, transfer

_KEEPS_SIGN = losspath.SHAPES | {"add", "mean", "sum", "minimum", "maximum"}
_LOGARITHMS, _PROBABILITIES = {"log", "logsoftmax", "logsumexp"}, {"softmax", "exp"}
MOST = 32  # products asked: in a loss that is a simulation there are thousands
NEAR = 12  # nodes from a product of p and log p to the scores of both


def told(model: nn.Module, loss: Tensor) -> list[str]:
    """Names of the parameters that make a policy's scores, if its entropy is added to the loss; none where it is taken
    off, nothing is weighed by gains and losses, or a sign is not known."""
    terms = list(_signed(loss.grad_fn))
    entropies = [(node, sign) for node, sign in terms if _is_entropy(node)]
    if not entropies or any(sign >= 0 for _, sign in entropies) or not any(_is_policy(node) for node, _ in terms):
        return []
    return advantages.makers(model, [node for node, _ in entropies])


def any_of(loss: Tensor) -> bool:
    nodes = losspath.walk(loss.grad_fn, set(), losspath.FAR, losspath.is_layer)
    return any(map(_is_entropy, islice(filter(losspath.is_product, nodes), MOST)))


def _signed(start: Any) -> Iterator[tuple[Any, int]]:
    """Terms of the loss, each with 1 or -1, or 0 of an unknown sign."""
    waiting, seen = [(start, 1)], set[Any]()
    while waiting and len(seen) < losspath.FAR:
        node, sign = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        below, factors = [each for each, _ in node.next_functions], _signs(node)
        if factors is None:
            yield node, sign
        else:
            waiting += [(each, sign * factor) for each, factor in zip(below, factors, strict=False)]


def _signs(node: Any) -> tuple[int, ...] | None:
    """What each of its inputs is multiplied with, by its sign; `None` of what does not just add and scale."""
    name, inputs = losspath.function_of(node), len(node.next_functions)
    if name in ("sub", "rsub"):
        first = 1 if name == "sub" else -1
        return first, -first
    if name == "neg":
        return (-1,)
    if name == "div" and inputs and node.next_functions[0][0] is not None and len(losspath.inputs_of(node)) == 1:
        return (1,)  # by a count, or by as many as there are
    if name == "mul" and (factor := _constant(node)) is not None and factor.numel() == 1:
        known = transfer.on_host(factor.device)
        return (int(factor.sign().item()) if known else 0,) * inputs
    return (1,) * inputs if name in _KEEPS_SIGN else None


def _constant(node: Any) -> Tensor | None:
    """What a product multiplies a single result with."""
    if len(losspath.inputs_of(node)) != 1:
        return None
    at = next(place for place, (below, _) in enumerate(node.next_functions) if below is not None)
    return getattr(node, "_saved_self" if at else "_saved_other", None)


def _is_entropy(node: Any) -> bool:
    """p times the logarithm of the same p."""
    if not losspath.is_product(node):
        return False
    sides = [list(losspath.walk(each, set(), NEAR, losspath.is_layer)) for each in losspath.inputs_of(node)]
    functions = [set(map(losspath.function_of, side)) for side in sides]
    if any("mul" in each for each in functions) or set(sides[0]).isdisjoint(sides[1]):
        return False
    return any(
        not one.isdisjoint(_LOGARITHMS) and not other.isdisjoint(_PROBABILITIES)
        for one, other in (functions, functions[::-1])
    )


def _is_policy(node: Any) -> bool:
    """The logarithm of what was chosen, or a ratio of its probabilities, times gains and losses."""
    gains = _constant(node) if losspath.function_of(node) == "mul" else None
    if gains is None or gains.numel() < 2 or not bool((gains.min() < 0) & (gains.max() > 0)):
        return False
    functions = {losspath.function_of(each) for each in losspath.walk(node, set(), losspath.LONGEST, losspath.is_layer)}
    return not functions.isdisjoint(_LOGARITHMS) and not functions.isdisjoint({"gather", "index", "select"})
