"""Gradients of tensors outside of the watched model, where a closure calls `backward` though it should not.

`torch.autograd.backward` is replaced while a closure runs: the graph names the leaves that it will reach, and their
gradients are put back. Leaves inside of a reentrant checkpoint are no part of that graph, and on a
GPU are not seen.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_here = threading.local()  # `kept`: of this thread's closure; another thread may train
_lock, _running = threading.Lock(), [0]
_torch = {"backward": torch.autograd.backward}


def leaves(tensors: Any) -> list[Tensor]:
    """What a backward from these tensors adds gradients to."""
    roots = [tensors] if isinstance(tensors, Tensor) else tensors
    nodes: list[Any] = [each.grad_fn for each in roots if each.grad_fn is not None]
    seen, found = set(nodes), []
    while nodes:
        node = nodes.pop()
        if node.name() == "torch::autograd::AccumulateGrad":
            found.append(node.variable)
        inner = {each for each, _ in node.next_functions if each is not None} - seen
        seen |= inner
        nodes += inner
    return found


@contextmanager
def gradients_kept() -> Iterator[None]:
    """A gradient that was there before is there afterwards, and one that was not is not."""
    outer, kept = getattr(_here, "kept", None), dict[int, tuple[Tensor, Tensor | None]]()
    _replace(+1)
    _here.kept = kept
    try:
        yield
    finally:
        _here.kept = outer
        for leaf, gradient in kept.values():
            leaf.grad = gradient
        _replace(-1)


def unkept(loss: Tensor) -> None:
    """A backward whose gradients the caller wants and puts back; reentrant checkpoints call `backward` inside of it."""
    kept, _here.kept = getattr(_here, "kept", None), None
    try:
        _torch["backward"](loss)
    finally:
        _here.kept = kept


def _replace(by: int) -> None:
    with _lock:
        _running[0] += by
        torch.autograd.backward = _backward if _running[0] else _torch["backward"]


def _backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
    kept = getattr(_here, "kept", None)
    if kept is not None:
        for leaf in leaves(tensors):
            if id(leaf) not in kept:
                kept[id(leaf)] = leaf, leaf.grad
                leaf.grad = None
    _torch["backward"](tensors, *args, **kwargs)
