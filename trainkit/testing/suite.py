"""Which checks there are, in which order, and how they are run: all at once, or one pytest test
each.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainkit.errors import suggest
from trainkit.hooks.plugin import Plugin
from trainkit.testing.case import Case, CheckError, NotApplicableError, Options
from trainkit.testing.compared import (
    check_effect,
    check_invisible,
    check_isolated,
    check_neutral,
    check_repeatable,
    check_streams,
)
from trainkit.testing.declared import (
    check_citation,
    check_descriptions,
    check_found,
    check_hooks,
    check_options,
    check_ranges,
)
from trainkit.testing.trained import (
    check_accumulation,
    check_bf16,
    check_kept_weights,
    check_missing_gradients,
    check_report,
    check_resume,
    check_short_batch,
    check_state,
    check_trains,
)
from trainkit.testing.training import undisturbed

if TYPE_CHECKING:
    import pytest

Check = Callable[[Case], None]
"""Looks at one side of a plugin; raises CheckError where it is not as it should be."""

_NEEDS: dict[Check, tuple[Check, ...]] = {
    check_found: (),
    check_descriptions: (check_found,),
    check_citation: (check_found,),
    check_options: (check_found,),
    check_ranges: (check_options,),
    check_hooks: (check_options,),
    check_trains: (check_hooks,),
    check_short_batch: (check_trains,),
    check_accumulation: (check_trains,),
    check_bf16: (check_trains,),
    check_missing_gradients: (check_trains,),
    check_effect: (check_trains,),
    check_neutral: (check_trains,),
    check_invisible: (check_trains,),
    check_streams: (check_trains,),
    check_state: (check_trains,),
    check_repeatable: (check_state,),
    check_isolated: (check_repeatable,),
    check_resume: (check_repeatable,),
    check_kept_weights: (check_repeatable,),
    check_report: (check_repeatable,),
}
"""Every check, and those without which it has nothing to say."""

Status = Literal["passed", "failed", "known failure", "not run", "does not apply"]


@dataclass(frozen=True)
class Outcome:
    """What came of one check of one plugin.

    Attributes:
        check: the check's name.
        status: `failed` also where a known failure did not occur; `not run` where a check that it
            builds on failed.
        message: what is wrong, or why nothing was checked.
        error: what was raised.
    """

    check: str
    status: Status
    message: str = ""
    error: Exception | None = None

    def __str__(self) -> str:
        return f"{self.check}: {self.status}" + (f": {self.message}" if self.message else "")


def checks() -> tuple[Check, ...]:
    """Return every check, in the order in which they are run."""
    return tuple(_NEEDS)


def run_checks(
    target: str | type[Plugin] | Case,
    options: Options | None = None,
    *,
    recipe: Mapping[str, Any] | Path | str | None = None,
) -> list[Outcome]:
    """Run every check on a plugin and return what came of each; the arguments are those of
    `Case`.
    """
    case = target if isinstance(target, Case) else Case(target, options, recipe=recipe)
    outcomes: dict[Check, Outcome] = {}
    return [_outcome(case, check, outcomes) for check in checks()]


def check_plugin(
    target: str | type[Plugin] | Case,
    options: Options | None = None,
    *,
    recipe: Mapping[str, Any] | Path | str | None = None,
) -> None:
    """Run every check on a plugin; the arguments are those of `Case`.

    Raises:
        CheckError: some checks failed; the message has all of them.
    """
    outcomes = run_checks(target, options, recipe=recipe)
    failed = [str(outcome) for outcome in outcomes if outcome.status == "failed"]
    if failed:
        waiting = [outcome.check for outcome in outcomes if outcome.status == "not run"]
        rest = [f"not run before these are mended: {', '.join(waiting)}"] if waiting else []
        raise CheckError(
            "\n".join([f"{len(failed)} of {len(outcomes)} checks failed", *failed, *rest])
        )


def parametrize(
    *targets: str | type[Plugin] | Case,
    options: Options | None = None,
    recipe: Mapping[str, Any] | Path | str | None = None,
) -> pytest.MarkDecorator:
    """Make one pytest test of each plugin and check, from a function that calls its argument
    `check`.

    Args:
        targets: plugins; a `Case` brings options and recipe of its own.
        options: example options of the others.
        recipe: the recipe of the others.
    """
    import pytest

    parameters = []
    for target in targets:
        case = target if isinstance(target, Case) else Case(target, options, recipe=recipe)
        outcomes: dict[Check, Outcome] = {}
        for check in checks():
            name = f"{case.name}-{check.__name__.removeprefix('check_')}"
            parameters.append(pytest.param(_Test(case, check, outcomes), id=name))
    return pytest.mark.parametrize("check", parameters)


@dataclass(frozen=True)
class _Test:
    """One check of one plugin, to be called by a test function; shares outcomes with the others
    of its plugin.
    """

    case: Case
    check: Check
    outcomes: dict[Check, Outcome]

    def __repr__(self) -> str:
        return f"{self.check.__name__} of {self.case.name}"

    def __call__(self) -> None:
        """Pass, fail, or as pytest has it: known failures are xfail, what cannot be checked is
        skipped.
        """
        import pytest

        __tracebackhide__ = True
        outcome = _outcome(self.case, self.check, self.outcomes)
        if outcome.status == "failed":
            # The plugin's own traceback is worth seeing; that of a check is not.
            cause = None if isinstance(outcome.error, CheckError) else outcome.error
            raise CheckError(outcome.message) from cause
        if outcome.status == "known failure":
            pytest.xfail(outcome.message)
        if outcome.status != "passed":
            pytest.skip(outcome.message)


def _outcome(case: Case, check: Check, outcomes: dict[Check, Outcome]) -> Outcome:
    """Run a check after those that it needs, each once."""
    if check not in outcomes:
        needed = [_outcome(case, need, outcomes) for need in _NEEDS[check]]
        unmet = next(
            (outcome for outcome in needed if outcome.status in ("failed", "not run")), None
        )
        if unmet is None:
            outcomes[check] = _against_known(case, _run(case, check))
        else:
            why = unmet.message if unmet.status == "not run" else f"{unmet.check} must pass first"
            outcomes[check] = Outcome(check.__name__, "not run", why)
    return outcomes[check]


def _run(case: Case, check: Check) -> Outcome:
    name = check.__name__
    try:
        with undisturbed():
            check(case)
    except NotApplicableError as error:
        return Outcome(name, "does not apply", str(error))
    except CheckError as error:
        return Outcome(name, "failed", str(error), error)
    except Exception as raised:  # whatever a plugin raises is its failure, not the kit's
        cause = raised.__cause__ if isinstance(raised.__cause__, Exception) else raised
        return Outcome(
            name, "failed", f"{type(cause).__name__}: {cause} ({_place(case, cause)})", cause
        )
    return Outcome(name, "passed")


def _place(case: Case, error: Exception) -> str:
    """Return the line of the plugin's file that led to an error; where it has none in it, the
    one that raised.
    """
    frames = traceback.extract_tb(error.__traceback__)
    file = getattr(sys.modules.get(case.cls.__module__), "__file__", None)
    own = [frame for frame in frames if frame.filename == file]
    frame = (own or frames)[-1]
    return f"{Path(frame.filename).name}:{frame.lineno}"


def _against_known(case: Case, outcome: Outcome) -> Outcome:
    """Compare an outcome with the failures that the class declares: they must occur."""
    known = {} if outcome.check == check_found.__name__ else case.cls.known_failures
    if not isinstance(known, Mapping):
        return outcome  # check_hooks says so
    names = [check.__name__ for check in checks()]
    for name in known:
        if name not in names:
            return Outcome(
                outcome.check,
                "failed",
                f"known_failures names {name!r}, no check{suggest(name, names)}",
            )
    if outcome.check not in known or outcome.status == "does not apply":
        return outcome
    if outcome.status == "failed":
        return Outcome(
            outcome.check,
            "known failure",
            f"{known[outcome.check]} ({outcome.message})",
            outcome.error,
        )
    return Outcome(
        outcome.check,
        "failed",
        "a known failure that does not occur: take it out of known_failures",
    )


def sentence(check: Check) -> str:
    """Return what a check says of a plugin that passes it."""
    return " ".join((inspect.getdoc(check) or "").split())
