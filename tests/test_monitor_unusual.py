"""Loops and models that are rare but real: interrupted, recursive, threaded, partly frozen or quantized ones."""

import copy
import gc
import io
import threading
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack as function_modes
from torch.utils.checkpoint import checkpoint

import diagnostics
from diagnostics.curvature import undisturbed
from diagnostics.monitor import attention
from diagnostics.monitor.guard import Kept
from diagnostics.monitor.probe import active
from diagnostics.monitor.wiring import Wiring

ANY = 1e9


def nothing(call: int) -> None:
    return None


class Two(nn.Module):
    """Two layers; `inside` is called between them with the number of the call."""

    def __init__(self, inside: Any = nothing) -> None:
        super().__init__()
        self.first, self.last, self.calls, self.inside = nn.Linear(4, 8), nn.Linear(8, 2), 0, inside

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x))
        self.calls += 1
        self.inside(self.calls)
        return self.last(hidden)


def train(model: nn.Module, at: Path, steps: int = 6, closure: Any = False, **options: Any) -> diagnostics.Run:
    """`closure`: whether one is given, or that of each step."""
    torch.manual_seed(0)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    with diagnostics.watch(model, optimizer, at, **({"every": 1, "budget": ANY} | options)) as monitor:
        for step in range(steps):
            x = torch.randn(5, 4)
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            given = closure(step) if callable(closure) else closure
            monitor.step(loss, (lambda x=x: model(x).square().mean()) if given else None)
    return diagnostics.load(at)


def nothing_left(model: nn.Module) -> bool:
    hooks = sum(len(each._forward_hooks) + len(each._forward_pre_hooks) for each in model.modules())
    return not (hooks or active() or function_modes())


