"""Groups of several rates, decays and signs: the ratio, its budget on later batches, and what is left out and said."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diagnostics
from diagnostics.curvature import combine, follow, measure

GROUPS = {
    "one rate": [{"lr": 0.1}, {"lr": 0.1}],
    "two rates": [{"lr": 0.3}, {"lr": 0.05}],
    "rates and momenta": [{"lr": 0.2}, {"lr": 0.05, "momentum": 0.9}],
    "coupled weight decay": [{"lr": 0.1, "weight_decay": 2.0}, {"lr": 0.1, "weight_decay": 2.0}],
    "decay of one group": [{"lr": 0.3, "weight_decay": 1.5}, {"lr": 0.05}],
    "maximized": [{"lr": 0.3, "maximize": True}, {"lr": 0.05, "maximize": True}],
    "maximized at one rate": [{"lr": 0.1, "maximize": True}, {"lr": 0.1, "maximize": True}],
}
STEEP = torch.tensor([1.0, -0.5, 0.8, 0.3], dtype=torch.float64)


def two_groups(kinds: list[dict], scale: float = 1.0) -> tuple[nn.ParameterList, torch.optim.Optimizer]:
    model = nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in kinds])
    groups = [{"params": [p]} | kind | {"lr": scale * kind["lr"]} for p, kind in zip(model, kinds, strict=True)]
    return model, torch.optim.SGD(groups, lr=0.1)


def batch(model: nn.ParameterList, kinds: list[dict], curvature: float):
    """The same direction is steep on every batch, by another curvature; bent down where the optimizer maximizes."""
    sign = -1 if kinds[0].get("maximize") else 1
    return lambda: sign * 0.5 * curvature * (STEEP @ torch.cat(list(model))).square()


def row(kinds: list[dict], curvatures: list[float], scale: float = 1.0) -> dict:
    model, optimizer = two_groups(kinds, scale)
    closure = batch(model, kinds, float(np.mean(curvatures)))
    estimate = measure(closure, model, optimizer, [g["lr"] for g in optimizer.param_groups], tolerance=1e-8)
    batches = [follow(batch(model, kinds, c), model, estimate.lasting()) for c in curvatures]
    return combine(batches, estimate.lasting()) | {"stability": estimate.stability, "limit": estimate.limit}


@pytest.mark.parametrize("name", [name for name in GROUPS if "momenta" not in name])
def test_the_curvature_term_is_where_torch_diverges(name: str):
    """Batches that are all the same: without noise the term is s, and torch's own steps grow where it passes 1."""
    kinds = GROUPS[name]
    term = row(kinds, [3.0, 3.0])["curvature_term"]
    for scale, grows in ((0.98 / term, False), (1.02 / term, True)):
        model, optimizer = two_groups(kinds, scale)
        for _ in range(600):
            optimizer.zero_grad()
            batch(model, kinds, 3.0)().backward()
            optimizer.step()
        assert (float(torch.cat(list(model)).detach().abs().max()) > 5) == grows


@pytest.mark.parametrize("name", sorted({*GROUPS} - {"rates and momenta", "decay of one group"}))
def test_the_two_terms_add_up_to_one_where_torch_s_mean_square_stands_still(name: str):
    """Rates scaled until they add up to 1; then every sequence of two batches, by torch.optim itself. A loss with one
    steep direction moves the weights along one line, where the mean square is multiplied by one factor a step."""
    kinds, curvatures = GROUPS[name], [1.0, 4.0]
    found = row(kinds, curvatures)
    spread = float(np.var(curvatures) / np.var(curvatures, ddof=1))  # of exactly these two, not of a sample
    scale = 1 / (found["curvature_term"] + spread * found["noise_term"])
    squares = []
    for sequence in itertools.product(curvatures, repeat=3):
        model, optimizer = two_groups(kinds, scale)
        start = STEEP * torch.cat([torch.full((2,), kind["lr"], dtype=torch.float64) for kind in kinds])
        for p, value in zip(model, start.split(2), strict=True):
            p.data.copy_(value)
        for curvature in sequence:
            optimizer.zero_grad()
            batch(model, kinds, curvature)().backward()
            optimizer.step()
        squares.append(float((STEEP @ torch.cat(list(model)).detach()) ** 2))
    assert np.mean(squares) == pytest.approx(float((STEEP @ start) ** 2), rel=1e-6)


