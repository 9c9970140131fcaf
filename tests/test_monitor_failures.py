"""Whatever of ours fails, the training it watches goes on bit by bit: every function is made to raise, one by one."""

import importlib
import inspect
import pkgutil
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import CodeType, ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diagnostics
from diagnostics import curvature, monitor, run, stats
from diagnostics.monitor import places

# What catches errors, and so cannot be where one is injected, what only calls that, and a method of every named tuple.
CATCHES = {
    "Guarded.__init__", "Hooked.__init__", "Charge.__init__",
    "Guard.off", "Guard.__call__", "Guarded.__enter__", "Guarded.__exit__", "Hooked.__enter__", "Hooked.__exit__",
    "Charge.__enter__", "Charge.__exit__", "Budget.charge", "Budget.add",
    "Kept.__init__", "Kept.__enter__", "Kept.__exit__",
    "Monitor.step", "Monitor.close", "Monitor._hooked", "_Enter.__call__", "_Leave.__call__", "Entrance.entered",
    "Entrance.left", "Observer.__torch_function__", "Observer._call", "Observer._run", "Observer._enter_module",
    "Observer._leave_module", "inside_multi_head", "Sentinel._begins", "Sentinel._accumulated", "Sentinel._end",
    "Updates._before", "Updates._after", "RunWriter._turn", "RunWriter._work", "_Pass.__call__",
    "Hook.__call__", "ModuleCall._replace",
}  # fmt: skip


class Net(nn.Module):
    """Norms, attention, reshapes and two kinds of activation: most of what an observer looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.norm, self.out = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.attention, self.middle = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.inside(x))).view(len(x), 2, 4).transpose(1, 2).reshape(len(x), 1, 8)
        h = self.attention(h, h, h)[0].squeeze(1)
        return self.out(torch.tanh(self.middle(h)))


def trained(path: Path | None, closure: bool = True, fail: Callable[[], Any] = lambda: None) -> list[Tensor]:
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    options: dict[str, Any] = {"every": 2, "curvature_every": 2, "budget": 1e9}
    watcher = None if path is None else diagnostics.watch(model, optimizer, path, **options)
    for update in range(5):
        if update == 2:
            fail()
        x = torch.randn(12, 6)
        y = x[:, :3].argmax(1)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if watcher is not None:
            watcher.step(loss, closure=(lambda x=x, y=y: F.cross_entropy(model(x), y)) if closure else None)
    if watcher is not None:
        watcher.close()
    return [p.detach().clone() for p in model.parameters()]


def modules() -> list[ModuleType]:
    packages = (monitor, stats, curvature, run)
    names = [f"{each.__name__}.{info.name}" for each in packages for info in pkgutil.iter_modules(each.__path__)]
    return [importlib.import_module(name) for name in names]


@cache
def called(closure: bool) -> set[CodeType]:
    """What runs between the second update and the end, in any thread."""
    seen: set[CodeType] = set()

    def note(frame: Any, event: str, value: Any) -> None:
        seen.add(frame.f_code)

    def begin() -> None:
        threading.setprofile_all_threads(note) if hasattr(threading, "setprofile_all_threads") else None
        sys.setprofile(note)

    with TemporaryDirectory() as folder:
        try:
            trained(Path(folder) / "run", closure, begin)
        finally:
            sys.setprofile(None)
            threading.setprofile_all_threads(None) if hasattr(threading, "setprofile_all_threads") else None
    return seen


def functions(module: ModuleType, closure: bool) -> Iterator[tuple[Any, str]]:
    classes = [each for _, each in inspect.getmembers(module, inspect.isclass) if each.__module__ == module.__name__]
    for owner in (module, *classes):
        for name, each in list(vars(owner).items()):
            label = name if owner is module else f"{owner.__name__}.{name}"
            if inspect.isfunction(each) and each.__code__ in called(closure) and label not in CATCHES:
                yield owner, name


PARTS = 10  # of each module's functions: one in CI, where all of them took a third of the time, the others by hand
# Of the monitor's own the way without a closure is the second, and minutes long.
CASES = [
    pytest.param(
        *(module, closure, part),
        marks=pytest.mark.by_hand if part or (not closure and ".monitor" in module.__name__) else (),
        id=f"{module.__name__}-{closure}-{part}",
    )
    for closure in (True, False)
    for module in modules()
    if closure != module.__name__.startswith(("diagnostics.stats", "diagnostics.run")) or ".monitor" in module.__name__
    for part in range(PARTS)
]


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("module", "closure", "part"), CASES)
def test_training_goes_on_whatever_fails(module: ModuleType, closure: bool, part: int, tmp_path: Path) -> None:
    expected = trained(None)
    for owner, name in list(functions(module, closure))[part::PARTS]:
        with pytest.MonkeyPatch.context() as patch:
            weights = trained(tmp_path / f"{owner.__name__}.{name}", closure, partial(spoil, patch, owner, name))
        assert all(map(torch.equal, weights, expected)), name


def spoil(patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    def failing(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"injected in {name}")

    static = isinstance(inspect.getattr_static(owner, name), staticmethod)
    patch.setattr(owner, name, staticmethod(failing) if static else failing)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_an_observer_that_fails_in_the_training_forward_leaves_it_alone(tmp_path: Path, monkeypatch) -> None:
    """Without a closure it is the training's own forward that is observed."""

    def failing(*args: Any) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(places, "moved", failing)
    assert all(map(torch.equal, trained(tmp_path / "run", closure=False), trained(None)))
    told = diagnostics.load(tmp_path / "run").table("events")
    assert set(told[told["kind"] == "measurement-failed"]["subject"]) == {"activations"}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_fails_in_the_backward_pass_is_told_after_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(stats.Form, "read", lambda *_: 1 / 0)
    assert all(map(torch.equal, trained(tmp_path / "run", closure=False), trained(None)))
    told = diagnostics.load(tmp_path / "run").table("events")
    assert set(told[told["kind"] == "measurement-failed"]["subject"]) == {"targets"}


