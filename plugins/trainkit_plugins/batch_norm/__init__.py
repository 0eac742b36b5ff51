"""Batch normalization with ghost batches, channel groups and example weighing, for any model
that has BatchNorm.

Begin with `convert_batch_norm(model, ghost_size=16)`, which changes the layers of a model and keeps
its weights, `revert_batch_norm(model)`, which undoes it, and `normalize_blocks`, the function that
a layer calls in training.
"""

from .alphas import points, score, sweep
from .blocks import block_sizes
from .choice import choose
from .functional import (
    Blocks,
    Normalized,
    mix_moments,
    normalize_blocks,
    normalize_examples,
    update_moments,
)
from .layer import GeneralizedBatchNorm
from .norm_decay import (
    decay_groups,
    decay_toward_one,
    exposed_norms,
    is_batch_norm,
    is_norm,
    scales_and_shifts,
)
from .statistics import pooled_statistics
from .surgery import convert_batch_norm, converted_layers, is_converted, revert_batch_norm

__all__ = [
    "Blocks",
    "GeneralizedBatchNorm",
    "Normalized",
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
    "normalize_blocks",
    "normalize_examples",
    "points",
    "pooled_statistics",
    "revert_batch_norm",
    "scales_and_shifts",
    "score",
    "sweep",
    "update_moments",
]
