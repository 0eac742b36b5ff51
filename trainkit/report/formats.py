"""How numbers, times and sizes are written for people, on the terminal and in the report."""

from __future__ import annotations

import math


def number(value: float) -> str:
    """Return `value` as a short decimal: 0.9833, 2.3026, 12.35, 1,234, 3e-4; whole numbers in
    full.
    """
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        if math.isnan(value):
            return "NaN"
        if value > 0:
            return "∞"
        return "−∞"
    size = abs(value)
    if size >= 1000:
        if size < 1e9:
            return f"{value:,.0f}"
        return scientific(value)
    if size >= 10:
        if size >= 100:
            return f"{value:.1f}"
        return f"{value:.2f}"
    if size >= 0.001:
        return f"{value:.4f}"
    if size:
        return scientific(value)
    return "0"


def counted(count: int, thing: str) -> str:
    """Return how many things there are: 1 epoch, 2 epochs, 1,234 epochs."""
    plural = "s"
    if count == 1:
        plural = ""
    return f"{number(count)} {thing}{plural}"


def scientific(value: float) -> str:
    """Return `value` with an exponent and as few digits as it needs, at most three: 3e-4,
    1.25e-5.
    """
    mantissa, exponent = f"{value:.2e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}e{int(exponent)}"


def rate(value: float) -> str:
    """Return so many per second: 1,840 or 12.35, without decimals that no measurement has."""
    return number(round(value) if abs(value) >= 100 else value)


def tick(value: float) -> str:
    """Return `value` as the label of an axis: 0, 0.25, 20,000, 5e-4."""
    if value == 0 or 0.01 <= abs(value) < 1e6:
        return f"{value:,.10g}"
    return scientific(value)


def compact(value: float) -> str:
    """Return a count with a unit: 950, 4.92 M, 1.2 G."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e4)):
        if abs(value) >= size:
            return f"{value / (1e3 if unit == 'k' else size):.3g} {unit}"
    return number(value)


def duration(seconds: float) -> str:
    """Return a time in its two largest units: 0.42 s, 43.2 s, 1 min 12 s, 2 h 05 min, 3 d 4 h."""
    if not math.isfinite(seconds):
        return "unknown"
    if seconds < 0.995:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(seconds: float) -> str:
    """Return a time as on a stopwatch: 0:07, 12:30, 1:02:03."""
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    if hours:
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
    return f"{rest // 60}:{rest % 60:02d}"


def file_size(count: int) -> str:
    """Return a number of bytes in decimal units: 812 B, 4.1 kB, 19.7 MB."""
    if count < 1000:
        return f"{count} B"
    units = ("kB", "MB", "GB", "TB")
    power = min(int(math.log10(count) / 3 + 1e-9), len(units))
    return f"{count / 1000**power:.1f} {units[power - 1]}"


def label(name: str) -> str:
    """Return the name of a logged value as it is read: `val/calibration_error` is "calibration
    error".
    """
    return name.removeprefix("val/").replace("_", " ")
