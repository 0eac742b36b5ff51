"""What a plan says of the data: their classes and how many examples each has, and how images are prepared."""

from __future__ import annotations

from typing import Any

from trainkit.data.types import Data

_ALL = 10  # classes that are listed one by one; of more, the first and the last
_FEW = 4


def data_facts(data: Data) -> dict[str, Any]:
    """Return the classes, and how validation images are prepared, as plain data."""
    counts = data.train_counts
    largest = max(range(len(counts)), key=counts.__getitem__) if sum(counts) else None
    return {
        "classes": list(data.class_names),
        "train_counts": list(counts),
        "val_counts": list(data.val_counts),
        "largest": None
        if largest is None
        else {"class": data.class_names[largest], "share": counts[largest] / sum(counts)},
        "preparation": list(data.preparation),
    }


def data_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows that `data_facts` make on a page: what they are of, and what they say."""
    rows = []
    if facts["classes"]:
        rows.append(("classes", _classes(facts)))
    if facts["preparation"]:
        rows.append(("validation images", "\n".join(facts["preparation"])))
    return rows


def _classes(facts: dict[str, Any]) -> str:
    names, counts = facts["classes"], facts["train_counts"]
    listed = [f"{name} ({count:,})" for name, count in zip(names, counts, strict=True)] if counts else names
    if len(listed) <= _ALL:
        text = ", ".join(listed)
    else:
        text = f"{', '.join(listed[:_FEW])} … {listed[-1]}; {len(names):,} in all"
    largest = facts["largest"]
    if largest is None:
        return text
    spread = f", of {min(counts):,} to {max(counts):,} training examples" if len(listed) > _ALL else ""
    return f"{text}{spread}; the largest, {largest['class']}, is {largest['share']:.1%} of the training examples"
