"""Which updates are measured: as far apart as asked for, and in all phases of a loop that repeats itself."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import diagnostics
from diagnostics.monitor.budget import Budget
from diagnostics.monitor.schedule import Schedule
from diagnostics.monitor.together import Together

ANY = 1e9  # times the unwatched time: what is measured must not depend on how busy the machine is


@pytest.mark.parametrize("every", [1, 3, 10, 25, 100])
def test_measured_updates_are_apart_and_in_step_with_no_period(every):
    together = Together(nn.Linear(1, 1), torch.device("cpu"))
    schedule = Schedule(1, every, None, Budget(ANY), together, lambda *told: None)
    measured = [step for step in range(1, 200 * every) if schedule.plan(step, closure=False).measured]
    assert measured[:2] == [1, 2]
    gaps = {after - before for before, after in pairwise(measured[3:])}
    assert gaps == ({every} if every < 10 else {every, every + 1})
    for period in (2, 3, 5, 7, 10, 11) if every >= 10 else ():
        assert {step % period for step in measured[3:]} == set(range(period))


@pytest.mark.exhaustive
@pytest.mark.parametrize("tasks", [2, pytest.param(5, marks=pytest.mark.exhaustive)])
def test_tasks_in_turns_are_seen_each(tasks, tmp_path):
    """What a constant answer would cost is that of all of them, not of the one whose turn it always is."""
    torch.manual_seed(0)
    offsets = torch.linspace(-3, 3, tasks)
    model = nn.Sequential(nn.Linear(4 + tasks, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=ANY) as monitor:
        for update in range(600):
            task, x = update % tasks, torch.randn(32, 4)
            given = torch.cat([x, F.one_hot(torch.full((32,), task), tasks).float()], 1)
            target = offsets[task] + 0.3 * x[:, :1] + 0.3 * torch.randn(32, 1)
            optimizer.zero_grad()
            loss = F.mse_loss(model(given), target)
            loss.backward()
            optimizer.step()
            monitor.step(loss, lambda given=given, target=target: F.mse_loss(model(given), target))
    assert not diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms


class Refusing(Budget):
    """Counts how often it is asked, and grants nothing before `free`."""

    def __init__(self):
        super().__init__(0.05)
        self.asked, self.free = 0, False

    def due(self, kind, cost, since, most=float("inf")):
        self.asked += 1
        return self.free


def test_a_budget_that_refuses_is_asked_again_as_the_run_grows():
    """Every hundredth of the updates so far; and not much later than that it is measured, once it may be."""
    budget = Refusing()
    schedule = Schedule(1, 10, None, budget, Together(nn.Linear(1, 1), torch.device("cpu")), lambda *told: None)
    schedule.last_curvature = 2
    assert not any(schedule.plan(step, closure=True).measured for step in range(3, 5000))
    assert budget.asked < 2000
    budget.free = True
    plans = [schedule.plan(step, closure=True) for step in range(5000, 5100)]
    assert sum(plan.measured for plan in plans) >= 4 and any(plan.curvature for plan in plans)
