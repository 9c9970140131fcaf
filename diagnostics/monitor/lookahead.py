"""Whether a model that is to predict the next token has it before its eyes: a causal mask is missing; or has the tokens
of other texts there, in place of those before it in its own.

Two facts about one call of the closure. Its targets are tokens that it was given, one place on; and the answer at one
place changes with the token after it, which is its target. Of a causal model that derivative is exactly 0. That by the
tokens before it is 0 where the model runs along the batch. A causal model whose targets are its tokens at the same
places has them before its eyes too; what rebuilds a text from a code reads all of it.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diagnostics.monitor import functions

LEAST = 32  # targets that are the next token, so that it is not by chance
COUPLED = 0.1  # of the derivative by the next token: what a batch norm may bring from the other rows
AHEAD = 0.1  # of the derivative by the token before: attention without a mask, and a net that reads both ways, have 1
MOST = 1e6  # a mask the wrong way round sees nothing but what comes


def told(model: nn.Module, closure: Callable[[], Any]) -> dict[str, Any]:
    """As entries of the run. "looks_ahead": how much the answer at one place depends on the token that it is to
    predict, over how much on the one before it; 0 where the targets are no such tokens, or are not seen.
    "across_texts": whether it depends on other texts, and not on what came before in its own. "shifted_twice": whether
    the targets, one fewer than the tokens, are these two places on. "unshifted": whether they are the tokens at their
    own places, and the model is causal."""
    if not any(isinstance(module, nn.Embedding) for module in model.modules()):
        return {}
    with torch.enable_grad(), _Calls() as calls:
        closure()
    # A copy of the targets that may be read, as an encoder's, is given beside the one that may not.
    seen = [_influence(text, scored) for text in calls.texts for scored in calls.scored if text.is_of(scored)]
    share = min((each.ahead() for each in seen if each is not None), default=0.0)
    across = bool(seen) and not calls.coupled and all(each is not None and each.is_across() for each in seen)
    twice = len(calls.scored) == 1 and _is_shifted_twice(calls.texts, calls.scored[0])
    same = [_influence(text, scored) for text in calls.texts for scored in calls.scored if text.is_itself(scored)]
    return {
        "looks_ahead": share if share >= AHEAD else 0.0,
        "across_texts": across,
        "shifted_twice": twice,
        "unshifted": not calls.coupled and any(each is not None and each.is_causal() for each in same),
    }


def _is_shifted_twice(texts: list["_Text"], scored: "_Scored") -> bool:
    """Labels of as many places as the text has, and shifted once more. Nobody who means the token after the next has
    one fewer of these; and where another text has the next one for its target, that is what is learned. An answer that
    knows the token between is of its place, and the first answer was left out; of a net that reads both ways each is.
    """
    if any(text.is_of(scored) for text in texts):
        return False
    twice = [text for text in texts if text.is_of(scored, 2) and text.has_one_more_than(scored)]
    seen = [_influence(text, scored) for text in twice]
    return any(each is not None and not each.knows_the_next() for each in seen)


class _Scored(NamedTuple):
    """Scores (N, C) that were compared with targets (N,)."""

    scores: Tensor
    targets: Tensor
    ignored: int

    def by_row(self, rows: int, time_first: bool) -> tuple[Tensor, Tensor]:
        """Scores (rows, W, C) and targets (rows, W)."""
        scores, targets = self.scores.unflatten(0, (-1, rows) if time_first else (rows, -1)), self.targets
        targets = targets.reshape(scores.shape[:2])
        return (scores.transpose(0, 1), targets.t()) if time_first else (scores, targets)


class _Text(NamedTuple):
    """Tokens (rows, T) and what an embedding made of them, (rows, T, ...)."""

    tokens: Tensor
    embedded: Tensor
    time_first: bool  # as the model has it

    def is_of(self, scored: _Scored, places: int = 1) -> bool:
        """Whether the targets are these tokens, so many places on. Of a ring of tokens every one can be read."""
        rows, length = self.tokens.shape
        if length <= places or len(scored.targets) not in (rows * length, rows * (length - 1)):
            return False
        _, targets = scored.by_row(rows, self.time_first)
        ring = targets.shape[1] == length and bool((targets[:, -1] == self.tokens[:, places - 1]).all())
        known, following = targets[:, : length - places], self.tokens[:, places:]
        counted = known != scored.ignored
        told = counted & (following != self.tokens[:, places - 1 : -1])
        return not ring and bool(((known == following) | ~counted).all()) and int(told.sum()) >= LEAST

    def has_one_more_than(self, scored: _Scored) -> bool:
        """Whether its last token has no target, or one that is ignored where the one before has one."""
        _, targets = scored.by_row(len(self.tokens), self.time_first)
        last_two = targets[:, -2:] == scored.ignored
        return targets.numel() < self.tokens.numel() or bool(last_two[:, 1].all() and not last_two[:, 0].any())

    def is_itself(self, scored: _Scored) -> bool:
        """Whether the targets are these tokens, each at its own place. Tokens that are masked in the text are not."""
        rows, _ = self.tokens.shape
        if len(scored.targets) != self.tokens.numel():
            return False
        _, targets = scored.by_row(rows, self.time_first)
        counted = targets != scored.ignored
        return bool(((targets == self.tokens) | ~counted).all()) and int(counted.sum()) >= LEAST


class _Calls(TorchFunctionMode):
    """Tokens that are embedded, and scores that are compared with one class each."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[_Text] = []
        self.scored: list[_Scored] = []
        self.coupled = False  # by a batch norm, which brings something of every text

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if torch._C._are_functorch_transforms_active():  # whose tensors must not outlive the transform
            return out
        self.coupled |= func in functions.BATCH_NORM
        first = functions.argument(args, kwargs, 0, "input")
        if func is F.embedding and first.dim() == 2 and first.numel() and out.requires_grad:
            self.texts += [_Text(first, out, False), _Text(first.t(), out, True)]
        elif func in (F.cross_entropy, F.nll_loss):
            scores, targets = first, functions.argument(args, kwargs, 1, "target")
            if scores.dim() > 1 and not targets.is_floating_point() and scores.requires_grad:
                scores = scores.movedim(1, -1).flatten(0, -2)
                self.scored.append(_Scored(scores, targets.reshape(-1), kwargs.get("ignore_index", -100)))
        return out


