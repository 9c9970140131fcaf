"""Optimizers by name, learning-rate schedules, and the exact stability limit at the initial weights.

The limit comes from SciPy's eigen-solver (or a dense Hessian) in float64 and the closed forms of each optimizer, not
from the package under test.
"""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

Groups = list[dict]
Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "momentum": lambda groups, lr, momentum=0.9, **rest: torch.optim.SGD(groups, lr, momentum, **rest),
    "nesterov": lambda groups, lr, momentum=0.9: torch.optim.SGD(groups, lr, momentum, nesterov=True),
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "nadam": torch.optim.NAdam,
}


def gain(name: str, momentum: float) -> float:
    """F(-1): what the optimizer makes of an alternating gradient; unstable when lr * lambda * F(-1) > 2."""
    if name == "nesterov":
        return (1 + 2 * momentum) / (1 + momentum)
    return 1 / (1 + momentum)


def sharpness(loss: Loss, model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Largest Hessian eigenvalue of the loss on all data, at these weights, in float64."""
    twin = copy.deepcopy(model).double()
    x, y = (t.double() if t.is_floating_point() else t for t in (x, y))
    weights = [p for p in twin.parameters() if p.requires_grad]
    gradient = parameters_to_vector(torch.autograd.grad(loss(twin, x, y), weights, create_graph=True))

    def product(v: np.ndarray) -> np.ndarray:
        probe = torch.as_tensor(v.ravel(), dtype=torch.float64)
        parts = torch.autograd.grad(gradient @ probe, weights, retain_graph=True, materialize_grads=True)
        return parameters_to_vector(parts).numpy()

    size = gradient.numel()
    if size <= 16:
        return float(np.linalg.eigvalsh(np.stack([product(row) for row in np.eye(size)])).max())
    operator = LinearOperator((size, size), matvec=product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(size)
    return float(eigsh(operator, k=1, which="LA", tol=1e-4, v0=start, return_eigenvectors=False)[0])


def learning_rate(name: str, options: dict, curvature: Callable[[], float]) -> float:
    """`lr` as given, `of_limit` times this optimizer's stability limit, or `of_gd_limit` times gradient descent's."""
    if "of_gd_limit" in options:
        return options["of_gd_limit"] * 2 / curvature()
    if "of_limit" in options:
        momentum = options.get("momentum", 0.0 if name == "sgd" else 0.9)
        return options["of_limit"] * 2 / (gain(name, momentum) * curvature())
    return options["lr"]


SCHEDULES: dict[str, Callable[..., Callable[[int, int], float]]] = {
    "constant": lambda: lambda t, n: 1.0,
    "cosine": lambda: lambda t, n: 0.5 * (1 + math.cos(math.pi * t / n)),
    "warmup": lambda share=0.1: lambda t, n: min(1.0, (t + 1) / (share * n)),
    "restarts": lambda periods=3: lambda t, n: 0.5 * (1 + math.cos(math.pi * (t * periods / n % 1))),
    "decay": lambda start, rate: lambda t, n: rate ** max(0, t - start),
    "jump": lambda at, factor: lambda t, n: factor if t >= at else 1.0,
    "spike": lambda at, factor, length=1: lambda t, n: factor if at <= t < at + length else 1.0,
    "growth": lambda rate, start=0: lambda t, n: rate ** max(0, t - start),
    "step": lambda share=0.7, factor=0.1: lambda t, n: factor if t >= share * n else 1.0,
}


def groups(model: nn.Module, left_out: tuple[str, ...], lr: float, split: float) -> Groups:
    """Parameters by group; `split` gives biases that multiple of the learning rate and no weight decay."""
    named = [
        (name, p)
        for name, p in model.named_parameters()
        if p.requires_grad and not name.startswith(left_out or ("\0",))
    ]
    if split == 1:
        return [{"params": [p for _, p in named]}]
    matrices, vectors = ([p for _, p in named if (p.dim() > 1) is wide] for wide in (True, False))
    return [{"params": matrices}, {"params": vectors, "lr": lr * split, "weight_decay": 0.0}]


def build(
    name: str, options: dict, model: nn.Module, left_out: tuple[str, ...], curvature: Callable[[], float]
) -> torch.optim.Optimizer:
    lr = learning_rate(name, options, curvature)
    rest = {k: v for k, v in options.items() if k not in ("lr", "of_limit", "of_gd_limit", "split")}
    return OPTIMIZERS[name](groups(model, left_out, lr, options.get("split", 1)), lr=lr, **rest)
