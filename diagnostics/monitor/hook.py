"""A hook on a user's module that neither travels with copies nor keeps one from being pickled."""

from collections.abc import Callable
from typing import Any


class Hook:
    """Calls the function with what PyTorch gives it; copied and pickled it becomes one that does nothing."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        self._function(*args)

    def __reduce__(self) -> tuple:
        return Nothing, ()


class Nothing:
    """What our hooks become in a pickled or copied model."""

    def __call__(self, *args: Any) -> None:
        return None
