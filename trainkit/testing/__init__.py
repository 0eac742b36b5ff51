"""Checks that every plugin should pass: whoever writes one can run them with one line.

::

    import trainkit.testing

    @trainkit.testing.parametrize("my_plugin", options={"strength": 0.5})
    def test_my_plugin(check):
        check()
"""

from trainkit.testing.case import Case, CheckError, NotApplicableError
from trainkit.testing.source_checks import check_source
from trainkit.testing.suite import (
    Check,
    Outcome,
    check_plugin,
    checks,
    parametrize,
    run_checks,
    sentence,
)
from trainkit.testing.training import TINY

__all__ = [
    "TINY",
    "Case",
    "Check",
    "CheckError",
    "NotApplicableError",
    "Outcome",
    "check_plugin",
    "check_source",
    "checks",
    "parametrize",
    "run_checks",
    "sentence",
]
