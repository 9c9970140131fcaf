"""Every stability formula against the divergence threshold of torch.optim itself on quadratics."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, optim

import diagnostics
from diagnostics.curvature import measure, stability_terms
from diagnostics.curvature.errors import CurvatureError
from diagnostics.curvature.gains import measured_terms
from diagnostics.curvature.stability import known_as

LR, SECOND, STEP = 1e-2, 4.0, 10_000.0  # P is about 2 where there is a preconditioner


def hold(optimizer: optim.Optimizer, before_step: bool = True) -> None:
    """Large step count, pre-filled second moments: the preconditioner as in the middle of a run, for all time.

    Before a step they are larger by what the step's own averaging takes off again.
    """
    for group in optimizer.param_groups:
        kept = group.get("rho", group.get("alpha", group.get("betas", (0, 1))[1])) if before_step else 1.0
        for state in optimizer.state.values():
            for name, value in state.items():
                if name in ("exp_avg_sq", "max_exp_avg_sq", "square_avg"):
                    value.fill_(SECOND / kept)
                elif name in ("sum", "exp_inf"):
                    value.fill_(SECOND)
                elif name == "acc_delta":
                    value.fill_(1.0)
                elif name == "step":
                    state[name] = torch.full_like(torch.as_tensor(value), STEP)
                elif name in ("mu_product", "grad_avg"):
                    value.zero_()


def prepared(make: Callable) -> tuple[Tensor, optim.Optimizer]:
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer = make([x])
    x.grad = torch.zeros_like(x)
    optimizer.step()
    for state in optimizer.state.values():
        for name in ("momentum_buffer", "exp_avg"):
            if state.get(name) is not None:
                state[name].zero_()
    hold(optimizer)
    return x, optimizer


def grows(make: Callable, curvature: float, steps: int = 1500) -> bool:
    x, optimizer = prepared(make)
    x.data.fill_(1e-9)  # so small that the gradients fed do not move the preconditioner within a step
    for _ in range(steps):
        x.grad = curvature * x.detach()
        optimizer.step()
        hold(optimizer)
        if abs(x.item()) > 1e-7:
            return True
    return abs(x.item()) > 1e-9


def predicted(optimizer: optim.Optimizer) -> float:
    """The curvature at which s = 1."""
    hold(optimizer, before_step=False)
    term = stability_terms(optimizer, [g["lr"] for g in optimizer.param_groups])[0]
    return float(1 / torch.as_tensor(term.response)) - term.coupled


OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, LR),
    "SGD weight decay": lambda p: optim.SGD(p, LR, weight_decay=20),
    "heavy ball": lambda p: optim.SGD(p, LR, momentum=0.9),
    "heavy ball weight decay": lambda p: optim.SGD(p, LR, momentum=0.9, weight_decay=50),
    "dampening": lambda p: optim.SGD(p, LR, momentum=0.9, dampening=0.5),
    "Nesterov": lambda p: optim.SGD(p, LR, momentum=0.9, nesterov=True),
    "Adam": lambda p: optim.Adam(p, LR),
    "Adam, beta1 0.5": lambda p: optim.Adam(p, LR, betas=(0.5, 0.999)),
    "Adam, coupled decay": lambda p: optim.Adam(p, LR, weight_decay=400),
    "Adam, large eps": lambda p: optim.Adam(p, LR, eps=1.0),
    "amsgrad": lambda p: optim.Adam(p, LR, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, LR, weight_decay=20),
    "NAdam": lambda p: optim.NAdam(p, LR),
    "NAdam, decoupled": lambda p: optim.NAdam(p, LR, weight_decay=20, decoupled_weight_decay=True),
    "RAdam": lambda p: optim.RAdam(p, LR),
    "Adamax": lambda p: optim.Adamax(p, LR),
    "RMSprop": lambda p: optim.RMSprop(p, LR),
    "RMSprop centred": lambda p: optim.RMSprop(p, LR, centered=True),
    "RMSprop momentum": lambda p: optim.RMSprop(p, LR, momentum=0.9),
    "RMSprop decay": lambda p: optim.RMSprop(p, LR, weight_decay=50),
    "Adagrad": lambda p: optim.Adagrad(p, LR),
    "Adagrad, decaying rate": lambda p: optim.Adagrad(p, LR, lr_decay=1e-4),
    "Adadelta": lambda p: optim.Adadelta(p, LR),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_formula_is_where_torch_diverges(name: str):
    make = OPTIMIZERS[name]
    limit = predicted(prepared(make)[1])
    assert not grows(make, 0.99 * limit)
    assert grows(make, 1.01 * limit)


def test_the_design_s_numbers():
    assert predicted(prepared(OPTIMIZERS["SGD"])[1]) == pytest.approx(200)
    assert predicted(prepared(OPTIMIZERS["heavy ball"])[1]) == pytest.approx(380)
    assert predicted(prepared(OPTIMIZERS["Nesterov"])[1]) == pytest.approx(2 * 1.9 / (2.8 * LR))
    assert predicted(prepared(OPTIMIZERS["Adam"])[1]) == pytest.approx(38 * 2 / LR, rel=1e-3)


def test_adam_w_is_told_from_adam_by_its_group():
    coupled = stability_terms(optim.Adam([torch.ones(1, requires_grad=True)], weight_decay=0.1), [1e-3])[0]
    decoupled = stability_terms(optim.AdamW([torch.ones(1, requires_grad=True)], weight_decay=0.1), [1e-3])[0]
    assert (coupled.coupled, coupled.decoupled) == (0.1, 0.0)
    assert (decoupled.coupled, decoupled.decoupled) == (0.0, 0.1)


def quadratic(matrix: Tensor, groups: list[dict]) -> tuple[list[Tensor], optim.Optimizer, Callable[[], Tensor]]:
    parameters = [p for group in groups for p in group["params"]]

    def closure() -> Tensor:
        x = torch.cat([p.reshape(-1) for p in parameters])
        return 0.5 * x @ matrix @ x

    return parameters, optim.SGD(groups, lr=0.1), closure


@pytest.mark.parametrize("seed", range(6))
def test_mixed_groups_cross_one_where_the_whole_system_does(seed: int):
    """Different rate, momentum and kind per group: the spectral radius of the true update map is 1 exactly at s = 1."""
    rng = np.random.default_rng(seed)
    a = torch.tensor(rng.normal(size=(6, 6)))
    matrix = a @ a.t() / 6
    kinds = [
        {"lr": 0.1 * rng.uniform(0.2, 2), "momentum": 0.9},
        {"lr": 0.1 * rng.uniform(0.2, 2), "momentum": 0.5, "nesterov": True},
        {"lr": 0.1 * rng.uniform(0.2, 2), "weight_decay": 0.3},
    ]
    groups = [{"params": [torch.zeros(2, dtype=torch.float64, requires_grad=True)], **kind} for kind in kinds]
    parameters, optimizer, closure = quadratic(matrix, groups)
    model = torch.nn.ParameterList([torch.nn.Parameter(p) for p in parameters])
    s = measure(closure, model, optimizer, [k["lr"] for k in kinds], tolerance=1e-8).stability
    assert radius(matrix, kinds, 0.995 / s) < 1 < radius(matrix, kinds, 1.005 / s)


def radius(matrix: Tensor, kinds: list[dict], scale: float) -> float:
    """Spectral radius of (weights, buffers) -> next, all rates times `scale`."""
    n = len(matrix)
    mu = torch.tensor([kind.get("momentum", 0.0) for kind in kinds for _ in range(2)], dtype=torch.float64)
    look = torch.tensor([float(kind.get("nesterov", False)) for kind in kinds for _ in range(2)], dtype=torch.float64)
    eta = scale * torch.tensor([kind["lr"] for kind in kinds for _ in range(2)], dtype=torch.float64)
    decay = torch.tensor([kind.get("weight_decay", 0.0) for kind in kinds for _ in range(2)], dtype=torch.float64)
    gradient, one = matrix + torch.diag(decay), torch.eye(n, dtype=torch.float64)
    buffer = torch.cat([gradient, torch.diag(mu)], 1)  # b' = mu b + g
    plain = torch.cat([gradient, torch.zeros(n, n)], 1)
    update = (1 - look)[:, None] * buffer + look[:, None] * (plain + mu[:, None] * buffer)
    weights = torch.cat([one, torch.zeros(n, n)], 1) - eta[:, None] * update
    return float(torch.linalg.eigvals(torch.cat([weights, buffer])).abs().max())


class Unknown(optim.SGD):
    """Heavy ball under another name."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                buffer = self.state[p].setdefault("velocity", torch.zeros_like(p))
                buffer.mul_(0.8).add_(p.grad)
                p.add_(buffer, alpha=-group["lr"])


