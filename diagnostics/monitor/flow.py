"""Where a tensor's units come from and where they go, followed through one forward.

A hidden unit is a row of one layer's weight, kept in its place by activations, norms, dropout, pooling and flattening
until other layers multiply it by their columns. The graph of these layers is what the symmetry check needs (incoming
and outgoing weights of each unit); it also tells a hidden activation from an output, a gate from an activation, and
which tensor the first layer reads. Followed by tensor identity, so that functional code is understood as modules are.
"""

from collections.abc import Callable
from dataclasses import replace
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from diagnostics.monitor import functions, places
from diagnostics.monitor.layer import NOTHING, PARAMETER, Flow, Layer, in_step, width
from diagnostics.monitor.outside import Outside


class Graph:
    """The layers met so far. `hidden`: activations that a later layer reads; `gates`: those that multiply something."""

    def __init__(self, parameters: set[int], asking: bool) -> None:
        self.layers: list[Layer] = []
        self.hidden: set[int] = set()
        self.gates: set[int] = set()
        self.outside = Outside(asking)
        self._parameters = parameters
        self._flows = WeakTensorKeyDictionary()

    def knows(self, tensor: Tensor) -> bool:
        """Whether it is one of the model's parameters."""
        return id(tensor) in self._parameters

    def flow(self, tensor: Tensor) -> Flow:
        if self.knows(tensor):
            return PARAMETER
        return self._flows.get(tensor) or NOTHING

    def follow(self, function: Callable, args: tuple, kwargs: dict[str, Any], out: Any, activation: int | None) -> None:
        """Note one call: `activation` is the index of the activation record it made, if any."""
        results = list(functions.tensors((out,)))
        if not results:
            return
        tensors = list(functions.tensors((*args, *kwargs.values())))
        self.outside.follow(function, tensors, results[0])
        flows = [self.flow(tensor) for tensor in tensors]
        found = self._moved(function, args, kwargs, tensors, flows, results)
        if found is None and function in functions.RECURRENT and any(flow.parameter for flow in flows):
            found = self._recurrent(args, tensors, flows, results)
        if found is None:
            found = [self._result(function, args, kwargs, tensors, flows, results[0])] * len(results)
        for result, flow in zip(results, found, strict=True):
            if activation is not None:
                flow = replace(flow, carries=flow.carries | {activation}, fresh=activation)
            if flow is not NOTHING:
                self._flows[result] = flow

    def _result(
        self,
        function: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        flows: list[Flow],
        out: Tensor,
    ) -> Flow:
        data = [flow for flow in flows if not flow.parameter]
        if not data:
            return PARAMETER if flows else NOTHING
        parametric = len(data) < len(flows)
        if parametric:
            self._read(data, tensors, flows)
        if parametric and function in functions.LINEAR | functions.CONVOLUTIONS | functions.TRANSPOSED:
            return self._layer(function, args, kwargs, out)
        if parametric and function in functions.MATMUL and flows[-1].parameter and tensors[-1].dim() == 2:
            return self._multiplied(tensors[0], tensors[-1])
        if parametric and function in functions.ADDING and self._is_bias(tensors, flows, data):
            return self._biased(tensors, flows, data[0])
        if function in functions.ATTENTION | functions.MATMUL:
            return self._attend(function, args, kwargs, tensors, data, out)
        if function in functions.GLU and len(data) == 1:
            return self._halves(function, args, kwargs, tensors, data, out)
        if function in functions.GATING and len(data) == len(flows) == 2 and in_step(tensors, data):
            return self._product(data)
        if data[0].places is not None and function not in functions.ENTRYWISE:
            return self._mix(function, tensors, data, out)
        if function in functions.KEEPS_UNITS and (flows[0].layer or parametric or not any(data[1:])):
            return self._keep(function, tensors, flows, out)
        if function in functions.FLATTEN:
            return self._reshape(tensors[0], flows[0], out)
        return self._mix(function, tensors, data, out)

    def _read(self, data: list[Flow], tensors: list[Tensor], flows: list[Flow]) -> None:
        for flow in data:
            self.hidden |= flow.carries
        self.outside.read(tensors, [flow.parameter for flow in flows], is_first=not self.layers)

    def _layer(self, function: Callable, args: tuple, kwargs: dict[str, Any], out: Tensor) -> Flow:
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        x, weight, bias = given["input"], given["weight"], given.get("bias")
        flow = self.flow(x)
        groups = kwargs.get("groups", args[6] if len(args) > 6 and function in functions.CONVOLUTIONS else 1)
        if flow.layer is not None:
            self._connect(flow, weight, function, groups)
        layer = Layer(weight, bias, function in functions.TRANSPOSED, groups)
        self.layers.append(layer)
        return Flow(layer, channels_first=function not in functions.LINEAR and out.dim() > 2)

    def _multiplied(self, x: Tensor, weight: Tensor) -> Flow:
        """`x @ weight`: a linear layer as somebody writes it, its weight the other way round."""
        flow = self.flow(x)
        if flow.layer is not None:
            self._connect(flow, weight.detach().t(), F.linear, 1)
        layer = Layer(weight, None, True, 1)
        self.layers.append(layer)
        return Flow(layer)

    def _recurrent(
        self, args: tuple, tensors: list[Tensor], flows: list[Flow], results: list[Tensor]
    ) -> list[Flow] | None:
        """Flows after a recurrent net of any depth. Its units are read by the next step of their own layer, those of
        all layers but the last by the layer above; `None` for one with projections."""
        packed = isinstance(args[3], list)
        weights, biased, depth, _, _, both_ways = args[3:9] if packed else args[2:8]
        each, ways = (4 if biased else 2), (2 if both_ways else 1)
        units = weights[1].shape[1]
        if len(weights) != each * ways * depth or len(weights[0]) != len(weights[1]):
            return None
        self._read([flow for flow in flows if not flow.parameter], tensors, flows)
        found = [self._cells(weights[at : at + each]) for at in range(0, len(weights), each)]
        for above in range(ways, len(found)):
            for way in range(ways):
                below, columns = found[(above // ways - 1) * ways + way], slice(way * units, (way + 1) * units)
                below.readers.append((found[above].weight.detach()[:, columns], 1))
        source = flows[0]
        for first in found[:ways] if source.layer else []:
            self._connect(source, first.weight, F.linear, 1)
        carries = frozenset().union(*(flow.carries for flow in flows))
        if ways > 1:  # the two directions' units lie side by side
            for last in found[-ways:]:
                last.escaped = True
            return [Flow(carries=carries)] * len(results)
        return [Flow(found[-1], carries=carries)] * len(results)

    def _cells(self, weights: list[Tensor]) -> Layer:
        """One layer in one direction, from its weights for the input, for the state, and their biases."""
        own, state, *biases = weights
        layer = Layer(own, None, False, 1, gates=len(own) // state.shape[1], recurrent=[state, *biases])
        layer.readers.append((state, 1))
        self.layers.append(layer)
        return layer

    def _is_bias(self, tensors: list[Tensor], flows: list[Flow], data: list[Flow]) -> bool:
        """Whether a parameter with one entry a unit is added; positions, which have one a place, tell units apart."""
        layer = data[0].layer
        if layer is None or len(data) > 1 or data[0].places is not None:
            return False
        return all(t.numel() == width(layer) for t, f in zip(tensors, flows, strict=True) if f.parameter)

    def _biased(self, tensors: list[Tensor], flows: list[Flow], flow: Flow) -> Flow:
        assert flow.layer is not None
        flow.layer.scales += [t for t, f in zip(tensors, flows, strict=True) if f.parameter]
        return replace(flow, fresh=None)

    def _connect(self, flow: Flow, weight: Tensor, function: Callable, groups: int) -> None:
        layer = flow.layer
        assert layer is not None
        readable = function in functions.LINEAR | functions.CONVOLUTIONS and groups == 1
        # a linear layer reads the last dimension: the units only if they are there
        aligned = (function in functions.LINEAR) != flow.channels_first and flow.places is None
        if readable and aligned:
            layer.readers.append((weight, flow.entries))
        else:
            layer.escaped = True

    def _moved(
        self,
        function: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        flows: list[Flow],
        results: list[Tensor],
    ) -> list[Flow] | None:
        """Flows after a call that only moves the units of a linear layer; `None` if it does something else."""
        flow = flows[0] if flows else NOTHING
        plain = flow.layer is not None and not flow.channels_first and flow.entries == 1
        if function not in functions.LAYOUT or len(tensors) != 1 or not args or tensors[0] is not args[0] or not plain:
            return None
        before = places.last(args[0].shape) if flow.places is None else flow.places
        after = places.moved(function, args, kwargs, before)
        if after is None or [each.shape for each in after] != [each.shape for each in results]:
            return None
        return [self._part(flow, each) for each in after]

    def _part(self, flow: Flow, where: Tensor) -> Flow:
        """The flow of a result that may hold only some of the units: these become a layer of their own."""
        whole = flow.layer
        assert whole is not None
        numbers, renumbered = places.units(where)
        if len(numbers) < width(whole):
            part = numbers if whole.part is None else whole.part[numbers]
            layer = Layer(whole.weight, whole.bias, whole.transposed, whole.groups, part=part)
            self.layers.append(layer)
            whole.split = True
            flow, where = replace(flow, layer=layer), renumbered
        return replace(flow, places=None if places.is_last(where) else where)

    def _attend(
        self,
        function: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        data: list[Flow],
        out: Tensor,
    ) -> Flow:
        """Weighted sums over time keep the units of the values; those of queries and keys end in the weights."""
        names = ("query", "key", "value") if function in functions.ATTENTION else ("input", "other")
        value: Tensor = (dict(zip(names, args, strict=False)) | kwargs).get(names[-1], tensors[-1])
        others = [each for each in tensors if each is not value]
        flow = self.flow(value)
        plain = not flow.channels_first and flow.entries == 1 and value.dim() > 1
        if flow.layer is None or not plain or value.dim() != out.dim():
            return self._mix(function, tensors, data, out)
        where = places.last(value.shape) if flow.places is None else flow.places
        groups = places.heads(where)
        if where.stride(-2) != 0 or groups is None:
            return self._mix(function, tensors, data, out)
        flow.layer.groups = flow.layer.heads = groups
        carries = flow.carries | self._mix(function, others, [self.flow(each) for each in others], out).carries
        after = places.of(out.shape, where.stride(), int(where.storage_offset()))
        return replace(flow, carries=carries, fresh=None, places=None if places.is_last(after) else after)

    def _keep(self, function: Callable, tensors: list[Tensor], flows: list[Flow], out: Tensor) -> Flow:
        flow = flows[0]
        if flow.layer and function in functions.NORMS:
            flow.layer.scales += [t for t, f in zip(tensors, flows, strict=True) if f.parameter]
        channels_first = flow.channels_first or (function in functions.PER_CHANNEL and out.dim() > 2)
        return replace(flow, channels_first=channels_first, fresh=None)

    def _product(self, data: list[Flow]) -> Flow:
        """Unit by unit, as in gated linear units: a unit has the weights of both factors, if they are of two layers."""
        self.gates |= {flow.fresh for flow in data if flow.fresh is not None}
        flow = replace(data[0], carries=data[0].carries | data[1].carries, fresh=None)
        factors = [each.layer for each in data if each.layer]
        if factors[0] is factors[1]:
            return flow
        for each in factors:
            each.escaped |= each.is_factor  # of another product already
            each.is_factor = True
        layer = Layer(factors[0].weight, None, False, factors[0].groups, factors=tuple(factors))
        self.layers.append(layer)
        return replace(flow, layer=layer)

    def _halves(
        self,
        function: Callable,
        args: tuple,
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        data: list[Flow],
        out: Tensor,
    ) -> Flow:
        """A gated linear unit as one call: the first half of the units times the sigmoid of the second."""
        (x,), along = tensors, args[1] if len(args) > 1 else kwargs.get("dim", -1)
        halves = self._moved(torch.chunk, (x, 2, along), {}, [x], data, list(x.chunk(2, along)))
        parts = [half for half in halves or () if half.places is None]
        return self._product(parts) if len(parts) == 2 else self._mix(function, tensors, data, out)

    def _reshape(self, x: Tensor, flow: Flow, out: Tensor) -> Flow:
        if x.shape == out.shape:
            return flow
        batch_kept = out.dim() == 2 and x.shape[:1] == out.shape[:1]
        if flow.channels_first and batch_kept and x.dim() > 2:
            return replace(flow, entries=flow.entries * prod(x.shape[2:]), channels_first=False)
        if not flow.channels_first and x.shape[-1:] == out.shape[-1:]:
            return flow
        return self._mix(None, [x], [flow], out)

    def _mix(self, function: Callable | None, tensors: list[Tensor], data: list[Flow], out: Tensor) -> Flow:
        if function in functions.GATING and len(tensors) > 1:
            self.gates |= {flow.fresh for flow in data if flow.fresh is not None}
        for flow in data:
            if flow.layer:
                flow.layer.escaped = True
        channels_first = function not in functions.PERMUTING and any(
            f.channels_first and t.dim() == out.dim() and t.shape[1] == out.shape[1]
            for t, f in zip(tensors, map(self.flow, tensors), strict=True)
        )
        carries = frozenset().union(*(flow.carries for flow in data))
        fresh = data[0].fresh if len(tensors) == 1 else None
        return Flow(None, channels_first=channels_first, carries=carries, fresh=fresh)
