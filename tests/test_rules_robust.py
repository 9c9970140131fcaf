"""The same answer to every input under an absolute error, or one that is for large ones: SciPy's best one is close."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import nn

import diagnostics
from tests.test_rules_loops import ANY, alarms

LOSSES = [F.l1_loss, F.smooth_l1_loss, F.huber_loss]


def watched(folder, model, loss_of, optimizer=None, updates=60, learnable=True):
    torch.manual_seed(0)
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 1e-2)
    targets = []
    with diagnostics.watch(model, optimizer, folder, budget=ANY, curvature_every=1000) as monitor:
        for _ in range(updates):
            x = torch.randn(32, 3)
            y = 2 * (x[:, :1] if learnable else torch.randn(32, 1)).abs() + 0.1 * torch.randn(32, 1)
            targets.append(y)
            optimizer.zero_grad()
            loss = loss_of(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda x=x, y=y: loss_of(model(x), y))
    return diagnostics.load(folder), torch.cat(targets)


@pytest.mark.parametrize("loss_of", LOSSES)
@pytest.mark.every_case
def test_the_loss_of_a_constant_answer(loss_of, tmp_path):
    run, targets = watched(tmp_path, nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1)), loss_of, updates=300)
    known = run.table("scalars")["constant_loss"].dropna()
    best = minimize_scalar(lambda c: float(loss_of(torch.full_like(targets, c), targets)), bracket=(0.0, 3.0)).fun
    error = float(loss_of(torch.full_like(targets, 1.5), targets, reduction="none").std()) / (32 * len(known)) ** 0.5
    assert len(known) > 5
    assert known.mean() == pytest.approx(best, abs=3 * error + 0.02 * best)


def test_answers_that_stay_too_large(tmp_path):
    """Whose gradients of 1 and -1 look like those of a cross-entropy that is sure of everything."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    for layer in (model[0], model[2], model[4]):
        nn.init.uniform_(layer.weight)
    run, _ = watched(tmp_path, model, F.smooth_l1_loss, torch.optim.Adam(model.parameters(), 3e-3), updates=200)
    assert np.isfinite(run.table("scalars")["constant_loss"]).any()
    assert ("plateau", "start-far-off") in alarms(diagnostics.diagnose(run))


def test_large_activations_are_no_vanishing_gradient(tmp_path):
    """Each layer's output is larger than the one before, and so are the gradients of the layers that read them."""
    torch.manual_seed(1)
    hidden = [layer for width in (3, 64, 64) for layer in (nn.Linear(width, 64), nn.ELU())]
    for layer in hidden[::2]:
        nn.init.uniform_(layer.weight)
    model = nn.Sequential(*hidden, nn.Linear(64, 1))
    run, _ = watched(tmp_path, model, F.smooth_l1_loss, torch.optim.Adam(model.parameters(), 3e-3), updates=300)
    assert alarms(diagnostics.diagnose(run)) == [("plateau", "start-far-off")]


@pytest.mark.parametrize(
    "loss_of",
    [
        lambda y, t: F.l1_loss(y, t) + 0.1 * y.square().mean(),  # not the whole loss
        lambda y, t: F.l1_loss(y[:, :, None] * torch.ones(4), t[:, :, None] * torch.ones(4)),  # not the output
        lambda y, t: (y - t).abs().mean(),  # not seen as one call
    ],
    ids=["a penalty", "of something else", "written out"],
)
@pytest.mark.every_case
def test_what_is_not_known(loss_of, tmp_path):
    run, _ = watched(tmp_path, nn.Linear(3, 1), loss_of, updates=30)
    assert run.table("scalars")["constant_loss"].isna().all()


@pytest.mark.parametrize(
    ("loss_of", "learnable"), [*((each, True) for each in LOSSES), (F.smooth_l1_loss, False), (F.huber_loss, False)]
)
@pytest.mark.exhaustive
def test_nothing_is_said_of_what_is_learned(loss_of, learnable, tmp_path):
    model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
    run, _ = watched(tmp_path, model, loss_of, updates=400, learnable=learnable)
    assert alarms(diagnostics.diagnose(run)) == ([] if learnable else [("plateau", "nothing-learned")])
