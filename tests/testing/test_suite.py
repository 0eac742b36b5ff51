"""The kit's own ways: targets, recipes, known failures, and what third parties see in pytest."""

from __future__ import annotations

import ast
import random
import re
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from pydantic import Field

import trainkit.testing
from trainkit import Plugin, Run, hookimpl
from trainkit.hooks.discovery import load_class
from trainkit.testing import Case, CheckError, check_plugin, checks, run_checks, sentence

pytest_plugins = ["pytester"]

HERE = Path(__file__).parent
HEALTHY = f"{HERE / 'healthy.py'}:"
SMALL = {"data": {"image_size": 8}, "plugins": {f"{HEALTHY}TinyNet": {}}}


class Doubles(Plugin):
    """Doubles the loss."""

    citation: ClassVar[str] = ""
    neutral: ClassVar[dict[str, Any]] = {"factor": 1.0}
    factor: float = Field(gt=0, description="what the loss is multiplied by")

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Any:
        loss = yield
        return loss * self.factor


_Forgets: Any = load_class(f"{HERE / 'zoo_kept.py'}:ForgetsState", HERE)[1]


class KnownToForget(_Forgets):  # type: ignore[misc]
    """Averages gradients in memory only, and says so."""

    known_failures: ClassVar[dict[str, str]] = {"check_resume": "the average is not saved yet"}


def _of(outcomes: list[trainkit.testing.Outcome], status: str) -> dict[str, str]:
    return {outcome.check: outcome.message for outcome in outcomes if outcome.status == status}


def test_every_check_says_in_one_sentence_what_it_is_about() -> None:
    for check in checks():
        assert sentence(check).endswith(".")
        assert sentence(check).count("\n") == 0


def test_the_docs_have_every_check_with_its_sentence() -> None:
    text = (HERE.parents[1] / "docs" / "testing.md").read_text()
    rows = re.findall(r"^\| `(check_\w+)` \| (.*) \|$", text, re.MULTILINE)
    assert rows == [(check.__name__, sentence(check)) for check in checks()]


def test_every_check_is_found_by_some_broken_plugin() -> None:
    fails = set()
    for file in HERE.glob("zoo_*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and node.value.startswith("check_")
            ):
                fails.add(node.value)
    assert fails == {check.__name__ for check in checks()}


def test_pytest_is_imported_only_to_make_tests() -> None:
    for file in Path(trainkit.testing.__file__).parent.glob("*.py"):
        tree = ast.parse(file.read_text())
        names = [a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names]
        names += [str(node.module) for node in tree.body if isinstance(node, ast.ImportFrom)]
        assert not any(name.startswith("pytest") for name in names), file


def test_a_class_with_a_required_option_must_be_given_an_example() -> None:
    failed = _of(run_checks(Doubles, recipe=SMALL), "failed")
    assert list(failed) == ["check_options"]
    assert "plugins.Doubles.factor: is required" in failed["check_options"]
    assert "options=" in failed["check_options"]
    check_plugin(Doubles, {"factor": 2.0}, recipe=SMALL)


def test_options_come_from_the_argument_before_the_recipe() -> None:
    recipe = {"plugins": {"Doubles": {"factor": 3.0}}}
    assert Case(Doubles, recipe=recipe).options == {"factor": 3.0}
    assert Case(Doubles, {"factor": 2.0}, recipe=recipe).options == {"factor": 2.0}
    assert "Doubles" not in Case(Doubles, recipe=recipe).raw.data["plugins"]


def test_a_recipe_file_is_read_with_what_it_extends_and_its_plugins_by_its_folder(
    tmp_path: Path,
) -> None:
    (tmp_path / "aid.py").write_text((HERE / "healthy.py").read_text())
    (tmp_path / "base.yaml").write_text(
        "model: {name: test_convnext}\ndata: {name: digits, image_size: 16}\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "extends: base.yaml\nplugins:\n  ./aid.py:Noise:\n  Doubles: {factor: 2.0}\n"
    )
    case = Case(Doubles, recipe=tmp_path / "mine.yaml")
    on, off = case.setup(), case.setup(on=False)
    assert [entry.name for entry in on.entries] == ["Noise", "Doubles"]
    assert [entry.name for entry in off.entries] == ["Noise"]
    assert on.recipe.model.name == "test_convnext"
    assert on.recipe.train.epochs == trainkit.testing.TINY["train"]["epochs"]


def test_what_a_plugin_requires_is_on_in_both_runs() -> None:
    class Needy(Doubles):
        """Needs another."""

        requires: ClassVar[tuple[str, ...]] = ("Noise",)

    case = Case(
        Needy, {"factor": 2.0}, recipe={**SMALL, "plugins": {f"{HEALTHY}Noise": {"scale": 0.5}}}
    )
    assert [entry.name for entry in case.setup().entries] == ["Noise", "Needy"]
    assert [entry.name for entry in case.setup(on=False).entries] == ["Noise"]


def test_mistakes_in_the_recipe_of_the_checks_are_named() -> None:
    failed = _of(
        run_checks(Doubles, {"factor": 2.0}, recipe={"model": {"name": "no_such_model"}}), "failed"
    )
    assert list(failed) == ["check_hooks"]
    assert "model.name" in failed["check_hooks"]
    assert "no_such_model" in failed["check_hooks"]


