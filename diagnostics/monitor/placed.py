"""Pictures that a model is given and the maps they are compared with, as of a segmentation: do they lie alike?

Two calls of one random transform, for a picture and for its mask, draw two flips and two turns.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diagnostics import stats
from diagnostics.monitor import functions

MOST = 32  # examples of a batch: each is compared with the targets of all others
FEWEST = 4  # examples that were not seen before, or the others tell little
GROWTH = 1.2  # from look to look, by the number of updates: some thirty in a run of a thousand
WRITTEN_OUT = functions.SUBTRACTING | functions.GATING  # of a squared error, or of an overlap
_COMPARING = functions.WITH_TARGETS | WRITTEN_OUT


class Maps(TorchFunctionMode):
    """The answer that a loss compares with a map, and that map: by a function of PyTorch, or else written out last."""

    def __init__(self) -> None:
        super().__init__()
        self.found: tuple[Tensor, Tensor] | None = None  # both (examples, channels, rows, columns)
        self._by_function = False

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if not self._by_function and func in _COMPARING:
            found = _maps(func, args, kwargs)
            self._by_function = found is not None and func in functions.WITH_TARGETS
            self.found = found or self.found
        return func(*args, **kwargs)


class Placed:
    """Asked at ever fewer of the measured updates, for as long as the loss compares maps."""

    def __init__(self) -> None:
        self._next, self._over = 0, False
        self._seen = set[tuple[float, ...]]()

    def due(self, step: int, x: Tensor | None) -> bool:
        """`x`: what the model was given first."""
        if self._over or step < self._next or not _is_map(x):
            return False
        self._next = max(step + 1, int(GROWTH * step))
        return True

    @torch.no_grad()
    def rows(self, x: Tensor, found: tuple[Tensor, Tensor] | None) -> tuple[list[str], dict[str, Any]]:
        """Names and columns of table `placements`. Examples count once: those of data without augmentation come again
        and again, and would be taken for many."""
        self._over = found is None or not _have_one_shape(x, found[1])
        if found is None or self._over:
            return [], {}
        answers, targets = found
        fresh = self._fresh(x, targets)
        if len(fresh) < FEWEST:
            return [], {}
        pictures, answers, targets = (stats.small_map(each[fresh]).cpu() for each in (x, answers, targets))
        if pictures.shape[2:] != targets.shape[2:] or not _are_finite(pictures, answers, targets):
            return [], {}
        own, answered = stats.fits(pictures, targets), stats.fits(answers, targets)
        groups = stats.placements(square=x.shape[2] == x.shape[3])
        related = [stats.related(own, chosen) for chosen in groups.values()]
        return list(groups), {
            "examples": [len(fresh)] * len(groups),
            "at_best": torch.stack([best for best, _ in related]),
            "as_given": torch.stack([given for _, given in related]),
            "answer_as_given": torch.stack([stats.as_given(answered, chosen) for chosen in groups.values()]),
        }

    def _fresh(self, x: Tensor, targets: Tensor) -> list[int]:
        """By sums, which a flip of both leaves as they are."""
        sums = [each[:MOST].detach().float().flatten(1) for each in (x, targets)]
        keys = torch.stack([moment for each in sums for moment in (each.mean(1), each.square().mean(1))], 1).tolist()
        rounded = [tuple(float(f"{number:.4g}") for number in key) for key in keys]
        fresh = [at for at, key in enumerate(rounded) if key not in self._seen and key not in rounded[:at]]
        self._seen.update(rounded)
        return fresh


def _maps(func: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    answer = functions.argument(args, kwargs, 0, "input")
    target = functions.argument(args, kwargs, 1, "target")
    if not isinstance(answer, Tensor) or not isinstance(target, Tensor):
        return None
    if func in WRITTEN_OUT and target.requires_grad:
        answer, target = target, answer
    if not _is_map(answer) or not answer.requires_grad or target.requires_grad or len(target) != len(answer):
        return None
    if target.dim() == 3 and not target.is_floating_point():
        target = _of_classes(target)
    return (answer, target) if _is_map(target) and target.shape[2:] == answer.shape[2:] else None


def _of_classes(labels: Tensor) -> Tensor:
    """A map for each of the most frequent ones."""
    classes, counts = labels.unique(return_counts=True)
    chosen = classes[counts.topk(min(len(classes), stats.CHANNELS)).indices]
    return labels[:, None] == chosen[:, None, None]


def _is_map(x: Any) -> bool:
    plain = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested and not x.is_complex()
    return plain and x.dim() == 4 and min(x.shape[2:]) >= FEWEST and len(x) >= FEWEST


def _are_finite(*maps: Tensor) -> bool:
    return all(bool(each.isfinite().all()) for each in maps)


def _have_one_shape(x: Tensor, target: Tensor) -> bool:
    """Whether one may be the other made smaller."""
    return len(x) == len(target) and x.shape[2] * target.shape[3] == x.shape[3] * target.shape[2]
