"""Every option with every kind of value, and random recipes: each is accepted, or refused with its
place, in time.

Run: python benchmarks/random_recipes.py [--count 5000] [--seed 0] [--only TEXT] [--every 1]
    [--limit 5]

First every option of core and of every installed plugin is given every kind of value, one at a
time; then come `--count` random recipes, bundled ones with a few keys changed, removed, added or
moved. Each is planned in a process of its own, with `--limit` seconds of processor time and 4 GB.
The exit status is 1 if any ended otherwise than accepted or refused with a message that says where;
the smallest example of each distinct place is printed.
"""

from __future__ import annotations

import argparse
import copy
import os
import random
import re
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from trainkit.commands.plan import make_plan
from trainkit.commands.schema import recipe_schema
from trainkit.config import bundled as shelf
from trainkit.config.locations import dump, read_yaml
from trainkit.errors import RecipeError, UserError

GIGABYTES = 4
KINDS = (
    *(
        "",
        "null",
        "true",
        "false",
        "yes",
        "0",
        "1",
        "-1",
        "2",
        "7",
        "100",
        "1000000000000",
        "-1000000000000",
    ),
    *(
        "9223372036854775807",
        "9223372036854775808",
        "9" * 30,
        "9" * 5000,
        "0.5",
        "-0.5",
        "1.5",
        "1e-300",
        "1e300",
    ),
    *(
        "-1e300",
        "1e12",
        ".nan",
        ".inf",
        "-.inf",
        "1e999",
        '""',
        "word",
        "'7'",
        r'"\e[31mred\a"',
        r'"a\0b"',
    ),
    *(
        r'"\ud800"',
        "漢字",
        "x" * 5000,
        "../../up",
        "/dev/zero",
        "'%s{}'",
        "[]",
        "[1]",
        "[1, 2]",
        "[0.1, 0.9]",
    ),
    *(
        "[-1, 2]",
        "[.nan, 1]",
        "[.inf, .inf]",
        "[1e12, 1e12]",
        "[a, b]",
        "[[1]]",
        "[null]",
        "{}",
        "{a: 1}",
    ),
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


@dataclass(frozen=True)
class Outcome:
    """How planning ended; `place` tells faults of one kind apart."""

    kind: str
    place: str = ""


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
    found = {name: read_yaml(shelf.folder() / f"{name}.yaml")[0] for name in shelf.names()}
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


def check(path: Path, plan: Callable[[Path, list[str]], object] = make_plan) -> Outcome:
    """Plan a recipe in this process."""
    try:
        plan(path, [])
    except RecipeError as error:
        return _refused(str(error).splitlines(), path)
    except UserError as error:
        return _refused([str(error)], path)
    except TimeoutError as error:
        return Outcome("too slow", _frame(error))
    except BaseException as error:
        return Outcome("traceback", f"{type(error).__name__}: {str(error)[:150]} {_frame(error)}")
    return Outcome("accepted")


def _refused(lines: list[str], path: Path) -> Outcome:
    for line in lines:
        if not re.match(rf"{re.escape(str(path))}:\d+: |and [\d,]+ more mistakes", line):
            return Outcome("without place", re.sub(r"\d+", "N", line)[:160])
    return Outcome("refused")


def _frame(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "trainkit" in f.filename]
    return (
        f"({frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno} {frames[-1].name})"
        if frames
        else ""
    )


def in_a_child(
    path: Path, seconds: float, plan: Callable[[Path, list[str]], object] = make_plan
) -> Outcome:
    """Plan a recipe in a process of its own, which may neither run on nor take all memory."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(ours)
        _limit(seconds)
        outcome = check(path, plan)
        os.write(
            theirs, f"{outcome.kind}\n{outcome.place}".encode(errors="backslashreplace")[:4000]
        )
        os._exit(0)
    os.close(theirs)
    ready, _, _ = select.select([ours], [], [], 12 * seconds)
    if not ready:
        os.kill(child, signal.SIGKILL)
    answer = os.read(ours, 4096).decode() if ready else ""
    os.close(ours)
    _, status = os.waitpid(child, 0)
    if answer:
        kind, _, place = answer.partition("\n")
        return Outcome(kind, place)
    return Outcome(
        "too slow", "stood still or was killed" if not ready else f"ended with status {status}"
    )


def _limit(seconds: float) -> None:
    def slow(number: int, frame: object) -> None:
        raise TimeoutError("out of time")

    now = (
        int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        if sys.platform == "linux"
        else 0
    )
    if now:
        most = now + GIGABYTES * 2**30
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.signal(signal.SIGPROF, slow)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    hard = int(2 * seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def campaign(count: int, seed: int, only: str, seconds: float, every: int = 1) -> int:
    """Try all, and print what came of it; return how many ended wrongly."""
    schema = recipe_schema()
    draw = random.Random(seed)
    cases = [
        *islice(systematic(schema), seed % every, None, every),
        *(mutated(schema, draw) for _ in range(count)),
    ]
    cases = [case for case in cases if only in case.what]
    counts: Counter[str] = Counter()
    smallest: dict[Outcome, Case] = {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        for i, case in enumerate(cases):
            path.write_text(case.text, encoding="utf-8", errors="backslashreplace")
            outcome = in_a_child(path, seconds)
            counts[outcome.kind] += 1
            if outcome.kind not in ("accepted", "refused"):
                if outcome not in smallest:
                    print(f"{outcome.kind}: {outcome.place}\n    {case.what}", flush=True)
                smallest[outcome] = min(
                    case, smallest.get(outcome, case), key=lambda c: len(c.text)
                )
            if sys.stderr.isatty() and i % 20 == 0:
                print(f"\r{i}/{len(cases)}", end="", file=sys.stderr)
    print(f"\n{len(cases)} recipes in {time.monotonic() - began:.0f} s: {dict(counts)}")
    for outcome, case in sorted(smallest.items(), key=lambda item: (item[0].kind, item[0].place)):
        print(
            f"\n{outcome.kind}: {outcome.place}\n  {case.what}\n"
            + "".join(f"    {line[:160]}\n" for line in case.text.splitlines())
        )
    return sum(number for kind, number in counts.items() if kind not in ("accepted", "refused"))


def main() -> int:
    """Read the command line; return how many recipes ended wrongly."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000, help="random recipes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only cases whose description has this text")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        help="of the options with every kind of value, each Nth only",
    )
    parser.add_argument("--limit", type=float, default=5, help="seconds of processor time for each")
    given = parser.parse_args()
    torch.set_num_threads(1)
    return campaign(given.count, given.seed, given.only, given.limit, given.every)


if __name__ == "__main__":
    sys.exit(main() > 0)
