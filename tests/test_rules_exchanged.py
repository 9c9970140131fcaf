"""Answers that depend on an example's place in its batch, and models of all kinds in which they do not."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.monitor import forwards
from diagnostics.monitor.exchanged import told
from diagnostics.rules._shapes import by_place as by_place_rule
from diagnostics.run import Run

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is
ROWS, LENGTH, KINDS = 24, 10, 12


class Positions(nn.Module):
    """Attention with an encoding of positions along one dimension: 1 is right."""

    def __init__(self, along, dropout=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.places = nn.Embedding(KINDS, 16), nn.Parameter(torch.randn(64, 16))
        self.core = nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True)
        self.along, self.out = along, nn.Linear(16, 3)

    def forward(self, tokens):
        places = self.places[: tokens.shape[self.along]]
        x = self.embedding(tokens) + (places if self.along else places[:, None])
        return self.out(self.core(x).mean(1))


class Reader(nn.Module):
    def __init__(self, kind, **how):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.core = nn.Embedding(KINDS, 8), kind(8, 12, **how)
        self.out = nn.Linear(12, 3)

    def forward(self, tokens):
        return self.out(self.core(self.embedding(tokens))[0][:, -1])


class Between(nn.Module):
    """Attention between the examples, which is of their places no more."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.core = nn.Embedding(KINDS, 8), nn.MultiheadAttention(8, 2)
        self.out = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embedding(tokens).mean(1)
        return self.out(self.core(x, x, x)[0] + x)


class Masked(Positions):
    """Gets more than the tokens: who changes these alone changes what they are."""

    def forward(self, tokens, weights):
        return super().forward(tokens) * weights


def norms():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(KINDS, 8), nn.Flatten(), nn.BatchNorm1d(80), nn.Dropout(0.5), nn.Linear(80, 3))


def by_place(model, closure):
    return told(model, closure).get("by_place", 0)


def measured(model, *more, rows=ROWS):
    torch.manual_seed(1)
    tokens, y = torch.randint(KINDS, (rows, LENGTH)), torch.arange(rows) % 3

    def closure():
        return F.cross_entropy(model(tokens, *more), y)

    before, state = torch.random.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    with forwards.ours(model, closure):
        share = by_place(model, closure)
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    return share


@pytest.mark.parametrize("make", [lambda: Positions(0), lambda: Positions(0, 0.1), lambda: Reader(nn.GRU)])
def test_answers_that_depend_on_places(make):
    assert measured(make()) > 0.1


@pytest.mark.parametrize(
    "make",
    [
        lambda: Positions(1),
        lambda: Positions(1, 0.1),
        lambda: Reader(nn.GRU, batch_first=True),
        lambda: Reader(nn.LSTM, batch_first=True, num_layers=2, dropout=0.5),  # draws masks by itself: not known
        Between,
        norms,
    ],
)
def test_answers_that_do_not(make):
    assert measured(make()) == 0


def test_where_it_cannot_be_asked():
    assert measured(Masked(0), torch.ones(ROWS, 1)) == 0
    assert measured(Positions(0), rows=4) == 0
    twice = Positions(0)
    tokens = torch.randint(KINDS, (ROWS, LENGTH))
    assert by_place(twice, lambda: (twice(tokens) - twice(tokens)).sum()) == 0


def test_what_a_model_keeps_of_its_last_call_is_of_the_batch_as_it_was():
    """In a plain attribute, which nothing else would put back: a memory by example, say."""
    model, kept = Positions(1), []

    class Keeping(nn.Module):
        def forward(self, tokens):
            kept[:] = [tokens.clone()]
            return model(tokens)

    tokens = torch.randint(KINDS, (ROWS, LENGTH))
    outer = Keeping()
    outer.inner = model
    by_place(outer, lambda: outer(tokens).square().mean())
    assert torch.equal(kept[0], tokens)


class OfNodes(nn.Module):
    """Of a graph, whose nodes have their places for ever."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.graph = torch.rand(60, 60).softmax(1)
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))

    def forward(self, x):
        return self.layers(self.graph @ F.dropout(x, 0.2))


@pytest.mark.exhaustive
@pytest.mark.parametrize("case", ["along the batch", "along time", "nodes"])
def test_a_run_tells_it_of_examples_and_not_of_nodes(case, tmp_path):
    torch.manual_seed(0)
    nodes = case == "nodes"
    model = OfNodes() if nodes else Positions(int(case == "along time"))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    given = torch.randn(60, 6)
    with diagnostics.watch(model, optimizer, tmp_path, budget=ANY, curvature_every=20) as monitor:
        for _ in range(40):
            x = given if nodes else torch.randint(KINDS, (60, LENGTH))
            y = torch.arange(60) % 3  # says nothing: none of them learns
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y: F.cross_entropy(model(x), y))
    run = diagnostics.load(tmp_path)
    diagnosis = diagnostics.diagnose(run)
    assert not diagnosis.crashed
    assert (run.meta["by_place"] > 0) == (case != "along time")
    told = [each for each in diagnosis.alarms if each.cause == "by-place"]
    assert len(told) == (case == "along the batch")


@pytest.mark.parametrize("blind", [True, False])
@pytest.mark.every_case
def test_places_in_the_batch_of_a_run_that_learns(blind):
    """They may mean something there; but where those of the tokens do not, they were told along the wrong dimension."""
    steps = np.arange(1, 401)
    table = {"step": steps, "loss": np.linspace(2.6, 1.4, 400), "lr": 0.1, "input_sum": 2900.0 + steps % 7}
    meta = {"name": "test", "status": "finished", "by_place": 1.2, "order_blind": blind}
    told = list(by_place_rule(Run.from_frames(meta, {"scalars": pd.DataFrame(table)})))
    assert [(each.cause, each.severity) for each in told] == [("by-place", "warning")] * blind


class EachToken(nn.Module):
    """An answer to each token, by attention within the text, or within the batch of those at one place."""

    def __init__(self, along, first="examples", attends=True):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.places = nn.Embedding(KINDS, 16), torch.randn(64, 16)
        self.core = nn.TransformerEncoderLayer(16, 2, 32, 0.1, batch_first=first == "examples")
        self.along, self.out, self.attends = along, nn.Linear(16, KINDS), attends

    def forward(self, tokens):
        x = self.embedding(tokens)
        if self.along is not None:
            x = x + torch.stack([self.places[at] for at in range(x.shape[self.along])]).unsqueeze(1 - self.along)
        return self.out(self.core(x) if self.attends else x)


@pytest.mark.every_case
@pytest.mark.parametrize(
    ("model", "told_of"),
    [
        (EachToken(0), True),
        (EachToken(1), False),
        (EachToken(None), False),
        (EachToken(0, "tokens"), False),  # which come first on purpose
        (EachToken(0, attends=False), False),  # the first dimension may be anything
    ],
)
def test_answers_to_tokens_whose_places_are_counted_along_the_batch(model, told_of):
    torch.manual_seed(1)
    tokens = torch.randint(KINDS, (ROWS, LENGTH))
    found = told(model, lambda: F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()))
    assert (found["by_place"] > 0.1, found["order_blind"]) == (told_of, told_of)
