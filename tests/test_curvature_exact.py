"""Curvature against closed forms, and against `torch.func.hessian` on small architectures."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diagnostics.curvature import measure
from diagnostics.curvature.layout import Layout
from diagnostics.curvature.operators import DoubleBackward, Weighted

# torch.func.hessian itself calls it.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def sgd(model: nn.Module, lr: float = 0.1, **options) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr, **options)


def test_linear_regression():
    x, y = randn(50, 8), randn(50, 1, seed=1)
    model = nn.Linear(8, 1, bias=False).double()
    estimate = measure(lambda: F.mse_loss(model(x), y), model, sgd(model), [0.1], tolerance=1e-6)
    true = torch.linalg.eigvalsh(2 * x.t() @ x / 50).flip(0)
    assert estimate.eigenvalues == pytest.approx(true[:5].tolist(), rel=1e-6)
    assert estimate.smallest == pytest.approx(float(true[-1]), rel=1e-6)
    assert estimate.stability == pytest.approx(0.1 * float(true[0]) / 2, rel=1e-6)
    assert estimate.limit == pytest.approx(20)


def test_logistic_regression():
    x, y = randn(60, 6), (randn(60, 1, seed=2) > 0).double()
    model = nn.Linear(6, 1, bias=False).double()
    estimate = measure(
        lambda: F.binary_cross_entropy_with_logits(model(x), y), model, sgd(model), [0.1], tolerance=1e-6
    )
    p = torch.sigmoid(model(x)).detach()
    true = torch.linalg.eigvalsh((x * p * (1 - p)).t() @ x / 60).flip(0)
    assert estimate.eigenvalues == pytest.approx(true[:5].tolist(), rel=1e-6)


def test_deep_linear_network_at_its_saddle():
    """x -> w2 w1 x with one unit at zero weights: the Hessian is [[0, -m], [-m, 0]], m the mean of 2 x y."""
    x, y = randn(40, 1), randn(40, 1, seed=3)
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for p in model.parameters():
        nn.init.zeros_(p)
    estimate = measure(lambda: F.mse_loss(model(x), y), model, sgd(model), [0.1])
    m = abs(float((2 * x * y).mean()))
    assert estimate.eigenvalues == pytest.approx([m, -m])
    assert estimate.smallest == pytest.approx(-m)


def test_several_batches_are_weighted_by_their_samples():
    x, y = randn(70, 5), randn(70, 1, seed=4)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    layout = Layout(list(model.parameters()))
    parts = [(x[:10], y[:10]), (x[10:30], y[10:30]), (x[30:], y[30:])]
    each = [DoubleBackward(lambda a=a, b=b: F.mse_loss(model(a), b), layout) for a, b in parts]
    whole = DoubleBackward(lambda: F.mse_loss(model(x), y), layout)
    v = randn(layout.dimension, seed=5)
    assert torch.allclose(Weighted(each, [10, 20, 40])(v), whole(v), atol=1e-12)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.view(-1, 2, 4)).chunk(3, -1)
        scores = torch.softmax(q @ k.transpose(1, 2) / 2, -1)
        return self.out((scores @ v).mean(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)))))


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(8, 3),
    "tanh": lambda: nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)),
    "relu": lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)),
    "gelu, layer norm": lambda: nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 3)),
    "silu": lambda: nn.Sequential(nn.Linear(8, 5), nn.SiLU(), nn.Linear(5, 5), nn.SiLU(), nn.Linear(5, 3)),
    "softplus": lambda: nn.Sequential(nn.Linear(8, 6), nn.Softplus(), nn.Linear(6, 3)),
    "convolution": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 3, 3), nn.ELU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(9, 3)
    ),
    "group norm": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(4, 3)
    ),
    "attention": Attention,
    "tied": Tied,
}


def dense_hessian(model: nn.Module, loss: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def of(flat: Tensor) -> Tensor:
        parts = zip(parameters.items(), flat.split(sizes), strict=True)
        return loss(torch.func.functional_call(model, {name: part.view(p.shape) for (name, p), part in parts}, (x,)))

    weights = torch.cat([p.detach().reshape(-1) for p in parameters.values()])
    if any(isinstance(module, nn.LayerNorm) for module in model.modules()):
        # torch.func.hessian is asymmetric by 0.14 there (torch 2.13, affine LayerNorm); this agrees with differences.
        return torch.autograd.functional.hessian(of, weights)
    return torch.func.hessian(of)(weights)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_agrees_with_the_dense_hessian(name: str):
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().double()
    x, y = randn(20, 8), torch.randint(0, 3, (20,), generator=generator())
    estimate = measure(lambda: F.cross_entropy(model(x), y), model, sgd(model), [0.1], tolerance=1e-5, eigenvalues=5)
    hessian = dense_hessian(model, lambda output: F.cross_entropy(output, y), x)
    true = torch.linalg.eigvalsh(hessian).flip(0)
    assert estimate.eigenvalues == pytest.approx(true[:5].tolist(), rel=1e-4, abs=1e-8)
    assert estimate.smallest == pytest.approx(float(true[-1]), rel=1e-4, abs=1e-4 * float(true[0]))
    assert estimate.symmetry_defect < 1e-10
    g = torch.cat([g.reshape(-1) for g in torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))])
    vectors = torch.linalg.eigh(hessian)[1].flip(1)[:, :5]
    assert estimate.gradient_alignment == pytest.approx(
        float((vectors.t() @ g).square().sum() / g.square().sum()), abs=0.02
    )


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "RMSprop", "NAdam", "Adagrad"])
def test_preconditioned_and_stability_of_adaptive_optimizers(kind: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 3)).double()
    x, y = randn(30, 8), torch.randint(0, 3, (30,), generator=generator())
    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=1e-2, weight_decay=1e-2)

    def closure() -> Tensor:
        return F.cross_entropy(model(x), y)

    for _ in range(20):
        optimizer.zero_grad()
        closure().backward()
        optimizer.step()
    estimate = measure(closure, model, optimizer, [1e-2], tolerance=1e-5)
    hessian = dense_hessian(model, lambda output: F.cross_entropy(output, y), x)
    scale = estimate.scaling
    assert scale is not None
    p, r, w = (
        torch.as_tensor(t, dtype=torch.float64).expand(len(hessian))
        for t in (scale.preconditioner, scale.response, scale.coupled)
    )
    top = torch.linalg.eigvalsh(hessian / (p.sqrt()[:, None] * p.sqrt()))[-1]
    s = torch.linalg.eigvalsh(r.sqrt()[:, None] * (hessian + torch.diag(w)) * r.sqrt())[-1]
    assert estimate.preconditioned == pytest.approx(float(top), rel=1e-4)
    assert estimate.stability == pytest.approx(float(s), rel=1e-4)
    assert math.isfinite(estimate.limit) and estimate.gain_dc == pytest.approx(1.0, rel=0.2)


def test_condition_and_flat_share_of_a_ravine():
    curvature = torch.tensor([100.0, 1.0, 0.1], dtype=torch.float64)
    theta = nn.Parameter(torch.tensor([1e-3, 1.0, 1.0], dtype=torch.float64))
    model = nn.ParameterList([theta])
    estimate = measure(
        lambda: 0.5 * (curvature * theta**2).sum(),
        model,
        sgd(model, 0.01),
        [0.01],
        displacement=[torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64)],
    )
    assert estimate.condition == pytest.approx(100 * 2 / 1.1, rel=1e-6)
    g = curvature * theta.detach()
    assert estimate.flat_gradient_share == pytest.approx(float(g[2] ** 2 / g.square().sum()), rel=1e-6)
    assert estimate.progress == pytest.approx(1.0)


def test_flat_share_on_a_network_agrees_with_the_dense_hessian():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x, y = (
        randn(40, 8) * torch.logspace(-1.5, 1, 8, dtype=torch.float64),
        torch.randint(0, 3, (40,), generator=generator()),
    )

    def closure() -> Tensor:
        return F.cross_entropy(model(x), y)

    estimate = measure(closure, model, sgd(model), [0.1])
    values, vectors = torch.linalg.eigh(dense_hessian(model, lambda output: F.cross_entropy(output, y), x))
    g = torch.cat([g.reshape(-1) for g in torch.autograd.grad(closure(), list(model.parameters()))])
    share = (vectors.t() @ g).square()[values.abs() < values.max() / 100].sum() / g.square().sum()
    assert estimate.flat_gradient_share == pytest.approx(float(share), abs=0.05)


def test_trace_norm_and_density_of_a_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    x, y = randn(40, 8), torch.randint(0, 3, (40,), generator=generator())
    estimate = measure(lambda: F.cross_entropy(model(x), y), model, sgd(model), [0.1])
    hessian = dense_hessian(model, lambda output: F.cross_entropy(output, y), x)
    assert estimate.trace == pytest.approx(float(hessian.trace()), abs=4 * estimate.trace_error + 1e-9)
    assert estimate.frobenius == pytest.approx(float(hessian.norm()), rel=0.3)
    assert sum(estimate.density_weights) == pytest.approx(1)
    assert len(estimate.density_nodes) == len(estimate.density_weights) <= estimate.products
