"""Batch normalisation with ghost batches, channel groups and example weighing, for any model
that has BatchNorm.
"""

from .blocks import block_sizes
from .decay import decay_groups, decay_toward_one, scales_and_shifts
from .exposure import exposed_norms, is_batch_norm, is_norm
from .functional import (
    Blocks,
    Normalised,
    mix_moments,
    normalise_blocks,
    normalise_examples,
    update_moments,
)
from .layer import GeneralisedBatchNorm
from .statistics import pooled_statistics
from .surgery import convert_batch_norm, converted_layers, is_converted, revert_batch_norm
from .tuning import choose, points, score, sweep

__all__ = [
    "Blocks",
    "GeneralisedBatchNorm",
    "Normalised",
    "block_sizes",
    "choose",
    "convert_batch_norm",
    "converted_layers",
    "decay_groups",
    "decay_toward_one",
    "exposed_norms",
    "is_batch_norm",
    "is_converted",
    "is_norm",
    "mix_moments",
    "normalise_blocks",
    "normalise_examples",
    "points",
    "pooled_statistics",
    "revert_batch_norm",
    "scales_and_shifts",
    "score",
    "sweep",
    "update_moments",
]
