"""How every command ends: with its result, or with one message and an exit code, never with a
traceback.
"""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

import typer
from rich.text import Text

from trainkit.errors import Interrupted, RecipeError, TrainingError, UserError, one_line
from trainkit.system.failures import TRACEBACK
from trainkit.system.signals import ending_at_once
from trainkit.system.terminal import Terminal

FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130

out = Terminal()
err = Terminal(stderr=True)
F = TypeVar("F", bound=Callable[..., Any])


def ending_well(function: F) -> F:
    """Return a command whose failures end in one message and an exit code."""

    @wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            with ending_at_once():
                function(*args, **kwargs)
            if sys.stdout is not None:
                sys.stdout.flush()
        except RecipeError as error:
            end(str(error), BAD_INPUT)  # a line for each mistake
        except UserError as error:
            end(one_line(str(error)), BAD_INPUT)
        except TrainingError as error:
            end(one_line(str(error)), FAILED)
        except Interrupted as stopped:
            # Only the rank that writes knows the folder; the others leave the word to it.
            words = f"interrupted, and saved; go on with: trainkit train --resume {stopped.folder}"
            end(words if stopped.folder else "", INTERRUPTED)
        except KeyboardInterrupt:
            end("interrupted at once; what the last checkpoint holds is safe", INTERRUPTED)
        except BrokenPipeError:
            # The reader (`head`, say) has gone.
            _say_no_more()
        except OSError as error:
            # What is written elsewhere ends as a WriteError.
            if error.errno != errno.ENOSPC:
                raise
            _say_no_more()
            end("the standard output cannot be written: make room on its disk", FAILED)
        except RuntimeError as error:
            if "deterministic" not in str(error):
                raise
            first = str(error).splitlines()[0]
            end(f"{first} (set train.deterministic=false to allow it)", FAILED)

    return guarded  # type: ignore[return-value]


def _say_no_more() -> None:
    """Give Python nothing to complain about when it closes the standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end(message: str, code: int) -> NoReturn:
    """Print each line of a message, an error's in its colour, and exit with `code`."""
    if os.environ.get(TRACEBACK) and code != INTERRUPTED:
        traceback.print_exc()
    for line in message.splitlines():
        err.print(line if code == INTERRUPTED else Text.assemble(("error", "bold red"), ": ", line))
    raise typer.Exit(code)
