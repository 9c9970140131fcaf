"""Examples that were scaled to length 1 by themselves, where columns were to be; and inputs that are directions."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.preprocessing import normalize
from torch import nn

import diagnostics
from diagnostics.monitor.inputs import rows_scaled


def table(columns=7):
    """As of persons: an income, and small numbers."""
    torch.manual_seed(0)
    return torch.cat([20_000 + 30_000 * torch.rand(64, 1), 5 * torch.rand(64, columns - 1)], 1)


def test_one_column_has_all_of_each_row():
    rows = torch.from_numpy(normalize(table().numpy()))
    columns, at, share = rows_scaled([torch.zeros(64, 2).long(), rows])  # beside categories
    assert (columns, at) == (7, 0) and share == pytest.approx(float(rows[:, 0].square().mean()))


@pytest.mark.parametrize(
    "given",
    [
        table(),
        F.normalize(torch.randn(64, 7), dim=1),  # features of equal weight
        F.normalize(table(4), dim=1),  # a rotation near the identity
        F.normalize(table(), p=1, dim=1),  # shares of a whole
        F.normalize(table()[:4], dim=1),
        F.normalize(table(), dim=1)[:, :, None],
        torch.full((64,), 1.0),
    ],
)
def test_other_inputs_are_none_of_that(given):
    assert rows_scaled([given, 3, None]) == []


@pytest.mark.parametrize("learns", [True, False])
def test_it_is_said_and_no_alarm_where_something_is_learned(learns, tmp_path):
    x = F.normalize(table(), dim=1)
    y = 1e4 * x[:, 1:2] if learns else torch.randn(64, 1)
    model = nn.Sequential(nn.BatchNorm1d(7), nn.Linear(7, 1)) if learns else nn.Linear(7, 1)
    optimizer = torch.optim.Adam(model.parameters(), 3e-2)
    with diagnostics.watch(model, optimizer, tmp_path, budget=100.0, curvature_every=0) as monitor:
        for _ in range(200):
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: F.mse_loss(model(x), y))
    (found,) = [e for e in diagnostics.diagnose(diagnostics.load(tmp_path)).findings if e.cause == "rows-scaled"]
    assert found.severity == ("info" if learns else "warning")
    assert "the 7 numbers of each" in found.summary and "column 0 has" in found.summary