class UnknownAdam(optim.Adam):
    def step(self, closure=None):
        return super().step(closure)


class Sign(optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad.sign(), alpha=group["lr"])


def stepped(make: Callable, size: int = 5) -> optim.Optimizer:
    x = torch.ones(size, dtype=torch.float64, requires_grad=True)
    optimizer = make([x])
    for k in range(30):
        x.grad = torch.linspace(0.5, 2.0, size, dtype=torch.float64) * (-1) ** k
        optimizer.step()
    return optimizer


def test_an_unknown_linear_optimizer_is_measured():
    optimizer = stepped(lambda p: Unknown(p, 0.05))
    assert known_as(optimizer) is None
    state = (
        optimizer.param_groups[0]["params"][0].detach().clone(),
        optimizer.state_dict()["state"][0]["velocity"].clone(),
    )
    term = measured_terms(optimizer, [0.05], [torch.ones(5, dtype=torch.float64)])[0]
    assert float(1 / torch.as_tensor(term.response)) == pytest.approx(2 * 1.8 / 0.05, rel=1e-3)
    assert term.constant == pytest.approx(1 / 0.2, rel=1e-3)
    assert torch.equal(optimizer.param_groups[0]["params"][0], state[0])  # only a copy was touched
    assert torch.equal(optimizer.state_dict()["state"][0]["velocity"], state[1])


