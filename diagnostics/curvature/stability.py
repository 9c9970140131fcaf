"""From an optimizer's state to its stability limit.

With its preconditioner P frozen, an optimizer is a linear filter on the gradient, x' = x - eta P^-1 F(z) g. On positive
curvature the mode that goes unstable first alternates (z = -1), so updates grow exactly when

    s = lambda_max(R^1/2 (H + W) R^1/2) > 1,    R_i = eta_i F_i(-1) / (2 P_i),

W the coupled weight decay. This holds for parameter groups of different rate, momentum and kind. F(1) is the gain for a
constant gradient. Sources: Cohen et al., arXiv 2103.00065 and 2207.14484; the other rows follow from the update rules
of torch.optim and are tested against them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, optim

from diagnostics.curvature.layout import local

Number = float | Tensor


@dataclass(frozen=True)
class Terms:
    """How one parameter tensor is updated; tensors have its shape."""

    rate: float  # eta of the update just made
    alternating: float  # F(-1)
    constant: float  # F(1)
    preconditioner: Number = 1.0  # P; inf where the optimizer has never seen a gradient and does not move
    coupled: float = 0.0  # weight decay that enters the gradient
    decoupled: float = 0.0  # weight decay that shrinks the weights directly
    oscillation: float = 0.5  # s at which successive updates along the steepest direction turn anti-correlated
    sign: float = 1.0  # -1 where the optimizer maximizes

    @property
    def response(self) -> Number:
        """R: half the change of the weight per unit of an alternating gradient."""
        return self.rate * self.alternating / ((2 - self.rate * self.decoupled) * self.preconditioner)

    @property
    def progress(self) -> Number:
        """eta F(1) / P: the change of the weight per unit of a constant gradient."""
        return self.rate * self.constant / self.preconditioner

    def given(self, times: float) -> "Terms":
        """Where the optimizer is given so many times the loss's gradient: all of it is per unit of the latter."""
        kept = {"coupled": self.coupled / times, "decoupled": self.decoupled / times}
        return self if times == 1 else replace(self, rate=self.rate * times, **kept)


def stability_terms(optimizer: optim.Optimizer, learning_rates: Sequence[float]) -> list[Terms]:
    """One entry for each trainable parameter, in the order of the groups; KeyError if not in FORMULAS."""
    kind = known_as(optimizer)
    if kind is None:
        raise KeyError(type(optimizer).__name__)
    formula = FORMULAS[kind]
    return [
        formula(group, optimizer.state.get(p, {}), float(rate))
        for group, rate in zip(optimizer.param_groups, learning_rates, strict=True)
        for p in group["params"]
        if p.requires_grad
    ]


def known_as(optimizer: optim.Optimizer) -> type[optim.Optimizer] | None:
    """The class of the table whose `step` this optimizer runs: a subclass with its own `step` is another optimizer."""
    step = plain(type(optimizer).step)
    return next((kind for kind in FORMULAS if plain(kind.step) is step), None)


def plain(function: Any) -> Any:
    """The function below the wrappers that torch puts around `step`."""
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


Group = Mapping[str, Any]
State = Mapping[str, Any]


def _sgd(group: Group, state: State, rate: float) -> Terms:
    mu = float(group["momentum"])
    common = {"coupled": float(group["weight_decay"]), "sign": _sign(group)}
    if group["nesterov"]:
        return Terms(rate, (1 + 2 * mu) / (1 + mu), _terminal(mu), oscillation=(1 + 2 * mu) / (2 * (1 + mu)), **common)
    kept = 1 - float(group["dampening"]) if mu else 1.0
    return Terms(rate, kept / (1 + mu), kept * _terminal(mu), **common)


def _terminal(mu: float) -> float:
    """Velocity under a constant gradient over the rate; without bound where nothing is forgotten."""
    return 1 / (1 - mu) if mu < 1 else float("inf")


def _adam(group: Group, state: State, rate: float) -> Terms:
    beta = float(group["betas"][0])
    return Terms(rate, (1 - beta) / (1 + beta), 1.0, _adam_denominator(group, state), **_decays(group))


def _adam_denominator(group: Group, state: State, corrected_first: bool = True) -> Number:
    """(1 - beta1^t) (sqrt(v / (1 - beta2^t)) + eps), the first factor for optimizers that divide m by it."""
    if "exp_avg_sq" not in state:
        return float("inf")
    second = _moment(state, "max_exp_avg_sq" if "max_exp_avg_sq" in state else "exp_avg_sq")
    t, (beta1, beta2) = float(state["step"]), map(float, group["betas"])
    first = 1 - beta1**t if corrected_first else 1.0
    return _moving(second, first * ((second / (1 - beta2**t)).sqrt() + group["eps"]))


