"""Batch normalisation with ghost batches, channel groups and example weighing, for any model that has BatchNorm."""

from .blocks import block_sizes
from .functional import (
    Blocks,
    Normalised,
    mix_moments,
    normalise_blocks,
    normalise_examples,
    update_moments,
)
from .layer import GeneralisedBatchNorm
from .surgery import convert_batch_norm, converted_layers, is_converted, revert_batch_norm

__all__ = [
    "Blocks",
    "GeneralisedBatchNorm",
    "Normalised",
    "block_sizes",
    "convert_batch_norm",
    "converted_layers",
    "is_converted",
    "mix_moments",
    "normalise_blocks",
    "normalise_examples",
    "revert_batch_norm",
    "update_moments",
]
