"""Whether a directory that holds a run is continued by the training it was begun with: told by some of the weights.

They are kept twice, before a session's first update and at its end, and compared before the first update of the next
session: what `watch` was given may still be filled from a checkpoint.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor.guard import warn
from diagnostics.monitor.sending import Writer
from diagnostics.run import OTHER_WEIGHTS, load

FAR = 0.1  # of the norm: more than what updates since the last measurement change, less than training does to a start
TENSORS, VALUES = 16, 4  # looked at, and of each: two trainings that agree in one value differ in others
ROUNDED = 2.0**-8  # of a value: what a checkpoint in bfloat16 changes at most
Sample = list[float | None]


class Resuming:
    """`before`: what run.json said before this session; `tensors` gives none where each process has but a part."""

    def __init__(
        self,
        run_dir: str,
        writer: Writer,
        tensors: Callable[[], Sequence[Tensor]],
        guarded: Callable[[str], Any],
        tell: Callable[[str, str], None],
        meant: bool,
    ) -> None:
        self._run_dir, self._writer, self._tensors = run_dir, writer, tensors
        self._guarded, self._tell, self._meant = guarded, tell, meant
        self._begun = False
        if writer.resumed_from:
            tell("resumed", f"continues after update {writer.resumed_from}")

    def first_update(self) -> None:
        """Before it. `meant`, by `first_step`: that other weights go on is told in the run, and no warning."""
        if self._begun:
            return
        self._begun = True
        with self._guarded("resuming"):
            last, tensors = self._writer.resumed_from, self._tensors()
            if other := self._stranger(last, tensors) if last and tensors else "":
                message = f"continues after update {last}{OTHER_WEIGHTS}{self._run_dir}: {other}. {_NEXT}"
                self._tell("resumed", message)
                if not self._meant:
                    warn(f"the run {message}")
            self._keep(last, tensors)

    def end(self, last: int) -> None:
        """After update `last`."""
        if self._begun:
            self._keep(last, self._tensors())

    def _keep(self, step: int, tensors: Sequence[Tensor]) -> None:
        if tensors:
            self._writer.update_meta(weights={"step": step, "values": sample(tensors)})

    def _stranger(self, last: int, tensors: Sequence[Tensor]) -> str:
        """How the weights are seen to be others, "" where they are not."""
        kept = self._writer.before.get("weights")
        kept = kept if isinstance(kept, dict) and isinstance(kept.get("values"), list) else {}
        now, then, step = sample(tensors), kept.get("values", []), kept.get("step")
        differ = sum(not _alike(*pair) for pair in zip(now, then, strict=False))
        same = bool(then) and len(now) == len(then) and not differ
        if step == last:
            return "" if same else f"{differ or len(now)} of {len(now)} values looked at are others"
        if same:
            return f"they are those it had {f'after update {step}' if step else 'at its beginning'}"
        return self._far(tensors)

    def _far(self, tensors: Sequence[Tensor]) -> str:
        """By the norm alone, where the session before was killed."""
        recorded = load(self._run_dir).table("scalars", ["weight_norm"])["weight_norm"].dropna()
        if recorded.empty:
            return ""
        before = float(recorded.iloc[-1])
        now = float(stats.squared_norms([each.detach() for each in tensors]).sum().sqrt())
        return "" if abs(now - before) <= FAR * before else f"their norm was {before:.3g} there and is {now:.3g} now"


_NEXT = (
    "If this is another training, give it another run_dir; if it goes on from an earlier update, give its number: "
    "watch(..., first_step=...)"
)


@torch.no_grad()
def sample(tensors: Sequence[Tensor]) -> Sample:
    """Evenly spaced values of evenly spaced tensors, as float64; `None` for what is not finite."""
    chosen = [tensors[at] for at in _spread(len(tensors), TENSORS)]
    values: list[float] = []
    for tensor in chosen:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        places = torch.tensor(_spread(real.numel(), VALUES), device=real.device)
        values += torch.take(real.detach(), places).double().tolist() if len(places) else []
    return [value if math.isfinite(value) else None for value in values]


def _spread(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, the first and the last among them."""
    last = min(count, most) - 1
    return [round(at * (count - 1) / last) for at in range(last + 1)] if last > 0 else list(range(count))


def _alike(now: float | None, then: Any) -> bool:
    if now is None or not isinstance(then, float):
        return now is None and then is None
    return abs(now - then) <= ROUNDED * abs(then)
