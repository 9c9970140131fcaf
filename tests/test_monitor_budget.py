"""What measuring may cost, and when it happens: simulated runs, whose clock the test moves."""

import io
import math
import time
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from diagnostics.monitor import budget as budgets
from diagnostics.monitor.budget import Budget
from diagnostics.monitor.schedule import Schedule
from diagnostics.monitor.together import Together


def test_the_budget_is_a_promise_over_the_whole_run() -> None:
    budget = Budget(0.05)
    budget._began = time.perf_counter() - 1000.0
    budget.spent["measured"], budget.latest["measured"] = 24.0, 0.5
    assert budget.promise == pytest.approx(0.05 * (1000 - 24), rel=1e-3)
    assert not budget.affords("measured")  # its half of 48.8 s
    assert budget.affords("curvature", 24.0) and not budget.affords("curvature", 25.0)


def test_what_is_left_is_spent_evenly_over_the_logarithm_of_the_time() -> None:
    """A hundredth of what is left is due when a hundredth of the way, in logarithms, to the floor's 100 s is gone."""
    budget = Budget(0.05)
    budget._began = time.perf_counter() - 10.5
    budget.update_seconds, budget.spent["measured"] = 1e-3, 0.5
    way = math.log(100.0 / 10.0) / 100
    assert budget.due("measured", 0.01, 10.0 * math.exp(-1.02 * way), most=1.0)
    assert not budget.due("measured", 0.01, 10.0 * math.exp(-0.98 * way), most=1.0)
    assert not budget.due("measured", 1.01, 1e-3, most=1.0)  # more than is left


@pytest.mark.parametrize("update", [-1e-4, 0.0, math.inf])
@pytest.mark.parametrize("share", [0.0, 0.05, 100.0])
def test_before_any_time_has_passed(share: float, update: float) -> None:
    """By a clock from which what other threads took is subtracted."""
    budget = Budget(share)
    budget.spent["measured"], budget.update_seconds = 1.0, update
    assert budget.unwatched == 0
    assert not budget.due("measured", 0.1, 0.0, most=1.0) and budget.due("measured", 0.0, 0.0, most=1.0)


def test_waiting_for_data_is_no_cost_of_a_first_estimate() -> None:
    """Updates of a second, of which a forward, as every measurement makes one, takes two milliseconds."""
    budget = Budget(0.05)
    schedule = Schedule(1, 10, None, budget, Together(nn.Linear(4, 3), torch.device("cpu")), lambda *told: None)
    budget._began = time.perf_counter() - 3.0
    budget.update_seconds, budget.latest["measured"] = 1.0, 0.002
    assert schedule.plan(4, closure=True).curvature
    budget.latest["measured"] = 0.9  # it is the forward that takes so long
    assert not schedule.plan(5, closure=True).curvature


@dataclass
class Simulated:
    """A run in which a measurement costs a number of products, which take some updates each, and, with many weights,
    the memory traffic of the basis, as it is on networks."""

    budget: Budget
    schedule: Schedule
    measured: list[int] = field(default_factory=list)
    estimates: list[tuple[int, bool]] = field(default_factory=list)


def simulated(
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    update: float,
    always: float,
    weights: int = 0,
    product: float = 2,
    observing: float = 1.5,
    busy: float = 1.0,
    until: float = math.inf,
    first_product: float = 0.0,
) -> Simulated:
    """`busy`: seconds by the clock that a second's work takes, `until` other work ends. `first_product`: seconds that
    the first of all takes longer."""
    now = others = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(budgets, "waited", lambda: others)
    budget = Budget(0.05)
    schedule = Schedule(
        1, 10, None, budget, Together(nn.Linear(4, 3), torch.device("cpu")), lambda *told: None, weights
    )
    run = Simulated(budget, schedule)
    assert schedule.at_most() < 5  # a first estimate, of unknown products, ends within the floor

    def work(seconds: float) -> float:
        nonlocal now, others
        taken = seconds * (busy if now < until else 1.0)
        now, others = now + taken, others + taken - seconds
        return taken

    def spend(kind: str, seconds: float) -> float:
        with budget.charge(kind):
            return work(seconds)

    for step in range(1, round(seconds / update)):
        plan = schedule.plan(step, closure=step > 1)
        work(update)
        spend("always", always)
        budget.updated()
        if plan.measured:
            budget.cost_of("measured", spend("measured", observing * update))
            run.measured.append(step)
        if plan.curvature:
            whole = schedule.whole_estimate()
            if not isinstance(whole, bool):
                whole = whole(spend("curvature", product * update + first_product))
                first_product = 0.0
            if whole is not None:
                run.estimates.append((step, whole))
                products = 62 if whole else 10
                cost = products * product * update + (6e-7 if whole else 1e-7) * weights
                with budget.charge("curvature"):
                    seconds = work(cost if whole else min(cost, schedule.at_most()))
                    schedule.estimated(whole, seconds, products)
                schedule.last_curvature = step
        assert budget.total <= max(5.0 * busy, 0.05 * budget.unwatched), step
    return run


