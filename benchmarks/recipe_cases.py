"""The recipes of `benchmarks/random_recipes.py`: every option with every kind of value, and bundled
recipes with a few changes.
"""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from trainkit.config import bundled
from trainkit.config.locations import dump, read_yaml
from trainkit.errors import UserError

KINDS = (
    *("", "null", "true", "false", "yes", "0", "1", "-1", "2", "7", "100", "1000000000000"),
    *("-1000000000000", "9223372036854775807", "9223372036854775808", "9" * 30, "9" * 5000),
    *("0.5", "-0.5", "1.5", "1e-300", "1e300", "-1e300", "1e12", ".nan", ".inf", "-.inf"),
    *("1e999", '""', "word", "'7'", r'"\e[31mred\a"', r'"a\0b"', r'"\ud800"', "漢字", "x" * 5000),
    *("../../up", "/dev/zero", "'%s{}'", "[]", "[1]", "[1, 2]", "[0.1, 0.9]", "[-1, 2]"),
    *("[.nan, 1]", "[.inf, .inf]", "[1e12, 1e12]", "[a, b]", "[[1]]", "[null]", "{}", "{a: 1}"),
    *("{name: x}", "{1: {2: 3}}"),
)
"""Values as a recipe writes them."""

BASES = {
    "digits": "model: {name: mlp, in_chans: 1}\ndata: {name: digits, image_size: 8}\n",
    "images": "model: {name: test_resnet, in_chans: 1}\ndata: {name: digits, image_size: 32}\n",
    "table": "model: {name: mlp}\ndata: {name: table}\n",
    "ratings": (
        "model: {name: autoencoder}\ndata: {name: ratings, users: 50, items: 20}\ntrain: {loss: "
        "{name: mse}}\ncheckpoint: {metric: rmse, mode: min}\nplugins: {sparsity_norm: {}}\n"
    ),
    "glyphs": (
        "model: {name: test_resnet, in_chans: 1}\ndata: {name: glyphs, letters: 5, scripts: "
        "[georgian]}\n"
    ),
    "folder": "model: {name: test_resnet}\ndata: {name: folder, root: nowhere}\n",
    "omniglot": (
        "model: {name: conv4, in_chans: 1}\ndata: {name: omniglot, root: nowhere}\nplugins: {maml: "
        "{}}\n"
    ),
    "cifar_fs": (
        "model: {name: conv4}\ndata: {name: cifar_fs, root: nowhere}\nplugins: {maml: {}}\n"
    ),
    "svhn": "model: {name: conv4}\ndata: {name: svhn, root: nowhere}\nplugins: {maml: {}}\n",
}
"""A small recipe of each source of data; no other option of it is written."""

Keys = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A recipe's text, and what is unusual in it."""

    text: str
    what: str


def options(schema: dict[str, Any]) -> Iterator[tuple[str, Keys]]:
    """Yield a base recipe and the place of an option in it, for every option that the schema
    has.
    """
    definitions = schema["$defs"]
    for section, name in (
        *(
            ("model", "ModelSpec"),
            ("train", "TrainSpec"),
            ("train.loss", "LossSpec"),
            ("optimizer", "OptimizerSpec"),
        ),
        *(
            ("scheduler", "SchedulerSpec"),
            ("checkpoint", "CheckpointSpec"),
            ("data", "DigitsSource"),
        ),
        *(("data.augment", "AugmentSpec"), ("data.missing", "MissingSpec")),
    ):
        for option in definitions[name]["properties"]:
            yield ("images" if "augment" in section else "digits"), (*section.split("."), option)
    for base, name in (
        *(
            ("table", "TableSource"),
            ("ratings", "RatingsSource"),
            ("glyphs", "GlyphsSource"),
            ("folder", "TimmSource"),
        ),
        *(("omniglot", "OmniglotSource"), ("cifar_fs", "CifarFsSource"), ("svhn", "SvhnSource")),
    ):
        own = (
            definitions[name]["properties"].keys()
            - definitions["DigitsSource"]["properties"].keys()
        )
        for option in sorted(own):
            yield base, ("data", option)
    for section in (*schema["properties"], "args"):
        yield "digits", ("model", section) if section == "args" else (section,)
    for plugin, found in schema["properties"]["plugins"]["properties"].items():
        yield plugin, ("plugins", plugin)
        for option in found["anyOf"][0].get("properties", {}):
            yield plugin, ("plugins", plugin, option)


def base_of(name: str) -> dict[str, Any]:
    """Return a recipe in which an option of `name`, a source of data or a plugin, means
    something.
    """
    known = whole_recipes()
    if name in known:
        return copy.deepcopy(known[name])
    fitting = [recipe for recipe in known.values() if name in recipe.get("plugins", {})]
    return copy.deepcopy(fitting[0]) if fitting else read(BASES["images"]) | {"plugins": {name: {}}}


@cache
def whole_recipes() -> dict[str, dict[str, Any]]:
    """Return the bundled recipes and the small ones by name."""
    found = {name: read_yaml(bundled.folder() / f"{name}.yaml")[0] for name in bundled.names()}
    return found | {name: read(text) for name, text in BASES.items()}


def read(text: str) -> dict[str, Any]:
    """Return the data of a recipe's text."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return read_yaml(Path(file.name))[0]


def put(data: dict[str, Any], keys: Keys, fragment: str) -> str:
    """Return the text of a recipe with `fragment`, as it would be written, under `keys`."""
    section = data
    for key in keys[:-1]:
        if not isinstance(section.get(key), dict):
            section[key] = {}
        section = section[key]
    section[keys[-1]] = "PUT_IT_HERE"
    return dump(data).replace("PUT_IT_HERE", fragment)


def systematic(schema: dict[str, Any]) -> Iterator[Case]:
    """Yield every option with every kind of value."""
    for base, keys in options(schema):
        for kind in KINDS:
            yield Case(
                put(base_of(base), keys, kind), f"{'.'.join(keys)}: {kind[:60]}  (on {base})"
            )


def mutated(schema: dict[str, Any], draw: random.Random) -> Case:
    """Return a bundled recipe with one to four changes."""
    name = draw.choice(list(whole_recipes()))
    data = copy.deepcopy(whole_recipes()[name])
    known, said = list(options(schema)), [name]
    text = dump(data)
    for _ in range(draw.randint(1, 4)):
        change = draw.randrange(6)
        if change < 3:
            keys = draw.choice(known)[1]
            kind = draw.choice(KINDS)
            text = put(data, keys, kind)
            said.append(f"{'.'.join(keys)}: {kind[:60]}")
            found = read_or_none(text)
            data = found if found is not None else data
            continue
        where = draw.choice(sections(data))
        if not where:
            continue
        key = draw.choice(list(where))
        if change == 3:
            del where[key]
            said.append(f"without {key}")
        elif change == 4:
            where[key + draw.choice(["s", "_", " ", "\x1b", "é"])] = where.pop(key)
            said.append(f"{key} misspelt")
        else:
            other = draw.choice(sections(data))
            other[key] = copy.deepcopy(where[key])  # else a section could come to hold itself
            said.append(f"{key} elsewhere")
        text = dump(data)
    return Case(text, "; ".join(said))


def sections(data: dict[str, Any]) -> list[dict[str, Any]]:
    """Return every mapping in a recipe."""
    found = [data]
    for value in data.values():
        if isinstance(value, dict):
            found += sections(value)
    return found


def read_or_none(text: str) -> dict[str, Any] | None:
    """Return a recipe's data where it can be read."""
    try:
        return read(text)
    except UserError:
        return None
