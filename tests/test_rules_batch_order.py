"""A partial likelihood by running sums: over a shuffled batch, one that is sorted, and what else sums along a batch."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import diagnostics
from diagnostics.monitor.observe import Observer
from diagnostics.run import Run

ROWS = 128


def partial_likelihood(risk: Tensor, event: Tensor) -> Tensor:
    """Of examples by falling times."""
    return -((risk - torch.logcumsumexp(risk, 0)) * event).sum() / event.sum()


def train(path: Path, *, is_sorted: bool, effect: float = 1.0, updates: int = 300) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with diagnostics.watch(model, optimizer, path, every=5, curvature_every=0, budget=100.0) as monitor:
        for _ in range(updates):
            x = torch.randn(ROWS, 6)
            time, censored = torch.empty(2, ROWS).exponential_()
            time = time / (effect * x[:, 0]).exp()
            event, time = (time < censored).float(), torch.minimum(time, censored)
            order = time.argsort(descending=True) if is_sorted else torch.arange(ROWS)
            x, event = x[order], event[order]
            optimizer.zero_grad()
            loss = partial_likelihood(model(x).squeeze(1), event)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, event=event: partial_likelihood(model(x).squeeze(1), event))
    return diagnostics.load(path)


def causes(run: Run) -> list[str | None]:
    return [each.cause for each in diagnostics.diagnose(run).findings if each.alarm]


def test_a_shuffled_batch_is_told(tmp_path):
    run = train(tmp_path, is_sorted=False)
    assert "batch-order" in causes(run)


@pytest.mark.parametrize("effect", [1.0, 0.3, 0.1, 0.0])
@pytest.mark.exhaustive
def test_a_sorted_one_is_not_whether_it_is_learned_or_not(tmp_path, effect):
    run = train(tmp_path, is_sorted=True, effect=effect)
    assert "batch-order" not in causes(run)


def test_what_is_looked_at():
    model, x = nn.Linear(3, 1), torch.randn(20, 3)
    with Observer(model) as observer:
        answers = model(x)
        torch.cumsum(torch.rand(20), 0)
        torch.cumsum(model.weight.detach().expand(20, 3), 1)
        assert observer.running.columns() == {}
        torch.cumsum(answers.squeeze(1).exp(), dim=0)
    found = observer.running.columns()
    values = answers.detach().squeeze(1)
    ranks = values.argsort().argsort().double()
    expected = torch.corrcoef(torch.stack([ranks, torch.arange(20.0, dtype=torch.float64)]))[0, 1]
    assert float(found["running_order"]) == pytest.approx(float(expected), abs=1e-5)
    assert not observer.failures


@pytest.mark.exhaustive
def test_steps_of_a_path_resemble_their_neighbours(tmp_path):
    """Speeds that are answered, and summed up to places."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with diagnostics.watch(model, optimizer, tmp_path, every=5, curvature_every=0, budget=100.0) as monitor:
        for _ in range(200):
            x = torch.randn(ROWS, 4).cumsum(0) * 0.3
            x = x - x.mean(0)
            places = x[:, 0].cumsum(0)

            def loss(x: Tensor = x, places: Tensor = places) -> Tensor:
                return (model(x).squeeze(1).cumsum(0) - places).square().mean() / places.var()

            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            monitor.step(value, closure=loss)
    assert "batch-order" not in causes(diagnostics.load(tmp_path))