def _nadam(group: Group, state: State, rate: float) -> Terms:
    """Nesterov's form with a momentum schedule: a direct share of the gradient beside the one through m."""
    beta, denominator = float(group["betas"][0]), _adam_denominator(group, state, corrected_first=False)
    if "mu_product" not in state:
        return Terms(rate, 0.0, 1.0, denominator)
    t, product = float(state["step"]), float(state["mu_product"])
    mu, following = (beta * (1 - 0.5 * 0.96 ** (k * group["momentum_decay"])) for k in (t, t + 1))
    direct, through = (1 - mu) / (1 - product), following / (1 - product * following)
    alternating = direct + through * (1 - beta) / (1 + beta)
    oscillation = (1 + 2 * beta) / (2 * (1 + beta))
    return Terms(rate, alternating, direct + through, denominator, oscillation=oscillation, **_decays(group))


def _radam(group: Group, state: State, rate: float) -> Terms:
    beta1, beta2 = map(float, group["betas"])
    common = {"alternating": (1 - beta1) / (1 + beta1), "constant": 1.0, **_decays(group)}
    if "exp_avg_sq" not in state:
        return Terms(rate, preconditioner=float("inf"), **common)
    t, second = float(state["step"]), _moment(state, "exp_avg_sq")
    limit = 2 / (1 - beta2) - 1
    rho = limit - 2 * t * beta2**t / (1 - beta2**t)
    if rho <= 5:  # too few steps: plain momentum
        return Terms(rate, preconditioner=1 - beta1**t, **common)
    rectified = ((rho - 4) * (rho - 2) * limit / ((limit - 4) * (limit - 2) * rho)) ** 0.5
    scale = (1 - beta1**t) / ((1 - beta2**t) ** 0.5 * rectified)
    return Terms(rate, preconditioner=_moving(second, scale * (second.sqrt() + group["eps"])), **common)


def _adamax(group: Group, state: State, rate: float) -> Terms:
    beta = float(group["betas"][0])
    denominator: Number = float("inf")
    if "exp_inf" in state:  # which includes eps
        largest = _moment(state, "exp_inf")
        denominator = _moving(largest > group["eps"], (1 - beta ** float(state["step"])) * largest)
    return Terms(rate, (1 - beta) / (1 + beta), 1.0, denominator, **_decays(group))


def _sparse_adam(group: Group, state: State, rate: float) -> Terms:
    beta1, beta2 = map(float, group["betas"])
    denominator: Number = float("inf")
    if "exp_avg_sq" in state:
        t, second = float(state["step"]), _moment(state, "exp_avg_sq")
        scale = (1 - beta1**t) / (1 - beta2**t) ** 0.5
        denominator = _moving(second, scale * (second.sqrt() + group["eps"]))
    return Terms(rate, (1 - beta1) / (1 + beta1), 1.0, denominator, sign=_sign(group))


def _rmsprop(group: Group, state: State, rate: float) -> Terms:
    mu, denominator = float(group["momentum"]), float("inf")
    if "square_avg" in state:
        second = _moment(state, "square_avg")
        centred = (second - _moment(state, "grad_avg") ** 2).clamp_min(0) if group["centered"] else second
        denominator = _moving(second, centred.sqrt() + group["eps"])
    return Terms(rate, 1 / (1 + mu), _terminal(mu), denominator, **_decays(group))


def _adagrad(group: Group, state: State, rate: float) -> Terms:
    if "sum" not in state:
        return Terms(rate, 1.0, 1.0, float("inf"))
    second = _moment(state, "sum")
    decayed = rate / (1 + (float(state["step"]) - 1) * group["lr_decay"])
    return Terms(decayed, 1.0, 1.0, _moving(second, second.sqrt() + group["eps"]), **_decays(group))


def _adadelta(group: Group, state: State, rate: float) -> Terms:
    denominator: Number = float("inf")
    if "square_avg" in state:
        second = _moment(state, "square_avg")
        denominator = _moving(second, ((second + group["eps"]) / (_moment(state, "acc_delta") + group["eps"])).sqrt())
    return Terms(rate, 1.0, 1.0, denominator, **_decays(group))


def _moment(state: State, name: str) -> Tensor:
    """A state tensor; of complex weights, which torch treats as pairs, the pairs. Of sharded ones the local shard."""
    value = local(state[name])
    return torch.view_as_real(value) if value.is_complex() else value


def _moving(second: Tensor, denominator: Tensor) -> Tensor:
    """Coordinates whose gradient has been exactly zero so far (unused embedding rows) do not move: P = inf, not eps."""
    return denominator.masked_fill(second == 0, float("inf"))


def _sign(group: Group) -> float:
    return -1.0 if group.get("maximize") else 1.0


def _decays(group: Group) -> dict[str, float]:
    kind = "decoupled" if group.get("decoupled_weight_decay") else "coupled"
    return {kind: float(group.get("weight_decay", 0.0)), "sign": _sign(group)}


FORMULAS: dict[type[optim.Optimizer], Callable[[Group, State, float], Terms]] = {
    optim.SGD: _sgd,
    optim.Adam: _adam,
    optim.AdamW: _adam,
    optim.NAdam: _nadam,
    optim.RAdam: _radam,
    optim.Adamax: _adamax,
    optim.SparseAdam: _sparse_adam,
    optim.RMSprop: _rmsprop,
    optim.Adagrad: _adagrad,
    optim.Adadelta: _adadelta,
}
