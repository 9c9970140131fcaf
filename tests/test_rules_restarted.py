"""A recurrent net whose steps all begin from one state, beside nets that hand it on and loops that mean to begin
again."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.monitor.observe import Observer

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is
KINDS = [nn.LSTMCell, nn.GRUCell, nn.RNNCell, nn.LSTM, nn.GRU, nn.RNN]


class Decoder(nn.Module):
    """Reads tokens one at a time, from what an encoder kept or from nothing."""

    def __init__(self, kind: type[nn.Module] = nn.LSTM, hands_on: bool = False, encodes: bool = False) -> None:
        super().__init__()
        self.encoder, self.rnn, self.head = nn.LSTM(3, 8), kind(3, 8), nn.Linear(8, 2)
        self.cell, self.lstm = kind.__name__.endswith("Cell"), kind.__name__.startswith("LSTM")
        self.hands_on, self.encodes = hands_on, encodes

    def forward(self, x: Tensor) -> Tensor:
        begin = self.begin(x) if self.encodes else None
        state, answers = begin, []
        for token in x:
            h, state = self.step(token, state if self.hands_on else begin)
            answers.append(self.head(h))
        return torch.stack(answers)

    def begin(self, x: Tensor):
        state = self.encoder(x)[1]
        state = (state[0][0], state[1][0]) if self.cell else state
        return state if self.lstm else state[0]

    def step(self, token: Tensor, state):
        if not self.cell:
            out, state = self.rnn(token[None], state)
            return out[0], state
        state = self.rnn(token, state)
        return (state[0] if self.lstm else state), state


class Plans(nn.Module):
    """Weighs what may follow one state, which was reached step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for token in x[:2]:
            state = self.cell(token, state)
        return torch.stack([self.head(self.cell(token, state)[0]) for token in x])


class Relations(nn.Module):
    """Messages of several kinds, each added to the same states by a gate: a cell, and no sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(3, 8), nn.GRUCell(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x[0])
        return torch.stack([self.head(self.cell(message, h)) for message in x])


def told(model: nn.Module) -> list:
    torch.manual_seed(0)
    with Observer(model, asking=True) as observer:
        model(torch.randn(6, 4, 3))
    return observer.restarts.told(dict(model.named_parameters()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("encodes", [False, True])
def test_each_kind_of_net(kind, encodes):
    gated = kind in (nn.GRUCell, nn.RNNCell)  # what they keep is their answer: a gate may be all that is meant
    model = Decoder(kind, encodes=encodes)
    names = [f"rnn.{name}" for name, _ in model.rnn.named_parameters()]
    assert told(model) == ([] if gated and encodes else [6, not encodes, names])
    assert told(Decoder(kind, hands_on=True, encodes=encodes)) == []


class Whole(Decoder):
    """All steps in one call."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("model", [Plans, Relations, Whole], ids=["plans", "relations", "whole"])
def test_what_begins_again_on_purpose(model):
    assert told(model()) == []


@pytest.mark.parametrize("hands_on", [False, True])
def test_a_run_of_it(tmp_path, hands_on):
    """Whether there were more ones than zeros so far is to be told."""
    torch.manual_seed(0)
    model = Decoder(hands_on=hands_on)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(12):
            x = torch.randn(6, 16, 3)
            y = (x[..., 0].cumsum(0) > 0).long()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y: F.cross_entropy(model(x).flatten(0, 1), y.flatten()))
    findings = diagnostics.diagnose(diagnostics.load(tmp_path)).findings
    causes = [(each.cause, each.layers[0]) for each in findings if each.cause == "restarted"]
    assert causes == ([] if hands_on else [("restarted", "rnn.weight_ih_l0")])
