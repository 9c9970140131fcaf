"""What the functions of a loss are given: probabilities where they expect logits or logarithms, targets, labels."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diagnostics import stats
from diagnostics.monitor import chances, class_weights, functions
from diagnostics.monitor.cosines import Cosines
from diagnostics.monitor.sideways import Sideways

SEEN_ROWS = 256  # enough to know what it is, and cheap for a vocabulary of any size
LABELS = 16  # of fewer, none may be -1 by chance


class Losses:
    """Of one forward; nothing waits for a device."""

    def __init__(self) -> None:
        # Whether each call that expects logits was given a distribution instead, and each that expects its logarithm.
        self.probabilities: list[Tensor] = []
        self.unlogged: list[Tensor] = []
        self.ctc_totals: list[Tensor] = []  # size of the log sum exp over the classes, of what CTC takes for logarithms
        self.counts: list[Tensor] = []  # mean target of each call whose input is the logarithm of a rate
        self.targets: list[Tensor] = []  # smallest and largest of each call that compares outputs with targets
        # of each call that expects labels 1 and -1: its name, the share of 0 if all are 0 or 1, and what it returned
        self.unsigned: list[tuple[str, Tensor, Tensor]] = []
        self.guesses: list[tuple[float, Tensor]] = []  # log C of each mean cross-entropy, and what it returned
        self.choices: list[Tensor] = []  # numbers of scores in the rows that a softmax chooses from
        self.weighted: list[class_weights.Counted] = []  # weights of classes, and how many targets are of each
        self.cosines, self.sideways, self._weighed = Cosines(), Sideways(), class_weights.Weighed()

    @torch.no_grad()
    def given(self, func: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
        """Before a call."""
        if func in functions.LOGITS and _has_numbers(x := functions.argument(args, kwargs, 0, "input")):
            dim = functions.argument(args, kwargs, 1, "dim")  # of cross_entropy the second argument is the target
            classes = dim if isinstance(dim, int) else min(1, x.dim() - 1)
            self.cosines.logits(x, classes)
            self.sideways.logits(x)
            self.probabilities.append(stats.is_distribution(stats.softmax_rows(x.detach(), classes)[:SEEN_ROWS], 1))
        elif func in functions.DIVERGENCE and _has_numbers(x := functions.argument(args, kwargs, 0, "input")):
            seen = x.detach()[:SEEN_ROWS]
            along = {min(1, x.dim() - 1), x.dim() - 1}
            self.unlogged.append(torch.stack([stats.is_distribution(seen, dim) for dim in along]).any())
        elif func is F.ctc_loss and _has_numbers(x := functions.argument(args, kwargs, 0, "log_probs")):
            self.ctc_totals.append(x.detach().flatten(0, -2)[:SEEN_ROWS].float().logsumexp(-1).abs().median())
        elif func in functions.COUNTS and functions.argument(args, kwargs, 2, "log_input", True):
            target = functions.argument(args, kwargs, 1, "target")
            if isinstance(target, Tensor) and target.numel():
                self.counts.append(target.detach().float().mean())
        elif func in functions.COMPARING and _has_numbers(x := functions.argument(args, kwargs, 1, "target")):
            self.targets.append(torch.stack(x.detach()[:SEEN_ROWS].float().aminmax()))

    @torch.no_grad()
    def returned(self, func: Callable, args: tuple, kwargs: dict[str, Any], out: Any) -> None:
        self.cosines.follow(func, args, kwargs, out)
        self.sideways.follow(func, args, kwargs, out)
        self.choices += chances.counted(func, args, kwargs)
        if (weighted := class_weights.counted(func, args, kwargs)) is not None:
            self.weighted.append(weighted)
        self.weighted += self._weighed.follow(func, args, kwargs, out)
        if func is F.cross_entropy and functions.argument(args, kwargs, 2, "weight") is None:
            self._guess(functions.argument(args, kwargs, 0, "input"), kwargs, out)
        if func not in functions.SIGNED:
            return
        labels = functions.argument(args, kwargs, functions.SIGNED[func], "target")
        if isinstance(labels, Tensor) and labels.numel() >= LABELS and out.numel() == 1:
            both = ((labels == 0) | (labels == 1)).all() & (labels == 1).any()
            self.unsigned.append((functions.spelled(func), (labels == 0).float().mean() * both, out.detach()))

    def _guess(self, logits: Tensor, kwargs: dict[str, Any], out: Tensor) -> None:
        classes = logits.shape[min(1, logits.dim() - 1)]
        if kwargs.get("reduction", "mean") == "mean" and out.numel() == 1 and classes > 1:
            self.guesses.append((math.log(classes), out.detach()))


def told(several: Sequence[Losses]) -> dict[str, Any]:
    """What the run says of those of one update."""
    return {
        "across_batch": any(one.sideways.told for one in several),
        "chances": chances.told([each for one in several for each in one.choices]),
        "mean_count": max((float(each) for one in several for each in one.counts), default=None),
        "ctc_total": max((float(each) for one in several for each in one.ctc_totals), default=0.0),
        "unlogged": any(bool(each) for one in several for each in one.unlogged),
    }


def _has_numbers(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and x.numel() > 0 and x.dim() > 0
