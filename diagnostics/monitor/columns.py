"""What a measured update tells of each parameter tensor, beside its norms, and what the optimizer counts."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from diagnostics import stats
from diagnostics.monitor import distributed
from diagnostics.monitor.distributed import local


def of_gradients(
    names: dict[str, Tensor], gradients: list[Tensor | None], squares: Tensor, together: bool
) -> dict[str, Tensor]:
    missing = distributed.constant(tuple(g is None for g in gradients), squares.device)
    trained = distributed.constant(tuple(t.requires_grad for t in names.values()), squares.device)
    nan = torch.full((), torch.nan, device=squares.device)
    return {
        "grad_norm": torch.where(missing, nan, squares.sqrt()),
        "silent_fraction": distributed.silent_fractions(gradients, squares.device, together),
        "grad_missing": (missing & trained).float(),
    }


def lost(optimizer: Optimizer, tensors: list[Tensor], changes: list[Tensor], device: torch.device) -> dict[str, Tensor]:
    """Of an update smaller than half the distance of neighbouring numbers nothing is left; NaN of full precision, and
    nothing of optimizers that may keep weights of their own."""
    if not type(optimizer).__module__.startswith("torch.optim"):
        return {}
    coarse = [t.grad is not None and t.dtype.itemsize < 4 and not t.grad.is_sparse for t in tensors]
    if not any(coarse):
        return {}
    nan = torch.full((), torch.nan, device=device)
    return {
        "lost_fraction": torch.stack(
            [
                stats.lost_share(change, local(t.grad)).to(device) if ok and t.grad is not None else nan
                for t, change, ok in zip(tensors, changes, coarse, strict=True)
            ]
        )
    }


def remembered(optimizer: Optimizer) -> dict[str, Tensor]:
    """How many steps the optimizer's averages are made of, by its own count; the most of any weight, as some may be
    frozen by now."""
    states = optimizer.state.values() if isinstance(optimizer.state, Mapping) else ()
    given = [state.get("step") for state in states if isinstance(state, Mapping)]
    counts = [torch.as_tensor(each).detach() for each in given if isinstance(each, Tensor | int | float)]
    counts = [each.reshape(()).float() for each in counts if each.numel() == 1 and each.device == counts[0].device]
    return {"remembered_steps": torch.stack(counts).amax()} if counts else {}
