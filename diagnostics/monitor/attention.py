"""Attention rows under a magnifying glass: normalized entropy and largest logit of a few sampled queries.

Fused attention returns no weights, so they are recomputed for a few rows from queries and keys, honouring the mask,
causality, grouped heads and the scale. Which rows is not random: the global random state is not touched.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from diagnostics import stats

ROWS = 64  # queries looked at in each call
ENTRIES = 1 << 22  # and never more key entries than this are gathered for them
_replacing = threading.Lock()


def count(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    **_: Any,
) -> stats.UnitCounts | None:
    """Counts of one `scaled_dot_product_attention(query (..., L, E), key (..., S, E), ...)` call."""
    lead, length, width = query.shape[:-2], query.shape[-2], query.shape[-1]
    if query.numel() == 0 or key.shape[-2] < 2:
        return None
    if enable_gqa and key.shape[-3] != query.shape[-3]:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
    total = lead.numel() * length
    rows = max(1, min(ROWS, total, ENTRIES // (key.shape[-2] * width)))
    picked = _spread(rows, total, query.device)
    batch, position = picked // length, picked % length
    keys = key.expand(*lead, *key.shape[-2:]).reshape(-1, *key.shape[-2:])[batch]
    queries = query.reshape(-1, width)[picked]
    mask = _mask(attn_mask, is_causal, lead, length, key.shape[-2], batch, position)
    logits, p = stats.attention_probabilities(queries, keys, scale or width**-0.5, mask)
    reachable = torch.full_like(p[:, 0], p.shape[-1]) if mask is None else (mask > -torch.inf).sum(-1).float()
    return stats.count_softmax(logits, torch.nan_to_num(p), reachable)


def _spread(rows: int, total: int, device: torch.device) -> Tensor:
    """One row of each equal part, at a place that goes round by the golden ratio: at even distances, which most often
    divide the sequence's length, all would be the same position, and under a causal mask the first sees itself alone.
    """
    part = torch.arange(rows, dtype=torch.float64)  # which not every device has
    place = part * ((5**0.5 - 1) / 2) % 1
    return ((part + place) * total / rows).long().clamp(max=total - 1).to(device)


def _mask(
    given: Tensor | None, causal: bool, lead: torch.Size, length: int, keys: int, batch: Tensor, position: Tensor
) -> Tensor | None:
    """The mask's rows of the sampled queries, as numbers to add to the logits."""
    if causal:
        later = torch.arange(keys, device=position.device) > position[:, None]
        return torch.zeros(len(position), keys, device=position.device).masked_fill(later, -torch.inf)
    if given is None:
        return None
    rows = given.expand(*lead, length, keys).reshape(-1, length, keys)[batch, position]
    if rows.dtype == torch.bool:
        return torch.zeros(rows.shape, device=rows.device).masked_fill(~rows, -torch.inf)
    return rows.float()


def count_logits(logits: Tensor) -> stats.UnitCounts | None:
    """Counts of attention written out as a softmax over (..., S) logits that already hold the mask."""
    flat = logits.reshape(-1, logits.shape[-1])
    if not len(flat):
        return None
    rows = min(ROWS, len(flat))
    sampled = flat[_spread(rows, len(flat), flat.device)].float()
    return stats.count_softmax(sampled, torch.softmax(sampled, dim=-1))


@contextmanager
def inside_multi_head(
    observe: Callable[[stats.UnitCounts | None], None], ours: AbstractContextManager
) -> Iterator[None]:
    """See the attention inside `F.multi_head_attention_forward`, which a function mode receives as one closed call.

    The two functions it may use are replaced in `torch.nn.functional` for the length of the call; a call that another
    thread makes meanwhile is left unseen. `ours` goes around what we do there.
    """
    if not _replacing.acquire(blocking=False):
        yield
        return
    fused, softmax, here = F.scaled_dot_product_attention, F.softmax, threading.get_ident()

    def seen_fused(*args: Any, **kwargs: Any) -> Tensor:
        if threading.get_ident() == here:
            with ours, torch.no_grad():
                observe(count(*args, **kwargs))
        return fused(*args, **kwargs)

    def seen_softmax(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if threading.get_ident() == here:
            with ours, torch.no_grad():
                observe(count_logits(logits))
        return softmax(logits, *args, **kwargs)

    F.scaled_dot_product_attention = seen_fused
    F.softmax = seen_softmax
    try:
        yield
    finally:
        F.scaled_dot_product_attention, F.softmax = fused, softmax
        _replacing.release()
