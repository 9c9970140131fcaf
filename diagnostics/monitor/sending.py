"""From an update's tensors to the run's records: one copy to the host, then one record a table."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from diagnostics.monitor.transfer import Courier
from diagnostics.monitor.update import Update
from diagnostics.run import RunWriter

NAN = float("nan")
Event = Callable[..., None]
Tables = Mapping[str, tuple[list[str], tuple[str, ...]]]  # names of rows and columns


class Silent:
    """In place of a `RunWriter` on every process but the first: takes everything, writes nothing."""

    resumed_from = 0
    before: Mapping[str, Any] = {}
    seconds = 0.0

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        return None

    append = append_many = log = event = update_meta = flush = close = _nothing


Writer = RunWriter | Silent


class Record:
    """The rows of one update, on their way. Tensors until they are delivered."""

    def __init__(self, update: Update) -> None:
        self.update = update
        self.names: dict[str, list[str]] = {}
        self.columns: dict[str, dict[str, Any]] = {}

    def add(self, table: str, names: list[str], columns: Mapping[str, Any]) -> None:
        if names:
            self.names.setdefault(table, []).extend(names)
            for column, value in columns.items():
                self._extend(table, column, value)

    def _extend(self, table: str, column: str, value: Any) -> None:
        """Several forwards of one update (accumulation) give rows below each other."""
        columns = self.columns.setdefault(table, {})
        if column not in columns:
            columns[column] = value
        elif isinstance(value, torch.Tensor):
            columns[column] = torch.cat([columns[column], value])
        else:
            columns[column] = [*columns[column], *value]

    def packet(self, scalars: Mapping[str, Any]) -> dict[str, Any]:
        """All on one way: scalars under their own names, columns of tables as `table/column`."""
        columns = {f"{table}/{name}": v for table, columns in self.columns.items() for name, v in columns.items()}
        return {**scalars, **columns}


class Sender:
    """Sends records through the courier to the writer, and scalars on to `forward` as well."""

    def __init__(
        self,
        writer: Writer,
        courier: Courier,
        forward: Callable[[int, Mapping[str, float]], None] | None,
        guarded: Callable[[str], Any],
        event: Event,
    ) -> None:
        self._writer, self._courier, self._forward = writer, courier, forward
        self._guarded, self._event = guarded, event

    def send(self, record: Record, loss: Any) -> None:
        update = record.update
        rate = update.learning_rates[0] if update.learning_rates else NAN
        scalars = {"time": time.time(), "loss": loss, "lr": rate, **update.values}
        # Not the record itself, whose copies of weights would live until the numbers have arrived.
        tables = {table: (names, tuple(record.columns[table])) for table, names in record.names.items()}
        self._courier.send(record.packet(scalars), partial(self._deliver, update.plan.step, tables))

    def _deliver(self, step: int, tables: Tables, arrived: Mapping[str, Any]) -> None:
        scalars = {name: value for name, value in arrived.items() if "/" not in name}
        if (scalars.pop("found_inf", None) or 0.0) > 0:  # fused optimizers decide on the device
            self._event("skipped-step", "the fused optimizer skipped an update whose gradients overflowed", "", step)
            scalars |= {"grad_norm": NAN, "update_norm": 0.0}
        numbers = {name: NAN if value is None else float(value) for name, value in scalars.items()}
        self._writer.append("scalars", step, numbers)
        for table, (names, columns) in tables.items():
            self._writer.append_many(table, step, names, {name: arrived[f"{table}/{name}"] for name in columns})
        if self._forward is not None:
            self.forward(step, {n: v for n, v in numbers.items() if n != "time" and v == v})

    def forward(self, step: int, scalars: Mapping[str, float]) -> None:
        if self._forward is not None:
            with self._guarded("forward_to"):
                self._forward(step, scalars)