def test_an_error_in_the_model_is_the_one_that_is_raised(tmp_path: Path) -> None:
    class Breaks(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) == 5:
                raise ValueError("theirs")
            return super().forward(x)

    model = nn.Sequential(Breaks(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with diagnostics.watch(model, optimizer, tmp_path / "run", every=1, budget=1e9) as watcher:
        for samples in (4, 4, 5, 4, 5, 4):
            optimizer.zero_grad()
            if samples == 5:
                with pytest.raises(ValueError, match="theirs"):
                    model(torch.randn(samples, 4))
                continue
            loss = model(torch.randn(samples, 4)).square().mean()
            loss.backward()
            optimizer.step()
            watcher.step(loss)
    assert len(diagnostics.load(tmp_path / "run").table("units")) > 0
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def scripted(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


def vmapped(model: nn.Module, x: Tensor) -> Tensor:
    return torch.func.vmap(lambda row: torch.func.functional_call(model, dict(model.named_parameters()), (row,)))(x)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize(
    ("wrap", "forward"),
    [
        (torch.jit.script, scripted),
        (lambda model: nn.Sequential(torch.jit.script(model[:2]), model[2]), scripted),
        (lambda model: model, vmapped),
    ],
    ids=["scripted", "partly scripted", "vmapped"],
)
def test_what_cannot_be_observed_is_left_alone(wrap: Any, forward: Any, closure: bool, tmp_path: Path) -> None:
    def trained(path: Path | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = wrap(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watcher = diagnostics.watch(model, optimizer, path, every=1, budget=1e9) if path else None
        for _ in range(4):
            x = torch.randn(5, 4)
            optimizer.zero_grad()
            loss = forward(model, x).square().mean()
            loss.backward()
            optimizer.step()
            if watcher:
                watcher.step(loss, closure=(lambda x=x: forward(model, x).square().mean()) if closure else None)
        if watcher:
            watcher.close()
        return [p.detach().clone() for p in model.parameters()]

    assert all(map(torch.equal, trained(tmp_path / "run"), trained(None)))
    assert "measurement-failed" not in set(diagnostics.load(tmp_path / "run").table("events")["kind"])


def test_gradients_of_several_losses_at_once_are_left_alone(tmp_path: Path) -> None:
    """As torchjd computes them: the backward pass runs under `vmap`, whose tensors must not outlive it."""

    def trained(path: Path | None) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer, y = torch.optim.SGD(model.parameters(), lr=0.1), torch.randint(3, (16,))
        watcher = diagnostics.watch(model, optimizer, path, every=1, budget=1e9) if path else None
        for _ in range(6):
            x, parameters = torch.randn(16, 4), list(model.parameters())
            losses = F.cross_entropy(model(x), y, reduction="none")[:2]
            jacobians = torch.autograd.grad(losses, parameters, torch.eye(2), is_grads_batched=True)
            for parameter, jacobian in zip(parameters, jacobians, strict=True):
                parameter.grad = jacobian.mean(0)
            optimizer.step()
            if watcher:
                watcher.step(losses.mean(), closure=lambda x=x: F.cross_entropy(model(x)[:2], y[:2]))
        if watcher:
            watcher.close()
        return [p.detach().clone() for p in model.parameters()]

    assert all(map(torch.equal, trained(tmp_path / "run"), trained(None)))
    assert "measurement-failed" not in set(diagnostics.load(tmp_path / "run").table("events")["kind"])


def test_a_view_without_a_history_can_be_kept_by_a_watched_model(tmp_path: Path) -> None:
    """To ask such a tensor for its history is an error."""
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    base = torch.ones(3, requires_grad=True) * 1
    with torch.no_grad():
        model.kept = base[:2]
    base.add_(1)
    with pytest.raises(RuntimeError, match="view"):
        _ = model.kept.grad_fn
    diagnostics.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), tmp_path / "run").close()
