"""What a closure writes to besides the watched model's buffers is put back: training is bitwise that of a twin."""

import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

import diagnostics
from diagnostics.curvature import entered, undisturbed

STEPS = 8
X, Y = torch.randn(STEPS, 16, 4, generator=torch.Generator().manual_seed(1)), torch.arange(STEPS * 16) % 3


class Task(nn.Module):
    """The watched `model`, what else is trained or used (`rest`), and the loss of a batch."""

    def __init__(self, model: nn.Module, rest: nn.Module | None = None) -> None:
        super().__init__()
        self.model, self.rest = model, rest or nn.Identity()

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y)

    def before(self, x: Tensor) -> None:
        """Another network's update, earlier in the step."""

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.model.parameters(), lr=0.3, momentum=0.9)


def small(inside: nn.Module | None = None) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), inside or nn.Tanh(), nn.Linear(6, 3))


class Gan(Task):
    def __init__(self, discriminator: nn.Module) -> None:
        super().__init__(small(), discriminator)
        self.second = torch.optim.Adam(self.rest.parameters(), lr=1e-3)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.softplus(-self.rest(self.model(x))).mean()

    def before(self, x: Tensor) -> None:
        self.second.zero_grad()
        (F.softplus(-self.rest(x[:, :3])) + F.softplus(self.rest(self.model(x).detach()))).mean().backward()
        self.second.step()


class Functional(nn.Module):
    """Its batch norm is never called as a module."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.out = nn.BatchNorm1d(3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.batch_norm(x, self.norm.running_mean, self.norm.running_var, training=True))


class Centers(Task):
    """A criterion with a buffer that moves slowly."""

    def __init__(self) -> None:
        super().__init__(small(), _Centers())

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.rest(self.model(x), y)


class _Centers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centers", torch.zeros(3, 3))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(z, y) + 0.1 * (z - self.centers[y]).square().mean()
        self.centers = self.centers.index_add(0, y, 1e-4 * (z.detach() - self.centers[y]))
        return loss


class Bags(nn.Module):
    """Rows that are too long are shortened where they are looked up."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.out = nn.Embedding(12, 6, max_norm=1.0), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rows((x.abs() * 6).long().clamp_max(11)).mean(1))


class Writing(nn.Module):
    def __init__(self, write: Callable[[nn.Linear], Any]) -> None:
        super().__init__()
        self.inside, self.out, self.write = nn.Linear(4, 6), nn.Linear(6, 3), write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.inside)
        return self.out(torch.tanh(self.inside(x)))


def by_data(layer: nn.Linear) -> None:
    layer.weight.data = F.normalize(layer.weight.data, dim=1)


def in_place(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.copy_(F.normalize(layer.weight, dim=1))


def uncounted(layer: nn.Linear) -> None:
    layer.weight.data.mul_(0.99)


class Momentum(Task):
    """A second encoder that follows the first one in each forward."""

    def __init__(self) -> None:
        super().__init__(small())
        self.rest = _Follower(self.model)

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x), y) + (self.model(x) - self.rest(x)).square().mean()


class _Follower(nn.Module):
    def __init__(self, leader: nn.Module) -> None:
        super().__init__()
        self.own, self._leader = small(), [leader]

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        for follower, leading in zip(self.own.parameters(), self._leader[0].parameters(), strict=True):
            follower.data = 0.9 * follower.data + 0.1 * leading.data
        return self.own(x)


class Noise(Task):
    def __init__(self, generator: Any, draw: Callable[[Any], float]) -> None:
        super().__init__(small())
        self.generator, self.draw = generator, draw

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.model(x + 1e-4 * self.draw(self.generator)), y)


