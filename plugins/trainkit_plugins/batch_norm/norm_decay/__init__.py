"""Weight decay of the scale and shift of those norms whose size no later norm undoes."""

from .decay import decay_groups, decay_toward_one, scales_and_shifts
from .exposure import exposed_norms, is_batch_norm, is_norm

__all__ = [
    "decay_groups",
    "decay_toward_one",
    "exposed_norms",
    "is_batch_norm",
    "is_norm",
    "scales_and_shifts",
]
