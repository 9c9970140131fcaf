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
_COMPARES = {"mseloss", "smoothl1loss", "huberloss", "pow", "abs"}


def told(model: nn.Module, loss: Tensor) -> list[str]:
    """Names of the parameters that the values come from; none where no value is in both terms."""
    names = {id(parameter): plain_name(name) for name, parameter in model.named_parameters()}
    weighing, compared = list[Any](), list[Any]()
    for node in _terms([loss.grad_fn]):
        below, name = losspath.inputs_of(node), losspath.function_of(node)
        if name == "mul" and len(set(below)) == 2:
            weighing += [one for one, other in (below, below[::-1]) if _weighs(one, other)]
        elif name in _COMPARES or name == "mul":  # a square may be written as a product
            compared += below
    values = set(_terms(weighing)) & set(_terms(compared))
    return sorted({names[id(each)] for value in values for each in _made_by(value) if id(each) in names})


def _weighs(advantage: Any, score: Any) -> bool:
    """Whether a difference is multiplied with what comes from a logarithm of something else."""
    differs = any(losspath.function_of(node) in ("sub", "add") for node in _sums([advantage]))
    met = map(losspath.function_of, losspath.walk(score, set(), losspath.FAR, _is_layer))
    logarithm = any(name.startswith(("log", "binarycrossentropy")) for name in met)
    return differs and logarithm and set(_terms([advantage])).isdisjoint(_terms([score]))


def _sums(starts: Iterable[Any]) -> Iterator[Any]:
    """Nodes that add and scale, down to what is added up, which ends each way."""
    waiting, seen = [*starts], set[Any]()
    while waiting and len(seen) < losspath.FAR:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            waiting += losspath.inputs_of(node) if _adds(node) else []


def _terms(starts: Iterable[Any]) -> Iterator[Any]:
    return (node for node in _sums(starts) if not _adds(node))


def _adds(node: Any) -> bool:
    name = losspath.function_of(node)
    return name in _ADDS or (name == "mul" and len(losspath.inputs_of(node)) == 1)


def _is_layer(node: Any) -> bool:
    return losspath.function_of(node) in losspath.LAYERS or losspath.is_parameter(node)


def _made_by(value: Any) -> list[Tensor]:
    """The parameters of the last function that has any."""
    for node in losspath.walk(value, set(), losspath.LONGEST):
        held = [each for each in (node, *losspath.inputs_of(node)) if losspath.is_parameter(each)]
        if held:
            return [variable for each in held for variable in _variables(each)]
    return []


def _variables(node: Any) -> list[Tensor]:
    return [each.variable for each in losspath.walk(node, set(), losspath.LONGEST) if hasattr(each, "variable")]
