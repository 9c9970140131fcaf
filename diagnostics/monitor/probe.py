"""`diagnostics.probe`: an activation that is written by hand, made known where its input is at hand."""

import threading
from typing import Any

import torch
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor.guard import warn

_here = threading.local()


def active() -> list[Any]:
    """Observers of this thread."""
    if not hasattr(_here, "observers"):
        _here.observers = []
    return _here.observers


def probe(name: str, tensor: Tensor, kind: str) -> Tensor:
    """Mark a hand-written activation inside a forward: `tensor` is its input, `kind` a name such as "relu" or "tanh".

    Returns the tensor unchanged, and is free when nothing watches:
    `gate = diagnostics.probe("gate", x, "relu"); return gate * (gate > 0)`.
    """
    if active():
        known = stats.KINDS.get(kind)
        if known is None:  # in a training forward: a warning, never an error
            warn(f"probe {name!r}: unknown kind {kind!r}; one of {', '.join(stats.KINDS)}")
            return tensor
        with torch._C.DisableTorchFunction():  # our own functions are none of the model's
            for observer in active():
                with observer.ours:
                    observer.probe(name, tensor, known)
    return tensor