class Counting(nn.Module):
    def __init__(self, features: int = 4) -> None:
        super().__init__()
        self.inside, self.calls = nn.Linear(features, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.inside(x) * (1 + 1e-6 * self.calls)


class Buffers(nn.Module):
    """A buffer that a forward changes, before a batch norm and a counter, which are put back after it."""

    def __init__(self, first: Callable[[], Tensor], change: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.register_buffer("kept", first())
        self.inside, self.norm, self.out, self.change = nn.Linear(4, 6), nn.BatchNorm1d(6), Counting(6), change

    def forward(self, x: Tensor) -> Tensor:
        scores = self.out(torch.tanh(self.norm(self.inside(x)))) + 1e-3 * self.kept.sum()
        self.change(self, scores.detach())
        return scores


class Private(Task):
    """Hooks keep the gradient of each example at the parameters, and an optimizer around the optimizer clips them, as
    in Opacus."""

    def __init__(self) -> None:
        super().__init__(small())
        for layer in self.model:
            if isinstance(layer, nn.Linear):
                vars(layer)["inputs"] = []
                layer.register_forward_hook(self._enter)
                layer.register_full_backward_pre_hook(self._leave)

    def optimizer(self) -> torch.optim.Optimizer:
        return _Clipping(super().optimizer())

    @staticmethod
    def _enter(layer: nn.Module, args: Any, output: Tensor) -> None:
        if torch.is_grad_enabled():
            layer.inputs.append(args[0].detach())
            layer.weight.open = getattr(layer.weight, "open", 0) + 1

    @staticmethod
    def _leave(layer: nn.Module, given: Any) -> None:
        weight = layer.weight
        each = torch.einsum("ni,nj->nij", given[0], layer.inputs.pop())
        weight.so_far = each + getattr(weight, "so_far", 0)
        weight.open -= 1
        if weight.open == 0:  # a forward that was not gone back through would hold them open
            weight.examples = weight.so_far
            del weight.so_far


class _Clipping(torch.optim.Optimizer):
    """Never initialized as an optimizer: it has no hooks."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.inner.param_groups[0]["params"]:
            if parameter.dim() == 2:
                norms = parameter.examples.flatten(1).norm(dim=1)[:, None, None]
                parameter.grad = (parameter.examples / (norms / 0.01).clamp_min(1)).sum(0)
                del parameter.examples
        self.inner.step()


def longer(module: nn.Module, scores: Tensor) -> None:
    module.kept.data = torch.cat([module.kept, scores[0]])


def resized(module: nn.Module, scores: Tensor) -> None:
    module.kept.resize_(len(module.kept) + 1)
    module.kept[-1] = scores.mean()


def registered(module: nn.Module, scores: Tensor) -> None:
    module.register_buffer(f"seen{len(module._buffers)}", scores.mean(0))
    module.kept += len(module._buffers)


def made_in_inference() -> Tensor:
    with torch.inference_mode():
        return torch.ones(3)


TASKS: dict[str, Callable[[], Task]] = {
    "spectral norm": lambda: Gan(nn.Sequential(spectral_norm(nn.Linear(3, 8)), nn.Tanh(), nn.Linear(8, 1))),
    "old spectral norm": lambda: Gan(nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 8)), nn.Linear(8, 1))),
    "batch norm": lambda: Gan(nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))),
    "a module used by a function": lambda: Gan(Functional()),
    "a criterion's buffer": Centers,
    "max_norm": lambda: Task(Bags()),
    "weight.data = ...": lambda: Task(Writing(by_data)),
    "weight.copy_": lambda: Task(Writing(in_place)),
    "weight.data.mul_": lambda: Task(Writing(uncounted)),
    "momentum encoder": Momentum,
    "torch.Generator": lambda: Noise(torch.Generator().manual_seed(5), lambda g: float(torch.randn(1, generator=g))),
    "numpy.random.Generator": lambda: Noise(np.random.default_rng(5), lambda g: float(g.normal())),
    "random.Random": lambda: Noise(random.Random(5), lambda g: g.random()),
    "gradients of each example": Private,
    "a counter": lambda: Task(Counting()),
    "an expanded buffer": lambda: Task(Buffers(lambda: torch.ones(1, 3).expand(4, 3), lambda module, scores: None)),
    "a buffer that grows": lambda: Task(Buffers(lambda: torch.zeros(1), longer)),
    "a buffer that is resized": lambda: Task(Buffers(lambda: torch.zeros(1), resized)),
    "buffers that are registered": lambda: Task(Buffers(lambda: torch.zeros(1), registered)),
    "a buffer of inference mode": lambda: Task(Buffers(made_in_inference, lambda module, scores: None)),
}


def train(make: Callable[[], Task], path: Path | None) -> dict[str, Any]:
    torch.manual_seed(0)
    task = make()
    optimizer = task.optimizer()
    options: dict[str, Any] = {"every": 2, "curvature_every": 3, "budget": 1e9}
    monitor = path and diagnostics.watch(task.model, optimizer, path, **options)
    for x, y in zip(X, Y.view(STEPS, 16), strict=True):
        task.before(x)
        optimizer.zero_grad()
        loss = task.loss(x, y)
        loss.backward()
        optimizer.step()
        if monitor:
            monitor.step(loss, closure=lambda x=x, y=y: task.loss(x, y))
    if monitor:
        monitor.close()
    gradients = {f"gradient of {name}": p.grad for name, p in task.named_parameters() if p.grad is not None}
    own = {name: getattr(module, "calls", 0) for name, module in task.named_modules()}
    return {**task.state_dict(), **gradients, "random": torch.get_rng_state(), "calls": torch.tensor([*own.values()])}


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of a first layer, always
@pytest.mark.parametrize("task", TASKS)
def test_training_is_that_of_an_unwatched_twin(task: str, tmp_path: Path) -> None:
    alone, watched = train(TASKS[task], None), train(TASKS[task], tmp_path / "run")
    assert alone.keys() == watched.keys()
    assert [name for name in alone if not torch.equal(alone[name], watched[name])] == []
    run = diagnostics.load(tmp_path / "run")
    assert not {"closure-differs", "measurement-failed"} & set(run.table("events")["kind"])
    assert len(run.table("curvature")) > 0


def test_parameters_are_copied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Later only those that the first evaluation wrote to."""
    model, copied = Writing(in_place), []
    monkeypatch.setattr(entered, "_copy", lambda data: copied.append(data.shape) or data.clone())
    for expected in (4, 1, 1):
        copied.clear()
        with undisturbed(model), torch.no_grad():
            model(X[0])
        assert len(copied) == expected
    assert copied == [model.inside.weight.shape]


def test_a_late_assignment_to_the_weights_is_undone() -> None:
    """Of a forward that did not write at its first evaluation."""
    model = Writing(lambda layer: None)
    weight = model.inside.weight.detach().clone()
    for write in (model.write, by_data):
        model.write = write
        with undisturbed(model), torch.no_grad():
            model(X[0])
    assert torch.equal(model.inside.weight, weight)


def test_a_graph_of_the_training_outlives_writes_of_the_closure() -> None:
    model = Writing(in_place)
    loss = model(X[0]).square().mean()
    with undisturbed(model), torch.no_grad():
        model(X[1])
    loss.backward()  # raises if a weight's version were another one


def test_tensors_lent_by_functional_call_do_not_stay() -> None:
    other = nn.BatchNorm1d(3)
    lent = {name: torch.zeros(3) for name in ("running_mean", "running_var")}
    own, values = other.running_mean, {name: each.clone() for name, each in lent.items()}
    with undisturbed(nn.Linear(1, 1)):
        torch.func.functional_call(other, lent, (X[0, :, :3],))
    assert other.running_mean is own and all(torch.equal(lent[name], values[name]) for name in lent)


def test_modules_of_another_thread_are_left_alone() -> None:
    norm = nn.BatchNorm1d(4)
    with undisturbed(nn.Linear(1, 1)):
        thread = threading.Thread(target=norm, args=(X[0],))
        thread.start()
        thread.join()
    assert norm.num_batches_tracked == 1


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: float(torch.rand(1))])
def test_overshoot_is_of_the_network_that_was_drawn(draw: Callable[[], float], tmp_path: Path) -> None:
    """Stochastic depth: both losses of a measured step are of the same depth."""
    torch.manual_seed(0), random.seed(3), np.random.seed(3)
    task = Task(_Deep(draw).double())
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.3)
    monitor = diagnostics.watch(task.model, optimizer, tmp_path / "run", every=1, curvature_every=None, budget=1e9)
    expected = []
    for x, y in zip(X.double(), Y.view(STEPS, 16), strict=True):
        optimizer.zero_grad()
        loss = task.loss(x, y)
        depth = task.model.deep
        loss.backward()
        slope = -0.3 * sum(float(p.grad.square().sum()) for p in task.model.parameters() if p.grad is not None)
        optimizer.step()
        with torch.no_grad():
            after = F.cross_entropy(task.model.at(x, depth), y)
        expected.append(-(after.item() - loss.item() - slope) / slope)
        monitor.step(loss, closure=lambda x=x, y=y: task.loss(x, y))
    monitor.close()
    recorded = diagnostics.load(tmp_path / "run").table("scalars")["overshoot"]
    assert recorded[1:].tolist() == pytest.approx(expected[1:], rel=1e-5)


class _Deep(nn.Module):
    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.inside, self.middle, self.out, self._draw = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3), draw
        self.deep = False

    def forward(self, x: Tensor) -> Tensor:
        self.deep = self._draw() < 0.5
        return self.at(x, self.deep)

    def at(self, x: Tensor, deep: bool) -> Tensor:
        h = torch.tanh(self.inside(x))
        return self.out(h + torch.tanh(self.middle(h)) if deep else h)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_buffer_is_put_back(layout: torch.layout) -> None:
    model = small()
    model.register_buffer("rows", torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=layout))
    with undisturbed(model):
        model.get_buffer("rows").mul_(2)
    assert [row.tolist() for row in model.get_buffer("rows").unbind()] == [[1, 1], [1, 1, 1]]


def test_a_buffer_without_data_stands_in_nothings_way() -> None:
    """As of a model whose weights come from elsewhere, through `functional_call`."""
    model = nn.Sequential(nn.BatchNorm1d(3, device="meta"), nn.BatchNorm1d(3))
    with undisturbed(model):
        model[1](torch.randn(8, 3))
    assert int(model[1].num_batches_tracked) == 0
