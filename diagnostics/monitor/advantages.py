"""Advantages with a gradient: a value that is compared with returns, and weighs logarithms of probabilities as well.

The graph is walked from the loss through what adds and scales (`losspath`); what ends there is a term of the loss.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from diagnostics.monitor import losspath
from diagnostics.monitor.describe import plain_name

# Of advantages also less their mean and divided by their deviation.
_ADDS = losspath.SHAPES | {"add", "sub", "neg", "div", "mean", "sum", "minimum", "maximum", "std", "var", "sqrt"}
MOST = 8  # products asked: in a loss that is a simulation there are thousands
_COMPARES = {"mseloss", "smoothl1loss", "huberloss", "pow", "abs"}


def told(model: nn.Module, loss: Tensor) -> list[str]:
    """Names of the parameters that the values come from; none where no value is in both terms."""
    terms = list(_terms([loss.grad_fn]))
    pairs = [losspath.inputs_of(node) for node in terms if losspath.is_product(node)][:MOST]
    weighing = [one for pair in pairs for one, other in (pair, pair[::-1]) if _weighs(one, other)]
    if not weighing:
        return []
    compared = [below for node in terms if _compares(node) for below in losspath.inputs_of(node)]
    values = set(_terms(weighing)) & set(_terms(compared))
    return makers(model, values)


def makers(model: nn.Module, values: Iterable[Any]) -> list[str]:
    """Names of the parameters that these results come from."""
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    return sorted({names[id(each)] for value in values for each in _made_by(value) if id(each) in names})


def _compares(node: Any) -> bool:
    """A square may be written as a product."""
    return losspath.function_of(node) in _COMPARES or (
        losspath.function_of(node) == "mul" and not losspath.is_product(node)
    )


def _weighs(advantage: Any, score: Any) -> bool:
    """Whether a difference is multiplied with what comes from a logarithm of something else."""
    functions = map(losspath.function_of, losspath.walk(score, set(), losspath.LONGEST, losspath.is_layer))
    if not any(name.startswith(("log", "binarycrossentropy")) for name in functions):
        return False
    sums = list(_sums([advantage], losspath.LONGEST))
    differs = any(losspath.function_of(node) in ("sub", "add") for node in sums)
    return differs and {node for node in sums if not _adds(node)}.isdisjoint(_terms([score], losspath.LONGEST))


def _sums(starts: Iterable[Any], most: int = losspath.FAR) -> Iterator[Any]:
    """Nodes that add and scale, down to what is added up, which ends each way."""
    waiting, seen = [*starts], set[Any]()
    while waiting and len(seen) < most:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += losspath.inputs_of(node) if _adds(node) else []


def _terms(starts: Iterable[Any], most: int = losspath.FAR) -> Iterator[Any]:
    return (node for node in _sums(starts, most) if not _adds(node))


def _adds(node: Any) -> bool:
    name = losspath.function_of(node)
    return name in _ADDS or (name == "mul" and len(losspath.inputs_of(node)) == 1)


def _made_by(value: Any) -> list[Tensor]:
    """The parameters of the last function that has any."""
    for node in losspath.walk(value, set(), losspath.LONGEST):
        held = [each for each in (node, *losspath.inputs_of(node)) if losspath.is_parameter(each)]
        if held:
            return [variable for each in held for variable in _variables(each)]
    return []


def _variables(node: Any) -> list[Tensor]:
    return [each.variable for each in losspath.walk(node, set(), losspath.LONGEST) if hasattr(each, "variable")]
