"""What will and will not be observed of a model, and why: said before training, and kept in the run.

Judged from what the model and optimizer are; what only shows in a forward (functions used as activations, custom
operations) is said to be so.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from diagnostics.curvature.stability import known_as
from diagnostics.monitor import describe
from diagnostics.monitor.distributed import is_sharded


@dataclass(frozen=True)
class Observed:
    """One measurement: whether it will be `seen`, and `why`, or what to do for it."""

    what: str
    seen: bool
    why: str

    def __str__(self) -> str:
        return f"{'yes' if self.seen else 'NO ':<4} {self.what}: {self.why}"


@dataclass(frozen=True)
class Checkup:
    """What `doctor` found. Iterate over it, or print it."""

    observed: tuple[Observed, ...]

    def __iter__(self) -> Iterator[Observed]:
        return iter(self.observed)

    def __len__(self) -> int:
        return len(self.observed)

    def __str__(self) -> str:
        return "\n".join(map(str, self.observed))

    def records(self) -> list[dict[str, Any]]:
        return [asdict(item) for item in self.observed]


def doctor(model: nn.Module, optimizer: Optimizer) -> Checkup:
    """What will and will not be observed when `model` is trained by `optimizer` under `watch`, and why."""
    optimizer = describe.checked("doctor", model, optimizer)
    inner = describe.unwrap(model)
    checks = (_tensors, _activations, _attention, _closed_modules, _symmetry, _curvature, _clipping, _processes)
    found = [item for check in checks for item in check(model, inner, optimizer)]
    return Checkup((*found, *_wiring(inner, optimizer)))


Findings = Iterator[Observed]


def _tensors(model: nn.Module, inner: nn.Module, optimizer: Optimizer) -> Findings:
    if not any(True for _ in inner.parameters()):
        yield Observed("gradients, weights, updates", False, "the model has no parameters")
        return
    yield Observed("gradients, weights, updates", True, "read in the optimizer's step hooks, whatever the loop does")
    yield Observed("silent rows of gradients", True, "read from the gradients: needs no hook, works compiled as well")
    sparse = [name for name, module in inner.named_modules() if getattr(module, "sparse", False)]
    if sparse:
        yield Observed("silent rows of sparse embeddings", False, f"{', '.join(sparse)} have sparse gradients")


def _activations(model: nn.Module, inner: nn.Module, optimizer: Optimizer) -> Findings:
    what = "dead and saturated units, input features"
    if describe.is_compiled(model) or describe.compiled_frames():  # which of them the model's are is not known
        why = "in one extra, uncompiled forward through the closure; without a closure nothing is seen, because a hook "
        yield Observed(what, True, why + "would break or change the compiled training step")
    else:
        why = "in one extra forward through the closure on measured updates; without one, in the training forward"
        yield Observed(what, True, why)
    why = "seen by name when Python calls them (F.relu, x.relu_(), x.clamp(min=0), ...); mark gates written by hand "
    yield Observed("activations by function", True, why + "with diagnostics.probe(name, x, kind)")


def _attention(model: nn.Module, inner: nn.Module, optimizer: Optimizer) -> Findings:
    why = "of a few sampled rows, where scaled_dot_product_attention or nn.MultiheadAttention is used; "
    yield Observed("attention entropy and largest logit", True, why + "other attention kernels are not seen")


def _closed_modules(model: nn.Module, inner: nn.Module, optimizer: Optimizer) -> Findings:
    modules = {describe.plain_name(name) or "the model": module for name, module in inner.named_modules()}
    plain = [name for name, module in modules.items() if isinstance(module, nn.RNN)]
    seen = {name for name in plain if modules[name].num_layers == 1}
    closed = (nn.RNNBase, nn.RNNCellBase, torch.jit.ScriptModule)
    names = [name for name, module in modules.items() if isinstance(module, closed) and name not in seen]
    if plain:
        yield Observed(f"units of the last layer of {', '.join(plain)}", True, "by their states at all steps")
    if names:
        why = "their gates work inside one compiled call; gradients and weights are recorded as usual"
        yield Observed(f"units inside {', '.join(names)}", False, why)


def _symmetry(model: nn.Module, inner: nn.Module, optimizer: Optimizer) -> Findings:
    if any(is_sharded(parameter) for parameter in inner.parameters()):
        yield Observed("units with equal weights", False, "the weights are sharded, each process holds a part")
    else:
        why = "for hidden layers whose units are read by linear and convolution layers only, as seen in a forward"
        yield Observed("units with equal weights", True, why)


def _curvature(model: nn.Module, inner: nn.Module, optimizer: Optimizer) -> Findings:
    sharded = any(is_sharded(parameter) for parameter in inner.parameters())
    how = "by differences of gradients, because the weights are sharded" if sharded else "by double backward"
    yield Observed("curvature", True, f"needs a closure; {how}, in eager mode, with this batch's random numbers")
    name = type(optimizer).__name__
    if known_as(optimizer):
        yield Observed("stability ratio", True, f"from curvature and the update rule of {name}")
    else:
        yield Observed(
            "stability ratio", True, f"{name} is not in the table: its gain is measured on a copy if it can be"
        )


def _clipping(model: nn.Module, inner: nn.Module, optimizer: Optimizer) -> Findings:
    from diagnostics.monitor.sentinel import CALLS_BACK

    if CALLS_BACK:
        yield Observed("gradient norm before clipping", True, "read at the end of each backward pass")
    else:
        yield Observed(
            "gradient norm before clipping", False, "this torch has no callback at the end of a backward pass"
        )
    why = "from backward passes without an update; give watch(scaler=...) so that norms before clipping are unscaled"
    yield Observed("steps skipped by a gradient scaler", True, why)


def _processes(model: nn.Module, inner: nn.Module, optimizer: Optimizer) -> Findings:
    if isinstance(model, nn.parallel.DistributedDataParallel) or any(map(is_sharded, inner.parameters())):
        why = (
            "call watch on every process; rank 0 writes. Loss and input features are rank 0's own, gradients the whole"
        )
        yield Observed("all processes together", True, why)


def _wiring(inner: nn.Module, optimizer: Optimizer) -> Findings:
    layers = describe.layers(inner, optimizer)
    frozen = [layer["name"] for layer in layers if layer["frozen"]]
    outside = [layer["name"] for layer in layers if not layer["optimized"] and not layer["frozen"]]
    foreign = [layer["name"] for layer in layers if layer["name"].startswith("optimizer.")]
    if frozen:
        yield Observed(f"gradients of {_few(frozen)}", False, "frozen: requires_grad is False")
    if outside:
        why = "trainable, but not in this optimizer: add them, freeze them, or watch their own optimizer as well"
        yield Observed(f"updates of {_few(outside)}", False, why)
    if foreign:
        why = "in the optimizer, but no parameters of this model: was the model copied or a layer replaced afterwards?"
        yield Observed(f"the layers of {_few(foreign)}", False, why)


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
