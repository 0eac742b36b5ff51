"""How planning a recipe of `benchmarks/random_recipes.py` ends, in a process of its own."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainkit.commands.plan import make_plan
from trainkit.errors import RecipeError, UserError

GIGABYTES = 4


@dataclass(frozen=True)
class Outcome:
    """How planning ended; `place` tells faults of one kind apart."""

    kind: str
    place: str = ""


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
