"""The interval of the few-shot study, and what its table compares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t as student

from benchmarks.few_shot_study import mean_interval, read, table


def test_with_one_seed_the_interval_is_students_over_tasks() -> None:
    values = np.random.default_rng(0).normal(size=(1, 40))
    mean, half = mean_interval(values)
    assert mean == pytest.approx(values.mean())
    assert half == pytest.approx(student.ppf(0.975, 39) * values.std(ddof=1) / 40**0.5)


def test_seeds_that_agree_add_nothing() -> None:
    one = np.random.default_rng(0).normal(size=(1, 40))
    assert mean_interval(np.repeat(one, 3, 0)) == pytest.approx(mean_interval(one))
    assert mean_interval(np.ones((3, 4))) == (1.0, 0.0)


@pytest.mark.parametrize(("seed_sd", "task_sd"), [(0.0, 1.0), (0.1, 1.0), (1.0, 1.0)])
def test_intervals_hold_the_truth_as_often_as_they_say(seed_sd: float, task_sd: float) -> None:
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(1000):
        values = rng.normal(0, seed_sd, (3, 1)) + rng.normal(0, task_sd, (1, 60)) + rng.normal(size=(3, 60))
        mean, half = mean_interval(values)
        held += abs(mean) <= half
    assert 0.91 <= held / 1000 <= 0.985  # a little wide where seeds hardly differ, a little short where they do much


def test_differences_are_paired_by_task_and_seed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(2)
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for seed in range(2):
            found = rng.uniform(0.5, 0.9, 30)
            for arm, shift in (("first", 0.0), ("second", 0.05)):
                row = {"arm": arm, "seed": seed, "seconds": 3, "accuracies": {"test": (found + shift).tolist()}}
                file.write(json.dumps(row) + "\n")
    table(read(path))
    second = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("second"))
    assert "+5.00 ± 0.00" in second
    assert "seeds 0, 1; 3 s each" in second
    assert read(tmp_path / "none.jsonl") == []
