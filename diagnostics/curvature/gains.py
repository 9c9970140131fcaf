"""The terms of an optimizer that is not in the table, measured: feed a copy an alternating and a constant gradient.

State tensors that react alike to +g and -g (second moments, counters) are the preconditioner and are held fixed; the
others (momentum) start at zero. An optimizer whose update is then not proportional to the gradient (sign or
normalized updates) has no linear gain, and no stability ratio.
"""

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from diagnostics.curvature.errors import CurvatureError
from diagnostics.curvature.stability import Terms, plain

SIZE = 1e-3  # of the typical gradient: small, so that feeding it barely moves the second moments


def measured_terms(optimizer: Optimizer, learning_rates: Sequence[float], gradients: Sequence[Tensor]) -> list[Terms]:
    """One entry for each trainable parameter; `gradients` give the typical sizes. Memory: four copies of the state."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise CurvatureError("LBFGS chooses the length of each step by a line search or from the last ones")
    copied = _Copy(optimizer, gradients)
    alternating, constant = copied.response(-1.0), copied.response(1.0)
    doubled = copied.response(-1.0, scale=2.0)
    name = type(optimizer).__name__
    for single, double in zip(alternating, doubled, strict=True):
        if not torch.allclose(double, single, rtol=2e-2, atol=1e-6 * float(single.abs().max())):
            raise CurvatureError(f"{name}'s update is not proportional to the gradient")
    if not any(bool((single > 0).any()) for single in alternating):
        raise CurvatureError(f"{name} does not answer an alternating gradient")
    rates = [
        float(rate)
        for group, rate in zip(optimizer.param_groups, learning_rates, strict=True)
        for p in group["params"]
        if p.requires_grad
    ]
    return [_terms(*pair) for pair in zip(rates, alternating, constant, strict=True)]


def _terms(rate: float, alternating: Tensor, constant: Tensor) -> Terms:
    """As rate, gain and preconditioner, with F(1) = 1 where the preconditioner is not 1."""
    ratio = float(alternating.abs().sum() / constant.abs().sum().clamp_min(1e-30))
    spread = float(constant.max() - constant.min()) / max(float(constant.abs().max()), 1e-30)
    if spread < 1e-3:
        gain = float(constant.mean()) / rate
        return Terms(rate, ratio * gain, gain)
    return Terms(rate, ratio, 1.0, (rate / constant).masked_fill(constant <= 0, float("inf")))


class _Copy:
    """The optimizer over other parameters (zeros), with its own copy of the state."""

    def __init__(self, optimizer: Optimizer, gradients: Sequence[Tensor]):
        everything = [p for group in optimizer.param_groups for p in group["params"]]
        memo: dict[int, Any] = {id(p): torch.zeros_like(p, requires_grad=p.requires_grad) for p in everything}
        self.parameters = [memo[id(p)] for p in everything if p.requires_grad]
        fields = {k: v for k, v in vars(optimizer).items() if "hook" not in k and k != "step"}
        self.optimizer = object.__new__(type(optimizer))
        vars(self.optimizer).update(copy.deepcopy(fields, memo))
        vars(self.optimizer).update({k: type(v)() for k, v in vars(optimizer).items() if "hook" in k})
        self.sizes = _sizes(gradients)
        self.held = self._held()

    def response(self, sign: float, scale: float = 1.0) -> list[Tensor]:
        """|update| / |gradient| once g, sign g, g, ... has been fed for long: the limit of a geometric approach."""
        self._restore(momentum=False)
        factor, sums = scale, []
        for _ in range(500):
            updates = self._step(factor)
            responses = [update / (-factor * size) for update, size in zip(updates, self.sizes, strict=True)]
            sums.append(sum(float(r.abs().sum()) for r in responses))
            limit = _limit(sums)
            if limit is not None:
                return [r * (limit / sums[-1]) if sums[-1] else r for r in responses]
            factor *= sign
        raise CurvatureError(f"{type(self.optimizer).__name__}'s response to a steady gradient does not settle")

    def _step(self, factor: float) -> list[Tensor]:
        self._feed(factor)
        self._restore(momentum=True)
        updates = [p.detach().clone() for p in self.parameters]
        for p in self.parameters:
            p.detach().zero_()
        return updates

    @torch.no_grad()
    def _feed(self, factor: float) -> None:
        """One step, without what torch wraps round it: hooks for all optimizers are meant for updates of the model."""
        for p, size in zip(self.parameters, self.sizes, strict=True):
            p.grad = torch.full_like(p, factor * size)
        plain(type(self.optimizer).step)(self.optimizer)

    def _held(self) -> dict[tuple[int, str], Any]:
        """The values of what reacts alike to both signs, as they are now; momentum is not in it."""
        before = self._snapshot()
        self._step_once(1.0)
        ahead = self._snapshot()
        self._load(before)
        self._step_once(-1.0)
        behind = self._snapshot()
        self._load(before)
        return {key: value for key, value in before.items() if _same(ahead.get(key), behind.get(key))}

    def _step_once(self, factor: float) -> None:
        self._feed(factor)
        for p in self.parameters:
            p.detach().zero_()

    def _restore(self, momentum: bool) -> None:
        """Put back what is held; without `momentum`, forget the rest."""
        for i, p in enumerate(self.parameters):
            state = self.optimizer.state.get(p, {})
            for name, value in state.items():
                if (i, name) in self.held:
                    state[name] = copy.deepcopy(self.held[i, name])
                elif isinstance(value, Tensor) and not momentum:
                    state[name] = torch.zeros_like(value)

    def _snapshot(self) -> dict[tuple[int, str], Any]:
        states = ((i, self.optimizer.state.get(p, {})) for i, p in enumerate(self.parameters))
        return {(i, name): copy.deepcopy(value) for i, state in states for name, value in state.items()}

    def _load(self, snapshot: dict[tuple[int, str], Any]) -> None:
        self.optimizer.state = defaultdict(dict)
        for (i, name), value in snapshot.items():
            self.optimizer.state[self.parameters[i]][name] = copy.deepcopy(value)


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
