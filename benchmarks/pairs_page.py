"""The page of documentation that says which plugins go together: what was run, what came of it,
and how it is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

SWITCHES: dict[str, dict[str, Any]] = {
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "accumulate": {"accumulate": 2},
    "channels_last": {"channels_last": True},
    "checkpointing": {"grad_checkpointing": True},
}
"""The switches of `train:` under which each plugin is tried alone."""


@dataclass(frozen=True)
class Job:
    """One run: plugins in the recipe's order, and a switch of `train:`."""

    plugins: tuple[str, ...]
    switch: str = ""

    @property
    def pair(self) -> frozenset[str]:
        """The plugins, whatever their order."""
        return frozenset(self.plugins)

    def __str__(self) -> str:
        return " + ".join([*self.plugins, *([self.switch] if self.switch else [])])


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        status: `failed` also where a refusal does not say where and why.
        text: the reason of a refusal, without its place; the end of the traceback of a failure;
            else empty.
        state: a digest of weights after training and of logged values.
    """

    status: Literal["ok", "refused", "failed"]
    text: str = ""
    state: str = ""


_HEAD = """\
# Which plugins go together

Every pair of the {count} plugins in both orders, and each plugin under every switch of `train:`, \
tried by `python -m benchmarks.pairs --write`, which makes this page: a few steps on a tiny \
recipe, on a CPU. A run either trains, or the recipe is refused with its line and a reason.

Order is the recipe's, as far as plugins do not declare another. The two orders of a pair were \
compared bit for bit, in weights and logged values.

## Pairs

{legend}

{matrix}
"""
_LEGEND = (
    "`+` trains, and the order makes no difference. `o` trains, and the order matters. `-` is "
    "refused. `!` fails."
)


def page(names: Sequence[str], results: Mapping[Job, Result]) -> str:
    """Return the page of documentation that says what came of all runs."""
    numbers = [str(i + 1) for i in range(len(names))]
    rows = [["", *numbers], ["---"] * (len(names) + 1)]
    rows += [
        [f"{i} `{a}`", *(mark(a, b, results) for b in names)]
        for i, a in zip(numbers, names, strict=True)
    ]
    text = _HEAD.format(count=len(names), legend=_LEGEND, matrix=_table(rows))
    ordered = [
        f"- `{a}` and `{b}`"
        for a, b in itertools.combinations(names, 2)
        if mark(a, b, results) == "o"
    ]
    text += (
        "\n## Where the order matters\n\n" + ("\n".join(ordered) if ordered else "Nowhere.") + "\n"
    )
    text += "\n## Pairs that are refused\n\n" + "\n".join(_refusals(names, results)) + "\n"
    switches = [["", *(f"`{switch}`" for switch in SWITCHES)], ["---"] * (len(SWITCHES) + 1)]
    for name in names:
        found = [results[Job((name,), switch)] for switch in SWITCHES]
        switches.append([f"`{name}`", *(_SIGNS[result.status] for result in found)])
    text += "\n## Each plugin alone\n\n" + _table(switches) + "\n\n"
    alone = [job for job in results if job.switch and results[job].status == "refused"]
    lines = [
        f"- `{job.plugins[0]}` with `{job.switch}`: {results[job].text}"
        for job in sorted(alone, key=str)
    ]
    return text + "\n".join([*lines, ""])


_SIGNS = {"ok": "+", "refused": "-", "failed": "!"}


def mark(first: str, second: str, results: Mapping[Job, Result]) -> str:
    """Return the sign of a pair; empty for a plugin with itself."""
    if first == second:
        return ""
    one, other = results[Job((first, second))], results[Job((second, first))]
    if "failed" in (one.status, other.status) or one.status != other.status:
        return "!"
    return _SIGNS[one.status] if one.state == other.state else "o"


def _refusals(names: Sequence[str], results: Mapping[Job, Result]) -> list[str]:
    """Return the refused pairs by their reason."""
    pairs: dict[str, list[str]] = {}
    for a, b in itertools.combinations(names, 2):
        if results[Job((a, b))].status == "refused":
            pairs.setdefault(results[Job((a, b))].text, []).append(f"`{a}` and `{b}`")
    return [f"- {', '.join(found)}: {reason}" for reason, found in sorted(pairs.items())]


def _table(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
