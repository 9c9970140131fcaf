"""Losses of several terms: the part that compares outputs with targets, recorded and judged."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import diagnostics
from diagnostics.rules._explained import explained_late

ANY = 100.0  # times the unwatched time: what is measured must not depend on how busy the machine is


def digits():
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


class Coder(nn.Module):
    """A variational autoencoder; the noise comes from outside, so that a closure repeats it."""

    def __init__(self, squash):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(64, 32), nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 64))
        self.mean, self.spread, self.squash = nn.Linear(32, 8), nn.Linear(32, 8), squash

    def forward(self, x, noise):
        h = self.encoder(x).relu()
        mean, log_variance = self.mean(h), self.spread(h)
        y = self.decoder(mean + noise * (log_variance / 2).exp())
        return y.sigmoid() if self.squash else y, mean, log_variance


def watched(path, model, batches, loss_of, rate=2e-3):
    """The losses' first parts, as they are computed here, by step."""
    optimizer, told = torch.optim.Adam(model.parameters(), rate), {}
    with diagnostics.watch(model, optimizer, path, budget=ANY, every=10, curvature_every=100) as monitor:
        for step, batch in enumerate(batches, 1):
            optimizer.zero_grad()
            part, rest = loss_of(batch)
            (part + rest).backward()
            optimizer.step()
            monitor.step(part + rest)
            told[step] = part.item()
    return told


def check_parts(run, told):
    """Recorded as computed, or the whole loss is, where the rest is no more than what rounding leaves."""
    table = run.table("scalars").set_index("step")
    parts, whole = table["partial_loss"].dropna(), table["constant_loss"].dropna()
    assert len(parts) + len(whole) > 10 and len(parts) and not set(parts.index) & set(whole.index)
    assert [told[step] for step in parts.index] == pytest.approx(parts.to_list(), rel=2e-3)
    assert [told[step] for step in whole.index] == pytest.approx(table["loss"][whole.index].to_list(), rel=2e-3)


@pytest.mark.exhaustive
@pytest.mark.parametrize("error", [F.binary_cross_entropy, F.mse_loss])
@pytest.mark.parametrize("weight", [1.0, pytest.param(1 / 64, marks=pytest.mark.exhaustive)])
def test_a_code_that_says_nothing(error, weight, tmp_path):
    """A divergence that weighs 64 times as much as the error it belongs to: the posterior collapses."""
    torch.manual_seed(0)
    x, _ = digits()
    model = Coder(error is F.binary_cross_entropy)

    def loss_of(batch):
        y, mean, log_variance = model(*batch)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return error(y, batch[0]), weight * (divergence if weight == 1 else 0.1 * divergence)

    chosen = (torch.randint(len(x), (64,)) for _ in range(600))
    told = watched(tmp_path, model, ((x[rows], torch.randn(64, 8)) for rows in chosen), loss_of)
    run = diagnostics.load(tmp_path)
    check_parts(run, told)
    found = diagnostics.diagnose(run).alarms
    assert [(each.kind, each.cause) for each in found] == ([("plateau", "nothing-learned")] if weight == 1 else [])
    assert (explained_late(run).share < 0.02) == (weight == 1)
    for each in found:
        assert each.remedies[0].startswith("weigh the other terms of the loss less")
        shown = run.table("scalars", ["step", *each.charts[0].columns])
        assert shown[shown["step"] > 300].notna().any().all(), "a chart of what was not measured there"


@pytest.mark.exhaustive
@pytest.mark.parametrize("shuffled", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("binary", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_classes_beside_a_penalty(binary, shuffled, tmp_path):
    torch.manual_seed(0)
    x, t = digits()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1 if binary else 10))
    t = (t > 4).float() if binary else t

    def loss_of(rows):
        z, labels = model(x[rows]), t[rows[torch.randperm(64)] if shuffled else rows]
        part = F.binary_cross_entropy_with_logits(z[:, 0], labels) if binary else F.cross_entropy(z, labels)
        return part, 3e-3 * sum(p.square().sum() for p in model.parameters())

    told = watched(tmp_path, model, (torch.randint(len(x), (64,)) for _ in range(600)), loss_of)
    run = diagnostics.load(tmp_path)
    check_parts(run, told)
    found = diagnostics.diagnose(run).alarms
    assert [(each.kind, each.cause) for each in found] == ([("plateau", "nothing-learned")] if shuffled else [])


class Code(nn.Module):
    """An autoencoder; where its code is `lost`, each is given that of another."""

    def __init__(self, lost):
        super().__init__()
        self.encoder, self.decoder, self.lost = nn.Linear(64, 32), nn.Linear(32, 64), lost

    def forward(self, x):
        code = self.encoder(x).relu()
        return self.decoder(code[torch.randperm(len(code))] if self.lost else code)


@pytest.mark.parametrize("lost", [True, False])
def test_an_autoencoder_whose_error_is_multiplied_by_any_number(lost, tmp_path):
    torch.manual_seed(0)
    x, model = digits()[0], Code(lost)
    batches = [x[torch.randint(len(x), (64,))] for _ in range(400)]
    watched(tmp_path, model, batches, lambda batch: (7.3 * F.mse_loss(model(batch), batch), torch.zeros(())))
    run = diagnostics.load(tmp_path)
    table = run.table("scalars").set_index("step")
    known = table["constant_loss"].dropna().iloc[-1:]
    batch = batches[known.index[0] - 1]
    assert known.item() == pytest.approx(7.3 * (batch - x.mean(0)).square().mean().item(), rel=0.05)
    alarms = [finding.cause for finding in diagnostics.diagnose(run).findings if finding.alarm]
    assert alarms == (["nothing-learned"] if lost else [])


def test_targets_that_prove_nothing(tmp_path):
    """Numbers that are neither labels nor the input, beside another term: any could be behind such a gradient."""
    torch.manual_seed(0)
    x, _ = digits()
    model = nn.Linear(64, 64)
    told = watched(
        tmp_path,
        model,
        (torch.randint(len(x), (64,)) for _ in range(60)),
        lambda rows: (F.mse_loss(model(x[rows]), x[rows].flip(0)), model.weight.square().sum()),
    )
    table = diagnostics.load(tmp_path).table("scalars")
    assert len(told) == 60 and table[["constant_loss", "partial_loss"]].isna().all(axis=None)


@pytest.mark.parametrize("scale", [0.1, 0.001])
def test_a_penalty_that_leaves_nothing_of_the_weights(scale, tmp_path):
    torch.manual_seed(0)
    x, y = digits()
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))

    def loss_of(rows):
        return F.cross_entropy(model(x[rows]), y[rows]), scale * sum(p.square().sum() for p in model.parameters())

    watched(tmp_path, model, (torch.randint(len(x), (64,)) for _ in range(1000)), loss_of, rate=1e-3)
    found = diagnostics.diagnose(diagnostics.load(tmp_path)).alarms
    assert [(each.kind, each.cause) for each in found] == ([("plateau", "weight-penalty")] if scale == 0.1 else [])
