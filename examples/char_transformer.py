"""A character transformer like nanoGPT: compiled, mixed precision, accumulation, clipping, warm-up and decay.

One line watches it; the closure recomputes the loss of the last micro-batch. Trains on the Python standard library's
own source, so nothing is downloaded. `python examples/char_transformer.py --steps 300` takes a few minutes on a CPU.
"""

import argparse
import inspect
import json
import math
import textwrap

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import diagnostics


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to the stream it reads from."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class CharTransformer(nn.Module):
    """Characters (batch, length) -> logits (batch, length, vocabulary). The embedding is tied to the output layer."""

    def __init__(self, vocabulary: int, length: int, width: int = 64, heads: int = 4, blocks: int = 2):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.tokens.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.head.weight = self.tokens.weight

    def forward(self, characters: Tensor) -> Tensor:
        places = torch.arange(characters.shape[1], device=characters.device)
        return self.head(self.norm(self.blocks(self.tokens(characters) + self.positions(places))))


def text() -> tuple[Tensor, int]:
    """Character numbers of some library source, and how many different ones there are."""
    source = "".join(inspect.getsource(module) for module in (argparse, inspect, json, textwrap))
    alphabet = {character: number for number, character in enumerate(sorted(set(source)))}
    return torch.tensor([alphabet[character] for character in source]), len(alphabet)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches an update")
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--out", default="runs/char-transformer")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    characters, vocabulary = text()
    model = CharTransformer(vocabulary, arguments.length).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.1)
    if arguments.compile:
        model.compile()
    autocast = torch.autocast(device, dtype=torch.bfloat16)

    def batch() -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(characters) - arguments.length - 1, (arguments.batch, 1))
        windows = characters[starts + torch.arange(arguments.length + 1)].to(device)
        return windows[:, :-1], windows[:, 1:]

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with autocast:
            return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    def rate(step: int) -> float:
        """Linear warm-up over a tenth of the run, then half a cosine down to a tenth."""
        warm = arguments.steps / 10
        decay = 0.55 + 0.45 * math.cos(math.pi * step / arguments.steps)
        return arguments.lr * min(1.0, step / warm) * decay

    with diagnostics.watch(model, optimizer, arguments.out, config=vars(arguments)) as monitor:
        for step in range(1, arguments.steps + 1):
            optimizer.param_groups[0]["lr"] = rate(step)
            total = 0.0
            for _ in range(arguments.accumulate):
                x, y = batch()
                loss = loss_of(x, y) / arguments.accumulate
                loss.backward()
                total += loss.detach()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            monitor.step(total, closure=lambda: loss_of(x, y))
            if step % 20 == 0:
                print(f"step {step:4d}  loss {float(total):.3f}  lr {rate(step):.2e}")

    for finding in diagnostics.diagnose(diagnostics.load(arguments.out)).findings:
        print(finding.severity, finding.kind, finding.cause, finding.first_step, finding.summary)


if __name__ == "__main__":
    main()
