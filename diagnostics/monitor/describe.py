"""What a run says about its model and optimizer: the entries of `run.json` that are known before training."""

import inspect
import math
import platform
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

import diagnostics
from diagnostics.monitor.distributed import is_dtensor


def unwrap(model: nn.Module) -> nn.Module:
    """The module itself, out of a compiled or distributed wrapper; its names are the run's names."""
    inner = getattr(model, "_orig_mod", None)  # torch.compile
    if isinstance(inner, nn.Module):
        return unwrap(inner)
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return unwrap(model.module)
    return model


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside a wrapper that is itself an `Optimizer` (Accelerate, Lightning): its hooks are called; and
    inside one that was never initialized as such (Opacus), and has no hooks."""
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(optimizer, Optimizer) and not has_hooks(optimizer):
        inner = next((each for each in vars(optimizer).values() if isinstance(each, Optimizer)), inner)
    return unwrapped(inner) if isinstance(inner, Optimizer) else optimizer


def checked(caller: str, model: Any, optimizer: Any) -> Optimizer:
    """The optimizer, unwrapped; `TypeError` for what is no module or no optimizer."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"{caller}: model must be a torch.nn.Module, not {type(model).__name__}")
    optimizer = unwrapped(optimizer)
    if not isinstance(optimizer, Optimizer):
        held = [name for name, each in getattr(optimizer, "__dict__", {}).items() if isinstance(each, Optimizer)]
        hint = f"; pass the one that it holds, .{held[0]}" if held else ""
        kind = f"{type(optimizer).__module__}.{type(optimizer).__qualname__}".removeprefix("builtins.")
        raise TypeError(f"{caller}: optimizer must be a torch.optim.Optimizer, not {kind}{hint}")
    return optimizer


def has_hooks(optimizer: Optimizer) -> bool:
    """Not one whose class never called `Optimizer.__init__`."""
    return hasattr(optimizer, "_optimizer_step_pre_hooks")


def own_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Trained ones that a module of the user's holds itself, in a list or dict or not, by name: what those of torch's
    layers are for is known."""
    for path, module in model.named_modules():
        of_torch = type(module).__module__.startswith("torch.nn.")
        if not of_torch or isinstance(module, nn.ParameterList | nn.ParameterDict):
            for name, parameter in module.named_parameters(recurse=False):
                if parameter.requires_grad and not is_lazy(parameter) and parameter.numel():
                    yield f"{path}.{name}".removeprefix("."), parameter


def is_compiled(model: nn.Module) -> bool:
    """Whether any part of the model runs compiled: then its training step must not carry a hook."""
    return any(hasattr(m, "_orig_mod") or m._compiled_call_impl is not None for m in model.modules())


def compiled_frames() -> int:
    """How many functions this process has compiled: a model may run compiled though the module given to us does not
    show it (`compiled = torch.compile(model)` beside `watch(model, ...)`, or a compiled training step)."""
    convert = sys.modules.get("torch._dynamo.convert_frame")
    return 0 if convert is None else getattr(convert, "FRAME_COUNTER", 0)


def named_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Every parameter of the model once, then those that only the optimizer has; of both, those that have a norm."""
    named: dict[str, Tensor] = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    known = {id(parameter) for parameter in named.values()}
    for g, group in enumerate(optimizer.param_groups):
        for i, parameter in enumerate(group["params"]):
            if id(parameter) not in known:
                named[f"optimizer.{g}.{i}"] = parameter
    return {name: parameter for name, parameter in named.items() if _has_norm(parameter)}


def _has_norm(tensor: Tensor) -> bool:
    """Not the codes of quantized weights, nor what is on no device."""
    kind = tensor.dtype
    return not tensor.is_meta and (kind.is_complex or (kind.is_floating_point and kind.itemsize > 1))


def replaced(model: nn.Module, tensors: dict[str, Tensor]) -> bool:
    """Whether one of these parameters of the model is another one by now; FSDP exchanges its own all the time."""
    if any(map(is_dtensor, tensors.values())):
        return False
    now = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    return any(now.get(name, tensor) is not tensor for name, tensor in tensors.items())


def plain_name(name: str) -> str:
    """Without the marks that wrappers of inner modules leave."""
    return (
        name.replace("_orig_mod.", "").replace("_checkpoint_wrapped_module.", "").replace("_fsdp_wrapped_module.", "")
    )


def held_in_evaluation(model: nn.Module, untouched: bool) -> list[str]:
    """Modules in evaluation mode that do something else there: batch norms with running statistics, and dropout.
    `untouched`: only norms whose statistics are still those of no batch at all."""
    held = [(plain_name(name), each) for name, each in unwrap(model).named_modules() if not each.training]
    counts = {name: getattr(each, "num_batches_tracked", None) for name, each in held}
    norms = [name for name, count in counts.items() if count is not None and (not untouched or int(count) == 0)]
    dropouts = [name for name, each in held if isinstance(each, nn.modules.dropout._DropoutNd) and each.p > 0]
    return norms if untouched else norms + dropouts


def layers(model: nn.Module, optimizer: Optimizer) -> list[dict[str, Any]]:
    aliases: dict[int, list[str]] = {}
    for name, parameter in _with_aliases(model):
        aliases.setdefault(id(parameter), []).append(plain_name(name))
    groups = {id(parameter): at for at, group in enumerate(optimizer.param_groups) for parameter in group["params"]}
    modules = {plain_name(name): type(module).__name__ for name, module in model.named_modules()}
    return [
        {
            "name": name,
            "shape": list(parameter.shape),
            "parameters": parameter.numel(),
            "frozen": not parameter.requires_grad,
            "tied": [alias for alias in aliases.get(id(parameter), []) if alias != name],
            "module": modules.get(name.rpartition(".")[0], ""),
            "optimized": id(parameter) in groups,
            "group": groups.get(id(parameter)),
        }
        for name, parameter in named_tensors(model, optimizer).items()
    ]


def _with_aliases(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A tied parameter under each of its names, but of a module that overrides `named_parameters` as it was before
    torch 2.0."""
    if "remove_duplicate" in inspect.signature(model.named_parameters).parameters:
        return model.named_parameters(remove_duplicate=False)
    return model.named_parameters()


def modules(model: nn.Module) -> list[dict[str, str]]:
    return [{"name": plain_name(name), "type": type(module).__name__} for name, module in model.named_modules() if name]


def hyperparameters(optimizer: Optimizer) -> list[dict[str, Any]]:
    return [{k: plain(v) for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def plain(value: Any) -> Any:
    """A value as JSON can hold it; what it cannot hold becomes its text."""
    if isinstance(value, Tensor):
        return value.tolist() if value.numel() <= 16 else f"tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__, "diagnostics": diagnostics.__version__}


def is_activation(module: nn.Module) -> bool:
    """A module that is nothing but one activation function, so that the call is known by the module's name."""
    return type(module).__module__ == nn.ReLU.__module__ and not isinstance(module, nn.MultiheadAttention)
