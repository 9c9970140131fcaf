"""Curvature of a loss at the present weights, and what it means for the optimizer in use.

Pure functions: nothing here registers a hook or remembers anything; an `Estimate` carries what the next one
starts from.
Parameters are always those of the optimizer that require a gradient, in the order of its groups (`trained_parameters`);
displacements are given and vectors returned in that order.
"""

from diagnostics.curvature.batches import Quotients, combine, follow
from diagnostics.curvature.context import undisturbed
from diagnostics.curvature.errors import CurvatureError, NonFinite, TooDear
from diagnostics.curvature.estimate import Estimate
from diagnostics.curvature.measure import measure, trained_parameters
from diagnostics.curvature.slices import slices
from diagnostics.curvature.stability import stability_terms

__all__ = [
    "CurvatureError",
    "Estimate",
    "NonFinite",
    "Quotients",
    "TooDear",
    "combine",
    "follow",
    "measure",
    "slices",
    "stability_terms",
    "trained_parameters",
    "undisturbed",
]