def test_an_interruption_in_a_forward_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(call: int) -> None:
        if call == 4:
            raise KeyboardInterrupt

    model = Two(interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(model, tmp_path / "run")
    assert nothing_left(model)


def test_a_forward_of_another_thread_meanwhile(tmp_path: Path) -> None:
    """As of an actor in reinforcement learning, within the learner's own."""

    def act(call: int) -> None:
        if call == 4:
            with torch.no_grad():
                thread = threading.Thread(target=model, args=(torch.randn(1, 4),))
                thread.start()
                thread.join()

    model = Two(act)
    run = train(model, tmp_path / "run")
    assert nothing_left(model)
    assert (run.table("units").groupby("step").size() == 1).all()
    assert set(run.table("units")["step"]) == {2, 3, 4, 5, 6}  # at the first it is not yet known if a closure comes


class Tree(nn.Module):
    """Calls itself."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf, self.join, self.out = nn.Linear(4, 8), nn.Linear(16, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor, depth: int = 2) -> Tensor:
        if depth == 0:
            return torch.relu(self.leaf(x))
        hidden = torch.tanh(self.join(torch.cat([self(x, depth - 1), self(x, depth - 1)], 1)))
        return self.out(hidden) if depth == 2 else hidden


@pytest.mark.parametrize("closure", [False, True])
def test_a_model_that_calls_itself_is_seen_to_its_end(closure: bool, tmp_path: Path) -> None:
    units = train(Tree(), tmp_path / "run", closure=closure).table("units")
    assert list(units.loc[units["step"] == 6, "activation"]).count("tanh") == 3
    assert list(units.loc[units["step"] == 6, "activation"]).count("relu") == 4


@pytest.mark.parametrize("closure", [False, True])
def test_a_teacher_that_a_forward_copies_carries_no_hook_of_ours(closure: bool, tmp_path: Path) -> None:
    class Taught(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = Two(), 0
            self.__dict__["teacher"] = None

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.net(x)
            self.calls += 1
            if self.calls % 4 == 0:
                self.__dict__["teacher"] = copy.deepcopy(self.net).requires_grad_(False)
            return hidden if self.teacher is None else hidden - self.teacher(x)

    model = Taught()
    train(model, tmp_path / "run", closure=closure)
    hooks = [hook for each in model.teacher.modules() for hook in each._forward_hooks.values()]
    assert not any(vars(hook) for hook in hooks)
    torch.save(model.teacher, io.BytesIO())


class Bank(nn.Module):
    """Earlier answers as negatives, once there are enough of them."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        self.kept: Any = {"deque": deque(maxlen=4), "list": [], "dict": {}, "array": np.zeros(3)}[kind]

    def forward(self, x: Tensor) -> Tensor:
        out = F.normalize(self.net(x), dim=1)
        held = self._held()
        others = torch.cat(held) if len(held) >= 4 else out.detach().roll(1, 0)
        self._keep(out.detach())
        return F.cross_entropy(out @ others.T / 0.1, torch.arange(len(x)) % len(others))

    def _held(self) -> list[Tensor]:
        if isinstance(self.kept, np.ndarray):
            return [torch.full((5, 4), float(self.kept.sum()) / 100)] * 4 if self.kept.sum() > 4 else []
        return list(self.kept.values() if isinstance(self.kept, dict) else self.kept)[-4:]

    def _keep(self, out: Tensor) -> None:
        if isinstance(self.kept, np.ndarray):
            self.kept += 1
        elif isinstance(self.kept, dict):
            self.kept[len(self.kept)] = out
        else:
            self.kept.append(out)


@pytest.mark.parametrize("kind", ["deque", "list", "dict", "array"])
def test_what_a_closure_puts_into_a_container_of_the_model_is_taken_out(kind: str, tmp_path: Path) -> None:
    def losses(watched: bool) -> list[float]:
        torch.manual_seed(0)
        model = Bank(kind)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        monitor = diagnostics.watch(model, optimizer, tmp_path / kind, every=1, budget=ANY) if watched else None
        seen = []
        for _ in range(12):
            x = torch.randn(5, 4)
            optimizer.zero_grad()
            loss = model(x)
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
            if monitor is not None:
                monitor.step(loss, lambda x=x: model(x))
        if monitor is not None:
            monitor.close()
        return seen

    assert losses(watched=True) == losses(watched=False)


def test_containers_are_refilled_in_place_and_only_if_they_changed() -> None:
    model = Two()
    first, second = torch.zeros(1), torch.ones(1)
    model.bank, model.names, model.fixed = [first, second], {"a": 1}, np.arange(3)
    model.fixed.flags.writeable = False
    bank, names = model.bank, model.names
    with undisturbed(model):
        model.bank.insert(0, torch.zeros(2))
        model.names.update(b=2)
    assert model.bank is bank and bank[0] is first and bank[1] is second and len(bank) == 2
    assert model.names is names and names == {"a": 1}


def test_two_optimizers_of_one_model_are_soon_no_question_any_more(tmp_path: Path, monkeypatch: Any) -> None:
    looks = []
    look = Wiring.look
    monkeypatch.setattr(Wiring, "look", lambda self, *given: (looks.append(1), look(self, *given)))
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(4)])
    weights = torch.optim.SGD([p for p in model.parameters() if p.dim() == 2], lr=0.01)
    biases = torch.optim.SGD([p for p in model.parameters() if p.dim() == 1], lr=0.01)
    with diagnostics.watch(model, weights, tmp_path / "run", every=1, budget=ANY) as monitor:
        for _ in range(20):
            model.zero_grad()
            loss = model(torch.randn(5, 4)).square().mean()
            loss.backward()
            biases.step()
            weights.step()
            monitor.step(loss)
    assert len(looks) < 10
    assert not len(diagnostics.load(tmp_path / "run").table("events").query("kind == 'not-in-optimizer'"))


def test_many_tensors_outside_the_optimizer_take_no_time(tmp_path: Path, monkeypatch: Any) -> None:
    """All that lives in the process is looked through once, not once a tensor."""
    searches = []
    objects = gc.get_objects
    monkeypatch.setattr(gc, "get_objects", lambda: (searches.append(1), objects())[1])
    model = nn.Sequential(*[nn.Linear(4, 4) for _ in range(10)])
    optimizer = torch.optim.SGD(model[-1].parameters(), lr=0.01)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1, budget=ANY) as monitor:
        for _ in range(6):
            model.zero_grad()
            loss = model(torch.randn(5, 4)).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    told = diagnostics.load(tmp_path / "run").table("events").query("kind == 'not-in-optimizer'")
    assert len(told) and len(searches) == 1


