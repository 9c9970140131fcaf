"""Weights that something besides the optimizer writes to every so many updates."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics

PERIOD, STEPS = 17, 17 * 9


def to_the_start(model, share=1.0):
    first = [p.detach().clone() for p in model.parameters()]

    @torch.no_grad()
    def write():
        for p, q in zip(model.parameters(), first, strict=True):
            p.lerp_(q, share)

    return write


def uncounted(model):
    first = [p.detach().clone() for p in model.parameters()]

    def write():
        for p, q in zip(model.parameters(), first, strict=True):
            p.data.copy_(q)

    return write


def exchanged(model):
    first = [p.detach().clone() for p in model.parameters()]

    def write():
        for p, q in zip(model.parameters(), first, strict=True):
            p.data = q.clone()

    return write


def loaded(model):
    first = copy.deepcopy(model.state_dict())
    return lambda: model.load_state_dict(first)


def swapped(model):
    """Other weights for an evaluation, and these again."""

    def write():
        kept = copy.deepcopy(model.state_dict())
        model.load_state_dict({name: torch.zeros_like(each) for name, each in kept.items()})
        model.load_state_dict(kept)

    return write


def bounded(model):
    def write():
        for p in model.parameters():
            p.data.clamp_(-10, 10)

    return write


def half(model):
    return to_the_start(model, 0.5)


def watched(path, writes, every=PERIOD, steps=STEPS, rate=0.02):
    torch.manual_seed(0)
    y = torch.randint(4, (256,))
    x = torch.randn(4, 8)[y] * 1.5 + torch.randn(256, 8)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    write = writes(model)
    with diagnostics.watch(model, optimizer, path, budget=100) as monitor:
        for update, chosen in enumerate(torch.randint(256, (steps, 32))):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            optimizer.step()
            monitor.step(loss.detach(), closure=lambda chosen=chosen: F.cross_entropy(model(x[chosen]), y[chosen]))
            if update % every == every - 1:
                write()
    run = diagnostics.load(path)
    return run.table("scalars")[["step", "taken_back"]].dropna(), diagnostics.diagnose(run)


@pytest.mark.parametrize(("writes", "share"), [(loaded, 1.0), (uncounted, 1.0), (exchanged, 1.0), (swapped, 0.0)])
def test_what_is_taken_back_at_regular_intervals(writes, share, tmp_path):
    found, _ = watched(tmp_path / "run", writes)
    # two writes tell when the third is due, and nothing follows the last one
    assert found["step"].tolist() == [PERIOD * k + 1 for k in range(3, STEPS // PERIOD)]
    assert found["taken_back"].to_numpy() == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize("writes", [half, bounded])
def test_what_is_taken_back_in_part(writes, tmp_path):
    """Half of the way to where it all began is more than half of the way since, and a bound that nothing meets is no
    write that anything would show."""
    found, diagnosis = watched(tmp_path / "run", writes)
    assert found.empty if writes is bounded else found["taken_back"].between(0.5, 0.999).all()
    assert not diagnosis.alarms


def test_what_each_update_finds_rewritten_is_left_to_pairs(tmp_path):
    found, _ = watched(tmp_path / "run", loaded, every=1, steps=40)
    assert found.empty


@pytest.mark.parametrize(("rate", "severity"), [(0.001, "critical"), (0.3, "info")])
def test_weights_put_back_once_an_epoch_are_named(rate, severity, tmp_path):
    """Where the loss comes down in between, it may be meant, as of tasks or folds."""
    _, diagnosis = watched(tmp_path / "run", loaded, rate=rate)
    (named,) = [each for each in diagnosis.findings if each.cause == "weights-put-back"]
    assert named.severity == severity and named.first_step == PERIOD + 1
    assert named.summary.startswith("Every 17 updates the weights are put back: 100 % of what the updates since")
    assert len(diagnosis.alarms) == (severity == "critical")


def test_weights_put_back_again_and_again_to_the_same_place_are_an_alarm(tmp_path):
    """As of a network that a copy of its start is loaded into, in place of the other way round; more often than there
    are folds."""
    _, diagnosis = watched(tmp_path / "run", loaded, rate=0.3, steps=PERIOD * 26)
    (named,) = diagnosis.alarms
    assert (named.cause, named.severity) == ("weights-put-back", "warning")


def test_an_outer_loop_that_keeps_a_part_is_none(tmp_path):
    """Reptile: of what a task's updates did a tenth is kept."""
    _, diagnosis = watched(tmp_path / "run", lambda model: to_the_start(model, 0.9), rate=0.3, steps=PERIOD * 26)
    assert not diagnosis.alarms


def test_a_loss_that_each_time_is_higher_where_weights_are_put_back(tmp_path):
    """The targets move away from what they were at the start, as those of a value that is learned."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 1), torch.randn(64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    anew = loaded(model)
    with diagnostics.watch(model, optimizer, tmp_path, budget=100) as monitor:
        for update in range(25 * PERIOD):
            y = (1 if update < PERIOD else 0.5) * x[:, :1] + 0.05 * torch.randn(64, 1)
            optimizer.zero_grad()
            loss = F.mse_loss(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss.detach(), closure=lambda y=y: F.mse_loss(model(x), y))
            if update % PERIOD == PERIOD - 1:
                anew()
    (named,) = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path)).alarms]
    assert (named.cause, named.severity) == ("weights-put-back", "warning")


def test_an_average_used_for_evaluation_alone_is_not(tmp_path):
    _, diagnosis = watched(tmp_path / "run", swapped)
    assert not [each for each in diagnosis.findings if each.cause == "weights-put-back"]


def test_folds_of_noisy_data_that_begin_alike_are_no_alarm(tmp_path):
    """Nine folds whose loss hardly falls, as much of it is noise."""
    torch.manual_seed(0)
    x = torch.randn(512, 8)
    y = x[:, :1] + 2.5 * torch.randn(512, 1)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    anew = loaded(model)
    with diagnostics.watch(model, optimizer, tmp_path, budget=100) as monitor:
        for _ in range(9):
            for chosen in torch.randint(512, (60, 32)):
                optimizer.zero_grad()
                loss = F.mse_loss(model(x[chosen]), y[chosen])
                loss.backward()
                optimizer.step()
                monitor.step(loss.detach(), closure=lambda chosen=chosen: F.mse_loss(model(x[chosen]), y[chosen]))
            anew()
    run = diagnostics.load(tmp_path)
    assert run.table("scalars")["taken_back"].notna().sum() >= 5
    assert not diagnostics.diagnose(run).alarms