@pytest.mark.parametrize(
    "update, always, quick, weights, product",
    [
        (0.002, 0.00004, 0, 0, 2),
        (0.02, 0.0003, 3, 0, 2),
        (0.03, 0.0006, 3, 0, 2),
        (0.15, 0.001, 1, 0, 2),
        (0.015, 0.0003, 2, 4_000_000, 2),
        (0.004, 0.0001, 1, 0, 10),
        (0.03, 0.0002, 1, 0, 10),
    ],
)
def test_the_promise_is_kept_by_all_measuring_together(
    update: float, always: float, quick: int, weights: int, product: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a whole estimate has to wait, quick ones come before it."""
    run = simulated(monkeypatch, 150, update, always, weights, product)
    assert [*(whole for _, whole in run.estimates), True].index(True) >= quick, run.estimates
    assert run.estimates and run.budget.spent["measured"] > 0.3
    assert run.schedule.at_most() == math.inf


@pytest.mark.parametrize("seconds", [3.0, 6.0, 12.0, 30.0, 60.0])
@pytest.mark.parametrize("update, product, observing", [(0.003, 2, 1.5), (0.003, 5, 10), (0.01, 2, 5)])
def test_a_short_run_on_a_busy_machine_is_measured_to_its_end(
    seconds: float, update: float, product: float, observing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = simulated(monkeypatch, seconds, update, update / 100, product=product, observing=observing)
    count = round(seconds / update)
    assert sum(step > count / 2 for step in run.measured) >= 3, run.measured
    assert any(step > count / 10 for step, _ in run.estimates), run.estimates


@pytest.mark.parametrize("seconds", [30.0, 60.0, 100.0])
def test_a_first_estimate_of_slow_updates_leaves_enough_to_measure_layers(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = simulated(monkeypatch, seconds, 0.15, 0.001)
    assert run.estimates and run.estimates[0][0] <= 4
    assert len(run.measured) >= 6 and run.measured[-1] > 100, run.measured


@pytest.mark.parametrize("first_product, whole", [(0.1, True), (0.3, True), (0.5, False)])
@pytest.mark.every_case
def test_one_product_that_was_held_up_is_no_forecast(
    first_product: float, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the first of a process, which prepares what all others use. Half a second is then missing for a whole one."""
    run = simulated(monkeypatch, 2, 0.005, 0.0001, first_product=first_product)
    assert run.estimates and run.estimates[0][0] <= 4
    assert any(each for _, each in run.estimates) == whole, run.estimates


def test_a_machine_that_others_use_too_measures_as_often_as_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = simulated(monkeypatch, 12, 0.005, 0.0001, product=3, observing=5)
    shared = simulated(monkeypatch, 12, 0.005, 0.0001, product=3, observing=5, busy=4.0)
    assert len(shared.measured) >= 0.9 * len(alone.measured) > 10
    assert len(shared.estimates) >= 0.9 * len(alone.estimates) > 1
    assert shared.budget.slowdown == pytest.approx(4.0)


@pytest.mark.parametrize("busy, part", [(2.0, 0.3), (3.0, 0.1), (4.0, 0.03)])
@pytest.mark.parametrize("product", [2, 4.5, 8])
def test_what_was_measured_while_others_were_busy_counts_as_what_it_takes_without_them(
    product: float, busy: float, part: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = 15.0
    until = part * seconds * busy
    run = simulated(monkeypatch, seconds, 0.005, 0.0001, product=product, observing=5, busy=busy, until=until)
    assert sum(step > 1500 for step in run.measured) >= 3, run.measured


def test_waiting_for_anything_else_is_no_other_work() -> None:
    budget = Budget(0.05)
    time.sleep(0.2)
    budget.cost_of("measured", 0.2)
    assert budget.slowdown < 2.0  # a busy machine may hold us up, too


@pytest.mark.parametrize("told", ["", "1 2", "no number"])
def test_where_the_system_does_not_tell_nothing_is_assumed(told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(path: str) -> io.StringIO:
        if not told:
            raise FileNotFoundError(path)
        return io.StringIO(told)

    monkeypatch.setattr(budgets, "open", opened, raising=False)
    budget = Budget(0.05)
    budget.cost_of("measured", 0.2)
    assert budget.slowdown == pytest.approx(1.0) and budget.floor == pytest.approx(5.0)


def test_what_the_first_update_takes_is_not_expected_of_every_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    budget = Budget(0.05)
    budget.spent["always"] = 0.3
    budget.updated()
    budget.spent |= {"measured": 0.4, "curvature": 1.5}
    now = budget.total + 0.25
    assert budget.due("measured", 0.2, since=0.1)
    budget._once = 0.0  # as if it were what every update takes
    assert not budget.due("measured", 0.2, since=0.1)


def test_one_measurement_that_was_held_up_is_no_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 s of training the way to the floor's 100 s is log 100: 0.02 s of the 1.4 s left are due after a time that is
    longer by 100^(0.02/1.4) = 7 %; of 0.3 s they would be by 168 %. Two of them are what it takes now."""
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    now = 0.0
    budget = Budget(0.05)
    budget.spent["measured"], budget.update_seconds = 1.0, 1e-3
    for seconds in (0.02, 0.3):
        budget.cost_of("measured", seconds)
    now = 1.1 + budget.total
    assert budget.remaining("measured") == pytest.approx(1.4)
    assert budget.due("measured", budget.latest["measured"], since=1.0)
    budget.cost_of("measured", 0.3)
    assert not budget.due("measured", budget.latest["measured"], since=1.0)
