"""Numbers, times and sizes as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainkit.report.formats import (
    clock,
    compact,
    duration,
    file_size,
    label,
    number,
    rate,
    scientific,
    tick,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.98333334, "0.9833"),
        (0.98, "0.9800"),
        (0.0412345, "0.0412"),
        (0.00123456, "0.0012"),
        (0.000123456, "1.23e-4"),
        (-2.302585, "-2.3026"),
        (12.3456, "12.35"),
        (123.456, "123.5"),
        (1839.6, "1,840"),
        (2.5e9, "2.5e9"),
        (0.0, "0"),
        (1234567, "1,234,567"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@given(st.floats(-1e300, 1e300))
def test_number_is_near_the_value(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=5e-2)


@pytest.mark.parametrize(
    ("value", "text"), [(3e-4, "3e-4"), (1.5e-3, "1.5e-3"), (1.23456e-5, "1.23e-5"), (1e10, "1e10")]
)
def test_scientific(value: float, text: str) -> None:
    assert scientific(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.25"), (20000.0, "20,000"), (5e-4, "5e-4"), (2e6, "2e6"), (-3, "-3")],
)
def test_tick(value: float, text: str) -> None:
    assert tick(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(950, "950"), (12345, "12.3 k"), (4923456, "4.92 M"), (1.2e9, "1.2 G")]
)
def test_compact(value: float, text: str) -> None:
    assert compact(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.42 s"),
        (0.999, "1.0 s"),
        (43.21, "43.2 s"),
        (59.97, "1 min 00 s"),
        (72, "1 min 12 s"),
        (7500, "2 h 05 min"),
        (273600, "3 d 4 h"),
        (math.nan, "unknown"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(6.6, "0:07"), (750, "12:30"), (3723, "1:02:03"), (-1, "0:00")]
)
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (19_700_000, "19.7 MB"),
        (3 * 10**15, "3000.0 TB"),
    ],
)
def test_file_size(count: int, text: str) -> None:
    assert file_size(count) == text


@pytest.mark.parametrize(("value", "text"), [(1839.6, "1,840"), (123.45, "123"), (12.345, "12.35")])
def test_rate(value: float, text: str) -> None:
    assert rate(value) == text


def test_label() -> None:
    assert label("val/calibration_error") == "calibration error"
