"""What is done to a model before training and to single batches during it: the planted faults, one function each.

`MODEL[name](model, x, y, **options)` edits the model in place; `BATCH[name](**options)` gives (update, x, y) -> (x, y).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


def layers(model: nn.Module, only: tuple[str, ...] | None = None) -> list[nn.Module]:
    """Linear and convolutional layers in order; `only` names some of them."""
    chosen = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    return [m for n, m in chosen if only is None or n in only]


def constant(model: nn.Module, x: Tensor, y: Tensor, value: float, only: tuple[str, ...] | None = None) -> None:
    """Every weight the same; biases zero."""
    for layer in layers(model, only):
        layer.weight.fill_(value)
        if layer.bias is not None:
            layer.bias.zero_()


def near_constant(model: nn.Module, x: Tensor, y: Tensor, value: float, noise: float) -> None:
    """Every weight the same up to a relative noise; biases zero."""
    constant(model, x, y, value)
    for layer in layers(model):
        layer.weight.mul_(1 + noise * torch.randn_like(layer.weight))


def same_incoming(model: nn.Module, x: Tensor, y: Tensor, only: tuple[str, ...]) -> None:
    """Identical incoming weights; outgoing ones stay random, so that the units move apart."""
    for layer in layers(model, only):
        layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))
        layer.bias.copy_(layer.bias[:1].expand_as(layer.bias))


def clone(
    model: nn.Module, x: Tensor, y: Tensor, incoming: str, outgoing: str, copies: int, noise: float = 0.0
) -> None:
    """The first `copies` units of a layer become one unit repeated, incoming and outgoing weights alike.

    The outgoing weights are divided by the number of copies, so that the layer's output keeps its size.
    """
    first, second = model.get_submodule(incoming), model.get_submodule(outgoing)
    spread = 1 + noise * torch.randn(copies, *(1,) * (first.weight.dim() - 1))
    first.weight[:copies] = first.weight[0] * spread
    first.bias[:copies] = first.bias[0]
    per_unit = second.weight.shape[1] // first.weight.shape[0]  # > 1 where a flattened map feeds a linear layer
    fan = second.weight.unflatten(1, (-1, per_unit))
    fan[:, :copies] = fan[:, :1].clone()


def gain(model: nn.Module, x: Tensor, y: Tensor, factor: float, only: tuple[str, ...] | None = None) -> None:
    for layer in layers(model, only):
        layer.weight.mul_(factor)


def orthogonal(model: nn.Module, x: Tensor, y: Tensor, factor: float) -> None:
    for layer in layers(model):
        nn.init.orthogonal_(layer.weight, factor)


def xavier(model: nn.Module, x: Tensor, y: Tensor, factor: float = 1.0) -> None:
    for layer in layers(model):
        nn.init.xavier_normal_(layer.weight, factor)
        if layer.bias is not None:
            layer.bias.zero_()


def bias(model: nn.Module, x: Tensor, y: Tensor, value: float, share: float, only: tuple[str, ...]) -> None:
    """The first `share` of a layer's units get this bias."""
    for layer in layers(model, only):
        layer.bias[: round(share * len(layer.bias))] = value


def negative(model: nn.Module, x: Tensor, y: Tensor, share: float, only: tuple[str, ...], shift: float) -> None:
    """Weights of the first `share` of units made negative; silent on inputs that are all positive (as after a ReLU)."""
    for layer in layers(model, only):
        count = round(share * len(layer.weight))
        layer.weight[:count] = -layer.weight[:count].abs() - shift
        layer.bias[:count] = -layer.bias[:count].abs()


def zero_output(model: nn.Module, x: Tensor, y: Tensor) -> None:
    last = layers(model)[-1]
    last.weight.zero_()
    last.bias.zero_()


def output_bias(model: nn.Module, x: Tensor, y: Tensor, value: float) -> None:
    last = layers(model)[-1]
    last.weight.mul_(0.3)
    last.bias.fill_(value)


def radius(model: nn.Module, x: Tensor, y: Tensor, value: float) -> None:
    """The recurrent matrix scaled to this spectral radius."""
    weight = model.recur.weight
    nn.init.normal_(weight)
    weight.mul_(value / torch.linalg.eigvals(weight).abs().max())


def detach(model: nn.Module, x: Tensor, y: Tensor, after: str) -> None:
    """The output of a module is cut off from the graph; what lies before it is never trained."""
    model.get_submodule(after).register_forward_hook(lambda module, args, output: output.detach())


def pretrain(model: nn.Module, x: Tensor, y: Tensor, updates: int = 300) -> None:
    """Cross-entropy training with Adam on the same data, as a converged model to fine-tune."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with torch.enable_grad():
        for _ in range(updates):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    optimizer.zero_grad()


MODEL: dict[str, Callable[..., None]] = {
    f.__name__: f
    for f in (
        constant,
        near_constant,
        same_incoming,
        clone,
        gain,
        orthogonal,
        xavier,
        bias,
        negative,
        zero_output,
        output_bias,
        radius,
        detach,
        pretrain,
    )
}


def apply(injections: tuple[Any, ...], model: nn.Module, x: Tensor, y: Tensor) -> None:
    with torch.no_grad():
        for injection in injections:
            injection.build(MODEL, model, x, y)


Disturbance = Callable[[int, Tensor, Tensor], Batch]


def outlier(at: int, factor: float) -> Disturbance:
    """The inputs of one batch multiplied by a factor."""
    return lambda step, x, y: (x * factor if step == at else x, y)


def poisoned(at: int, value: float, share: float = 0.01, target: bool = False) -> Disturbance:
    """From one update on, the first `share` of the entries of a batch are `value`."""

    def disturb(step: int, x: Tensor, y: Tensor) -> Batch:
        if step < at:
            return x, y
        bad = (y if target else x).clone()
        bad.view(-1)[: max(1, int(share * bad.numel()))] = value
        return (x, bad) if target else (bad, y)

    return disturb


def zeroed(at: int, share: float = 0.05, target: bool = False) -> Disturbance:
    """From one update on, entries that are zero: a logarithm or a division meets them."""
    return poisoned(at, 0.0, share, target)


BATCH: dict[str, Callable[..., Disturbance]] = {
    "none": lambda: lambda step, x, y: (x, y),
    "outlier": outlier,
    "poisoned": poisoned,
    "zeroed": zeroed,
}
