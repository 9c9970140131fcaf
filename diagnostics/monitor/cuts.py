"""Where a forward cuts its graph: which parameters lie behind a tensor that was detached."""

from typing import Any

import torch
from torch import Tensor

CUTS = {torch.detach, torch.detach_, Tensor.detach, Tensor.detach_, Tensor.data.__get__}  # type: ignore
LONGEST = 2000  # nodes walked: one walk a cut, in one forward of a run


def behind(x: Any) -> set[int]:
    """Identities of the parameters that a tensor was computed from."""
    if not isinstance(x, Tensor) or x.grad_fn is None:
        return set()
    waiting, seen, found = [x.grad_fn], set(), set()
    while waiting and len(seen) < LONGEST:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        waiting += [following for following, _ in node.next_functions if following is not None]
    return found