def test_the_two_terms_with_momentum_and_rates_of_their_own():
    """Axes that do not mix: those of the group that is steepest, by the second moments of (weight, velocity)."""
    kinds = [{"lr": 0.02}, {"lr": 0.05, "momentum": 0.9}]
    curvatures = [[2.0, 1.0], [2.0, 9.0]]
    model = nn.ParameterList([nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in kinds])

    def terms(scale: float) -> tuple[float, float]:
        groups = [{"params": [p]} | kind | {"lr": scale * kind["lr"]} for p, kind in zip(model, kinds, strict=True)]
        optimizer = torch.optim.SGD(groups, lr=0.1)

        def closure(bends):
            return lambda: 0.5 * (torch.tensor(bends, dtype=torch.float64) * torch.cat(list(model)) ** 2).sum()

        rates = [g["lr"] for g in optimizer.param_groups]
        estimate = measure(closure([2.0, 5.0]), model, optimizer, rates, tolerance=1e-8)
        found = combine([follow(closure(c), model, estimate) for c in curvatures], estimate)
        return found["curvature_term"], found["noise_term"] / 2  # the variance of exactly these two

    scale = 1 / sum(terms(1.0))
    assert sum(terms(scale)) == pytest.approx(1)
    maps = []
    for _, a in curvatures:
        step = np.array([[1 - 0.05 * scale * a, -0.05 * scale * 0.9], [a, 0.9]])  # (weight, velocity) -> next
        maps.append(np.kron(step, step))
    assert np.abs(np.linalg.eigvals(np.mean(maps, 0))).max() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("kind", ["Adam", "RMSprop"])
def test_weight_decay_before_an_adaptive_preconditioner_is_in_both_terms(kind: str):
    torch.manual_seed(0)
    theta = nn.Parameter(torch.ones(1, dtype=torch.float64))
    model = nn.ParameterList([theta])
    optimizer = getattr(torch.optim, kind)([theta], lr=1e-2, weight_decay=3.0)
    for _ in range(50):
        theta.grad = 1 + torch.randn(1, dtype=torch.float64)
        optimizer.step()
    state, t = optimizer.state[theta], 50
    if kind == "Adam":
        p = (1 - 0.9**t) * ((state["exp_avg_sq"] / (1 - 0.999**t)).sqrt() + 1e-8)
    else:
        p = state["square_avg"].sqrt() + 1e-8
    gain = 0.1 / 1.9 if kind == "Adam" else 1.0
    bends = [2.0, 5.0, 8.0]
    estimate = measure(lambda: 2.5 * theta.square().sum(), model, optimizer, [1e-2])
    found = combine([follow(lambda b=b: 0.5 * b * theta.square().sum(), model, estimate) for b in bends], estimate)
    assert found["curvature_term"] == pytest.approx(1e-2 * gain * (5 + 3) / (2 * float(p)), rel=1e-6)
    assert found["noise_term"] == pytest.approx(1e-2 * 9 / (2 * (5 + 3) * float(p)), rel=1e-6)


def watched(path, make) -> diagnostics.Run:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = make(list(model.parameters()))
    with diagnostics.watch(model, optimizer, path, every=1, curvature_every=11, budget=1e9) as monitor:
        for _ in range(12):
            x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                return nn.functional.cross_entropy(model(x), y)

            optimizer.zero_grad()
            loss = closure()
            loss.backward()
            optimizer.step()
            monitor.step(loss, closure=closure)
    return diagnostics.load(path)


def test_groups_with_and_without_decay_have_all_that_one_group_has(tmp_path):
    """The usual setting of a transformer. Decoupled decay changes R by half of rate times decay: 0.05 % here."""

    def make(tensors):
        weights, biases = tensors[::2], tensors[1::2]
        groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=1e-2)

    groups = watched(tmp_path / "groups", make)
    whole = watched(tmp_path / "whole", lambda tensors: torch.optim.AdamW([*tensors[::2], *tensors[1::2]], lr=1e-2))
    for name in ("stability", "limit", "progress"):
        mine, other = groups.table("curvature")[name].to_numpy(), whole.table("curvature")[name].to_numpy()
        assert mine == pytest.approx(other, rel=2e-2), name
    for name in ("curvature_term", "noise_term"):
        assert groups.table("batches")[name][0] == pytest.approx(whole.table("batches")[name][0], rel=0.1), name
    assert not [m for m in groups.table("events")["message"] if "limit" in m]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: torch.optim.SGD([{"params": p[:2], "lr": 0.1}, {"params": p[2:], "lr": 0.01}]), "differ in rate"),
        (
            lambda p: torch.optim.SGD([{"params": p[:2], "momentum": 0.9}, {"params": p[2:]}], lr=0.01),
            "no one gain",
        ),
        (lambda p: torch.optim.SGD(p, lr=0.1, maximize=True), "the optimizer maximizes"),
        (
            lambda p: torch.optim.SGD([{"params": p[:2]}, {"params": p[2:], "maximize": True}], lr=0.1),
            "no stability ratio: one parameter group maximizes",
        ),
    ],
    ids=["rates", "momenta", "maximize", "both"],
)
def test_what_is_not_defined_is_said_once(tmp_path, make, says: str):
    run = watched(tmp_path, make)
    assert sum(says in message for message in run.table("events")["message"]) == 1
    row = run.table("batches").iloc[0]
    known = "no stability ratio" not in says
    assert math.isfinite(row["curvature_term"]) == known
    assert math.isnan(run.table("curvature")["limit"][0])
