"""What timm's strings for automatic augmentation may say; timm passes over words in them that it
does not know.
"""

from __future__ import annotations

import re
from string import ascii_lowercase

_WHOLE, _REAL = r"\d{1,3}", r"\d{1,3}(\.\d{1,6})?"
_RAND = {
    "m": _WHOLE,
    "n": r"[1-9]\d?",
    "p": r"[01](\.\d{1,6})?",
    "mstd": _REAL,
    "mmax": _WHOLE,
    "inc": "[01]",
}
_AUGMIX = {"m": _WHOLE, "w": r"[1-9]\d?", "d": r"[1-9]\d?", "a": _REAL, "b": "[01]", "mstd": _REAL}
_POLICIES = ("original", "originalr", "v0", "v0r", "3a")
_SETS = ("tweights", "t3a", "t3aw")
TIMMS_JITTER = 0.4
"""timm's default strength of colour jitter."""
_UPPER = 10  # the largest magnitude of timm's, unless mmax says otherwise


def policy_problem(text: str) -> str:
    """Return what is wrong with a policy string such as `rand-m9-mstd0.5`, or nothing."""
    name, *sections = text.split("-")
    if name in _POLICIES:
        known = {"mstd": _REAL}
    elif name in ("rand", "augmix"):
        known = _RAND if name == "rand" else _AUGMIX
    else:
        return (
            f"timm has no policy {name!r}; rand, augmix and {', '.join(_POLICIES)} are those it has"
        )
    for section in sections:
        if name == "rand" and section in _SETS:
            continue
        value = section.lstrip(ascii_lowercase)
        key = section[: len(section) - len(value)]
        if key not in known:
            further = f", {', '.join(_SETS)}" if name == "rand" else ""
            return f"{name} takes {', '.join(known)}{further}, and not {section!r}"
        if not re.fullmatch(known[key], value):
            return f"{value!r} is no number that {key} of {name} can take"
    return ""


def leaves_jitter_out(text: str | None) -> bool:
    """Return whether timm makes no colour jitter beside a policy."""
    return text is not None and "3a" not in text


def policy_notes(text: str | None, color_jitter: float) -> list[str]:
    """Return what of a valid policy string, or of the colour jitter beside it, timm does not do."""
    if text is None:
        return []
    notes = []
    if leaves_jitter_out(text) and color_jitter not in (0, TIMMS_JITTER):
        notes.append(
            "data.augment.color_jitter: does nothing, because timm leaves it out with auto_augment"
        )
    found = {key: float(value) for key, value in re.findall(r"-(m|mmax)(\d+)", text)}
    upper = found.get("mmax", _UPPER) if text.startswith("rand") else _UPPER
    if found.get("m", 0) > upper:
        message = f"timm takes a magnitude of {found['m']:g} as {upper:g}"
        notes.append(
            f"data.augment.auto_augment: {message}; say mmax{found['m']:g} as well if more is meant"
        )
    return notes
