"""The architectures, as small as they can be and still show the phenomenon. Activations are modules throughout."""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


class HardThreshold(nn.Module):
    """1 where the input is positive, else 0: derivative zero wherever it exists."""

    def forward(self, z: Tensor) -> Tensor:
        return (torch.sign(z) + 1) / 2


class Compare(nn.Module):
    """1 where the input is positive, else 0, by a comparison: its result is cut off from the graph."""

    def forward(self, z: Tensor) -> Tensor:
        return (z > 0).to(z.dtype)


class Sign(nn.Module):
    """The sign: derivative zero wherever it exists."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.sign(z)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "leaky": nn.LeakyReLU,
    "threshold": HardThreshold,
    "sign": Sign,
    "compare": Compare,
    "identity": nn.Identity,
}


def linear(features: int, outputs: int, bias: bool = True) -> nn.Module:
    return nn.Linear(features, outputs, bias=bias)


def mlp(
    widths: tuple[int, ...], act: str = "relu", norm: bool = False, dropout: float = 0.0, last: str | None = None
) -> nn.Module:
    """`widths` from input to output; `last` is an activation after the output ("softmax", "sigmoid")."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths[:-1]):
        layers += [nn.Linear(fan_in, fan_out)]
        layers += [nn.BatchNorm1d(fan_out)] if norm else []
        layers += [] if act == "identity" else [ACTIVATIONS[act]()]
        layers += [nn.Dropout(dropout)] if dropout else []
    layers += [nn.Linear(*widths[-2:])]
    layers += [{"softmax": nn.Softmax(-1), "sigmoid": nn.Sigmoid()}[last]] if last else []
    return nn.Sequential(*layers)


def deep_linear(width: int, depth: int) -> nn.Module:
    return nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(depth)))


def cnn(channels: int = 8, act: str = "relu", norm: bool = False, outputs: int = 10) -> nn.Module:
    """Two 3x3 convolutions on 8x8 images, each followed by 2x2 pooling."""
    blocks: list[nn.Module] = []
    for fan_in, fan_out in ((1, channels), (channels, 2 * channels)):
        blocks += [nn.Conv2d(fan_in, fan_out, 3, padding=1)]
        blocks += [nn.BatchNorm2d(fan_out)] if norm else []
        blocks += [ACTIVATIONS[act](), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(8 * channels, outputs))


class Recurrent(nn.Module):
    """Elman cell written out, so that its tanh is a module; reads (N, T, F), answers from the last state."""

    def __init__(self, features: int, hidden: int, outputs: int, repeat: int = 1, act: str = "tanh") -> None:
        super().__init__()
        self.inward = nn.Linear(features, hidden)
        self.recur = nn.Linear(hidden, hidden, bias=False)
        self.act = ACTIVATIONS[act]()
        self.head = nn.Linear(hidden, outputs)
        self.repeat = repeat

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(x.shape[0], self.recur.in_features)
        for inward in self.inward(x).repeat(1, self.repeat, 1).unbind(1):
            state = self.act(inward + self.recur(state))
        return self.head(state)


class Gru(nn.Module):
    def __init__(self, features: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.gru = nn.GRU(features, hidden, batch_first=True)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0][:, -1])


class Attention(nn.Module):
    """Causal self-attention with its softmax as a module; `heads` heads of width d / heads."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(d, d) for _ in range(4))
        self.softmax = nn.Softmax(-1)
        self.heads = heads

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(project(x)) for project in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        mixed = self.softmax(scores.masked_fill(hidden, -torch.inf)) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, d: int, heads: int, act: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, heads)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), ACTIVATIONS[act](), nn.Linear(2 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """A character model: next-character logits at every place."""

    def __init__(
        self, d: int = 32, heads: int = 2, depth: int = 1, vocabulary: int = 40, context: int = 16, act: str = "gelu"
    ) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(vocabulary, d), nn.Embedding(context, d)
        self.blocks = nn.Sequential(*(Block(d, heads, act) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocabulary)

    def forward(self, codes: Tensor) -> Tensor:
        places = torch.arange(codes.shape[1])
        return self.head(self.norm(self.blocks(self.token(codes) + self.place(places))))


class Residual(nn.Module):
    """Residual MLP whose branches are multiplied by a learned scale (ReZero when it starts at 0)."""

    def __init__(self, features: int, width: int, depth: int, outputs: int, scale: float) -> None:
        super().__init__()
        self.inward = nn.Linear(features, width)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)) for _ in range(depth)
        )
        self.scales = nn.Parameter(torch.full((depth,), scale))
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        for scale, branch in zip(self.scales, self.branches, strict=True):
            x = x + scale * branch(x)
        return self.head(x)


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter B A, B started at zero (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def adapters(widths: tuple[int, ...], rank: int = 4) -> nn.Module:
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(widths[:-1]):
        layers += [Adapted(nn.Linear(fan_in, fan_out), rank), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


class Experts(nn.Module):
    """A mixture with hard routing on the sign of the first features: some experts never see an input."""

    def __init__(self, features: int, width: int, outputs: int, experts: int, used: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, outputs)) for _ in range(experts)
        )
        self.used, self.outputs = used, outputs

    def forward(self, x: Tensor) -> Tensor:
        route = (x.sum(-1).mul(3).floor().long() % self.used)[:, None]
        answer = x.new_zeros(x.shape[0], self.outputs)
        for index in range(self.used):
            chosen = (route == index).to(x.dtype)
            if chosen.any():
                answer = answer + chosen * self.experts[index](x)
        return answer


class ScalarChain(nn.Module):
    """f(x) = w_1 w_2 ... w_k x: the product of many weights whose surface has Goodfellow's cliff."""

    def __init__(self, depth: int, start: float = 1.0) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.full((depth,), start) + 0.01 * torch.randn(depth))

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(-1, keepdim=True) * self.weights.prod()


class Iterated(nn.Module):
    """h <- tanh-free linear recurrence h = W h for many steps, read out linearly."""

    def __init__(self, features: int, hidden: int, outputs: int, length: int) -> None:
        super().__init__()
        self.inward, self.recur = nn.Linear(features, hidden), nn.Linear(hidden, hidden, bias=False)
        self.head, self.length = nn.Linear(hidden, outputs), length

    def forward(self, x: Tensor) -> Tensor:
        state = self.inward(x)
        for _ in range(self.length):
            state = self.recur(state)
        return self.head(state)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class TwoPlayer(nn.Module):
    """min over u, max over v of u'Av + damping (|u|^2 - |v|^2) / 2; v's gradient is reversed on the way back."""

    def __init__(self, size: int = 4, damping: float = 0.3) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(size)), nn.Parameter(torch.randn(size))
        self.register_buffer("payoff", torch.linalg.qr(torch.randn(size, size))[0])
        self.damping = damping

    def forward(self, x: Tensor) -> Tensor:
        v = _Reverse.apply(self.v)
        return self.u @ self.payoff @ v + 0.5 * self.damping * (self.u @ self.u - v @ v)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "deep_linear": deep_linear,
    "cnn": cnn,
    "recurrent": Recurrent,
    "gru": Gru,
    "transformer": Transformer,
    "residual": Residual,
    "adapters": adapters,
    "experts": Experts,
    "chain": ScalarChain,
    "iterated": Iterated,
    "two_player": TwoPlayer,
}
