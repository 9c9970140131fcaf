"""A recurrent net that may run along the batch: what the order of its steps is worth, and where that is said."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

import diagnostics
from diagnostics.monitor.ordered import Ordered, unknown
from diagnostics.rules import Diagnosis
from diagnostics.run import Run

EXAMPLES, LENGTH, MODES, WORDS = 40, 12, 2, 6


class Tagger(nn.Module):
    """Reads the first dimension as time."""

    def __init__(self, kind: type = nn.GRU, **settings):
        super().__init__()
        self.words = nn.Embedding(MODES + WORDS, 16)
        self.recurrent, self.tags = kind(16, 32, **settings), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.tags(self.recurrent(self.words(x))[0])


def sentences(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A mode, and words of which each one's tag is by the mode."""
    mode = torch.randint(MODES, (EXAMPLES, 1), generator=generator)
    words = torch.randint(WORDS, (EXAMPLES, LENGTH - 1), generator=generator)
    return torch.cat([mode, MODES + words], 1), torch.cat(
        [torch.full_like(mode, 3), (words + mode * words // 2) % 3], 1
    )


def train(path: Path | None, model: Tagger, time_first: bool, updates: int = 400) -> Run | None:
    torch.manual_seed(1)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    monitor = diagnostics.watch(model, optimizer, path, budget=100.0, curvature_every=0) if path else None
    for _ in range(updates):
        x, y = (each.T if time_first else each for each in sentences(generator))

        def loss_of(x=x, y=y):
            return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step()
        if monitor is not None:
            monitor.step(loss, closure=loss_of)
    if monitor is None:
        return None
    monitor.close()
    return diagnostics.load(path)


def told(diagnosis: Diagnosis) -> list[tuple[str, str]]:
    return [(each.severity, each.cause or each.kind) for each in diagnosis.findings if each.cause == "order-unused"]


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_a_state_that_goes_from_example_to_example_is_of_no_use(kind, tmp_path):
    torch.manual_seed(0)
    diagnosis = diagnostics.diagnose(train(tmp_path, Tagger(kind), time_first=False))
    assert [(each.severity, each.cause) for each in diagnosis.alarms] == [("warning", "order-unused")]
    assert "40 long, with 12 sequences side by side" in diagnosis.alarms[0].summary


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM])
def test_one_that_goes_through_time_is(kind, tmp_path):
    torch.manual_seed(0)
    run = train(tmp_path, Tagger(kind), time_first=True)
    losses = run.table("scalars", ["ordered_loss", "shuffled_loss"]).dropna()
    assert losses["shuffled_loss"].iloc[-1] > 2 * losses["ordered_loss"].iloc[-1]
    assert not told(diagnostics.diagnose(run))


def test_where_sizes_tell_nobody_asks(tmp_path):
    torch.manual_seed(0)
    run = train(tmp_path, Tagger(batch_first=True), time_first=False, updates=60)
    assert run.table("scalars")["ordered_loss"].isna().all() and run.meta["runs_along"] == []


@pytest.mark.parametrize(
    ("given", "answer", "steps", "sequences", "found"),
    [
        ((50, 22), (50, 22, 6), 50, 22, True),
        ((50, 22, 3), (50, 22), 50, 22, True),
        ((50, 22), (50, 22, 6), 22, 50, False),  # along the second
        ((50, 50), (50, 50, 6), 50, 50, False),
        ((50, 4), (50, 4, 6), 50, 4, False),  # so few tell little
        ((50, 22), (50, 6), 50, 22, False),  # which sizes tell by themselves
    ],
)
def test_what_is_not_known_by_sizes(given, answer, steps, sequences, found):
    ends = [(Size(given), Size(answer))]
    assert bool(unknown(ends, [("gru", steps, sequences, False)])) == found
    assert not unknown(ends, [("gru", steps, sequences, True)]) and not unknown(2 * ends, [("gru", 50, 22, False)])


def test_the_shuffled_loss_is_that_of_a_net_whose_steps_are_shuffled():
    torch.manual_seed(0)
    model, (x, y) = Tagger(nn.LSTM), sentences(torch.Generator().manual_seed(0))
    ordered = Ordered()
    ordered.meet([("recurrent", EXAMPLES, LENGTH, False)])
    assert ordered.due(1) and not ordered.due(1)
    found = ordered.columns(model, lambda: F.cross_entropy(model(x).flatten(0, 1), y.flatten()), None)
    order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        usual = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        shuffled = F.cross_entropy(model(x[order]).flatten(0, 1), y[order].flatten())
    assert float(found["ordered_loss"]) == pytest.approx(float(usual))
    assert float(found["shuffled_loss"]) == pytest.approx(float(shuffled), rel=1e-6) != float(usual)


def test_training_is_bitwise_unchanged(tmp_path):
    """With dropout between layers, whose numbers are drawn."""

    def trained(path: Path | None) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = Tagger(nn.GRU, num_layers=2, dropout=0.3)
        train(path, model, time_first=False, updates=20)
        return model.state_dict()

    watched, alone = trained(tmp_path), trained(None)
    assert diagnostics.load(tmp_path).table("scalars")["shuffled_loss"].notna().any()
    assert all(torch.equal(watched[name], alone[name]) for name in alone)
