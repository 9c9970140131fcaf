"""How much of the answers dropout draws: against the variance of masks in closed form, and in small trainings."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.monitor import dropping, forwards

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


class Linear(nn.Module):
    """Answers that are linear in the masks; `noisy`: with noise of its own, drawn after them."""

    def __init__(self, p, inplace=False, noisy=False):
        super().__init__()
        self.first, self.last, self.noisy = nn.Linear(6, 200), nn.Linear(200, 3), noisy
        self.drop = nn.Dropout(p, inplace)

    def forward(self, x):
        return self.last(self.drop(self.first(x))) + (10 * torch.randn(len(x), 3) if self.noisy else 0)


@pytest.mark.parametrize("noisy", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("p", [0.75, 0.9])
def test_it_is_the_variance_that_masks_add(p, inplace, noisy):
    torch.manual_seed(0)
    model, x = Linear(p, inplace), torch.randn(4000, 6)
    y, before = torch.randn(4000, 3), torch.get_rng_state()
    model.noisy = noisy
    found = dropping.columns(model, lambda: F.mse_loss(model(x), y), forwards.random_state(model))["dropout_noise"]
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        hidden = model.first(x)
        noise = p / (1 - p) * (hidden[..., None] * model.last.weight.T).square().sum(1).mean()  # over masks
        signal = model.last(hidden).var(0, correction=0).mean() + (100.0 if noisy else 0.0)
    assert float(found) == pytest.approx(float(noise / (noise + signal)), rel=0.05)


def watched(path, model, loss_of, updates):
    """`loss_of`: makes the loss of a batch that can be called again."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with diagnostics.watch(model, optimizer, path, budget=ANY) as monitor:
        for _ in range(updates):
            closure = loss_of()
            loss = closure()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=closure)
    return diagnostics.load(path)


def trained(path, p):
    torch.manual_seed(0)
    x = torch.randn(600, 8)
    y = (x[:, 0] * x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Dropout(p), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(p))
    model.append(nn.Linear(32, 2))

    def loss_of():
        chosen = torch.randint(600, (64,))
        return lambda: F.cross_entropy(model(x[chosen]), y[chosen])

    return [each.cause for each in diagnostics.diagnose(watched(path, model, loss_of, 300)).alarms]


@pytest.mark.exhaustive
@pytest.mark.parametrize(("p", "told"), [(0.9, True), (0.5, False), (0.1, False)])
@pytest.mark.every_case
def test_p_taken_for_the_share_that_is_kept(p, told, tmp_path):
    assert ("dropout-noise" in trained(tmp_path, p)) == told
    assert diagnostics.load(tmp_path).meta["dropout"] == p


def test_dropout_of_the_data_is_not_asked(tmp_path):
    """As of a denoising autoencoder, or of items that a recommender is not shown."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Dropout(0.9), nn.Linear(8, 8)), torch.randn(64, 8)
    run = watched(tmp_path, model, lambda: lambda: F.mse_loss(model(x), x), 30)
    assert run.meta["dropout"] == 0.0
    assert run.table("scalars")["dropout_noise"].isna().all()
