"""Functions whose double backward is ordered for many products: the same Hessian as PyTorch's own double backward
gives, and the same function where it may not be replaced."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from diagnostics.curvature import hoisted
from diagnostics.curvature.layout import Layout
from diagnostics.curvature.operators import DoubleBackward

X = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
# The only names these give to nodes of the graph.
NODES = {"_GeluBackward", "_SoftmaxBackward", "_NormalizeBackward", "_ConvolutionBackward", "_BatchNormBackward"}


class Net(nn.Module):
    """Inputs through a layer, the function, and another layer, with a loss that is curved everywhere."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.function = nn.Linear(4, 6), nn.Linear(6, 2), function
        self.scale, self.shift = nn.Parameter(torch.linspace(0.5, 2, 6)), nn.Parameter(torch.linspace(-1, 1, 6))
        self.filters = nn.Parameter(torch.randn(5, 5, 2))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self, self.a(x))).square().mul(torch.linspace(1, 2, 2)).mean()


def attend(x: Tensor, **options) -> Tensor:
    return F.scaled_dot_product_attention(x, 2 * x.flip(-1), x.cos(), **options)


def normalized(net: Net, x: Tensor, training: bool = True) -> Tensor:
    """The second axis as channels, the statistics from this batch or given."""
    mean, variance = torch.zeros(5, dtype=x.dtype), torch.ones(5, dtype=x.dtype)
    return F.batch_norm(x, mean, variance, net.scale[:5], net.shift[:5], training, 0.1, 0.1)


