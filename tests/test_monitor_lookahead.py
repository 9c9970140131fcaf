"""A model that is to predict the next token, and sees it: each way to look ahead beside one that does not, and beside
what looks like it. The oracle changes a token, and looks whether the answer before it does."""

import warnings

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

import diagnostics
from diagnostics.monitor import lookahead

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is
KINDS, LENGTH, ROWS, WIDTH = 12, 10, 8, 16


def ahead(model, closure):
    return lookahead.told(model, closure).get("looks_ahead", 0.0)


class Attending(nn.Module):
    """`time_first`: as nn.TransformerEncoder has it by default."""

    def __init__(self, causal, time_first=False):
        super().__init__()
        self.causal, self.time_first = causal, time_first
        self.tokens, self.places = nn.Embedding(KINDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.1, batch_first=not time_first)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(WIDTH, KINDS)

    def forward(self, x):
        length = x.shape[0 if self.time_first else 1]
        places = self.places(torch.arange(length))
        mask = nn.Transformer.generate_square_subsequent_mask(length) if self.causal else None
        return self.out(self.layers(self.tokens(x) + (places[:, None] if self.time_first else places), mask))


class Reading(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.tokens = nn.Embedding(KINDS, WIDTH)
        self.read = nn.LSTM(WIDTH, WIDTH, batch_first=True, bidirectional=not causal)
        self.out = nn.Linear(WIDTH if causal else 2 * WIDTH, KINDS)

    def forward(self, x):
        return self.out(self.read(self.tokens(x))[0])


class Convolving(nn.Module):
    """With a batch norm, through which every answer depends on every token. `width` 1: on no other but for that."""

    def __init__(self, causal, width=3):
        super().__init__()
        self.tokens, self.norm, self.out = nn.Embedding(KINDS, WIDTH), nn.BatchNorm1d(WIDTH), nn.Conv1d(WIDTH, KINDS, 1)
        self.inside, self.pad = nn.Conv1d(WIDTH, WIDTH, width), (width - 1, 0) if causal else (width // 2, width // 2)

    def forward(self, x):
        h = self.norm(self.inside(F.pad(self.tokens(x).transpose(1, 2), self.pad)))
        return self.out(torch.relu(h)).transpose(1, 2)


class Translating(nn.Module):
    """One table for both languages; the targets are the source, begun alike: all of them may be read there."""

    def __init__(self, causal):
        super().__init__()
        self.causal, self.tokens, self.out = causal, nn.Embedding(KINDS, WIDTH), nn.Linear(WIDTH, KINDS)
        self.both = nn.Transformer(WIDTH, 2, 1, 1, 32, dropout=0.0, batch_first=True)

    def forward(self, x):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.causal else None
        return self.out(self.both(self.tokens(x), self.tokens(x), tgt_mask=mask))


def text(rows=ROWS, length=LENGTH + 1):
    return torch.randint(KINDS, (rows, length), generator=torch.Generator().manual_seed(1))


def loss_of(scores, targets):
    return F.cross_entropy(scores.reshape(-1, KINDS), targets.reshape(-1))


def closure_of(model, x, y):
    return lambda: loss_of(model(x), y)


def changes(model, x):
    """Whether answers of one row change with a later token of it, by more than through what the batch shares."""
    other = x.clone()
    other[0, 6] = (x[0, 6] + 1) % KINDS
    with torch.no_grad():
        moved = (model.eval()(other) - model(x)).abs()
    return bool(moved[0, :6].max() > 1e-6)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kind", [Attending, Reading, Convolving])
def test_it_is_told_where_an_answer_changes_with_its_target(kind, causal):
    torch.manual_seed(0)
    model, data = kind(causal), text()
    x, y = data[:, :-1], data[:, 1:]
    found = ahead(model, closure_of(model, x, y))
    assert (found > 0) == changes(model, x) == (not causal)


@pytest.mark.parametrize("causal", [True, False])
def test_with_time_first(causal):
    torch.manual_seed(0)
    model, data = Attending(causal, time_first=True), text().t()
    assert (ahead(model, closure_of(model, data[:-1], data[1:])) > 0) == (not causal)


class Plain(nn.Module):
    """Of each token alone, but for a batch norm of each place."""

    def __init__(self, places=0):
        super().__init__()
        self.tokens, self.out = nn.Embedding(KINDS, WIDTH), nn.Linear(WIDTH, KINDS)
        self.norm = nn.BatchNorm1d(places) if places else nn.Identity()

    def forward(self, x):
        return self.out(self.norm(self.tokens(x)))


def test_texts_that_are_read_across():
    """The first dimension of the data is the batch, and the model reads it as time, or the other way round."""
    torch.manual_seed(0)
    data = text()
    x, y = data[:, :-1], data[:, 1:]
    recurrent = Reading(True)
    recurrent.read = nn.LSTM(WIDTH, WIDTH)
    across = {
        "attention": closure_of(Attending(True, time_first=True), x, y),
        "without a mask": closure_of(Attending(False, time_first=True), x, y),
        "recurrent": closure_of(recurrent, x, y),
        "time first": closure_of(Attending(True), x.t(), y.t()),
    }
    right = {
        "attention": closure_of(Attending(True), x, y),
        "time first": closure_of(Attending(True, time_first=True), x.t(), y.t()),
        "recurrent": closure_of(Reading(True), x, y),
        "each token alone": closure_of(Plain(), x, y),
        "through a batch norm": closure_of(Convolving(True, width=1), x, y),
        "through a batch norm of each place": closure_of(Plain(x.shape[1]), x, y),
        "other targets": closure_of(Attending(True, time_first=True), x, (x + 1) % KINDS),
    }
    model = nn.Embedding(1, 1)  # one that holds some
    assert {name: lookahead.told(model, closure)["across_texts"] for name, closure in across.items()} == dict.fromkeys(
        across, True
    )
    assert {name: lookahead.told(model, closure)["across_texts"] for name, closure in right.items()} == dict.fromkeys(
        right, False
    )


@pytest.mark.parametrize("causal", [True, False])
def test_a_decoder_beside_an_encoder_that_may_read_all(causal):
    torch.manual_seed(0)
    model, data = Translating(causal), text()
    assert (ahead(model, closure_of(model, data[:, :-1], data[:, 1:])) > 0) == (not causal)


@pytest.mark.parametrize("causal", [True, False])
def test_targets_that_are_shifted_by_the_loss(causal):
    """By classes in the second dimension, with rows cut short, and log-probabilities."""
    torch.manual_seed(0)
    model, data = Attending(causal), text()[:, :LENGTH]

    def one_less():
        return F.cross_entropy(model(data)[:, :-1].transpose(1, 2), data[:, 1:])

    def filled_up():
        targets = F.pad(data[:, 1:], (0, 1), value=-100)
        targets[2, 4:] = -100
        return loss_of(model(data), targets)

    def in_two():
        return F.nll_loss(model(data)[:, :-1].log_softmax(-1).flatten(0, 1), data[:, 1:].flatten())

    for closure in (one_less, filled_up, in_two):
        assert (ahead(model, closure) > 0) == (not causal)


def test_what_may_look_ahead():
    """Reconstruction, tags, a ring, a sentence's class, words that never change, batch norm alone."""
    torch.manual_seed(0)
    model, data = Attending(False), text()
    x, y = data[:, :-1], data[:, 1:]
    same = torch.arange(ROWS)[:, None].expand(ROWS, LENGTH)
    alone = Convolving(True, width=1)
    silent = {
        "reconstruction": closure_of(model, x, x),
        "tags": closure_of(model, x, (x + 1) % KINDS),
        "two on": closure_of(model, x[:, :-1], data[:, 2:]),
        "ring": closure_of(model, x, x.roll(-1, 1)),
        "class": lambda: F.cross_entropy(model(x).mean(1), x[:, 0]),
        "never changing": closure_of(model, same, same),
        "few": closure_of(model, x[:2], y[:2]),
        "batch norm": closure_of(alone, x, y),
        "squared error": lambda: model(x).square().mean(),
    }
    assert {name: ahead(model, closure) for name, closure in silent.items()} == dict.fromkeys(silent, 0.0)


@pytest.mark.exhaustive
@pytest.mark.parametrize("causal", [True, False])
def test_a_run_tells_it_however_low_its_loss(causal, tmp_path):
    def train(watched):
        torch.manual_seed(0)
        model = Attending(causal)
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        losses = []
        monitor = diagnostics.watch(model, optimizer, tmp_path, budget=ANY) if watched else None
        for step in range(20):
            data = text(32)
            data = (data.cumsum(1) + step) % KINDS
            optimizer.zero_grad()
            loss = loss_of(model(data[:, :-1]), data[:, 1:])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if monitor:
                monitor.step(loss, closure=closure_of(model, data[:, :-1], data[:, 1:]))
        if monitor:
            monitor.close()
        return losses

    assert train(False) == train(True)
    diagnosis = diagnostics.diagnose(diagnostics.load(tmp_path))
    assert not diagnosis.crashed
    told = [finding for finding in diagnosis.alarms if finding.cause == "looks-ahead"]
    assert len(told) == (not causal)
    assert all("generate_square_subsequent_mask" in finding.remedies[0] for finding in told)


@pytest.mark.exhaustive
def test_a_graph_that_cannot_be_asked_is_left_alone(tmp_path):
    """A closure with its own backward frees its graph; a reentrant checkpoint gives derivatives to `backward` alone."""
    torch.manual_seed(0)
    model, data = Attending(False), text()
    x, y = data[:, :-1], data[:, 1:]

    def with_backward():
        loss = loss_of(model(x), y)
        loss.backward()
        return loss

    class Checkpointed(Attending):
        def forward(self, x):
            return self.out(torch.utils.checkpoint.checkpoint(self.layers, self.tokens(x), use_reentrant=True))

    checkpointed = Checkpointed(False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, each, closure in (
            ("backward", model, with_backward),
            ("checkpoint", checkpointed, closure_of(checkpointed, x, y)),
        ):
            optimizer = torch.optim.SGD(each.parameters(), 0.1)
            with diagnostics.watch(each, optimizer, tmp_path / name, curvature_every=10**6, budget=ANY) as monitor:
                loss = loss_of(each(x), y)
                loss.backward()
                optimizer.step()
                monitor.step(loss, closure=closure)
            run = diagnostics.load(tmp_path / name)
            assert run.meta["closure"] and run.meta["loss_path"]  # the first step went all the way
            told = run.table("events")
            assert set(told.loc[told["kind"] == "measurement-failed", "subject"]) <= {"curvature"}


def test_tokens_and_targets_of_other_types():
    torch.manual_seed(0)
    model, data = Attending(False), text()
    assert ahead(model, closure_of(model, data[:, :-1].int(), data[:, 1:])) > 0


def shifted_twice(model, closure):
    return lookahead.told(model, closure).get("shifted_twice", False)


def test_labels_that_are_shifted_twice(tmp_path):
    """The data set gives the tokens one place on, and the loss leaves out the first of these once more. Where it leaves
    out the first answer too, as one whose context is too short, each answer is that of the next token."""
    torch.manual_seed(0)
    data = text(length=LENGTH + 2)
    x, y, further = data[:, :-2], data[:, 1:-1], data[:, 2:]
    for causal in (True, False):
        model = Attending(causal)

        def told(closure, model=model):
            return shifted_twice(model, closure)

        assert told(lambda model=model: loss_of(model(x)[:, :-1], y[:, 1:])) == causal  # the other knows all tokens
        assert told(closure_of(model, x, F.pad(y[:, 1:], (0, 1), value=-100))) == causal  # as a library's labels are
        assert not told(lambda model=model: loss_of(model(x)[:, 1:], y[:, 1:]))
        assert not told(closure_of(model, x, F.pad(x[:, 1:], (0, 1), value=-100)))
        assert not told(closure_of(model, x, further))  # as of two codebooks whose tokens take turns
        assert not told(lambda model=model: loss_of(model(x)[:, :-1], x[:, 1:]))
        assert not told(closure_of(model, x, y))
        assert not told(closure_of(model, x, x))
        # of a trigram model, which embeds the last two tokens
        assert not told(lambda model=model: loss_of((model(x) + model(y))[:, :-1], y[:, 1:]))
        # heads for several tokens, of which one is the next
        assert not told(lambda model=model: loss_of(model(x), y) + loss_of(model(x), further))
        same = torch.full_like(x, 3)
        assert not told(closure_of(model, same, same))
        turning = torch.arange(LENGTH).expand(ROWS, -1) % 2
        assert not told(closure_of(model, turning, 1 - turning))


class Decoding(nn.Module):
    """A decoder beside an encoder; `starts`: it puts a token before its own and drops the last."""

    def __init__(self, starts):
        super().__init__()
        self.starts, self.tokens = starts, nn.Embedding(KINDS + 1, WIDTH)
        self.encode, self.decode = nn.GRU(WIDTH, WIDTH, batch_first=True), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.out = nn.Linear(WIDTH, KINDS)

    def forward(self, x, y):
        if self.starts:
            y = torch.cat([torch.full_like(y[:, :1], KINDS), y[:, :-1]], 1)
        return self.out(self.decode(self.tokens(y), self.encode(self.tokens(x))[1])[0])


def test_targets_that_are_not_shifted():
    torch.manual_seed(0)
    x, y = text(length=LENGTH), text(length=LENGTH).flip(0)

    def told(model, closure):
        return lookahead.told(model, closure).get("unshifted", False)

    for causal, time_first in ((True, False), (False, False), (True, True), (False, True)):
        model = Attending(causal, time_first)
        tokens = x.t() if time_first else x
        assert told(model, lambda model=model, tokens=tokens: loss_of(model(tokens), tokens)) == causal
        assert not told(model, lambda model=model, tokens=tokens: loss_of(model(tokens)[:-1], tokens[1:]))
    causal = Attending(True)
    assert not told(causal, lambda: loss_of(causal(x[:, :-1]), x[:, 1:]))
    hidden = torch.where(torch.rand(x.shape) < 0.3, 0, x)  # is to be filled in
    assert not told(causal, lambda: loss_of(causal(hidden), x))
    for starts in (True, False):
        model = Decoding(starts)
        assert told(model, lambda model=model: loss_of(model(x, y), y)) == (not starts)
        assert not told(model, lambda model=model: loss_of(model(x, y), x))
        # rebuilt from a code, as in an autoencoder
        assert told(model, lambda model=model: loss_of(model(x, x), x)) == (not starts)
    by_itself = Convolving(True, width=1)  # with a batch norm
    assert not told(by_itself, lambda: loss_of(by_itself(x), x))


class Coded(nn.Module):
    """Rebuilds a text from one code of all its tokens; padding, which is 0, has no part in it."""

    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(KINDS, WIDTH), nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.out = nn.Linear(WIDTH, LENGTH * KINDS)

    def forward(self, x):
        read = (self.tokens(x) + self.places).tanh().masked_fill(x[:, :, None] == 0, 0.0)
        return self.out(read.sum(1)).view(-1, LENGTH, KINDS)


def test_what_is_rebuilt_from_a_code_knows_its_targets_wherever_padding_begins():
    """In half of the texts behind two tokens, of which the second is followed by none."""
    torch.manual_seed(0)
    model, x = Coded(), text(length=LENGTH).clamp(min=1)
    x[::2, 2:] = 0

    def loss():
        return F.cross_entropy(model(x).flatten(0, 1), x.flatten(), ignore_index=0)

    for last in range(ROWS):  # the text in the middle, by which it is judged, is another each time
        x = x.roll(last, 0)
        assert not lookahead.told(model, loss).get("unshifted", False)


def causes(path, later, loss):
    """Of the alarms of a run that counts on from a random number; its labels are the tokens so many places `later`."""
    torch.manual_seed(0)
    model = Reading(True)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with diagnostics.watch(model, optimizer, path, budget=ANY, curvature_every=0) as monitor:
        for _ in range(60):
            data = (torch.randint(KINDS, (ROWS, 1)) + torch.arange(LENGTH + 1)) % KINDS
            x, labels = data[:, :-1], data[:, later : LENGTH + later]
            optimizer.zero_grad()
            value = loss(model(x), labels)
            value.backward()
            optimizer.step()
            monitor.step(value, closure=lambda x=x, labels=labels: loss(model(x), labels))
    return [each.cause for each in diagnostics.diagnose(diagnostics.load(path)).alarms]


@pytest.mark.parametrize("later", [0, 1])
def test_what_is_said_of_targets_that_are_not_shifted(later, tmp_path):
    assert causes(tmp_path, later, loss_of) == ([] if later else ["unshifted"])


@pytest.mark.parametrize("later", [0, 1])
def test_what_is_said_of_labels_that_are_shifted_twice(later, tmp_path):
    found = causes(tmp_path, later, lambda scores, labels: loss_of(scores[:, :-1], labels[:, 1:]))
    assert found == (["shifted-twice"] if later else [])
