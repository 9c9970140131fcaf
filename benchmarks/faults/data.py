"""The data sets, small and on the CPU: what scikit-learn and Python ship, and what is drawn from a recipe.

Every builder takes a generator and returns inputs and targets; the same seed gives the same rows to a run and its twin.
"""

import math
import sysconfig
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

Data = tuple[Tensor, Tensor]


def _standardized(x: np.ndarray) -> np.ndarray:
    spread = x.std(0)
    return (x - x.mean(0)) / np.where(spread > 0, spread, 1)


def _table(loader: Callable, rng: torch.Generator, rows: int | None, raw: bool) -> tuple[np.ndarray, np.ndarray]:
    x, y = loader(return_X_y=True)
    keep = torch.randperm(len(x), generator=rng)[:rows].numpy()
    return (x if raw else _standardized(x))[keep], y[keep]


def _tensors(x: np.ndarray, y: np.ndarray) -> Data:
    target = torch.as_tensor(y, dtype=torch.long if y.dtype.kind in "iu" else torch.float32)
    return torch.as_tensor(x, dtype=torch.float32), target


def digits(
    rng: torch.Generator,
    rows: int = 600,
    shape: str = "flat",
    classes: int = 10,
    raw: bool = False,
    label_noise: float = 0.0,
    imbalance: float = 1.0,
    scale: float = 1.0,
    one_hot: bool = False,
) -> Data:
    """8x8 digits, pixels centred and divided by their common deviation (0..16 when raw).

    shape: "flat" (64), "image" (1, 8, 8) or "rows" (a sequence of 8 rows of 8). `imbalance` keeps that share of every
    class but the first; `label_noise` redraws that share of the labels.
    """
    x, y = datasets.load_digits(return_X_y=True)
    x = x if raw else (x - x.mean()) / x.std()
    order = torch.randperm(len(x), generator=rng).numpy()
    order = order[y[order] < classes]
    if imbalance < 1:
        order = order[(y[order] == 0) | (torch.rand(len(order), generator=rng).numpy() < imbalance)]
    order = order[:rows]
    inputs, labels = _tensors(x[order] * scale, y[order])
    noisy = torch.rand(len(labels), generator=rng) < label_noise
    labels = torch.where(noisy, torch.randint(classes, labels.shape, generator=rng), labels)
    inputs = inputs.reshape({"flat": (-1, 64), "image": (-1, 1, 8, 8), "rows": (-1, 8, 8)}[shape])
    return inputs, torch.nn.functional.one_hot(labels, classes).float() if one_hot else labels


def breast_cancer(rng: torch.Generator, raw: bool = False, as_float: bool = False, scale: float = 1.0) -> Data:
    x, y = _table(datasets.load_breast_cancer, rng, None, raw)
    inputs, labels = _tensors(x * scale, y)
    return inputs, labels.float()[:, None] if as_float else labels


def wine(rng: torch.Generator, raw: bool = False, scale: float = 1.0) -> Data:
    x, y = _table(datasets.load_wine, rng, None, raw)
    return _tensors(x * scale, y)


def diabetes(rng: torch.Generator, scales: float = 1.0, offset: float = 0.0) -> Data:
    """Ten standardized features and a standardized target; feature j times `scales`^(j/9), then shifted by `offset`."""
    x, y = _table(datasets.load_diabetes, rng, None, False)
    inputs, target = _tensors(x * scales ** np.linspace(0, 1, 10) + offset, _standardized(y))
    return inputs, target[:, None]


def moons(rng: torch.Generator, rows: int = 300, noise: float = 0.15, as_float: bool = False) -> Data:
    seed = int(torch.randint(2**31, (1,), generator=rng))
    x, y = datasets.make_moons(rows, noise=noise, random_state=seed)
    inputs, labels = _tensors(_standardized(x), y)
    return inputs, labels.float()[:, None] if as_float else labels


def spectrum(rng: torch.Generator, eigenvalues: tuple[float, ...], rows: int = 64, noise: float = 0.0) -> Data:
    """Linear regression without bias whose X'X/n has exactly these eigenvalues, along the axes, features centred."""
    d = len(eigenvalues)
    raw = torch.randn(rows, d, generator=rng, dtype=torch.float64)
    basis, _ = torch.linalg.qr(raw - raw.mean(0))
    x = basis * rows**0.5 * torch.tensor(eigenvalues, dtype=torch.float64).sqrt()
    y = x @ torch.randn(d, 1, generator=rng, dtype=torch.float64) / torch.tensor(eigenvalues).sqrt().max()
    return x.float(), (y + noise * torch.randn(rows, 1, generator=rng)).float()


