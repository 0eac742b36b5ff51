"""The arguments of timm's models that can be judged without making one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from trainkit.config.recipe import Recipe
from trainkit.errors import Problem

_ELSEWHERE = {
    "model_name": "model.name",
    "pretrained": "model.pretrained",
    "checkpoint_path": "model.checkpoint",
    "num_classes": "model.num_classes",
    "in_chans": "model.in_chans",
    "img_size": "data.image_size",
}
_LARGEST = 10**6
"""More than any size or depth of a model; timm would take for ever, or all memory, to make one
of more.
"""


def model_problems(recipe: Recipe, input_size: tuple[int, ...]) -> list[Problem]:
    """Return the arguments under `model.args` that core says itself, or whose value no model can
    take.

    Args:
        recipe: the recipe.
        input_size: of the data; an `img_size` that says the same is no mistake.
    """
    problems = []
    for name, value in recipe.model.args.items():
        if name == "img_size" and value in (input_size[-1], list(input_size[1:])):
            continue
        if name in _ELSEWHERE:
            wrong = f"say it as {_ELSEWHERE[name]}"
        elif "drop" in name and name.endswith(("drop", "rate", "dropout")) and not _is_share(value):
            wrong = f"should be a share of at least 0 and below 1; got {value!r}"
        elif any(abs(number) > _LARGEST for number in _integers(value)):
            wrong = f"is larger than anything in a model ({_LARGEST:,}); got {value!r}"
        else:
            continue
        problems.append(
            Problem(recipe.raw.nearest("model", "args", name), f"model.args.{name}", wrong)
        )
    return problems


def _is_share(value: Any) -> bool:
    if value is None:  # timm's default
        return True
    if isinstance(value, list):
        return all(map(_is_share, value))
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _integers(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _integers(item)
