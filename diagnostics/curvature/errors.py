"""The one exception that leaves this package."""


class CurvatureError(RuntimeError):
    """Curvature could not be measured; the text names the reason and the next step."""
