"""A contrastive loss that stays at that of guessing is told, one that falls is not; trained runs, and written ones."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics.monitor import chances
from diagnostics.rules import Finding, plateau
from diagnostics.run import Run

PAIRS, UPDATES = 16, 250


class Views(nn.Module):
    """Two noisy views of the same inputs, stacked, and the loss that the model computes itself."""

    def __init__(self, partner: str) -> None:
        super().__init__()
        self.net, self.partner = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 16)), partner

    def forward(self, views: Tensor) -> Tensor:
        z, n = F.normalize(self.net(views), dim=1), len(views)
        scores = (z @ z.T / 0.2).masked_fill(torch.eye(n, dtype=torch.bool), float("-inf"))
        at = torch.arange(n)
        right = (at + n // 2) % n if self.partner == "stacked" else at ^ 1
        return (scores.logsumexp(1) - scores[at, right]).mean()


class Towers(nn.Module):
    """Symmetric cross-entropy of two encoders; the second one's inputs are in another order where `partner` says so."""

    def __init__(self, partner: str) -> None:
        super().__init__()
        self.one, self.other, self.partner = nn.Linear(20, 16), nn.Linear(20, 16), partner

    def forward(self, views: Tensor) -> Tensor:
        a, b = views.chunk(2)
        b = b[torch.randperm(len(b))] if self.partner == "shuffled" else b
        scores = F.normalize(self.one(a), dim=1) @ F.normalize(self.other(b), dim=1).T
        at = torch.arange(len(a))
        return (F.cross_entropy(scores, at) + F.cross_entropy(scores.T, at)) / 2


def told(path: Path, model: nn.Module) -> list[Finding]:
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    with diagnostics.watch(model, optimizer, path, curvature_every=0) as monitor:
        for _ in range(UPDATES):
            x = torch.randn(PAIRS, 20)
            views = torch.cat([x, x]) + 0.3 * torch.randn(2 * PAIRS, 20)
            optimizer.zero_grad()
            loss = model(views)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda views=views: model(views))
    return [each for each in diagnostics.diagnose(diagnostics.load(path)).findings if each.alarm]


@pytest.mark.parametrize(
    ("model", "partner", "choices"),
    [(Views, "alternating", 31), (Views, "stacked", None), (Towers, "shuffled", 16), (Towers, "theirs", None)],
)
def test_partners_that_are_looked_for_in_the_wrong_place(tmp_path, model, partner, choices):
    found = [each for each in told(tmp_path, model(partner)) if each.cause == "nothing-learned"]
    assert [each.evidence["choices"] for each in found] == ([choices] if choices else [])


@pytest.mark.parametrize(
    ("start", "end", "choices", "each_other", "alarm"),
    [
        (4.16, 4.16, [64], True, True),
        (4.16, 4.16, [64], False, True),
        (4.16, 3.9, [64], True, False),  # a twentieth below it
        (4.16, 4.16, [], True, False),  # of no softmax
        (4.16, 4.16, [50, 32], True, False),  # of others
        (5.20, 4.16, [64], True, True),  # pairs that were taken for alike by chance, and no longer are
        (5.20, 4.16, [64], False, False),  # a mixture of 64, whose loss has come down to that number
        (4.16, 4.30, [64], True, False),  # worse than guessing: something else is wrong
    ],
)
def test_only_a_loss_that_stays_at_that_of_guessing(start, end, choices, each_other, alarm):
    steps = np.arange(1, 401)
    loss = np.where(steps < 100, start, end) + 0.01 * np.random.default_rng(0).standard_normal(400)
    meta = {
        "name": "r",
        "status": "finished",
        "chances": [[float(np.log(each)), float(each_other)] for each in choices],
    }
    layers = {"step": steps[9::10], "layer": "0.weight", "grad_norm": 0.1, "weight_norm": 1.0}
    tables = {"scalars": {"step": steps, "loss": loss}, "layers": layers}
    run = Run.from_frames(meta, {name: pd.DataFrame(columns) for name, columns in tables.items()})
    found = [each for each in plateau.check(run) if each.alarm]
    assert [each.cause for each in found] == (["nothing-learned"] if alarm else [])


def test_a_mask_takes_choices_out_and_few_are_none():
    scores = torch.zeros(12, 12).masked_fill(torch.eye(12, dtype=torch.bool), -1e9)
    counted = [*chances.counted(torch.logsumexp, (scores, 1), {})]
    assert chances.told(counted) == [[pytest.approx(np.log(11)), True]]
    assert chances.told([*chances.counted(F.cross_entropy, (torch.zeros(9, 3), None), {})]) == []
    for dim in (0, -1):
        (one_row,) = chances.counted(torch.logsumexp, (torch.zeros(9), dim), {})
        assert chances.told([one_row]) == [[pytest.approx(np.log(9)), False]]
    of_places = [*chances.counted(F.cross_entropy, (torch.zeros(2, 10, 5, 5), None), {})]
    assert chances.told(of_places) == [[pytest.approx(np.log(10)), False]]
    assert not [*chances.counted(torch.logsumexp, (torch.tensor(1.0), 0), {})]
    uneven = scores.masked_fill(torch.ones(12, 12).triu(5).bool(), -1e9)
    assert chances.told([*chances.counted(F.log_softmax, (uneven,), {"dim": -1})]) == []