def test_the_norm_of_a_gradient_whose_last_part_is_checkpointed(tmp_path: Path) -> None:
    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = checkpoint(block, x.requires_grad_() if x.is_leaf else x, use_reentrant=True)
            return x

    table = train(Blocks(), tmp_path / "run").table("scalars")
    known = table["grad_norm_unclipped"].notna()
    assert np.allclose(table["grad_norm_unclipped"][known], table["grad_norm"][known])


def test_clipping_through_data_is_seen(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    norms = []
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1, budget=ANY) as monitor:
        for _ in range(6):
            x = torch.randn(5, 4)
            optimizer.zero_grad()
            loss = (model(x) - 30).square().mean()
            loss.backward()
            norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm()))
            for p in model.parameters():
                p.grad.data.clamp_(-0.01, 0.01)
            optimizer.step()
            monitor.step(loss, lambda x=x: (model(x) - 30).square().mean())
    table = diagnostics.load(tmp_path / "run").table("scalars")
    assert np.allclose(table["grad_norm_unclipped"], norms)
    overshoot = table["overshoot"].dropna()
    assert len(overshoot) and (overshoot.abs() < 1).all()


@pytest.mark.parametrize("closure", [False, True])
def test_no_batch_outlives_its_update(closure: bool, tmp_path: Path) -> None:
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    kept = []
    monitor = diagnostics.watch(model, optimizer, tmp_path / "run", every=1)
    for _ in range(10):
        x = torch.randn(5, 4)
        out = model(x)
        loss = out.square().mean()
        kept.append([weakref.ref(each) for each in (x, out, loss)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        monitor.step(loss, (lambda x=x: model(x).square().mean()) if closure else None)
    gc.collect()
    assert not any(each() is not None for three in kept[:-1] for each in three)
    monitor.close()


def test_no_curvature_on_request(tmp_path: Path) -> None:
    run = train(Two(), tmp_path / "run", closure=True, curvature_every=0)
    assert list(run.table("scalars")["step"]) == [1, 2, 3, 4, 5, 6]
    assert run.table("curvature").empty and len(run.table("units"))
    assert not len(run.table("events").query("kind == 'measurement-failed'"))


@pytest.mark.parametrize(
    "frozen",
    [
        torch.zeros(3, 3, dtype=torch.uint8),
        torch.zeros(3, 3, dtype=torch.bool),
        torch.zeros(3, 3).to(torch.float8_e4m3fn),
        torch.empty(3, 3, device="meta"),
        torch.zeros(0, 4),
    ],
    ids=lambda each: f"{each.dtype} on {each.device}",
)
def test_frozen_tensors_without_a_norm_cost_no_other_measurement(frozen: Tensor, tmp_path: Path) -> None:
    model = Two()
    base = nn.Module()
    base.codes = nn.Parameter(frozen, requires_grad=False)
    model = nn.Sequential()
    model.add_module("base", base)
    inner = Two()
    model.add_module("net", inner)
    model.forward = inner.forward
    table = train(model, tmp_path / "run", closure=True).table("scalars")
    assert table[["loss", "grad_norm", "update_norm", "weight_norm"]].notna().all().all()
    assert table["overshoot"].notna().any()


def test_a_layer_without_units_costs_no_comparison_of_the_others(tmp_path: Path) -> None:
    class Empty(Two):
        def __init__(self) -> None:
            super().__init__()
            self.none = nn.Linear(8, 0)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.relu(self.first(x))
            return torch.cat([self.last(hidden), self.none(hidden)], 1)

    with pytest.warns(UserWarning, match="zero-element"):
        model = Empty()
    run = train(model, tmp_path / "run", closure=True)
    assert not len(run.table("events").query("kind == 'measurement-failed'"))
    assert set(run.table("symmetry")["layer"]) == {"first.weight", "last.outputs"}


def test_a_frozen_base_is_not_copied(tmp_path: Path, monkeypatch: Any) -> None:
    model = Two()
    model.base = nn.Linear(400, 400).requires_grad_(False)
    clones = []
    clone = Tensor.clone
    monkeypatch.setattr(Tensor, "clone", lambda self, **given: (clones.append(self.numel()), clone(self, **given))[1])
    table = train(model, tmp_path / "run").table("scalars")
    assert table["update_norm"].gt(0).all() and clones
    assert 400 * 400 not in clones


def test_an_optimizer_without_a_rate(tmp_path: Path) -> None:
    class Own(torch.optim.SGD):
        pass

    model = Two()
    optimizer = Own(model.parameters(), lr=0.01)
    step = optimizer.step
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1, budget=ANY) as monitor:
        for _ in range(4):
            optimizer.zero_grad()
            loss = model(torch.randn(5, 4)).square().mean()
            loss.backward()
            optimizer.param_groups[0]["lr"] = None
            with pytest.raises(TypeError):
                step()
            optimizer.param_groups[0]["lr"] = 0.01
            step()
            monitor.step(loss)
    assert diagnostics.load(tmp_path / "run").table("scalars")["update_norm"].notna().all()


def test_a_closure_that_comes_later_is_used(tmp_path: Path) -> None:
    assert len(train(Two(), tmp_path / "run", closure=lambda step: step > 0).table("curvature"))


def test_two_threads_inside_attention_leave_the_functions_torchs() -> None:
    before = F.softmax, F.scaled_dot_product_attention
    first, second = (attention.inside_multi_head(lambda counts: None, Kept([])) for _ in range(2))
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert (F.softmax, F.scaled_dot_product_attention) == before


def test_what_cannot_be_switched_off_is_not_said_to_be(tmp_path: Path) -> None:
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1, budget=ANY) as monitor:
        for _ in range(5):
            with pytest.warns(RuntimeWarning, match="log could not be measured") if _ == 0 else _nothing():
                monitor.log(accuracy="high")
            optimizer.zero_grad()
            loss = model(torch.randn(5, 4)).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    events = diagnostics.load(tmp_path / "run").table("events")
    assert len(events.query("kind == 'measurement-failed'")) and not len(events.query("kind == 'measurement-off'"))


