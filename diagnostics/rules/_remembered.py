"""A run as the rules read it: they ask for the same columns again and again, and making a table takes milliseconds,
however small."""

from collections.abc import Sequence

import pandas as pd

from diagnostics.run import Run

SMALL = 100_000  # values of a table; larger ones take longer to work with than to make, and much memory to keep


class Remembered(Run):
    """A snapshot whose small tables are made once. Rules do not write into what they read."""

    def __init__(self, run: Run):
        vars(self).update(vars(run))
        self._tables: dict[tuple, pd.DataFrame] = {}

    def table(
        self, name: str, columns: Sequence[str] | None = None, *, first: int | None = None, last: int | None = None
    ) -> pd.DataFrame:
        key = (name, None if columns is None else tuple(columns), first, last)
        found = self._tables.get(key)
        if found is None:
            found = super().table(name, columns, first=first, last=last)
            if found.size <= SMALL:
                self._tables[key] = found
        return found.copy(deep=False)

    def forget(self) -> None:
        """What the rules derived from it may be kept, and it with them; its tables are not."""
        self._tables.clear()
