"""Turn TensorBoard event files into runs, so that old trainings can be opened and diagnosed as far as scalars allow."""

import logging
import math
import os
from bisect import bisect_right
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diagnostics.run import RunError, RunWriter, load

log = logging.getLogger("diagnostics")
Series = dict[str, dict[int, float]]  # tag -> step -> value

# Tags that mean one of our columns, the likeliest first; compared without case, "/" and "-" as "_".
_TAGS = {
    "loss": ("train_loss", "loss_train", "loss", "training_loss", "train_loss_step", "diagnostics_loss"),
    "lr": ("lr", "learning_rate", "train_lr", "train_learning_rate", "lr_sgd", "lr_adam", "lr_adamw", "diagnostics_lr"),
    "grad_norm": ("grad_norm", "train_grad_norm", "gradient_norm", "total_norm", "diagnostics_grad_norm"),
}


def import_tfevents(source: str | os.PathLike, dest: str | os.PathLike) -> list[Path]:
    """The event files below `source` as runs: those of `source` itself as `dest`, of folders in it as folders in it.

    Returns the directories of the runs; importing again replaces them. Raises RunError where there is no event file, no
    loss in any of them, or a run in the way that was not imported; one folder without a loss among others is left out.
    """
    folders = sorted({file.parent for file in Path(source).rglob("*tfevents*")})
    if not folders:
        raise RunError(f"{source} holds no TensorBoard event file (*tfevents*). Next: name the folder that does.")
    places = {folder: Path(dest) / folder.relative_to(source) for folder in folders}
    for place in places.values():
        _spare_recorded(place)
    imported, tags = [], set()
    for folder, place in places.items():
        series, times = _read(folder)
        if "loss" in _named(series)[0]:
            imported.append(_write(folder, place, series, times))
        elif series:
            tags |= series.keys()
            log.warning(_no_loss(folder, series))
    if not imported:
        raise RunError(_no_loss(source, tags))
    return imported


def _spare_recorded(place: Path) -> None:
    try:
        config = load(place).meta["config"]
    except RunError:  # no run is there
        return
    if "imported_from" not in config:
        raise RunError(f"{place} holds a run that was recorded, not imported. Next: name another run directory.")


def _no_loss(place: str | os.PathLike, tags: Iterable[str]) -> str:
    if not (found := ", ".join(sorted(tags)[:20])):
        return f"{place} holds no scalars. Next: import a run that logged its loss with add_scalar."
    return (
        f"{place} has no scalar that is known as a loss: it has {found}; looked for {', '.join(_TAGS['loss'])}, with / "
        "or - for _ and in capitals too. Next: log the loss under one of these names."
    )


def _write(folder: Path, dest: Path, series: Series, times: dict[int, float]) -> Path:
    """One row a step of the loss. At other steps a row would have gaps, and a gap is a NaN: a rate holds until the
    next one, and any other number goes to the row before it."""
    named, others = _named(series)
    loss, lr, norms = (series.get(named.get(column, ""), {}) for column in _TAGS)
    shift = 1 if min(min(points) for points in series.values()) == 0 else 0  # updates are counted from 1
    meta = {"name": dest.name, "config": {"imported_from": str(folder), "tags": named}}
    writer = RunWriter(dest, {**meta, "optimizer": "", "closure": False, "layers": []}, first_step=1)
    steps = sorted(loss)
    for step, rate in zip(steps, _carried(lr, steps), strict=True):
        values = {"time": times[step], "loss": loss[step], "lr": rate, "grad_norm": norms.get(step, math.nan)}
        writer.append("scalars", step + shift, values)
    for step in sorted(set().union(*(series[tag] for tag in others))):
        row = steps[max(0, bisect_right(steps, step) - 1)]
        writer.log(row + shift, {tag: series[tag][step] for tag in others if step in series[tag]})
    writer.close("finished")
    return dest


def _carried(points: dict[int, float], steps: list[int]) -> list[float]:
    """The value at each step, or the last before it; NaN before the first."""
    known = sorted(points)
    places = (bisect_right(known, step) for step in steps)
    return [points[known[place - 1]] if place else math.nan for place in places]


def _read(folder: Path) -> tuple[Series, dict[int, float]]:
    """Every scalar series by tag and step, a step that came twice with its last value; and the steps' wall times."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0, TENSORS: 0})
    events.Reload()
    series: Series = {}
    times: dict[int, float] = {}
    for tag, step, time, value in _points(events):
        series.setdefault(tag, {})[step] = value
        times[step] = time
    return series, times


def _points(events: Any) -> Iterable[tuple[str, int, float, float]]:
    from tensorboard.util.tensor_util import make_ndarray

    for tag in events.Tags()["scalars"]:
        yield from ((tag, event.step, event.wall_time, float(event.value)) for event in events.Scalars(tag))
    for tag in events.Tags()["tensors"]:  # what newer writers make of a scalar
        for event in events.Tensors(tag):
            value = make_ndarray(event.tensor_proto)
            if value.size == 1 and value.dtype.kind in "fiu":
                yield tag, event.step, event.wall_time, float(value)


def _named(series: Series) -> tuple[dict[str, str], list[str]]:
    """Our column -> its tag, and the tags that are none of ours."""
    plain = {tag.lower().replace("/", "_").replace("-", "_"): tag for tag in series}
    named = {}
    for column, tags in _TAGS.items():
        found = next((plain[tag] for tag in tags if tag in plain), None)
        if found is not None:
            named[column] = found
    losses, norms = (series.get(named.get(column, ""), {}) for column in ("loss", "grad_norm"))
    if norms and not losses.keys() <= norms.keys():  # with gaps: in our column those would be lost gradients
        del named["grad_norm"]
    return named, [tag for tag in series if tag not in named.values()]
