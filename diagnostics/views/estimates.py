"""What estimates of the curvature say of an optimizer: measured directions, their errors, limits. No streamlit here."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from diagnostics.charts import dynamics
from diagnostics.charts.dynamics import Optimizer
from diagnostics.charts.own import RESCALED
from diagnostics.charts.parts import Frame

COLUMNS = ["direction", "curvature", "residual"]
ROUNDING = float(np.finfo(np.float32).eps)  # of the largest curvature: that of a product with the Hessian


def latest_whole(table: Frame) -> Frame:
    """The last estimate of both ends of the spectrum; where there is none yet, the last of the steepest direction."""
    whole = table[table["smallest"].notna()]
    return (table if whole.empty else whole).iloc[-1]


def own_coordinates(row: Frame) -> bool:
    """Whether the optimizer works on the Hessian itself, not on a rescaled one."""
    return bool(np.isclose(row["preconditioned"], row["eigenvalues"][0], rtol=1e-3))


def measured(row: Frame, optimizer: Optimizer) -> Frame:
    """Measured directions: name, curvature, residual, and whether the curvature is `certain` not to be 0. RMSprop and
    Adam have one, in their own, rescaled coordinates."""
    if optimizer.name in RESCALED:
        found = [("steepest, rescaled", row["preconditioned"], row["preconditioned_residual"])]
    else:
        found = [*unscaled(row)]
    directions: Frame = pd.DataFrame(found, columns=COLUMNS).astype({"curvature": float, "residual": float})
    directions = directions[np.isfinite(directions["curvature"])].reset_index(drop=True)
    error = errors(directions["curvature"].to_numpy(), directions["residual"].to_numpy())
    return directions.assign(certain=directions["curvature"].abs() > error)


def unscaled(row: Frame) -> Iterator[tuple[str, float, float]]:
    pairs = list(zip(row["eigenvalues"], row["residuals"], strict=True))
    yield from ((f"eigenvalue {rank}", value, error) for rank, (value, error) in enumerate(pairs, 1))
    if len(pairs) < row["dimension"]:
        yield "smallest eigenvalue", row["smallest"], row["smallest_residual"]
    if np.isfinite(row["condition"]) and row["condition"] > 0 and own_coordinates(row):
        yield "along the last updates", row["preconditioned"] / row["condition"], 0.0


def errors(curvatures: NDArray, residuals: NDArray) -> NDArray:
    """Of curvatures (N,) of one Hessian: their residuals, but no less than the rounding of its products."""
    return np.maximum(np.nan_to_num(residuals), ROUNDING * np.abs(curvatures).max(initial=0.0))


def grows(row: Frame) -> bool:
    """Whether the smallest eigenvalue is certain to be negative."""
    ends = np.array([row["smallest"], *row["eigenvalues"]], float)
    return bool(ends[0] < -errors(ends, np.array([row["smallest_residual"], *row["residuals"]], float))[0])


def limits(table: Frame, optimizer: Optimizer) -> tuple[NDArray, NDArray]:
    """The largest stable rate of this optimizer at each estimate of a positive curvature: steps (T,), rates (T,)."""
    tops, residuals = steepest(table, optimizer)
    known = tops > np.nan_to_num(residuals)
    return table["step"].to_numpy()[known], dynamics.largest_rate(optimizer, 1.0) / tops[known]


def steepest(table: Frame, optimizer: Optimizer) -> tuple[NDArray, NDArray]:
    """The largest curvature (T,) that the optimizer sees, and its residual (T,). Quick estimates know that of the
    run's own optimizer only."""
    own = table[["preconditioned", "preconditioned_residual"]].to_numpy(float).T
    if optimizer.name in RESCALED:
        return own[0], own[1]
    listed = ("eigenvalues", "residuals")
    plain = np.array([[each[0] if len(each) else np.nan for each in table[name]] for name in listed], float)
    if own_coordinates(table[np.isfinite(plain[0])].iloc[-1]):
        plain = np.where(np.isnan(plain[0]), own, plain)
    return plain[0], plain[1]
