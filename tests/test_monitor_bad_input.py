"""Whatever goes wrong, training goes on and the run says what happened."""

import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics import stats
from diagnostics.monitor import budget
from diagnostics.monitor.inputs import Inputs


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))


def train(
    path: Path,
    model: nn.Module | None = None,
    loss_of: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    closure_of: Callable[..., Any] | None = None,
    data: Callable[[int], Tensor] | None = None,
    steps: int = 6,
    lr: float = 0.1,
    **options: Any,
) -> Any:
    model = model or small()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    loss_of = loss_of or (lambda net, x, y: F.cross_entropy(net(x), y))
    generator = torch.Generator().manual_seed(1)
    with (
        warnings.catch_warnings(),
        diagnostics.watch(model, optimizer, path / "run", every=1, budget=1e9, **options) as monitor,
    ):
        warnings.simplefilter("error")  # a script that makes errors of warnings must survive ours
        for step in range(steps):
            x, y = torch.randn(16, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator)
            x = x if data is None else data(step)
            optimizer.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, lambda x=x, y=y: (closure_of or loss_of)(model, x, y))
    run = diagnostics.load(path / "run")
    assert list(run.table("scalars")["step"]) == list(range(1, steps + 1))
    assert run.meta["status"] == "finished"
    return run


def kinds(run: Any) -> list[str]:
    return list(run.table("events")["kind"])


def test_a_closure_that_raises_is_switched_off(tmp_path: Path) -> None:
    def broken(*args: Any) -> Tensor:
        raise ValueError("no such batch")

    run = train(tmp_path, closure_of=broken, steps=8)
    events = run.table("events")
    off = events[events["kind"] == "measurement-off"]
    assert {"activations", "curvature"} <= set(off["subject"])
    assert (events["kind"] == "measurement-failed").sum() == 3 * len(off)
    assert "no such batch" in events["message"][0]
    assert run.table("scalars")["grad_norm"].notna().all()


@pytest.mark.parametrize(
    ("closure", "says"),
    [
        (lambda net, x, y: F.cross_entropy(net(x), y, reduction="none"), "shape"),
        (lambda net, x, y: F.cross_entropy(net(x), y).item(), "float"),
        (lambda net, x, y: None, "NoneType"),
        (lambda net, x, y: F.cross_entropy(net(x), y).backward(), "NoneType"),
    ],
    ids=["not scalar", "float", "nothing", "backward"],
)
def test_closures_that_return_no_loss(closure: Any, says: str, tmp_path: Path) -> None:
    run = train(tmp_path, closure_of=closure)
    messages = " ".join(run.table("events")["message"])
    assert says in messages and len(run.table("curvature")) == 0


