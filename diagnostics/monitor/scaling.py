"""The gradient scaler of mixed precision: which one is at work, and by what it multiplies."""

import sys
from typing import Any

import torch
from torch import Tensor

LOOKS = 3  # updates at which a scaler is looked for
DEPTH = 20  # frames between the scaler's `step` and our hook, at most
# Asked for its locals, any other frame would keep them alive until it ends (before Python 3.13).
_OF_SCALERS = {torch.amp.GradScaler.step.__code__, torch.amp.GradScaler._maybe_opt_step.__code__}


class Scaler:
    """The scaler given to `watch`, or else the one that is found calling the optimizer's `step`."""

    def __init__(self, given: Any) -> None:
        self._scaler = given
        self._looks = 0 if given is None else LOOKS

    def look(self) -> None:
        """Called in the optimizer's pre-hook: `GradScaler.step` is then among the callers, if there is one."""
        if self._looks >= LOOKS:
            return
        self._looks += 1
        frame = sys._getframe(1)
        for _ in range(DEPTH):
            if frame is None:
                return
            if frame.f_code in _OF_SCALERS:
                self._scaler, self._looks = frame.f_locals["self"], LOOKS
                return
            frame = frame.f_back

    def scale(self) -> Tensor | None:
        """On the device: `get_scale` would wait for it. `None` without a scaler, or before its first use."""
        return None if self._scaler is None or not self._scaler.is_enabled() else self._scaler._scale
