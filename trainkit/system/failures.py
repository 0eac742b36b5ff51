"""What one line says of an exception that came out of other people's code: where it was raised,
and what.
"""

from __future__ import annotations

import inspect
import linecache
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TRACEBACK = "TRAINKIT_TRACEBACK"
"""The environment variable under which the command line shows the traceback of an error as well."""


def failure(error: Exception, function: Callable[..., Any], call: str) -> str:
    """Return the line that says which call failed, and which line of its file raised what."""
    # Python renames a StopIteration that leaves a generator.
    renamed = isinstance(error, RuntimeError) and isinstance(error.__cause__, StopIteration)
    if renamed and error.__cause__ is not None:
        raised = error.__cause__
    else:
        raised = error
    text = next((line.strip() for line in str(raised).splitlines() if line.strip()), "")
    what = type(raised).__name__ + (f": {text[:300]}" if text else "")
    file, line = written(function)
    frames = []
    for f in traceback.extract_tb(raised.__traceback__):
        if f.filename == file:
            frames.append(f)
    line = (frames[-1].lineno if frames else None) or line
    source = linecache.getline(file, line).strip()
    place = f"{shown(file)}:{line}" + (f" (`{source[:100]}`)" if source else "")
    more = f"set {TRACEBACK}=1 to see the traceback"
    return f"{call} failed at {place}: {what}{_advice(text, source)} ({more})"


def _advice(error: str, source: str) -> str:
    if "NoneType" in error and "grad" in source:
        return (
            "; a parameter that is frozen, or that no loss reaches, has no gradient: leave "
            "those out"
        )
    if "deterministic" in error:
        return "; set train.deterministic=false to allow it"
    return ""


def place_of(function: Callable[..., Any]) -> str:
    """Return where a function is written, in brackets."""
    file, line = written(function)
    return f" ({shown(file)}:{line})"


def written(function: Callable[..., Any]) -> tuple[str, int]:
    """Return the file and the line in which a function or a class begins."""
    if isinstance(function, type):
        if inspect.getsourcefile(function):
            lines = inspect.getsourcelines(function)
        else:
            lines = ([], 0)
        return inspect.getsourcefile(function) or "", lines[1]
    code = inspect.unwrap(function).__code__  # a decorator's own code tells nothing
    return code.co_filename, code.co_firstlineno


def shown(file: str) -> str:
    """Return a file's path from the working directory where it lies in it."""
    path, here = Path(file), Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