def test_check_plugin_reports_all_failures_and_what_waits_for_them() -> None:
    class Sloppy(Plugin):
        """Does several things wrong."""

        strength: float = Field(1.0)

        @hookimpl
        def befor_optimizer_step(self, run: Run) -> None:
            """Never called."""

    with pytest.raises(CheckError) as error:
        check_plugin(Sloppy, recipe=SMALL)
    message = str(error.value)
    assert message.startswith(f"4 of {len(checks())} checks failed\n")
    for name, part in {
        "check_descriptions": "strength",
        "check_citation": "citation",
        "check_ranges": "strength: takes any number",
        "check_hooks": "did you mean 'before_optimizer_step'?",
    }.items():
        line = next(line for line in message.splitlines() if line.startswith(name))
        assert part in line
    assert "check_resume" in message.splitlines()[-1]


def test_an_unknown_target_is_a_failed_check_not_a_crash() -> None:
    for target in ("no_such_plugin", "./nowhere.py:Nobody", f"{HEALTHY}Nobody"):
        outcomes = run_checks(target)
        assert list(_of(outcomes, "failed")) == ["check_found"]
        assert len(_of(outcomes, "not run")) == len(outcomes) - 1


def test_an_exception_in_a_plugin_is_reported_with_its_own_line() -> None:
    class Raises(Doubles):
        """Raises."""

        @hookimpl
        def on_epoch_start(self, run: Run) -> None:
            raise ZeroDivisionError("by nothing")

    failed = _of(run_checks(Raises, {"factor": 2.0}, recipe=SMALL), "failed")
    assert list(failed) == ["check_trains"]
    assert failed["check_trains"].startswith("ZeroDivisionError: by nothing (test_suite.py:")


def test_a_known_failure_does_not_count_as_long_as_it_occurs() -> None:
    outcomes = run_checks(KnownToForget, recipe=SMALL)
    assert _of(outcomes, "failed") == {}
    known = _of(outcomes, "known failure")
    assert list(known) == ["check_resume"]
    assert known["check_resume"].startswith("the average is not saved yet (")
    check_plugin(KnownToForget, recipe=SMALL)


def test_a_known_failure_that_does_not_occur_is_a_failure() -> None:
    class Mended(Doubles):
        """Was broken once."""

        known_failures: ClassVar[dict[str, str]] = {"check_bf16": "no bfloat16 yet"}

    failed = _of(run_checks(Mended, {"factor": 2.0}, recipe=SMALL), "failed")
    assert list(failed) == ["check_bf16"]
    assert "take it out of known_failures" in failed["check_bf16"]


def test_a_known_failure_of_no_check_is_refused_with_a_suggestion() -> None:
    class Misspelt(Doubles):
        """Misspells a check."""

        known_failures: ClassVar[dict[str, str]] = {"check_resme": "not yet"}

    with pytest.raises(CheckError, match="'check_resme', no check; did you mean 'check_resume'"):
        check_plugin(Misspelt, {"factor": 2.0}, recipe=SMALL)


def test_the_process_is_left_as_it_was() -> None:
    def settings() -> list[Any]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),  # type: ignore[index]
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ]

    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    before = settings()
    check_plugin(f"{HEALTHY}Noise", recipe=SMALL)
    assert settings() == before


def test_third_parties_get_one_test_for_each_plugin_and_check(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(f"""
        import trainkit.testing
        from trainkit.testing import Case

        HEALTHY, ZOO, SMALL = {HEALTHY!r}, {str(HERE / "zoo_declared.py") + ":"!r}, {SMALL!r}

        NO_RANGE = Case(ZOO + "NoRange", recipe=SMALL)

        @trainkit.testing.parametrize(HEALTHY + "Noise", NO_RANGE, recipe=SMALL)
        def test_mine(check):
            check()
    """)
    result = pytester.runpytest_inprocess("-rfs", "-p", "no:cacheprovider")
    total = 2 * len(checks())
    result.assert_outcomes(
        passed=total - 4, skipped=3, failed=1
    )  # NoRange declares no neutral options
    result.stdout.fnmatch_lines(
        ["*_ test_mine[[]NoRange-ranges[]] _*", "E *CheckError: strength: takes any number*"]
    )


def test_known_failures_are_xfail_in_pytest(pytester: pytest.Pytester) -> None:
    source = (HERE / "zoo_kept.py").read_text()
    known = (
        '    known_failures: ClassVar[dict[str, str]] = {"check_resume": "to do", "check_bf16":'
        ' "was broken"}\n'
    )
    head = 'class ForgetsState(Broken):\n    """Averages gradients over steps in memory only."""\n'
    assert head in source
    pytester.makepyfile(mine=source.replace(head, head + known))
    pytester.makepyfile(f"""
        import trainkit.testing

        @trainkit.testing.parametrize("./mine.py:ForgetsState", recipe={SMALL!r})
        def test_mine(check):
            check()
    """)
    result = pytester.runpytest_inprocess("-rfx", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=len(checks()) - 4, skipped=2, xfailed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*_ test_mine[[]ForgetsState-bf16[]] _*", "E *a known failure that does not occur*"]
    )
    result.stdout.fnmatch_lines(["*XFAIL*ForgetsState-resume*to do*"])
