"""Tensors in, statistics out: what is recorded of gradients, weights, activations and inputs.

Everything stays on the tensors' device: no function here may read a number (`.item()`, `bool(tensor)`, boolean
indexing), because that would wait for the device. Nothing here remembers anything.
"""

from diagnostics.stats.baseline import features, fitted, halves, predicted
from diagnostics.stats.forms import FORMS
from diagnostics.stats.hinge import labels_of_zero
from diagnostics.stats.inputs import (
    Moments,
    correlation,
    deviations,
    is_distribution,
    mean_cosine,
    merge,
    middle_halves,
    moments,
    nonfinite_share,
    of_length_one,
    pair_cosines,
    pair_likenesses,
)
from diagnostics.stats.norms import cosine, flat, foreach, inner, lost_share, silent_rows, squared_norms, total_norm
from diagnostics.stats.placements import CHANNELS, as_given, fits, placements, related, small_map
from diagnostics.stats.reach import beyond, of_no_sum
from diagnostics.stats.symmetry import ALIKE, SAME, Side, apart, distinct_outputs, project
from diagnostics.stats.targets import Form, Targets, rounding
from diagnostics.stats.thumbnails import thumbnail
from diagnostics.stats.units import (
    KINDS,
    OUTPUTS,
    Kind,
    UnitCounts,
    add,
    attention_probabilities,
    by_unit,
    count_softmax,
    count_units,
    softmax_rows,
    unit_fractions,
    unit_moments,
)

__all__ = [
    "ALIKE",
    "CHANNELS",
    "FORMS",
    "KINDS",
    "OUTPUTS",
    "SAME",
    "Form",
    "Kind",
    "Moments",
    "Side",
    "Targets",
    "UnitCounts",
    "add",
    "apart",
    "as_given",
    "attention_probabilities",
    "beyond",
    "by_unit",
    "correlation",
    "cosine",
    "count_softmax",
    "count_units",
    "deviations",
    "distinct_outputs",
    "features",
    "fits",
    "fitted",
    "flat",
    "foreach",
    "halves",
    "inner",
    "is_distribution",
    "labels_of_zero",
    "lost_share",
    "mean_cosine",
    "merge",
    "middle_halves",
    "moments",
    "nonfinite_share",
    "of_length_one",
    "of_no_sum",
    "pair_cosines",
    "pair_likenesses",
    "placements",
    "predicted",
    "project",
    "related",
    "rounding",
    "silent_rows",
    "small_map",
    "softmax_rows",
    "squared_norms",
    "thumbnail",
    "total_norm",
    "unit_fractions",
    "unit_moments",
]
