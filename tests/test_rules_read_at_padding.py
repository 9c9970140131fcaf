"""Answers of a recurrent layer that are read behind the padding of its sequences, beside those that are not."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics

ANY, LONG, KINDS = 100.0, 80, 3


class Reader(nn.Module):
    """`read`: "end" (of all steps), "own end" (of each sequence), "left" (padding in front), "mean" (of all steps)."""

    def __init__(self, kind: str, read: str, embedded: bool) -> None:
        super().__init__()
        self.read, self.core = read, getattr(nn, kind)(12, 24, batch_first=True)
        self.tokens = nn.Embedding(20, 12, padding_idx=0) if embedded else None
        self.out = nn.Linear(24, KINDS)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if self.read == "left":
            x = torch.stack([each.roll(LONG - int(length), 0) for each, length in zip(x, lengths, strict=True)])
        states = self.core(x if self.tokens is None else self.tokens(x))[0]
        if self.read == "mean":
            return self.out(states.mean(1))
        return self.out(states[torch.arange(len(x)), lengths - 1] if self.read == "own end" else states[:, -1])


def sentences(embedded: bool, longest: int) -> tuple[Tensor, Tensor, Tensor]:
    """The class of the first token, of sequences from 4 steps to `longest` that are padded with zeros."""
    torch.manual_seed(0)
    lengths = torch.randint(4, longest + 1, (256,))
    tokens = torch.randint(1, 20, (256, LONG)) * (torch.arange(LONG) < lengths[:, None])
    return (tokens if embedded else F.one_hot(tokens, 20)[..., 1:13].float()), lengths, tokens[:, 0] % KINDS


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("kind", "read", "embedded", "longest", "told"),
    [
        ("LSTM", "end", True, 10, True),
        ("GRU", "end", False, 10, True),
        ("LSTM", "own end", True, 10, False),
        ("LSTM", "left", True, 10, False),
        ("RNN", "mean", True, 10, False),
        ("LSTM", "end", True, LONG, False),  # hard: the first of many tokens decides; but inputs count at the end
    ],
)
def test_what_is_read_behind_the_padding(kind, read, embedded, longest, told, tmp_path):
    x, lengths, y = sentences(embedded, longest)
    model = Reader(kind, read, embedded)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY) as monitor:
        for _ in range(150):
            chosen = torch.randint(256, (32,))
            batch = x[chosen], lengths[chosen], y[chosen]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(*batch[:2]), batch[2])
            loss.backward()
            optimizer.step()
            monitor.step(loss)  # without a closure: an estimate of curvature through 80 steps takes long
    diagnosis = diagnostics.diagnose(diagnostics.load(tmp_path))
    assert not diagnosis.crashed
    assert [(each.layers, each.alarm) for each in diagnosis.findings if each.cause == "read-at-padding"] == (
        [(("core",), True)] if told else []
    )
