"""Outputs that cannot come to their targets by their sum or by their logarithm; and rates that never come."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.rules import Finding, lr_too_small, saddle_point
from diagnostics.rules._never_reached import LEADS_TO

pytestmark = pytest.mark.exhaustive  # a minute or two; `make test` has targets out of reach elsewhere

ANY = 100.0


def alarms(model, folder, batch, lost, updates=200, optimizer=None, schedule=None, closure=True, before=lambda: None):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), 1e-2)
    with diagnostics.watch(model, optimizer, folder, budget=ANY) as monitor:
        for update in range(updates):
            x, y = batch(update)
            optimizer.zero_grad()
            loss = lost(model(x), y)
            loss.backward()
            before()
            optimizer.step()
            monitor.step(loss, closure=(lambda x=x, y=y: lost(model(x), y)) if closure else None)
            if schedule is not None:
                schedule(update)
    found = diagnostics.diagnose(diagnostics.load(folder))
    assert not found.crashed
    return [(each.kind, each.cause) for each in found.alarms]


def tags(several):
    """Which of six directions an input lies along: one of them, or as many as may be."""
    directions = torch.randn(6, 12, generator=torch.Generator().manual_seed(0))

    def batch(update):
        torch.manual_seed(update)
        x = torch.randn(64, 12)
        scores = x @ directions.T
        return x, (scores > 1).float() if several else F.one_hot(scores.argmax(1), 6).float()

    return batch


@pytest.mark.parametrize("lost", [F.binary_cross_entropy, pytest.param(F.mse_loss, marks=pytest.mark.by_hand)])
@pytest.mark.parametrize(
    ("last", "several"), [(nn.Softmax(1), True), (nn.Softmax(1), False), (nn.Sigmoid(), True)], ids=str
)
def test_a_softmax_where_several_may_be_right(tmp_path, last, several, lost):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 6), last)
    expected = [("plateau", "target-range")] if several and isinstance(last, nn.Softmax) else []
    assert alarms(model, tmp_path, tags(several), lost) == expected


class Exponential(nn.Module):
    def forward(self, x):
        return x.exp()


def counts(mean):
    def batch(update):
        torch.manual_seed(update)
        x = torch.randn(64, 4)
        return x, torch.poisson(mean * torch.exp(0.5 * x[:, :1]))

    return batch


@pytest.mark.parametrize(
    ("last", "of_logs", "mean", "told"),
    [
        (nn.Softplus(), True, 0.3, True),
        (Exponential(), True, 0.3, True),
        (nn.Softplus(), False, 0.3, False),  # the output is the rate
        (nn.Softplus(), True, 20.0, False),  # a rate of one at least is all that is needed
        (nn.Identity(), True, 0.3, False),
    ],
    ids=str,
)
def test_a_rate_that_is_taken_for_its_logarithm(tmp_path, last, of_logs, mean, told):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.ELU(), nn.Linear(16, 1), last)
    lost = nn.PoissonNLLLoss(log_input=of_logs)
    found = alarms(model, tmp_path, counts(mean), lost, optimizer=torch.optim.RMSprop(model.parameters(), 1e-3))
    assert (("plateau", "target-range") in found) == told


def curve(update):
    torch.manual_seed(update)
    x = torch.randn(32, 4)
    return x, torch.sin(x[:, :1]) + 0.1 * torch.randn(32, 1)


@pytest.mark.parametrize(
    ("stepped", "length", "told"),
    [(20, 400, True), (1, 400, False), (20, 20, False)],
    ids=["an epoch", "an update", "an epoch, as long as there are"],
)
def test_a_one_cycle_schedule_that_is_stepped_once_an_epoch(tmp_path, stepped, length, told):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=length)

    def follow(update):
        if (update + 1) % stepped == 0 and update + 1 < 400:
            schedule.step()

    found = alarms(model, tmp_path, curve, F.mse_loss, 400, optimizer, follow)
    assert found == ([("lr-too-small", "schedule")] if told else [])


def test_a_rate_that_was_never_to_be_so_small_is_why_a_run_waits_at_a_saddle_point():
    rate = Finding("lr-too-small", "schedule", "warning", 1, None, (), "", {LEADS_TO: 0.1}, ())
    waits = Finding("saddle-point", None, "warning", 1, 112, (), "", {}, ())
    assert lr_too_small.explains(rate, waits) and not saddle_point.explains(waits, rate)
    chosen = replace(rate, evidence={})
    assert saddle_point.explains(waits, chosen) and not lr_too_small.explains(chosen, waits)


@pytest.mark.parametrize(
    ("stepped", "length", "factor", "told"),
    [
        (20, 100, 1.0, True),
        (1, 100, 1.0, False),
        (20, 10, 1.0, False),  # in epochs, and half of the run
        (20, 100, -0.01, False),  # goes down: no warm-up
    ],
    ids=["an epoch", "an update", "an epoch, meant so", "a decay"],
)
def test_a_warm_up_that_is_stepped_once_an_epoch(tmp_path, stepped, length, factor, told):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    begin = 0.0 if factor > 0 else 0.2
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: begin + factor * min(1.0, (k + 1) / length))

    def follow(update):
        if (update + 1) % stepped == 0:
            schedule.step()

    found = alarms(model, tmp_path, curve, F.mse_loss, 400, optimizer, follow)
    assert found == ([("lr-too-small", "schedule")] if told else [])


def of_the_epoch(update):
    return (update % 40 + 1) / 200


def of_all_updates(update):
    return min(1.0, (update + 1) / 200)


def as_a_triangle(update):
    return 0.01 + abs((update + 20) % 40 - 20) / 20


def with_restarts(update):
    return 0.01 + (1 - update % 40 / 40)


def of_the_epoch_and_done(update):
    return min(1.0, (update % 40 + 1) / 10)


@pytest.mark.parametrize(
    ("factor", "told"),
    [
        (of_the_epoch, True),
        (of_all_updates, False),
        (as_a_triangle, False),
        (with_restarts, False),
        (of_the_epoch_and_done, False),
    ],
)
@pytest.mark.every_case
def test_a_warm_up_that_begins_again_with_each_epoch(tmp_path, factor, told):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    found = alarms(model, tmp_path, curve, F.mse_loss, 240, optimizer, lambda update: schedule.step(), closure=False)
    assert found == ([("lr-too-small", "schedule")] if told else [])


@pytest.mark.parametrize(("most", "told"), [(1e-5, True), (1.0, False), (None, False)])
def test_clipping_that_leaves_nothing_is_seen_without_curvature(tmp_path, most, told):
    """As of gradients that a scaler has multiplied: clipped first, divided by the scale then."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)

    def clip():
        if most is not None:
            nn.utils.clip_grad_norm_(model.parameters(), most)

    found = alarms(model, tmp_path, curve, F.mse_loss, 200, optimizer, closure=False, before=clip)
    assert found == ([("lr-too-small", "learning-rate")] if told else [])


