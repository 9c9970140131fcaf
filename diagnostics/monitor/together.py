"""Several processes that train one model: rank 0 writes, and on measured steps small vectors are added up.

A collective in which one process does not take part hangs them all. So: none happens unless every process watches
(each says so in the process group's store before its first backward pass), all measure at the updates rank 0 decided,
and before the sums every process says whether it has something to add.
"""

import itertools
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diagnostics.monitor.distributed import is_sharded
from diagnostics.monitor.units import Call

_numbers = itertools.count()  # the n-th watch of every process is one monitor


class Together:
    """`active` once it is certain that every process watches; a single process never is."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.size, self.rank, self._device = 1, 0, device
        self._model = model
        self.active = self._settled = False
        if _is_distributed(model):
            self.size, self.rank = dist.get_world_size(), dist.get_rank()
            self._prefix = f"diagnostics/{next(_numbers)}"
            self._keys = [f"{self._prefix}/{rank}" for rank in range(self.size)]
            _store().set(self._keys[self.rank], "watching")

    @property
    def writes(self) -> bool:
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """One process of several watches by itself: whatever needs the others is left out."""
        return self.size > 1 and not self.active

    def settle(self) -> None:
        """In the first backward pass for which every process waited: by then each has called `watch`, or never will.

        The first to ask answers for all. Were each to answer for itself, one that asks before another has called
        `watch` (`no_sync` lets it) would be alone, while the other waits for it for ever.
        """
        if self._settled or not getattr(self._model, "require_backward_grad_sync", True):
            return
        self._settled = True
        if self.size > 1:
            answer = "together" if _store().check(self._keys) else "alone"
            self.active = _store().compare_set(f"{self._prefix}/answer", "", answer) == b"together"

    def decided(self, numbers: Sequence[int]) -> list[int]:
        """Rank 0's numbers, on every process. Waits for the device, as every measured step may once."""
        sent = torch.tensor(numbers, device=self._device)
        dist.broadcast(sent, src=0)
        return sent.tolist()

    def all_agree(self, signature: str | None) -> bool:
        """Whether every process has the same to say; `None`: this one has nothing."""
        code = -1 if signature is None else zlib.crc32(signature.encode())
        both = torch.tensor([code, -code], device=self._device)
        dist.all_reduce(both, op=dist.ReduceOp.MAX)
        largest, smallest = both.tolist()
        return code >= 0 and largest == -smallest

    def add(self, calls: Sequence[Call] | None) -> list[Call] | None:
        """Unit counts of all processes together; `None` where they do not fit together."""
        signature = None if calls is None else repr([(c.name, c.kind.name, c.counts.active.shape) for c in calls])
        if not self.all_agree(signature) or calls is None:
            return None
        if not calls:
            return []
        sums = torch.cat([_packed(call) for call in calls])
        largest = torch.stack([call.counts.largest.double() for call in calls])
        dist.all_reduce(sums)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        pieces = sums.split([len(_packed(call)) for call in calls])
        return [_unpacked(call, piece, top) for call, piece, top in zip(calls, pieces, largest, strict=True)]


def _packed(call: Call) -> Tensor:
    counts = call.counts
    inputs = torch.full((1,), float(counts.inputs), device=counts.active.device)
    return torch.cat([t.double() for t in (inputs, counts.active, counts.flat, counts.moments)])


def _unpacked(call: Call, sums: Tensor, largest: Tensor) -> Call:
    width = len(call.counts.active)
    inputs, active, flat, moments = sums.split([1, width, width, len(call.counts.moments)])
    counts = replace(
        call.counts, inputs=int(inputs), active=active.long(), flat=flat.long(), moments=moments, largest=largest
    )
    return replace(call, counts=counts)


def _is_distributed(model: nn.Module) -> bool:
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return False
    replicated = isinstance(model, nn.parallel.DistributedDataParallel)
    return replicated or any(is_sharded(parameter) for parameter in model.parameters())


def _store() -> Any:
    return dist.distributed_c10d._get_default_store()
