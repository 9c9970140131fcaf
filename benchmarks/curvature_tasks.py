"""The three networks on which curvature solvers are compared, each on real data that a package ships.

An MLP with 85 thousand parameters and a ResNet-18 with 11 million on scikit-learn's digits, a character transformer
with 0.8 million on the source of `argparse`; measured after a few dozen steps of the optimizer named with each.
"""

import argparse
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """A model in the middle of its training and the batch whose Hessian is wanted."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterator[Batch]
    batch: Batch

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output.flatten(0, -2), target.flatten())

    def closure(self, batch: Batch | None = None) -> Tensor:
        x, y = batch or self.batch
        return self.loss(self.model(x), y)

    def train(self, steps: int) -> Batch:
        """Make some updates; returns the last batch."""
        batch = self.batch
        for _ in range(steps):
            batch = next(self.batches)
            self.optimizer.zero_grad()
            self.closure(batch).backward()
            self.optimizer.step()
        return batch


def mlp(steps: int = 100, batch_size: int = 256) -> Task:
    x, y = _digits()
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    return _trained("MLP", model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9), x, y, batch_size, steps)


def resnet(steps: int = 20, batch_size: int = 32) -> Task:
    x, y = _digits()
    images = F.interpolate(x[:, None], size=(32, 32), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1)
    model = ResNet18()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return _trained("ResNet-18", model, optimizer, images, y, batch_size, steps)


def transformer(steps: int = 60, batch_size: int = 8, length: int = 128) -> Task:
    text = inspect.getsource(argparse)
    vocabulary = {character: i for i, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([vocabulary[character] for character in text])
    windows = tokens.unfold(0, length + 1, length // 2)
    model = CharTransformer(len(vocabulary), length)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return _trained("transformer", model, optimizer, windows[:, :-1], windows[:, 1:], batch_size, steps)


def _digits() -> Batch:
    from sklearn.datasets import load_digits

    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32) / 16
    return (x - x.mean()) / x.std(), torch.tensor(data.target)


def _trained(
    name: str, model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, batch_size: int, steps: int
) -> Task:
    def batches() -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(1)
        while True:
            chosen = torch.randint(len(x), (batch_size,), generator=generator)
            yield x[chosen].contiguous(), y[chosen].contiguous()

    stream = batches()
    task = Task(name, model, optimizer, stream, next(stream))
    task.train(steps)
    return task


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(b, t, c))
        return x + self.mlp(self.norms[1](x))


class CharTransformer(nn.Module):
    """Four blocks of width 128; input and output embeddings tied."""

    def __init__(self, vocabulary: int, length: int, width: int = 128, heads: int = 4, depth: int = 4):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.norm(self.blocks(x)) @ self.tokens.weight.t()


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


class ResNet18(nn.Sequential):
    """The CIFAR form (3x3 stem, no first pooling), 11.2 million parameters for ten classes."""

    def __init__(self, classes: int = 10):
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
        width = 64
        for outputs, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
            layers.append(Residual(width, outputs, stride))
            width = outputs
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))


TASKS: dict[str, Callable[..., Task]] = {"mlp": mlp, "transformer": transformer, "resnet": resnet}