def halves(update):
    torch.manual_seed(update)
    x = torch.randn(64, 4)
    return x, (x[:, :1] > 0).float()


def of_probability(answer, targets):
    return F.binary_cross_entropy(torch.sigmoid(answer), targets)


@pytest.mark.parametrize("lost", [of_probability, F.binary_cross_entropy_with_logits])
@pytest.mark.parametrize(
    ("last", "always", "told"),
    [(nn.ReLU(), False, True), (nn.ELU(), False, True), (nn.ReLU(), True, False), (nn.LeakyReLU(), False, False)],
    ids=str,
)
def test_logits_that_cannot_say_no(tmp_path, last, always, told, lost):
    """`always`: where the answer is always yes they need not."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1), last)
    optimizer = torch.optim.Adam(model.parameters(), 0.05)

    def batch(update):
        x, y = halves(update)
        return x, torch.ones_like(y) if always else y

    found = alarms(model, tmp_path, batch, lost, optimizer=optimizer)
    assert (("plateau", "target-range") in found) == told


def kinds(update):
    """Eight clusters in a plane: some of the classes lie between others."""
    torch.manual_seed(update)
    y = torch.randint(8, (64,))
    angle = y * torch.pi / 4
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(64, 2), y


@pytest.mark.parametrize("cut", [True, False])
@pytest.mark.every_case
def test_scores_of_a_cross_entropy_that_a_relu_cuts_off(cut, tmp_path):
    torch.manual_seed(0)
    last = [nn.ReLU()] if cut else []
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 8), *last)
    found = alarms(
        model, tmp_path, kinds, F.cross_entropy, updates=300, optimizer=torch.optim.SGD(model.parameters(), 0.1)
    )
    assert found == ([("plateau", "target-range")] if cut else [])
