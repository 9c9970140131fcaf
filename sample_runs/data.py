"""The sample runs' data: scikit-learn's digits, and the lecture's two tables, drawn as they are printed.

The lecture prints three rows of each table. We draw 100 rows with the means and standard deviations of the printed
ones; the target depends on both columns, with the signs of the printed rows, so that a run that learns only one of
them can be told.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 100
NOISE = 0.2


@dataclass(frozen=True)
class Table:
    """`printed` rows (x1, x2, t); the target's `weights` on the standardized columns, and the columns' correlation."""

    printed: tuple[tuple[float, float, float], ...]
    weights: tuple[float, float]
    correlation: float


SCALES = Table(((114.8, 0.00323, 5.1), (338.1, 0.00183, 3.2), (98.8, 0.00279, 4.1)), (-0.5, 0.7), 0.0)
OFFSETS = Table(((1003.2, 1005.1, 3.3), (1001.1, 1008.2, 4.8), (998.3, 1003.4, 2.9)), (0.4, 0.7), 0.4)


@dataclass(frozen=True)
class Data:
    """`x` (rows, features), `y` (rows,) classes or (rows, 1) targets; `recipe` goes into the run's config."""

    x: Tensor
    y: Tensor
    recipe: str


def table(kind: Table, seed: int, *, standardized: bool = False) -> Data:
    """Rows of one of the lecture's tables, for linear regression."""
    rows = torch.tensor(kind.printed, dtype=torch.float64)
    mean, std = rows.mean(0), rows.std(0)
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(ROWS, 2, generator=generator, dtype=torch.float64)
    z[:, 1] = kind.correlation * z[:, 0] + (1 - kind.correlation**2) ** 0.5 * z[:, 1]
    noise = torch.randn(ROWS, generator=generator, dtype=torch.float64)
    t = mean[2] + z @ torch.tensor(kind.weights, dtype=torch.float64) + NOISE * noise
    x = mean[:2] + std[:2] * z
    recipe = (
        f"{ROWS} rows drawn as a table of the lecture: x_j = m_j + s_j z_j, z_j standard normal with correlation "
        f"{kind.correlation}, m = {_short(mean[:2])}, s = {_short(std[:2])}; "
        f"t = {mean[2]:.3g} + {kind.weights[0]} z_1 + {kind.weights[1]} z_2 + {NOISE} noise; seed {seed}"
    )
    if standardized:
        x = (x - x.mean(0)) / x.std(0, correction=0)
        recipe += "; each column standardized to mean 0 and deviation 1"
    return Data(x.float(), t.float()[:, None], recipe)


def polynomial(seed: int, degree: int = 3) -> Data:
    """Powers of one variable as features, each standardized: strongly correlated, though their scales are equal."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.rand(ROWS, 1, generator=generator, dtype=torch.float64)
    powers = u ** torch.arange(1, degree + 1)
    x = (powers - powers.mean(0)) / powers.std(0, correction=0)
    t = torch.sin(2 * torch.pi * u) + 0.1 * torch.randn(ROWS, 1, generator=generator, dtype=torch.float64)
    recipe = (
        f"{ROWS} rows, u uniform in [0, 1]; features u^1 ... u^{degree}, each standardized; t = sin(2 pi u) + 0.1 noise"
    )
    return Data(x.float(), t.float(), f"{recipe}; seed {seed}")


def digits(*, raw: bool = False) -> Data:
    """The 1,797 digits (8 x 8 pixels, 0 to 16) of scikit-learn: each pixel centred, one common scale."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    pixels = torch.tensor(x, dtype=torch.float32)
    if raw:
        return Data(pixels, torch.tensor(y), "scikit-learn's digits, raw pixels from 0 to 16")
    centred = pixels - pixels.mean(0)
    return Data(centred / centred.std(), torch.tensor(y), "scikit-learn's digits, each pixel centred, common scale 1")


def _short(values: Tensor) -> str:
    return "(" + ", ".join(f"{float(value):.4g}" for value in values) + ")"
