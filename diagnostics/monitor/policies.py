"""Whether a loss is a policy's: logarithms of probabilities times gains and losses, which both occur. And the sign of
an entropy in it: taken off the loss, it keeps the policy trying; added, it ends that.

The graph is walked from the loss through what adds and scales, with the sign that each term comes out with.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from diagnostics.monitor import advantages, losspath, transfer

_KEEPS_SIGN = losspath.SHAPES | {"add", "mean", "sum", "minimum", "maximum"}
_LOGARITHMS, _PROBABILITIES = {"log", "logsoftmax", "logsumexp"}, {"softmax", "exp"}
NEAR = 12  # nodes from a product of p and log p to the scores of both


def told(model: nn.Module, loss: Tensor) -> dict[str, Any]:
    """As entries of the run. "policy": the loss has such a term. "entropy_lowered": names of the parameters that make
    the policy's scores, if its entropy is added to the loss; none where it is taken off, or a sign is not known.
    `loss`: of a new graph, as a backward pass lets go of the factors."""
    terms = list(_signed(loss.grad_fn))
    if not any(_is_policy(node) for node, _ in terms):
        return {}
    entropies = [(node, sign) for node, sign in terms if _is_entropy(node)]
    lowered = bool(entropies) and all(sign < 0 for _, sign in entropies)
    return {
        "policy": True,
        "entropy_lowered": advantages.makers(model, [node for node, _ in entropies]) if lowered else [],
    }


def may_be_one(loss: Tensor) -> bool:
    """By the functions alone, which a backward pass leaves."""
    nodes = losspath.walk(loss.grad_fn, set(), losspath.FAR, losspath.is_layer)
    functions = set(map(losspath.function_of, nodes))
    return "mul" in functions and _are_log_probabilities(functions)


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
    if name == "mul" and (factor := losspath.constant(node)) is not None and factor.numel() == 1:
        known = transfer.on_host(factor.device)
        return (int(factor.sign().item()) if known else 0,) * inputs
    return (1,) * inputs if name in _KEEPS_SIGN else None


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
    gains = losspath.constant(node) if losspath.function_of(node) == "mul" else None
    if gains is None or gains.numel() < 2 or not bool((gains.min() < 0) & (gains.max() > 0)):
        return False
    functions = {losspath.function_of(each) for each in losspath.walk(node, set(), losspath.LONGEST, losspath.is_layer)}
    return _are_log_probabilities(functions)


def _are_log_probabilities(functions: set[str]) -> bool:
    """Of what was chosen, or of a normal distribution."""
    return not functions.isdisjoint(_LOGARITHMS) and not functions.isdisjoint({"gather", "index", "select", "pow"})