class _Influence(NamedTuple):
    """Of each token (rows, T), as embedded, on the answer to the one at `place` of `row`."""

    norms: Tensor
    row: int
    place: int
    followed: bool  # by a token that counts: padding, which is masked, has no influence

    def ahead(self) -> float:
        before, _, after = self.norms[:, self.place - 1 : self.place + 2].unbind(1)
        row = self.row
        elsewhere = torch.cat([after[:row], after[row + 1 :], after.new_zeros(1)]).max()
        if not 0 < float(after[row]) < math.inf or float(elsewhere) > COUPLED * float(after[row]):
            return 0.0
        return min(float(after[row] / before[row]), MOST) if float(before[row]) > 0 else MOST

    def knows_the_next(self) -> bool:
        return bool(self.norms[self.row, self.place + 1] > 0)

    def is_causal(self) -> bool:
        """Made of the token at its own place and of those before it, and of no other."""
        own, others = self.norms[self.row], torch.cat([self.norms[: self.row], self.norms[self.row + 1 :]])
        later, place = own[self.place + 1 :], self.place
        sees = bool((own[:place] > 0).any() & (own[place] > 0))
        return self.followed and sees and bool((later == 0).all() & (others == 0).all())

    def is_across(self) -> bool:
        own, others = self.norms[self.row], torch.cat([self.norms[: self.row], self.norms[self.row + 1 :]])
        return bool((own[: self.place] == 0).all() & (own[self.place] > 0) & (others > 0).any())


def _influence(text: _Text, scored: _Scored) -> _Influence | None:
    rows, length = text.tokens.shape
    scores, targets = scored.by_row(rows, text.time_first)
    counts = targets[:, 1:length] != scored.ignored
    counts, following = counts[:, : length - 2], counts[:, 1:]
    followed = bool((counts[:, : following.shape[1]] & following).any())
    counted = (counts[:, : following.shape[1]] & following if followed else counts).nonzero().tolist()
    if not counted:
        return None
    row, place = counted[len(counted) // 2]
    answer = scores[row, place + 1]
    pattern = torch.arange(1.0, len(answer) + 1, device=answer.device).cos().to(answer.dtype)  # softmax ignores a sum
    (gradient,) = torch.autograd.grad(answer @ pattern, text.embedded, retain_graph=True, allow_unused=True)
    if gradient is None:
        return None
    gradient = gradient.transpose(0, 1) if text.time_first else gradient
    return _Influence(gradient.float().flatten(2).norm(dim=2), row, place + 1, followed)
