"""The interval of the few-shot study, and what its table compares."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from trainkit_data.few_shot import class_pool
from trainkit_plugins.maml.episodes import EpisodeSampler

from benchmarks import few_shot_baselines
from benchmarks.few_shot_study import main, mean_interval, read, table
from trainkit.training.build import compose


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
        values = (
            rng.normal(0, seed_sd, (3, 1))
            + rng.normal(0, task_sd, (1, 60))
            + rng.normal(size=(3, 60))
        )
        mean, half = mean_interval(values)
        held += abs(mean) <= half
    assert (
        0.91 <= held / 1000 <= 0.985
    )  # a little wide where seeds hardly differ, a little short where they do much


def test_differences_are_paired_by_task_and_seed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(2)
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for seed in range(2):
            found = rng.uniform(0.5, 0.9, 30)
            for arm, shift in (("first", 0.0), ("second", 0.05)):
                row = {
                    "arm": arm,
                    "seed": seed,
                    "seconds": 3,
                    "accuracies": {"test": (found + shift).tolist()},
                }
                file.write(json.dumps(row) + "\n")
    table(read(path))
    second = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("second")
    )
    assert "+5.00 ± 0.00" in second
    assert "seeds 0, 1; 3 s each" in second
    assert read(tmp_path / "none.jsonl") == []


RECIPE = """\
model: {name: conv4, in_chans: 1, args: {channels: 4}}
data: {name: digits, image_size: 16}
train: {epochs: 1, device: cpu}
plugins:
  maml: {ways: 2, queries: 3, steps: 1, tasks: 2, steps_per_epoch: 2, val_episodes: 2,
      test_episodes: 3}
"""


@pytest.mark.slow
def test_arms_are_trained_once_for_each_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    arms = [
        f"{name}={tmp_path / 'tiny.yaml'} plugins.maml.order={name}" for name in ("second", "first")
    ]
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(
        "sys.argv", ["study", str(out), *arms, "--seeds", "1", "--set", "optimizer.lr=0.1"]
    )
    main()
    rows = read(out)
    assert [(row["arm"], row["seed"], len(row["accuracies"]["test"])) for row in rows] == [
        ("second", 1, 3),
        ("first", 1, 3),
    ]
    assert rows[1]["overrides"] == ["optimizer.lr=0.1", "plugins.maml.order=first"]
    assert "minus the first" in capsys.readouterr().out
    main()
    assert read(out) == rows


def test_baselines_are_measured_on_the_tasks_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    out = tmp_path / "out.jsonl"
    monkeypatch.setattr(few_shot_baselines, "BATCH", 256)
    monkeypatch.setattr(few_shot_baselines, "STEPS", {"head": (1, 3), "all": (1, 2)})
    arguments = ["--task", "1", str(out), "--seeds", "0", "--epochs", "1", "--val-episodes", "2"]
    monkeypatch.setattr("sys.argv", ["baselines", str(tmp_path / "tiny.yaml"), *arguments])
    few_shot_baselines.main()
    rows = read(out)
    assert [row["arm"] for row in rows] == [
        "pixels, nearest centroid",
        "pre-trained, nearest centroid",
        "pre-trained, classifier fine-tuned",
        "pre-trained, fine-tuned",
        "untrained, classifier fine-tuned",
        "untrained, fine-tuned",
    ]
    pool = class_pool(compose(tmp_path / "tiny.yaml").recipe, "test")
    for number, found in enumerate(rows[0]["accuracies"]["test"]):
        support, query = EpisodeSampler(2, 3, shots=1).episode(
            pool, "test", number
        )  # the very tasks that maml tests on
        nearest = torch.cdist(query.inputs.flatten(1), support.inputs.flatten(1)).argmin(1)
        assert found == pytest.approx((nearest == query.targets).float().mean().item())