def regression(
    rng: torch.Generator,
    rows: int = 100,
    features: int = 2,
    scales: tuple[float, ...] | None = None,
    offset: float = 0.0,
    rho: float = 0.0,
    noise: float = 0.3,
    outputs: int = 1,
    spread: float = 1.0,
) -> Data:
    """Standard normal features with pairwise correlation `rho`; targets depend on them standardized.

    Targets grow from output to output up to the root of `spread`.

    The features are then multiplied by `scales` and shifted by `offset` (times their scale), as in the lecture's two
    tables: one with features near 200 and 0.003, one with features near 1000 that differ by a few units.
    """
    common = torch.randn(rows, 1, generator=rng)
    own = torch.randn(rows, features, generator=rng)
    own = own - own.mean(0)
    z = rho**0.5 * (common - common.mean()) + (1 - rho) ** 0.5 * own
    z = z / z.std(0)
    weights = torch.randn(features, outputs, generator=rng).sign()
    whitened = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.T).reshape(features, features)).T)
    y = whitened @ weights + noise * torch.randn(rows, outputs, generator=rng) + 1
    y = y * torch.logspace(0, math.log10(spread) / 2, outputs)
    return (z + offset) * torch.tensor(scales or (1.0,) * features), y


def teacher(rng: torch.Generator, rows: int = 256, features: int = 8, hidden: int = 6, outputs: int = 1) -> Data:
    """Standard normal inputs, targets of a random tanh network with unit variance."""
    x = torch.randn(rows, features, generator=rng)
    first = torch.randn(features, hidden, generator=rng) / features**0.5
    second = torch.randn(hidden, outputs, generator=rng)
    y = torch.tanh(1.5 * x @ first) @ second
    return x, (y - y.mean(0)) / y.std(0)


def low_rank(
    rng: torch.Generator, rows: int = 256, features: int = 8, strengths: tuple[float, ...] = (2.0, 1.0)
) -> Data:
    """White inputs, targets of a linear map with these singular values: what deep linear nets learn in stages."""
    x = torch.randn(rows, features, generator=rng)
    left, _ = torch.linalg.qr(torch.randn(features, features, generator=rng))
    right, _ = torch.linalg.qr(torch.randn(features, features, generator=rng))
    values = torch.zeros(features)
    values[: len(strengths)] = torch.tensor(strengths)
    return x, x @ left @ torch.diag(values) @ right


def positive(rng: torch.Generator, rows: int = 256, features: int = 6) -> Data:
    """Positive inputs and a positive target of very different magnitudes, for losses that take logarithms."""
    x = torch.rand(rows, features, generator=rng)
    return x, (x.sum(1, keepdim=True) / 3).square()


def modular(rng: torch.Generator, modulus: int = 7) -> Data:
    """All pairs (a, b) one-hot, target (a + b) mod m: learned late and all at once."""
    a, b = torch.meshgrid(torch.arange(modulus), torch.arange(modulus), indexing="ij")
    one_hot = torch.nn.functional.one_hot
    x = torch.cat([one_hot(a.flatten(), modulus), one_hot(b.flatten(), modulus)], 1).float()
    return x - x.mean(), (a + b).flatten() % modulus


@cache
def _source_text() -> str:
    library = Path(sysconfig.get_paths()["stdlib"])
    return "".join((library / name).read_text()[:20000] for name in ("textwrap.py", "argparse.py", "json/decoder.py"))


def text(rng: torch.Generator, rows: int = 256, context: int = 16, vocabulary: int = 40) -> Data:
    """Windows of the source of Python's own standard library; the rarest characters share one code."""
    source = _source_text()
    common = sorted(set(source), key=lambda c: (-source.count(c), c))[: vocabulary - 1]
    codes = {character: index for index, character in enumerate(common)}
    stream = torch.tensor([codes.get(character, vocabulary - 1) for character in source])
    starts = torch.randint(len(stream) - context - 1, (rows,), generator=rng)
    windows = stream[starts[:, None] + torch.arange(context + 1)]
    return windows[:, :-1], windows[:, 1:]


def constant_target(rng: torch.Generator, rows: int = 64, value: float = 1.0) -> Data:
    """Inputs near 1 and one target: the error of a product of weights alone."""
    return 1 + 0.1 * torch.randn(rows, 1, generator=rng), torch.full((rows, 1), value)


def game(rng: torch.Generator) -> Data:
    """The two-player toy has no data: one dummy row."""
    return torch.ones(1, 1), torch.zeros(1, 1)


DATA: dict[str, Callable[..., Data]] = {
    f.__name__: f
    for f in (
        digits,
        breast_cancer,
        wine,
        diabetes,
        moons,
        spectrum,
        regression,
        teacher,
        low_rank,
        positive,
        modular,
        text,
        constant_target,
        game,
    )
}
