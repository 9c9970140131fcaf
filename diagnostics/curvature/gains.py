"""The terms of an optimizer that is not in the table, measured: feed a copy an alternating and a constant gradient.

The copy stands at the present weights, in float64, and goes back to them after each step: what an update takes from
their size (Adafactor) is in the gain, what it does to them without a gradient (weight decay) is not. State tensors that
react alike to +g and -g (second moments, counters) are the preconditioner and are held fixed; the others (momentum)
start at zero. Random signs make a gradient that no projection removes.

An optimizer whose update is not proportional to the gradient, coordinate by coordinate, has no linear gain and no
stability ratio: sign updates, normalized (LARS, LAMB) and clipped ones, projections (gradient centralization).
"""

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from diagnostics.curvature.errors import CurvatureError
from diagnostics.curvature.layout import local
from diagnostics.curvature.stability import Number, Terms, plain

SIZE = 1e-3  # of the typical gradient: small, so that feeding it barely moves the second moments
AGREE = 1e-3  # of a measured number
AS_LARGE = 4.0  # by so much may a gradient as large as the present one be answered less: it moves the second moments


def measured_terms(optimizer: Optimizer, learning_rates: Sequence[float], gradients: Sequence[Tensor]) -> list[Terms]:
    """One entry for each trainable parameter, at the present `gradients`. Memory: a dozen copies of the state."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise CurvatureError("LBFGS chooses the length of each step by a line search or from the last ones")
    copied = _Copy(optimizer, learning_rates, gradients)
    alternating, constant = copied.response(-1.0), copied.response(1.0)
    doubled = copied.response(-1.0, scale=2.0, seed=1)
    name = type(optimizer).__name__
    for single, double, steady, gradient in zip(alternating, doubled, constant, gradients, strict=True):
        off = _off(single, double)
        unseen = off & (gradient == 0).to(off.device)  # a second moment of 0 answers any gradient with the same step
        if bool((off & ~unseen).any()):
            raise CurvatureError(f"{name}'s update is not proportional to the gradient, coordinate by coordinate")
        for each in (single, steady):
            each.masked_fill_(unseen, 0.0)
    if not any(bool((single > 0).any()) for single in alternating):
        raise CurvatureError(f"{name} does not answer an alternating gradient")
    if any(float(c.sum()) < 0 < float(a.sum()) for a, c in zip(alternating, constant, strict=True)):
        raise CurvatureError(f"{name} goes up a gradient that stays the same, so that no rate of it is stable")
    if not copied.as_large(optimizer, gradients):
        raise CurvatureError(f"{name}'s update is not proportional to a gradient as large as the present one")
    groups = [
        (float(rate), -1.0 if group.get("maximize") else 1.0)
        for group, rate in zip(optimizer.param_groups, learning_rates, strict=True)
        for p in group["params"]
        if p.requires_grad
    ]
    rates, signs = zip(*groups, strict=True)
    return _terms(rates, signs, alternating, constant, gradients)


def _off(single: Tensor, double: Tensor) -> Tensor:
    """Where twice the gradient is not answered by twice the step."""
    if not single.numel():
        return torch.zeros_like(single, dtype=torch.bool)
    return ~torch.isclose(double, single, rtol=2e-2, atol=1e-6 * float(single.abs().max()))


def _terms(
    rates: Sequence[float],
    signs: Sequence[float],
    alternating: Sequence[Tensor],
    constant: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> list[Terms]:
    """As rate and gain, if each tensor's is one number; else all as rate, F(-1) and preconditioner, with F(1) = 1. At
    which s updates turn anti-correlated is not measured."""
    ratios = _agreed([_over(a.abs().sum(), c.abs().sum()) for a, c in zip(alternating, constant, strict=True)])
    if all(map(_is_one_number, constant)):
        gains = _agreed([_over(_mean(c), rate) for c, rate in zip(constant, rates, strict=True)])
        numbers = zip(rates, ratios, gains, signs, strict=True)
        return [Terms(rate, f * gain, gain, oscillation=math.nan, sign=sign) for rate, f, gain, sign in numbers]
    return [
        Terms(rate, f, 1.0, _preconditioner(rate, c, g), oscillation=math.nan, sign=sign)
        for rate, f, c, g, sign in zip(rates, ratios, constant, gradients, signs, strict=True)
    ]


def _preconditioner(rate: float, constant: Tensor, gradient: Tensor) -> Number:
    if not bool((constant > 0).any()):  # never seen
        return math.inf
    found = (rate / constant).masked_fill(constant <= 0, math.inf)
    return found.to(gradient.device, torch.promote_types(gradient.dtype, torch.float32))


def _is_one_number(constant: Tensor) -> bool:
    if not bool(constant.any()):  # at rate 0, or without entries
        return True
    return float(constant.max() - constant.min()) < AGREE * float(constant.abs().max())


def _mean(constant: Tensor) -> float:
    return float(constant.mean()) if constant.numel() else 0.0


def _over(a: Tensor | float, b: Tensor | float) -> float:
    return float(a) / float(b) if float(b) else 0.0


def _agreed(values: list[float]) -> list[float]:
    """One number for all that is known where the measurement cannot tell them apart."""
    known = [value for value in values if value]
    if not known or max(known) - min(known) > AGREE * max(map(abs, known)):
        return values
    return [sum(known) / len(known)] * len(values)


class _Copy:
    """The optimizer over a copy of its parameters, with its own copy of the state."""

    def __init__(self, optimizer: Optimizer, learning_rates: Sequence[float], gradients: Sequence[Tensor]):
        everything = [p for group in optimizer.param_groups for p in group["params"]]
        memo: dict[int, Any] = {id(p): _precise(p.detach()).requires_grad_(p.requires_grad) for p in everything}
        self.parameters = [memo[id(p)] for p in everything if p.requires_grad]
        fields = {k: v for k, v in vars(optimizer).items() if "hook" not in k and k != "step"}
        self.optimizer = object.__new__(type(optimizer))
        vars(self.optimizer).update(copy.deepcopy(fields, memo))
        vars(self.optimizer).update({k: type(v)() for k, v in vars(optimizer).items() if "hook" in k})
        groups = zip(self.optimizer.param_groups, optimizer.param_groups, learning_rates, strict=True)
        for group, own, rate in groups:
            _settle(group, own["params"], rate)
        self.sizes = _sizes(gradients)
        self.before = {key: _precise(value) for key, value in self._snapshot().items()}
        self.weights = [torch.zeros_like(p) for p in self.parameters]  # weight decay has no part in what is held
        self.held = self._held()
        self.weights = [_precise(p.detach()) for p in everything if p.requires_grad]
        still = self._step(self._start(), [torch.zeros_like(p) for p in self.parameters])
        self.drifts = any(bool((update != 0).any()) for update in still)

    def response(self, sign: float, scale: float = 1.0, seed: int = 0) -> list[Tensor]:
        """Update / gradient once g, sign g, g, ... has been fed for long: the limit of a geometric approach."""
        probes, states = self._probes(self.sizes, seed), self._pair()
        factor, sums = scale, []
        for _ in range(500):
            responses = self._answer(states, [factor * probe for probe in probes])
            sums.append(sum(float(r.abs().sum()) for r in responses))
            limit = _limit(sums)
            if limit is not None:
                return [r * (limit / sums[-1]) if sums[-1] else r for r in responses]
            factor *= sign
        raise CurvatureError(f"{type(self.optimizer).__name__}'s response to a steady gradient does not settle")

    def as_large(self, optimizer: Optimizer, gradients: Sequence[Tensor]) -> bool:
        """Whether one step answers a gradient of the present size as it answers a small one: each tensor is as long."""
        adapts = any(isinstance(value, Tensor) and value.numel() > 1 for value in self.held.values())
        least = 1 / AS_LARGE if adapts else 0.98
        if adapts:  # to what it got
            own = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
            gradients = [_shorter(p.grad, g) for p, g in zip(own, gradients, strict=True)]
        sizes = [_precise(g.detach()).abs() for g in gradients]
        probes = self._probes(sizes, seed=2)
        large = self._answer(self._pair(), probes)
        small = self._answer(self._pair(), [SIZE * probe for probe in probes])
        totals = [(float(a.nansum()), float(b.nansum())) for a, b in zip(large, small, strict=True)]
        return all(least * b <= a <= b / least for a, b in totals)

    def _pair(self) -> list[defaultdict]:
        """Two states to begin from if weights move without a gradient: what is not odd in the gradient cancels."""
        return [self._start() for _ in range(2 if self.drifts else 1)]

    def _answer(self, states: Sequence[defaultdict], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Minus update / gradient."""
        updates = self._step(states[0], gradients)
        if len(states) > 1:
            back = self._step(states[1], [-g for g in gradients])
            updates = [(a - b) / 2 for a, b in zip(updates, back, strict=True)]
        return [-update / g for update, g in zip(updates, gradients, strict=True)]

    def _step(self, state: defaultdict, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The update; then weights and what is held are as before.

        Without what torch wraps round `step`: hooks for all optimizers are meant for updates of the model.
        """
        self.optimizer.state = state
        with torch.no_grad():
            for p, gradient in zip(self.parameters, gradients, strict=True):
                p.grad = gradient.clone()  # some optimizers write to it
            try:
                plain(type(self.optimizer).step)(self.optimizer)
            except Exception as error:  # as where it evaluates a closure to find its direction
                name = type(self.optimizer).__name__
                raise CurvatureError(f"{name} could not be stepped with gradients alone: {error}") from error
            updates = [p - weight for p, weight in zip(self.parameters, self.weights, strict=True)]
            for p, weight in zip(self.parameters, self.weights, strict=True):
                p.copy_(weight)
        for (i, name), value in self.held.items():
            state[self.parameters[i]][name] = copy.deepcopy(value)
        return [update.detach() for update in updates]

    def _start(self) -> defaultdict:
        """What is held, and no momentum."""
        return self._state({k: torch.zeros_like(v) if self._is_momentum(k, v) else v for k, v in self.before.items()})

    def _is_momentum(self, key: tuple[int, str], value: Any) -> bool:
        return isinstance(value, Tensor) and key not in self.held

    def _held(self) -> dict[tuple[int, str], Any]:
        """The values of what reacts alike to both signs, as they are now; momentum is not in it."""
        self.held, sides = {}, []
        for p in self.parameters:
            p.detach().zero_()
        for sign in (1.0, -1.0):
            self._step(self._state(self.before), [sign * probe for probe in self._probes(self.sizes, seed=0)])
            sides.append(self._snapshot())
        return {key: value for key, value in self.before.items() if _same(sides[0].get(key), sides[1].get(key))}

    def _probes(self, sizes: Sequence[Tensor | float], seed: int) -> list[Tensor]:
        """Of these sizes and random signs, one tensor a parameter."""
        generator, probes = torch.Generator().manual_seed(seed), []
        for p, size in zip(self.parameters, sizes, strict=True):
            probe = torch.ones_like(p, requires_grad=False)
            signs = torch.randint(0, 2, local(probe).shape, generator=generator, dtype=torch.int8)
            local(probe).copy_((2 * signs - 1).to(local(probe).device) * size)
            probes.append(probe)
        return probes

    def _snapshot(self) -> dict[tuple[int, str], Any]:
        states = ((i, self.optimizer.state.get(p, {})) for i, p in enumerate(self.parameters))
        return {(i, name): copy.deepcopy(value) for i, state in states for name, value in state.items()}

    def _state(self, snapshot: dict[tuple[int, str], Any]) -> defaultdict:
        state = defaultdict(dict)
        for (i, name), value in snapshot.items():
            state[self.parameters[i]][name] = copy.deepcopy(value)
        return state


def _precise(value: Any) -> Any:
    """A copy in float64, also of what a list or a dict holds: a small update is no rounding of the weights."""
    if isinstance(value, Tensor):
        real = torch.complex128 if value.is_complex() else torch.float64
        dtype = real if value.is_complex() or value.is_floating_point() else value.dtype
        return value.to("cpu" if value.device.type == "mps" else value.device, dtype, copy=True)
    if isinstance(value, dict):
        return {k: _precise(v) for k, v in value.items()}
    return type(value)(map(_precise, value)) if type(value) in (list, tuple) else copy.deepcopy(value)


def _shorter(received: Tensor | None, gradient: Tensor) -> Tensor:
    """Clipping shortens a gradient; a scaler lengthens it, and zeroed it tells nothing."""
    if received is None or received.is_sparse:
        return gradient
    shard = local(received)
    return shard if 0 < float(shard.norm()) < float(gradient.norm()) else gradient


def _settle(group: dict[str, Any], weights: Sequence[Tensor], rate: float) -> None:
    """No weight decay, and downhill; the rate of the update just made, which a scheduler may have changed since; and
    Adafactor's first epsilon, unless given, is that of the weights' own type."""
    for name, neutral in (("weight_decay", 0.0), ("maximize", False)):
        if name in group:
            group[name] = neutral
    if group.get("lr") is not None:
        group["lr"] = torch.full_like(group["lr"], rate) if isinstance(group["lr"], Tensor) else float(rate)
    epsilons = group.get("eps")
    if isinstance(epsilons, tuple) and None in epsilons:
        own = torch.finfo(weights[0].dtype).eps
        group["eps"] = tuple(own if epsilon is None else epsilon for epsilon in epsilons)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-6, atol=0, equal_nan=True)
    return type(a) is type(b) and a == b


def _sizes(gradients: Sequence[Tensor]) -> list[float]:
    typical = [float(g.square().mean().sqrt()) if g.numel() else 0.0 for g in gradients]
    largest = max(typical) or 1.0
    return [SIZE * (size or largest) for size in typical]


def _limit(sums: Sequence[float]) -> float | None:
    """Aitken's limit of a sequence that approaches it geometrically, once two successive limits agree."""
    if len(sums) < 8:
        return None
    now, before = _aitken(sums[-3:]), _aitken(sums[-4:-1])
    return now if abs(now - before) <= 1e-4 * abs(now) else None


def _aitken(values: Sequence[float]) -> float:
    a, b, c = values
    curvature = c - 2 * b + a
    return c if abs(curvature) <= 1e-6 * abs(c) else c - (c - b) ** 2 / curvature
