"""The way of a number from the device to the host, without waiting for it.

On a GPU all tensors of an update travel in one asynchronous copy to pinned memory; a later step that finds the copy
finished delivers it. On a CPU there is nothing to wait for.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Values = dict[str, Any]


def on_host(device: torch.device) -> bool:
    """Where reading a number waits for nothing."""
    return device.type == "cpu"


def mark(device: torch.device) -> Any:
    """An event that is ready when everything asked of the device so far is done."""
    event = torch.Event(device)
    event.record()
    return event


@dataclass(frozen=True)
class _Parcel:
    host: Tensor
    sizes: dict[str, tuple[int, bool]]
    ready: Any  # a CUDA event
    values: Values
    deliver: Callable[[Values], None]


class Courier:
    """Delivers values in the order they were sent: tensors become floats or lists of floats."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pending: deque[_Parcel] = deque()

    def send(self, values: Mapping[str, Any], deliver: Callable[[Values], None]) -> None:
        tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
        if tensors and not on_host(self._device):
            self._dispatch(dict(values), tensors, deliver)
            return
        self.collect(wait=bool(self._pending))
        deliver({**values, **{name: tensor.tolist() for name, tensor in tensors.items()}})

    def _dispatch(self, values: Values, tensors: dict[str, Tensor], deliver: Callable[[Values], None]) -> None:
        wide = torch.float32 if self._device.type == "mps" else torch.float64
        pieces = [t.reshape(-1).to(self._device, wide, non_blocking=True) for t in tensors.values()]
        packed = torch.cat(pieces)
        host = torch.empty(packed.shape, dtype=wide, pin_memory=self._device.type == "cuda")
        host.copy_(packed, non_blocking=True)
        sizes = {name: (tensor.numel(), tensor.dim() == 0) for name, tensor in tensors.items()}
        self._pending.append(_Parcel(host, sizes, mark(self._device), values, deliver))

    def collect(self, wait: bool = False) -> None:
        """Deliver what has arrived; with `wait`, everything."""
        while self._pending and (wait or self._pending[0].ready.query()):
            parcel = self._pending.popleft()
            if wait:
                parcel.ready.synchronize()  # waits for the device: at close, and before an estimate
            parcel.deliver(_unpack(parcel))


def _unpack(parcel: _Parcel) -> Values:
    numbers, values, at = parcel.host.tolist(), dict(parcel.values), 0
    for name, (size, scalar) in parcel.sizes.items():
        values[name] = numbers[at] if scalar else numbers[at : at + size]
        at += size
    return values