def test_an_unknown_adaptive_optimizer_is_measured_per_coordinate():
    mine, known = stepped(lambda p: UnknownAdam(p, 1e-2)), stepped(lambda p: optim.Adam(p, 1e-2))
    assert known_as(mine) is None
    measured = measured_terms(mine, [1e-2], [torch.ones(5, dtype=torch.float64)])[0]
    formula = stability_terms(known, [1e-2])[0]
    # The copy's step count is one further than the state the formula describes.
    assert torch.allclose(measured.response, formula.response, rtol=2e-2)


def test_a_sign_update_has_no_stability_ratio():
    with pytest.raises(CurvatureError, match="not proportional"):
        measured_terms(stepped(lambda p: Sign(p, 0.05)), [0.05], [torch.ones(5, dtype=torch.float64)])


@pytest.mark.parametrize("make", [lambda p: optim.RMSprop(p, 1e-2), lambda p: optim.Adam(p, 1e-2, betas=(0.9, 0.99))])
def test_live_adaptive_state_settles_near_one(make: Callable):
    """On a quadratic an adaptive optimizer shrinks its preconditioner until it sits at its own limit."""
    x = torch.ones(1, dtype=torch.float64, requires_grad=True)
    optimizer, ratios = make([x]), []
    for step in range(6000):
        x.grad = 50.0 * x.detach()
        optimizer.step()
        if step >= 4000:
            ratios.append(50.0 * float(torch.as_tensor(stability_terms(optimizer, [1e-2])[0].response)))
    assert 0.7 < np.mean(ratios) < 1.15


def test_weights_that_never_had_a_gradient_do_not_move():
    x = torch.ones(3, requires_grad=True)
    optimizer = optim.Adam([x], lr=1e-2)
    x.grad = torch.tensor([1.0, 0.0, 2.0])
    optimizer.step()
    response = stability_terms(optimizer, [1e-2])[0].response
    assert response[1] == 0 and (response[[0, 2]] > 0).all()


class Plain(torch.optim.Optimizer):
    """Gradient descent as somebody writes it, with the decorator that torch's own documentation shows."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=-group["lr"])


@pytest.mark.parametrize(
    ("make", "gain"),
    [
        (lambda p: Plain(p, lr=0.1), 1.0),
        (lambda p: torch.optim.ASGD(p, lr=0.1), 1.0),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=1.0), 0.5),  # heavy ball's 2 (1 + mu) / eta
        (lambda p: torch.optim.SGD(p, lr=0.0), 0.0),
    ],
    ids=["not in the table", "measured", "momentum 1", "rate 0"],
)
def test_a_watched_run_gets_the_ratio_of_any_linear_optimizer(tmp_path, make, gain):
    torch.manual_seed(0)
    x, y = torch.randn(50, 4), torch.randn(50, 1)
    model = torch.nn.Linear(4, 1, bias=False)
    optimizer = make(model.parameters())
    with diagnostics.watch(model, optimizer, tmp_path) as monitor:
        for _ in range(5):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=lambda: (model(x) - y).square().mean())
    top = float(torch.linalg.eigvalsh(2 * x.T @ x / 50)[-1])
    rate = optimizer.param_groups[0]["lr"]
    measured = diagnostics.load(tmp_path).table("curvature")["stability"].to_numpy()
    assert len(measured) and measured == pytest.approx(gain * rate * top / 2, rel=5e-3)