def _nothing() -> Any:
    return undisturbed(nn.Identity())


@pytest.mark.exhaustive
def test_a_slow_first_step_asks_little(tmp_path: Path) -> None:
    """What is asked of a closure once is left unasked where its calls take too long."""
    calls = []

    def slow(x: Tensor) -> Tensor:
        calls.append(1)
        time.sleep(0.7)
        return model(x).square().mean()

    torch.manual_seed(0)
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with diagnostics.watch(model, optimizer, tmp_path / "run", curvature_every=0) as monitor:
        x = torch.randn(5, 4)
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        monitor.step(loss, lambda: slow(x))
    assert 2 <= len(calls) <= 5


def test_a_directory_that_this_process_writes_to(tmp_path: Path) -> None:
    model = Two()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(TypeError, match="forward_to"):
        diagnostics.watch(model, optimizer, tmp_path / "run", forward_to=object())
    monitor = diagnostics.watch(model, optimizer, tmp_path / "run")  # the directory was not claimed
    with pytest.raises(diagnostics.RunError, match="close\\(\\) the earlier monitor"):
        diagnostics.watch(model, optimizer, tmp_path / "run")
    monitor.close()


def test_a_model_inside_of_transforms_alone(tmp_path):
    """As of second-order MAML: the watched model is called under `vmap` of `grad`, and there is no closure."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer, parts = torch.optim.SGD(model.parameters(), 0.1), dict(model.named_parameters())

    def error(parts, x, y):
        return nn.functional.mse_loss(torch.func.functional_call(model, parts, (x,)), y)

    def adapted(parts, x, y):
        slope = torch.func.grad(error)(parts, x, y)
        return error({name: part - 0.1 * slope[name] for name, part in parts.items()}, x, y)

    with diagnostics.watch(model, optimizer, tmp_path) as monitor:
        for _ in range(12):
            x = torch.randn(4, 16, 2)
            optimizer.zero_grad()
            loss = torch.func.vmap(lambda x, y: adapted(parts, x, y))(x, x.sum(2, keepdim=True)).mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss)
    run = diagnostics.load(tmp_path)
    assert "measurement-failed" not in set(run.table("events")["kind"])
    assert not run.meta["never_called"]