def test_a_closure_that_calls_backward_leaves_gradients_alone(tmp_path: Path) -> None:
    def stepping(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(net(x), y)
        loss.backward(retain_graph=True)
        return loss

    seen = []
    for closure in (None, stepping):
        model = small()
        train(tmp_path / str(len(seen)), model, closure_of=closure)
        seen.append([(p.detach().clone(), p.grad.clone()) for p in model.parameters()])
    for (weight, gradient), (other_weight, other_gradient) in zip(*seen, strict=True):
        assert torch.equal(weight, other_weight) and torch.equal(gradient, other_gradient)


@pytest.mark.exhaustive
def test_the_first_bad_number_is_named(tmp_path: Path) -> None:
    def spoiled(step: int) -> Tensor:
        x = torch.ones(16, 4)
        x[3, 1] = math.nan if step == 3 else 1.0
        return x

    losses: dict[str, Any] = {
        "op:log": lambda net, x, y: -F.relu(net(x)).log().mean(),
        "op:sqrt": lambda net, x, y: (net(x) - net(x)).square().sum(1).sqrt().mean(),
        "op:rdiv": lambda net, x, y: (1 / (net(x) * 0)).sum(),
        "overflow:exp": lambda net, x, y: (1000 * net(x)).exp().mean(),
        "input": None,
    }
    for subject, loss in losses.items():
        run = train(tmp_path / subject, loss_of=loss, data=spoiled if loss is None else None)
        events = run.table("events")
        named = events[events["kind"] == "non-finite"]
        assert list(named["subject"]) == [subject]
        assert list(named["step"]) == [4 if loss is None else 1]


@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize(("labels", "impossible"), [([1, 1, 1], True), ([1, 2, 1], False)])  # two blanks more, or none
def test_a_target_that_ctc_has_no_time_for(tmp_path: Path, labels: list[int], impossible: bool, closure: bool) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, steps = torch.randn(4, 1, 4), torch.tensor([4])

    def loss() -> Tensor:
        return F.ctc_loss(model(x).log_softmax(2), torch.tensor([labels]), steps, torch.tensor([3]))

    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
        monitor.step(value, loss if closure else None)
    run = diagnostics.load(tmp_path / "run")
    events = run.table("events")
    named = list(events[events["kind"] == "non-finite"]["subject"])
    assert named == (["op:ctc_loss"] if impossible else [])
    causes = [(each.cause, "more time steps" in each.remedies[0]) for each in diagnostics.diagnose(run).alarms]
    assert causes == ([("domain-error", True)] if impossible else [])


class Attention(nn.Module):
    """Of padded rows; `fill`: where a key, or what asks, is padding."""

    def __init__(self, queries: bool, fill: float) -> None:
        super().__init__()
        self.project, self.queries, self.fill = nn.Linear(4, 4), queries, fill

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        h = self.project(x)
        mask = ~there[:, None, :] | (~there[:, :, None] if self.queries else False)
        return (h @ h.transpose(1, 2)).masked_fill(mask, self.fill).softmax(-1) @ h


@pytest.mark.parametrize("used", ["real rows", "all rows"])
@pytest.mark.parametrize(("queries", "fill"), [(True, -math.inf), (True, -1e9), (False, -math.inf)])
def test_attention_that_leaves_rows_nothing_to_see(queries: bool, fill: float, used: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Attention(queries, fill)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, there = torch.randn(8, 5, 4), torch.arange(5) < torch.arange(2, 10)[:, None]

    def loss() -> Tensor:
        out = model(x, there)
        return (out[there] if used == "real rows" else out).square().mean()

    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for _ in range(3):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            monitor.step(value, loss)
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    empty = queries and math.isinf(fill)
    assert [each.cause for each in found] == (["masked-row"] if empty else [])
    assert not empty or "rows that are masked throughout, 6 of 40" in found[0].summary


def test_rows_without_sight_that_do_no_harm_are_not_blamed(tmp_path: Path) -> None:
    """What they give is replaced, and something else ends the run."""
    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, there = torch.randn(8, 5, 4), torch.arange(5) < torch.arange(0, 8)[:, None]

    def loss(step: int) -> Tensor:
        h = model(x)
        scores = (h @ h.transpose(1, 2)).masked_fill(~there[:, None, :], -math.inf)
        out = scores.softmax(-1).nan_to_num(0.0) @ h
        return out.square().mean() + ((h[0, 0] * (0.0 if step == 4 else 1.0)).square().sum().sqrt())

    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for step in range(7):
            optimizer.zero_grad()
            value = loss(step)
            value.backward()
            optimizer.step()
            monitor.step(value, lambda step=step: loss(step))
    found = diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms
    assert [each.cause for each in found] == ["domain-error"] and "sqrt" in found[0].summary


@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize(("dtype", "eps"), [(torch.float16, 1e-8), (torch.float16, 1e-3), (torch.bfloat16, 1e-8)])
def test_an_epsilon_that_half_precision_makes_zero(
    dtype: torch.dtype, eps: float, closure: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).to(dtype)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=eps)
    x, y = torch.randn(16, 4, dtype=dtype), torch.arange(16) % 2

    def loss() -> Tensor:
        return F.cross_entropy(model(x), y)

    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            value = loss()
            value.backward()
            optimizer.step()
            monitor.step(value, loss if closure else None)
    found = [each for each in diagnostics.diagnose(diagnostics.load(tmp_path / "run")).alarms]
    zero = dtype is torch.float16 and eps == 1e-8
    assert [each.cause for each in found] == (["half-epsilon"] if zero else [])
    assert not zero or "eps=1e-08 is 0 in float16" in found[0].summary


def test_without_a_closure_the_place_is_named(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        optimizer.zero_grad()
        loss = model(torch.full((2, 4), math.nan)).mean()
        loss.backward()
        optimizer.step()
        monitor.step(loss)
    events = diagnostics.load(tmp_path / "run").table("events")
    assert list(events[events["kind"] == "non-finite"]["subject"]) == ["loss"]


@pytest.mark.parametrize(
    ("subject", "loss_of"),
    [
        ("op:sqrt", lambda out: (out - out).square().sum(1).sqrt().mean()),
        ("op:pow", lambda out: ((out - out) ** 2).sum(1).pow(0.5).mean()),
        ("op:acos", lambda out: (out * 0 + 1).acos().mean()),
        ("gradient:2.bias", lambda out: out.square().pow(1.5).mean()),
        ("gradient:2.bias", lambda out: out.square().pow(torch.full((3,), 0.5)).mean()),
        ("overflow:gradient of 2.bias", lambda out: (out - out).square().sum(1).sqrt().mean() + 1e20),
    ],
)
def test_a_steep_function_is_named_without_a_closure(tmp_path: Path, subject: str, loss_of: Any) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        loss = loss_of(model(torch.randn(5, 4)))
        loss.backward()
        if "gradient" in subject:
            list(model.parameters())[-1].grad[0] = math.nan
        optimizer.step()
        monitor.step(loss)
    events = diagnostics.load(tmp_path / "run").table("events")
    assert list(events[events["kind"] == "non-finite"]["subject"]) == [subject]


def test_a_loss_without_a_graph(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for _ in range(3):
            x, y = torch.randn(8, 4), torch.zeros(8)
            accuracy = (model(x).argmax(1) == y).float().mean()
            optimizer.step()
            monitor.step(accuracy, lambda x=x, y=y: (model(x).argmax(1) == y).float().mean())
    run = diagnostics.load(tmp_path / "run")
    assert "no-graph" in kinds(run)
    assert len(run.table("scalars")) == 3
    assert (run.table("layers")["grad_missing"] == 1).all()


def test_a_model_without_parameters(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with diagnostics.watch(nn.ReLU(), optimizer, tmp_path / "run") as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            loss = weight.square().sum()
            loss.backward()
            optimizer.step()
            monitor.step(loss, lambda: weight.square().sum())
    run = diagnostics.load(tmp_path / "run")
    assert list(run.matrix("layers", "grad_norm")[1]) == ["optimizer.0.0"]
    assert run.table("scalars")["grad_norm"][0] == pytest.approx(2 * 3**0.5)
    assert not any(item.seen for item in diagnostics.doctor(nn.ReLU(), optimizer) if "no parameters" in item.why)


def test_a_forward_that_raises_ends_the_run_as_failed(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuntimeError), diagnostics.watch(model, optimizer, tmp_path / "run", every=1) as monitor:
        for rows in (4, 4, 4, 5):
            optimizer.zero_grad()
            loss = model(torch.randn(3, rows)).mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    run = diagnostics.load(tmp_path / "run")
    assert run.meta["status"] == "failed"
    assert "interrupted" in kinds(run) and len(run.table("scalars")) == 3
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_optimizer_that_is_skipped_for_ever(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for _ in range(5):
            loss = model(torch.randn(3, 4)).mean()
            loss.backward()
            monitor.step(loss)
    run = diagnostics.load(tmp_path / "run")
    assert kinds(run).count("skipped-step") == 5
    assert list(run.table("scalars")["update_norm"]) == [0] * 5


def test_findings_are_told_once_and_summed_up(tmp_path: Path) -> None:
    told: list[Any] = []

    def on_finding(finding: Any) -> None:
        told.append(finding)
        raise RuntimeError("a listener that fails")

    model = small()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1)  # all dead: nothing to learn
    run = train(tmp_path, model, on_finding=on_finding, steps=30)
    assert told and all(finding.alarm for finding in told)
    assert len({(finding.kind, finding.cause) for finding in told}) == len(told)
    assert kinds(run).count("on-finding-failed") == len(told)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["worst"]["kind"] == told[0].kind


def test_a_measurement_that_fails_three_times_is_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, x: Tensor) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(Inputs, "rows", broken)
    run = train(tmp_path, steps=8)
    events = run.table("events")
    assert list(events["kind"]) == ["measurement-failed"] * 3 + ["measurement-off"]
    assert set(events["subject"]) == {"inputs"}
    assert len(run.table("units")) == 8


def test_products_that_overflow_for_a_while_do_not_switch_curvature_off(tmp_path: Path) -> None:
    """The second derivative of |w|^1.5 at 0 is infinite, and at first the loss is no number nearby: weights that start
    there leave it only later."""
    w = nn.Parameter(torch.zeros(3))
    model = nn.ParameterList([w])
    optimizer = torch.optim.SGD([w], lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", budget=100.0) as monitor:
        for update in range(40):
            still = update < 8
            target = torch.zeros(3) if still else torch.ones(3)

            def closure(target: Tensor = target, still: bool = still) -> Tensor:
                nearby = 0 * (1e-6 - w.detach().abs().max()).sqrt() if still else 0.0
                return w.abs().pow(1.5).sum() - (target * w).sum() + nearby

            optimizer.zero_grad()
            loss = closure()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=closure)
    run = diagnostics.load(tmp_path / "run")
    assert kinds(run).count("measurement-failed") == 1 and "measurement-off" not in kinds(run)
    assert (run.table("curvature")["step"] > 8).all() and len(run.table("curvature"))


@pytest.fixture
def no_other_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where training waits for a processor, the budget has more seconds by the clock."""
    monkeypatch.setattr(budget, "waited", lambda: 0.0)


class Slow(torch.autograd.Function):
    """The identity, whose second derivative takes a while."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return SlowBackward.apply(gradient)


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gradient: Tensor) -> Tensor:
        return gradient.clone()

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        time.sleep(0.5)
        return gradient


@pytest.mark.usefixtures("no_other_work")
def test_no_estimate_where_a_product_turns_out_to_take_too_long(tmp_path: Path) -> None:
    """An update takes a millisecond and a product half a second: thirteen are more than the promise."""
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run") as monitor:
        for _ in range(30):

            def closure() -> Tensor:
                return Slow.apply(model(torch.ones(3, 4))).square().mean()

            optimizer.zero_grad()
            loss = closure()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure)
        assert 0.5 <= monitor._budget.total < 2  # one product was tried
    run = diagnostics.load(tmp_path / "run")
    assert len(run.table("curvature")) == 0
    assert [event for event in run.table("events")["kind"] if event != "budget"] == []
    assert "budget" in set(run.table("events")["kind"])


@pytest.mark.usefixtures("no_other_work")
def test_what_observing_the_training_forward_costs_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a closure: the counting inside the forward, and not the forward itself."""

    class Slow(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.apply_(_wait))  # 0.2 s in a torch function of the model's own

    count = stats.count_units
    monkeypatch.setattr(stats, "count_units", lambda *args: (time.sleep(0.02), count(*args))[1])
    model = nn.Sequential(Slow(), nn.Linear(1, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inside, after = [], []
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1) as monitor:
        for _ in range(7):
            loss = model(torch.ones(1, 1)).square().mean()
            loss.backward()
            optimizer.step()
            before = monitor._budget.total
            monitor.step(loss)
            inside.append(monitor._budget.latest.get("measured", 0.0))
            after.append(monitor._budget.total - before)
        assert monitor._budget.spent["measured"] >= 5 * 0.02
    # The first forward is left alone: whether there is a closure is not known yet. A busy machine may slow some others.
    assert min(inside[2:]) >= 0.02
    assert sorted(inside[2:])[1] < 0.1
    assert sorted(after[2:])[1] < 0.05


def _wait(value: float) -> float:
    time.sleep(0.2)
    return value


@pytest.mark.usefixtures("no_other_work")
def test_slow_measurements_are_spaced_wider(tmp_path: Path) -> None:
    model = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(16, 4), torch.zeros(16).long()

    def slow() -> Tensor:
        time.sleep(0.1)
        return F.cross_entropy(model(x), y)

    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1) as monitor:
        for _ in range(40):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            monitor.step(loss, slow)
    run = diagnostics.load(tmp_path / "run")
    assert "budget" in kinds(run)
    assert len(run.matrix("layers", "grad_norm")[0]) < 20
    assert len(run.table("scalars")) == 40