FUNCTIONS = {
    "gelu": lambda net, x: F.gelu(x),
    "softmax": lambda net, x: F.softmax(3 * x, -1),
    "softmax method": lambda net, x: (3 * x).softmax(dim=2),
    "used twice": lambda net, x: F.gelu(x) * torch.softmax(x, -1) + F.gelu(F.gelu(2 * x)),
    "layer norm": lambda net, x: F.layer_norm(x, (6,), net.scale, net.shift),
    "layer norm without bias": lambda net, x: F.layer_norm(x, (6,), net.scale, eps=0.1),
    "attention": lambda net, x: attend(x),
    "causal attention": lambda net, x: attend(x[:, None], attn_mask=None, dropout_p=0.0, is_causal=True, scale=2.0),
    "convolution": lambda net, x: F.conv1d(x, net.filters, net.shift[:5], padding=1)[..., :6],
    "strided convolution": lambda net, x: F.conv1d(x, net.filters, None, 2, 3),
    "dilated convolution of fixed filters": lambda net, x: F.conv1d(
        x, net.filters.detach(), dilation=(2,), padding=(1,)
    ),
    "convolution in groups": lambda net, x: F.conv1d(x, net.filters[:, :1], padding=1, groups=5)[..., 1:],
    "convolution in the plane": lambda net, x: F.conv2d(x[None], net.filters[:, :3, None], padding=(0, 1))[
        0, :3, :, :6
    ],
    "batch norm": normalized,
    "batch norm without statistics of its own": lambda net, x: F.batch_norm(
        x, None, None, net.scale.detach()[:5], net.shift[:5], training=True
    ),
    "convolutional block": lambda net, x: x + normalized(net, F.conv1d(x.tanh(), net.filters, dilation=2, padding=1)),
    "block": lambda net, x: x + F.gelu(attend(F.layer_norm(x, (6,), net.scale, net.shift), is_causal=True)),
}
OTHERS = {
    "tanh gelu": lambda net, x: F.gelu(x, approximate="tanh"),
    "softmax over another axis": lambda net, x: F.softmax(x, 1),
    "softmax in double precision": lambda net, x: (
        torch.softmax(x, -1, torch.float64) * x.softmax(-1, dtype=torch.float64)
    ),
    "layer norm over two axes": lambda net, x: F.layer_norm(x, (5, 6)),
    "layer norm without weights": lambda net, x: F.layer_norm(x, (6,)),
    "masked attention": lambda net, x: attend(x, attn_mask=torch.ones(5, 5, dtype=torch.bool).tril()),
    "convolution padded by name": lambda net, x: F.conv1d(x, net.filters, padding="same", dilation=2),
    "convolution of one sample": lambda net, x: F.conv1d(x[0], net.filters, padding=1)[..., :6],
    "batch norm by given statistics": lambda net, x: normalized(net, x, training=False),
    "batch norm without weights": lambda net, x: F.batch_norm(x, None, None, training=True),
    "checkpointed": lambda net, x: checkpoint(F.gelu, x, use_reentrant=False),
    "torch.func inside": lambda net, x: torch.func.vmap(F.gelu)(x),
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(hoisted, "LARGE", 0)


def products(net: nn.Module) -> tuple[Tensor, set[str]]:
    """All products with unit vectors, and the names of the graph's nodes."""
    layout = Layout(list(net.parameters()))
    hessian = DoubleBackward(lambda: net(X), layout)
    names, waiting, seen = set(), [hessian._joined.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            names.add(type(node).__name__.removesuffix("Backward"))
            waiting += [parent for parent, _ in node.next_functions]
    return torch.stack([hessian(row) for row in torch.eye(layout.dimension, dtype=torch.float64)]), names


def exact(net: nn.Module) -> Tensor:
    names, values = zip(*net.named_parameters(), strict=True)
    sizes = [value.numel() for value in values]

    def loss(flat: Tensor) -> Tensor:
        parts = [part.view_as(value) for part, value in zip(flat.split(sizes), values, strict=True)]
        return functional_call(net, dict(zip(names, parts, strict=True)), (X,))

    flat = torch.cat([value.detach().flatten() for value in values])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(loss, flat)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_products_are_those_of_the_exact_hessian(name):
    torch.manual_seed(1)
    net = Net(FUNCTIONS[name])
    found, names = products(net)
    assert names & NODES
    torch.testing.assert_close(found, exact(net), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_not_meant_goes_its_usual_way(name):
    torch.manual_seed(1)
    net = Net(OTHERS[name])
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        found, names = products(net)
    assert not names & NODES
    torch.testing.assert_close(found, exact(net), rtol=1e-9, atol=1e-11)


def test_small_tensors_keep_their_own_functions(monkeypatch):
    monkeypatch.setattr(hoisted, "LARGE", 2**14)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert not products(Net(FUNCTIONS["block"]))[1] & NODES


def test_fully_masked_rows_do_not_arise():
    """The first query sees the first key alone, also with more keys than queries."""
    q, k = torch.randn(1, 2, 3, requires_grad=True), torch.randn(1, 4, 3, requires_grad=True)
    out = hoisted.attention(q, k, k, is_causal=True)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        torch.testing.assert_close(out, F.scaled_dot_product_attention(q, k, k, is_causal=True))
    assert math.isfinite(float(out.sum().detach()))


@pytest.mark.parametrize("name", ["convolution", "batch norm", "convolutional block", "layer norm", "gelu"])
def test_a_loss_that_differentiates_by_itself(name):
    """Against differences of gradients: of batch and layer normalization PyTorch's own third derivative is wrong."""
    torch.manual_seed(1)
    net, x = Net(FUNCTIONS[name]), X.clone().requires_grad_()
    layout, step = Layout(list(net.parameters())), 1e-5

    def loss() -> Tensor:
        (slope,) = torch.autograd.grad(net(x), x, create_graph=True)
        return slope.square().sum() + net(x)

    def gradient(v: Tensor) -> Tensor:
        kept = [p.detach().clone() for p in layout.parameters]
        layout.put([p + part for p, part in zip(kept, layout.split(v), strict=True)])
        found = layout.flatten(torch.autograd.grad(loss(), layout.parameters, allow_unused=True))
        layout.put(kept)
        return found

    v = torch.randn(layout.dimension, dtype=torch.float64)
    differences = (gradient(step * v) - gradient(-step * v)) / (2 * step)
    torch.testing.assert_close(DoubleBackward(loss, layout)(v), differences, rtol=1e-6, atol=1e-7)
