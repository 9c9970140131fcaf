"""The one exception of the store."""


class RunError(Exception):
    """A run cannot be opened or written. The text names the path and the next step."""
