"""Numbers as people and programs write them: 1234.5, 1,234.5, 1.234,5, 1 234,5."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

_PLAIN = re.compile(
    r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?inf(?:inity)?", re.IGNORECASE
)
_SPACES = "'’ \u00a0\u2009\u202f"  # what stands between thousands and can be nothing else
_POINT = re.compile(
    rf"{_PLAIN.pattern}"
    rf"|[+-]?[0-9]{{1,3}}(?:([,{_SPACES}])[0-9]{{3}})(?:\1[0-9]{{3}})*(?:\.[0-9]+)?",
    re.I,
)
_COMMA = re.compile(
    r"[+-]?[0-9]+(?:,[0-9]+)?"
    rf"|[+-]?[0-9]{{1,3}}(?:([.{_SPACES}])[0-9]{{3}})(?:\1[0-9]{{3}})*(?:,[0-9]+)?"
)
_MARKED = re.compile(
    rf"[$€£¥]\s?[+-]?[0-9][0-9.,{_SPACES}]*|[+-]?[0-9][0-9.,{_SPACES}]*\s?[%‰°$€£¥]"
)
_PADDED = re.compile(r"[+-]?0[0-9]+")
_WHOLE = re.compile(r"[+-]?[0-9]+")
_OUT = str.maketrans("", "", _SPACES)

Reading = Callable[[str], float | None]


class Unclear(Exception):
    """Numbers of which nobody can tell what they are.

    Attributes:
        text: the one that shows it.
        why: the end of a sentence.
    """

    def __init__(self, text: str, why: str) -> None:
        super().__init__(text, why)
        self.text, self.why = text, why


def plain(text: str) -> float | None:
    """Return the number that a text is in Python's way of writing it, without `1_000`; None for
    a word.
    """
    text = text.replace("−", "-")
    return float(text) if _PLAIN.fullmatch(text) else None


def with_point(text: str) -> float | None:
    """Return the number that a text is with a decimal point, such as 1,234.5; None for a word."""
    text = text.replace("−", "-")
    return float(text.replace(",", "").translate(_OUT)) if _POINT.fullmatch(text) else None


def with_comma(text: str) -> float | None:
    """Return the number that a text is with a decimal comma, such as 1.234,5; None for a word."""
    text = text.replace("−", "-")
    return (
        float(text.replace(".", "").replace(",", ".").translate(_OUT))
        if _COMMA.fullmatch(text)
        else None
    )


def reading(texts: Sequence[str]) -> Reading:
    """Return how the numbers among texts of one column are read: with a point, or with a comma for
    its fractions.

    Raises:
        Unclear: most of the texts are numbers, and what their commas mean cannot be told, or
            differs.
    """
    if not any("," in text for text in texts):
        return with_point
    numbers = [
        text for text in texts if with_point(text) is not None or with_comma(text) is not None
    ]
    no_point = next((text for text in numbers if with_point(text) is None), None)
    no_comma = next((text for text in numbers if with_comma(text) is None), None)
    unclear = next((text for text in numbers if "," in text), None)
    if (
        2 * len(numbers) <= len(texts)
        or unclear is None
        or (no_point is None and no_comma is not None)
    ):
        return with_point
    if no_point is not None and no_comma is None:
        return with_comma
    if no_point is not None:
        raise Unclear(
            no_point, f"where another row has {no_comma!r}; write both with a point for fractions"
        )
    one, other = with_point(unclear), with_comma(unclear)
    raise Unclear(
        unclear,
        f"which may be {one:g} (thousands) or {other:g} (decimal comma); write numbers without "
        "commas",
    )


def marked(texts: Sequence[str]) -> str | None:
    """Return the first number with a sign beside it, such as 12% or $5, if all texts are numbers
    but for such signs.
    """
    found = [text for text in texts if _MARKED.fullmatch(text)]
    rest = (text for text in texts if not _MARKED.fullmatch(text))
    whole = all(with_point(text) is not None or with_comma(text) is not None for text in rest)
    return found[0] if found and whole else None


def are_codes(texts: Sequence[str]) -> bool:
    """Return whether two whole numbers differ only in zeros before them, such as 1 and 01: then
    they are names.
    """
    whole = {text for text in texts if _WHOLE.fullmatch(text)}
    return any(_PADDED.fullmatch(text) for text in whole) and len(
        {int(text) for text in whole}
    ) < len(whole)
