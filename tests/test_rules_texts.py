"""Texts of which a model sees too little: tokens without their order, or one token again and again."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.monitor.exchanged import told

pytestmark = pytest.mark.exhaustive  # minutes; `make test` has a few of each kind elsewhere

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is
LENGTH, FIRST, SECOND = 10, 0, 1


def order_blind(model, closure):
    return told(model, closure).get("order_blind", False)


class Attends(nn.Module):
    def __init__(self, positions=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.positions = nn.Embedding(12, 16), positions
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(16, 2)

    def forward(self, tokens):
        x = 2 * self.embed(tokens)
        if self.positions is not None:
            x = x + 2 * self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.layer(x).mean(1))


class Recurs(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(12, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, tokens):
        return self.head(self.layer(self.embed(tokens))[0][:, -1])


def orders(rows):
    """Which of two tokens comes first."""
    tokens = torch.randint(2, 12, (rows, LENGTH))
    places, every = torch.rand(rows, LENGTH).argsort(1)[:, :2], torch.arange(rows)
    tokens[every, places[:, 0]], tokens[every, places[:, 1]] = FIRST, SECOND
    return tokens, (places[:, 0] < places[:, 1]).long()


def kinds(rows):
    """Whether there are more tokens of one kind: a set of tokens tells."""
    tokens = torch.randint(0, 12, (rows, LENGTH))
    return tokens, ((tokens < 6).sum(1) > LENGTH // 2).long()


def compared(model, x, y):
    return F.cross_entropy(model(x), y)


def causes(path, model, batch, lr=3e-3, updates=250, loss_of=compared):
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    torch.manual_seed(1)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(updates):
            x, y = batch(64)
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y: loss_of(model, x, y))
    return [(each.kind, each.cause) for each in diagnostics.diagnose(diagnostics.load(path)).alarms]


def test_attention_without_positions_where_the_order_counts(tmp_path):
    torch.manual_seed(0)
    table = nn.Embedding(LENGTH, 16)
    assert causes(tmp_path / "without", Attends(), orders) == [("plateau", "order-blind")]
    assert ("plateau", "order-blind") not in causes(tmp_path / "with", Attends(table), orders)


@pytest.mark.by_hand
def test_attention_without_positions_where_a_set_is_enough(tmp_path):
    assert causes(tmp_path, Attends(), kinds) == []


@pytest.mark.parametrize(
    ("model", "blind"),
    [(Attends, True), (lambda: Attends(nn.Embedding(LENGTH, 16)), False), (Recurs, False)],
    ids=["attention", "with positions", "recurrent"],
)
def test_whose_answer_does_not_change_with_the_order(model, blind):
    net, (x, y) = model(), orders(16)
    before = [parameter.detach().clone() for parameter in net.parameters()]
    assert order_blind(net, lambda: F.cross_entropy(net(x), y)) is blind
    assert all(map(torch.equal, before, net.parameters()))


def test_what_is_no_text_or_draws_at_random_is_not_asked():
    numbers, noisy = nn.Sequential(nn.Linear(LENGTH, 2)), Attends()
    x, y = orders(16)
    assert not order_blind(numbers, lambda: F.cross_entropy(numbers(x.float()), y))
    assert not order_blind(noisy, lambda: F.cross_entropy(noisy(x) + torch.rand(16, 2), y))
    assert not order_blind(noisy, lambda: F.cross_entropy(noisy(x[:, :4]), y))  # too few tokens
    assert not order_blind(noisy, lambda: F.cross_entropy(noisy(x) + noisy(x), y))


def test_a_table_of_positions_that_begins_at_zero_is_no_order_blindness(tmp_path):
    """It is looked for in the first update, when all positions are alike still."""
    table = nn.Embedding(LENGTH, 16)
    nn.init.zeros_(table.weight)
    assert ("plateau", "order-blind") not in causes(tmp_path, Attends(table), orders, lr=1e-6)


def unknown(rows, share=1.0, shortest=4):
    """Texts of other lengths, of which a share of the tokens is the unknown one; padded with 0."""
    y, lengths = torch.randint(2, (rows,)), torch.randint(shortest, LENGTH + 1, (rows, 1))
    known = 2 + 5 * y[:, None] + torch.randint(5, (rows, LENGTH))
    tokens = torch.where(torch.rand(rows, LENGTH) < share, 1, known)
    return torch.where(torch.arange(LENGTH) < lengths, tokens, 0), y


class Averages(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(12, 16, padding_idx=0), nn.Linear(16, 2)

    def forward(self, tokens):
        some = (tokens != 0)[..., None].float()
        return self.head((self.embed(tokens) * some).sum(1) / some.sum(1))


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (unknown, [("wiring", "one-token")]),
        (lambda rows: unknown(rows, 0.8), None),
        (lambda rows: unknown(rows, shortest=LENGTH), [("wiring", "one-token")]),
        (lambda rows: ((torch.rand(rows, LENGTH) < 0.5).long(), torch.randint(2, (rows,))), None),
    ],
    ids=["unknown", "most unknown", "of one length", "two tokens"],
)
def test_texts_of_one_token(batch, expected, tmp_path):
    told = causes(tmp_path, Averages(), batch, updates=150)
    assert told == expected if expected is not None else ("wiring", "one-token") not in told


class ComputesItsLoss(Averages):
    def forward(self, tokens, lengths, labels):
        return F.cross_entropy(super().forward(tokens), labels)


class MaskFirst(Averages):
    def forward(self, mask, tokens):
        return super().forward(tokens * mask)


@pytest.mark.parametrize("share", [1.0, 0.8])
@pytest.mark.parametrize(
    ("model", "loss_of"),
    [
        (ComputesItsLoss, lambda model, x, y: model(x, (x != 0).sum(1), y)),
        (MaskFirst, lambda model, x, y: F.cross_entropy(model((x != 0).long(), x), y)),
    ],
    ids=["lengths and labels", "a mask first"],
)
def test_texts_of_one_token_beside_what_is_no_text(model, loss_of, share, tmp_path):
    told = causes(tmp_path, model(), lambda rows: unknown(rows, share), loss_of=loss_of)
    assert told == ([("wiring", "one-token")] if share == 1 else [])
