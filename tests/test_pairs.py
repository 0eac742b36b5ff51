"""Which plugins go together: what the page of it says, and some of it tried again."""

from __future__ import annotations

import itertools

import pytest

from benchmarks.pairs import PAGE, attempt, jobs_of, run_all
from benchmarks.pairs_page import SWITCHES, Job, Result, mark, page
from trainkit.hooks.discovery import installed

NAMES = sorted(installed())


def rows(title: str) -> dict[str, list[str]]:
    """Return a table of the page: the cells of each plugin."""
    section = PAGE.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]
    cells = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return {row[0].split()[-1].strip("`"): row[1:] for row in cells[2:]}


def shown(job: Job) -> str:
    """Return the sign that the page has for a run."""
    if job.switch:
        return rows("Each plugin alone")[job.plugins[0]][list(SWITCHES).index(job.switch)]
    first, second = job.plugins
    return rows("Pairs")[first][NAMES.index(second)]


def test_the_page_has_every_installed_plugin_and_nothing_that_fails() -> None:
    pairs, alone = rows("Pairs"), rows("Each plugin alone")
    assert list(pairs) == list(alone) == NAMES
    signs = {cell for row in [*pairs.values(), *alone.values()] for cell in row}
    assert signs <= {"", "+", "-", "o"}


@pytest.mark.parametrize(
    "job",
    [
        Job(("maml", "ghost_batch_norm")),
        Job(("sparsity_norm", "trap_init")),
        Job(("spectral_rank", "smoothness")),
        Job(("maml", "sparsity_bias")),
        Job(("adam_eps", "radam")),
        Job(("maml",), "checkpointing"),
        Job(("ema",), "bf16"),
    ],
    ids=str,
)
def test_a_handful_is_as_the_page_says(job: Job) -> None:
    result = attempt(job)
    assert result.status != "failed", result.text
    assert (result.status == "refused") == (shown(job) == "-")
    assert (result.status == "refused") == bool(result.text)


def test_a_pair_whose_orders_differ_is_told_from_one_that_fails() -> None:
    one, other = Job(("a", "b")), Job(("b", "a"))
    same, third = Result("ok", state="x"), Result("ok", state="y")
    assert mark("a", "b", {one: same, other: same}) == "+"
    assert mark("a", "b", {one: same, other: third}) == "o"
    assert mark("b", "a", {one: same, other: Result("failed", "why")}) == "!"
    assert mark("a", "b", {one: Result("refused", "why"), other: same}) == "!"
    assert mark("a", "a", {}) == ""


def test_the_page_gives_the_reason_of_each_refusal_once() -> None:
    results = {
        Job(pair): Result("refused", "they quarrel") for pair in itertools.permutations("abc", 2)
    }
    results |= {Job((name,), switch): Result("ok") for name in "abc" for switch in SWITCHES}
    text = page(list("abc"), results)
    assert text.count("they quarrel") == 1
    assert "`a` and `b`, `a` and `c`, `b` and `c`: they quarrel" in text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ema", "maml", "smoothness"])
def test_all_runs_of_a_plugin_are_as_the_page_says(name: str) -> None:
    results = dict(run_all(jobs_of([name], NAMES), 2))
    assert not [str(job) for job, result in results.items() if result.status == "failed"]
    for job, result in results.items():
        assert (shown(job) == "-") == (result.status == "refused"), job
        if not job.switch:
            assert shown(job) == mark(*job.plugins, results), job
