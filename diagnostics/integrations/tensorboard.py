"""Turn TensorBoard event files into runs, so that old trainings can be opened and diagnosed as far as scalars allow."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diagnostics.run import RunError, RunWriter

# Tags that mean one of our columns, the likeliest first; compared without case, "/" and "-" as "_".
_TAGS = {
    "loss": ("train_loss", "loss_train", "loss", "training_loss", "train_loss_step", "diagnostics_loss"),
    "lr": ("lr", "learning_rate", "train_lr", "train_learning_rate", "lr_sgd", "lr_adam", "lr_adamw", "diagnostics_lr"),
    "grad_norm": ("grad_norm", "train_grad_norm", "gradient_norm", "total_norm", "diagnostics_grad_norm"),
}


def import_tfevents(source: str | os.PathLike, dest: str | os.PathLike) -> list[Path]:
    """The event files below `source` as runs: those of `source` itself as `dest`, of folders in it as folders in it.

    Returns the directories of the runs. Raises RunError where there is no event file, or nothing to read in them.
    """
    folders = sorted({file.parent for file in Path(source).rglob("*tfevents*")})
    if not folders:
        raise RunError(f"{source} holds no TensorBoard event file (*tfevents*). Next: name the folder that does.")
    return [_import(folder, Path(dest) / folder.relative_to(source)) for folder in folders]


def _import(folder: Path, dest: Path) -> Path:
    series, times = _read(folder)
    if not series:
        raise RunError(f"{folder} holds no scalars. Next: import a run that logged its loss with add_scalar.")
    named, others = _named(series)
    shift = 1 if min(min(points) for points in series.values()) == 0 else 0  # updates are counted from 1
    config = {"imported_from": str(folder), "tags": {column: tag for column, tag in named.items()}}
    writer = RunWriter(dest, {"name": dest.name, "config": config, "optimizer": "", "closure": False, "layers": []})
    for step in sorted(set().union(*(series[tag] for tag in named.values()))):
        values = {column: series[tag].get(step, float("nan")) for column, tag in named.items()}
        writer.append("scalars", step + shift, {"time": times.get(step, float("nan")), **values})
    for step in sorted(set().union(*(series[tag] for tag in others))):
        writer.log(step + shift, {tag: series[tag][step] for tag in others if step in series[tag]})
    writer.close("finished")
    return dest


def _read(folder: Path) -> tuple[dict[str, dict[int, float]], dict[int, float]]:
    """Every scalar series by tag and step, a step that came twice with its last value; and the steps' wall times."""
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={SCALARS: 0, TENSORS: 0})
    events.Reload()
    series: dict[str, dict[int, float]] = {}
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


def _named(series: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Our column -> its tag, and the tags that are none of ours."""
    plain = {tag.lower().replace("/", "_").replace("-", "_"): tag for tag in series}
    named = {}
    for column, tags in _TAGS.items():
        found = next((plain[tag] for tag in tags if tag in plain), None)
        if found is not None:
            named[column] = found
    return named, [tag for tag in series if tag not in named.values()]
