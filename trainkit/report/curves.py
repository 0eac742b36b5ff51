"""What is done to long curves before they are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def thin(x: Floats, y: Floats, buckets: int = 900) -> tuple[Floats, Floats]:
    """Return at most `2 * buckets` of the points [n], the lowest and the highest of each bucket.

    The drawn line keeps every spike, however many steps a run has. Values that are not finite are
    left out unless nothing else is in their bucket.
    """
    import numpy as np

    if len(x) <= 2 * buckets:
        return x, y
    kept: list[int] = []
    for part in np.array_split(np.arange(len(x)), buckets):
        finite = part[np.isfinite(y[part])]
        if len(finite) == 0:
            kept.append(int(part[0]))
            continue
        kept.extend(sorted({int(finite[y[finite].argmin()]), int(finite[y[finite].argmax()])}))
    return x[kept], y[kept]


def smooth(y: Sequence[float] | Floats, window: int) -> Floats:
    """Return the centred, triangle-weighted mean of `y` [n] over `window` values on either side.

    Values that are not finite have no weight; the result is NaN only where nothing finite is in
    reach.
    """
    import numpy as np

    values = np.asarray(y, dtype=float)
    if window <= 1 or len(values) < 3:
        return values
    reach = min(window, len(values))
    kernel = np.concatenate([np.arange(1, reach + 1), np.arange(reach - 1, 0, -1)]).astype(float)
    finite = np.isfinite(values)

    def total(of: Floats) -> Floats:
        return np.convolve(of, kernel)[reach - 1 : reach - 1 + len(values)]

    weight = total(finite.astype(float))
    summed = total(np.where(finite, values, 0.0))
    mean: Floats = np.divide(summed, weight, out=np.full(len(values), np.nan), where=weight > 0)
    return mean
