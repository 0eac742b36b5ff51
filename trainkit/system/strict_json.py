"""JSON as every reader takes it: the standard (RFC 8259) knows neither NaN nor infinity."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Return plain data as JSON, in which numbers that are not finite are null, however deep they
    stand.

    Raises:
        TypeError: there is something in it that JSON does not have.
    """
    return json.dumps(_strict(value), indent=indent, allow_nan=False)


def _strict(value: Any) -> Any:
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return None
    if isinstance(value, Mapping):
        found = {}
        for key, inner in value.items():
            found[key] = _strict(inner)
        return found
    if isinstance(value, list | tuple):
        return list(map(_strict, value))
    return value
