"""The exceptions that leave this package."""


class CurvatureError(RuntimeError):
    """Curvature could not be measured; the text names the reason and the next step."""


class NonFinite(CurvatureError):
    """A loss or a product was not finite: this estimate is dropped, the next one may well be made."""


class NonFiniteProduct(NonFinite):
    """A Hessian-vector product was not; differences of gradients may be."""


class TooDear(CurvatureError):
    """Nothing was measured: whoever asked does not want it at what a product takes."""


class Unreached(RuntimeError):
    """`torch.autograd.grad` does not find gradients that a backward does."""
