"""The plugins in runs on data with gaps: what is learned, resuming, kept weights, ranks, plan,
report, messages.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from trainkit_plugins.sparsity_norm import sparsity_bias
from trainkit_plugins.sparsity_norm.monitor import SparsityBiasMonitor
from trainkit_plugins.sparsity_norm.plugin import _inputs

from tests.reference.sparsity_norm import mean_count
from tests.reference.tiny import train
from trainkit import History, Run
from trainkit.commands.plan import make_plan
from trainkit.commands.session import open_run, resume, start
from trainkit.commands.verify import differences
from trainkit.errors import Interrupted, RecipeError, UserError
from trainkit.log.records import Record
from trainkit.training.build import build, compose
from trainkit.training.checkpoint import read_state
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.loop import evaluate, fit

Write = Callable[..., Path]

TABLE = """\
seed: 1
model: {{name: mlp, args: {{hidden: [8], drop_rate: 0.1}}}}
data: {{name: table, path: {path}, batch_size: 16, missing: {{kind: at_random, rate: [0.1, 0.8]}}}}
train: {{epochs: 2, device: cpu, log_every: 3}}
optimizer: {{lr: 1e-2}}
plugins:
  sparsity_norm: {options}
"""
DIGITS = """\
model: {{name: test_resnet, in_chans: 1}}
data:
  {{name: digits, image_size: 32, batch_size: 8, val_fraction: 0.95, missing: {{kind: blocks,
      rate: [0.2, 0.9]}}}}
train: {{epochs: 1, device: cpu, evaluate_every: 1}}
plugins:
  sparsity_norm: {options}
"""


def table(write: Write, options: str = "{}", more: str = "", path: str = "wine") -> Path:
    return write(TABLE.format(path=path, options=options) + more)


def training_rows(run: Run) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in run.data.train.batches(0, 0)])


ALL = [
    "{}",
    "{center: false}",
    "{k: 4}",
    "{method: zero, center: false}",
    "{method: zero}",
    "{method: mean}",
    "{method: zero_and_mask}",
    "{method: inverted_dropout}",
]


@pytest.mark.parametrize("options", ALL)
def test_every_method_trains_on_rows_with_gaps(write: Write, options: str) -> None:
    _, checkpointer = train(compose(table(write, options)))
    assert all(math.isfinite(value) for value in checkpointer.outcome.final.values())
    assert checkpointer.outcome.final["nll"] < math.log(3)


@pytest.mark.parametrize(
    "options", ["{}", "{method: zero_and_mask}", "{mask: pixel, per: channel}"]
)
def test_every_method_trains_on_images_with_gaps(write: Write, options: str) -> None:
    _, checkpointer = train(compose(write(DIGITS.format(options=options))))
    assert all(math.isfinite(value) for value in checkpointer.outcome.final.values())


def test_k_and_means_come_from_the_training_rows_alone(write: Write) -> None:
    run = build(compose(table(write)))
    rows = training_rows(run)
    layer: Any = run.model.sparsity_norm
    assert layer.k.item() == pytest.approx(mean_count(rows.tolist()))
    torch.testing.assert_close(layer.mean, rows.double().nanmean(dim=0).float())
    val = torch.cat([batch.inputs for batch in run.data.val])
    assert mean_count(val.tolist()) != pytest.approx(layer.k.item())


def test_what_is_learned_stays_as_it_is_while_training(write: Write) -> None:
    setup = compose(table(write, "{}", "  ema: {}\n"))
    fresh = build(compose(table(write))).model.sparsity_norm
    run, _ = train(setup)
    assert not list(
        differences(dict(run.model.sparsity_norm.state_dict()), dict(fresh.state_dict()))
    )


@pytest.mark.parametrize("options", ["{}", "{method: zero_and_mask}"])
def test_stopped_and_gone_on_is_never_stopped(write: Write, tmp_path: Path, options: str) -> None:
    recipe = table(write, options, "  sparsity_bias: {}\n")
    whole = start(recipe, [], tmp_path / "whole", []).folder
    setup = compose(recipe)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    run = build(setup, stopped)
    (stopped / "recipe.yaml").write_text(setup.recipe.dump())
    with pytest.raises(Interrupted):
        fit(run, Checkpointer(stopped, run), until=4)
    resume(stopped, [])
    one, two = (read_state(folder / "checkpoints" / "last.pt") for folder in (whole, stopped))
    for part in ("model", "optimizer", "plugins", "random"):
        assert not list(differences(one[part], two[part])), part
    lines = [(folder / "metrics.jsonl").read_text() for folder in (whole, stopped)]
    assert lines[0] == lines[1]


def test_changed_training_rows_are_noticed_when_going_on_and_when_measuring(
    write: Write, tmp_path: Path
) -> None:
    rows = [f"{i},{'' if i % 5 == 0 else i * i},{i % 2}" for i in range(40)]
    path = write("\n".join(["x,y,sick", *rows]) + "\n", "people.csv")
    text = TABLE.replace("missing:", "target: sick, missing:").format(
        path=f"'{path}'", options="{}"
    )
    recipe = write(text)
    folder = start(recipe, [], tmp_path / "run", []).folder
    evaluate(open_run(folder, weights="best"))
    path.write_text("\n".join(["x,y,sick", *(row.replace(",,", ",1,") for row in rows)]) + "\n")
    message = (
        r"sparsity_norm\.k was .* when the weights were saved, and is .* by the training rows here"
    )
    for weights in ("best", "last"):
        with pytest.raises(UserError, match=message):
            evaluate(open_run(folder, weights=weights))


def test_kept_weights_have_timms_names_and_the_layers(write: Write, tmp_path: Path) -> None:
    folder = start(write(DIGITS.format(options="{}")), [], tmp_path / "run", []).folder
    plain = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    weights = load_file(folder / "weights.safetensors")
    assert set(weights) - set(plain.state_dict()) == {"sparsity_norm.k", "sparsity_norm.mean"}
    assert plain.load_state_dict(weights, strict=False).missing_keys == []


def test_full_data_are_left_alone_by_the_neutral_options(write: Write) -> None:
    text = (
        "model: {name: mlp, args: {hidden: [4]}}\ndata: {name: table, path: iris}\ntrain: {epochs: "
        "1, device: cpu}\n"
    )
    plain, _ = train(compose(write(text)))
    neutral, _ = train(compose(write(text + "plugins: {sparsity_norm: {center: false}}\n")))
    same = {
        name: value
        for name, value in neutral.model.state_dict().items()
        if "sparsity_norm" not in name
    }
    assert not list(differences(same, dict(plain.model.state_dict())))


@pytest.mark.slow  # starts two processes that import everything
def test_all_ranks_learn_the_same_k(write: Write, tmp_path: Path) -> None:
    recipe = table(write, "{}", "  sparsity_bias: {}\n")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "-m",
        "trainkit",
        "train",
    ]
    where = {**os.environ, "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "run"
    done = subprocess.run(
        [*command, str(recipe), "data.batch_size=8", "--run-dir", str(folder)],
        env=where, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = build(compose(recipe))
    weights = load_file(folder / "weights.safetensors")
    layer: Any = run.model.sparsity_norm
    # 142 rows by 16: one process and two read the same windows, and the last one whole.
    torch.testing.assert_close(weights["sparsity_norm.k"], layer.k)
    torch.testing.assert_close(weights["sparsity_norm.mean"], layer.mean)
    history = History.read(folder / "metrics.jsonl")
    counts = history.series("sparsity_bias/count")[1][-1]
    assert sorted(counts) == sorted(_counts(run))


def _counts(run: Run) -> list[float]:
    return [float(n) for batch in run.data.val for n in (~batch.inputs.isnan()).sum(dim=1)]


# Plan and messages.


def test_plan_says_what_was_learned_and_what_becomes_of_the_weights(write: Write) -> None:
    plan = make_plan(table(write, "{method: zero_and_mask}"), [])
    (plugin,) = plan["plugins"]
    assert plugin["explains"][0].startswith("learned from 142 training rows: 5")
    assert (
        plugin["explains"][1]
        == "kept weights: timm's keys, and sparsity_norm.mean; plain timm loads them with"
        " strict=False"
    )
    (change,) = plan["model"]["changes"]
    assert "parameters changed in 1 module(s): layers.0" in change["changes"]
    assert "added 1 module(s): sparsity_norm" in change["changes"]


def test_plan_reads_no_data_where_nothing_is_to_be_learned(write: Write) -> None:
    run = build(compose(table(write, "{method: zero, center: false}")))
    assert run.plugins["sparsity_norm"].explain(run) == ["learns nothing from the data"]
    fixed = build(compose(table(write, "{k: 3, center: false}")))
    assert fixed.plugins["sparsity_norm"].explain(fixed) == [
        "learns nothing from the data",
        "kept weights: timm's keys, and sparsity_norm.k; plain timm loads them with strict=False",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{method: zero, k: 3}", "k and per are of method sparsity_norm; leave them out with zero"),
        (
            "{method: mean, center: false}",
            "method mean puts the training means into the gaps; leave center out",
        ),
        ("{k: 0}", "7: plugins.sparsity_norm.k: should be greater than 0; got 0"),
        ("{k: .inf}", "7: plugins.sparsity_norm.k: should be a finite number"),
        ("{k: median}", "7: plugins.sparsity_norm.k: should be 'mean'; got \"median\""),
        (
            "{method: zeros}",
            (
                "plugins.sparsity_norm.method: should be 'sparsity_norm', 'zero', 'mean', "
                "'zero_and_mask'"
            ),
        ),
        (
            "{centre: true}",
            "plugins.sparsity_norm.centre: there is no such option; did you mean 'center'?",
        ),
    ],
)
def test_wrong_options_are_refused_with_their_line(
    write: Write, options: str, message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        compose(table(write, options))
    assert all(line.split("recipe.yaml:")[-1].startswith("7: plugins.sparsity_norm") for line in
               str(caught.value).splitlines())  # fmt: skip
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{per: channel}", "rows of features have no channels to count in; set per to row"),
        ("{mask: pixel}", "rows of features have no pixels; set mask to entry"),
        (
            "{mask: pixel, method: zero, center: false}",
            "rows of features have no pixels; set mask to entry",
        ),
    ],
)
def test_options_for_images_are_refused_for_rows(write: Write, options: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"recipe.yaml:7: plugins.sparsity_norm: .*{message}"):
        build(compose(table(write, options)))


def test_data_that_are_no_batches_are_refused() -> None:
    class Tasks:
        def batches(self, epoch: int, position: int) -> Sequence[dict[str, int]]:
            return [{"support": 1}]

    run: Any = type("R", (), {"data": type("D", (), {"train": Tasks()})()})()
    with pytest.raises(
        ValueError, match="needs batches of inputs and targets, and these data give dict"
    ):
        next(_inputs(run))


# The monitor.

MONITOR = "  sparsity_bias: {options}\n"


def history(folder: Path) -> History:
    return History.read(folder / "metrics.jsonl")


def test_the_monitor_measures_what_the_function_does(write: Write, tmp_path: Path) -> None:
    recipe = table(write, "{method: zero, center: false}", MONITOR.format(options="{points: 7}"))
    run, _ = train(compose(recipe), tmp_path)
    found = history(tmp_path)
    wanted = sparsity_bias(run.model, run.data.val)
    steps, values = found.series("sparsity_bias/correlation")
    assert steps == [1, 9, 18]  # untrained (told with the first step), and after each of two epochs
    assert values[-1] == pytest.approx(wanted.correlation.value, abs=1e-5)
    assert found.series("sparsity_bias/correlation_interval")[1][-1] == pytest.approx(
        wanted.correlation[1:], abs=1e-5
    )
    assert found.series("sparsity_bias/true_correlation")[1][-1] == pytest.approx(
        wanted.true_correlation.value, abs=1e-5
    )
    for name, all_of_it in (
        ("count", wanted.count),
        ("output", wanted.output),
        ("truth", wanted.truth),
    ):
        shown = found.series(f"sparsity_bias/{name}")[1]
        assert len(shown) == 2
        chosen = torch.linspace(0, len(all_of_it) - 1, 7).round().long()
        torch.testing.assert_close(torch.tensor(shown[-1]), all_of_it[chosen], atol=1e-5, rtol=1e-5)


def test_the_report_shows_before_and_after(write: Write, tmp_path: Path) -> None:
    recipe = table(write, "{method: zero, center: false}", MONITOR.format(options="{}"))
    before, after = tmp_path / "zero", tmp_path / "after"
    start(recipe, [], before, [])
    start(
        recipe,
        ["plugins.sparsity_norm.method=sparsity_norm", f"plugins.sparsity_bias.baseline={before}"],
        after,
        [],
    )
    page = (after / "report.html").read_text()
    assert "Output and number of observed entries" in page
    assert "before: zero" in page
    assert "the untrained model" in (before / "report.html").read_text()
    assert "could not" not in page
    rows = SparsityBiasMonitor(baseline=str(before)).model_copy()
    rows.bind("sparsity_bias", 0)
    (section,) = rows.report(history(after))
    assert [row[0] for row in section.table] == ["rows shown", "before: zero", "this run, trained"]
    assert json.dumps(section.table).count("95%") == 4


def test_a_report_without_rows_has_no_section() -> None:
    plugin = SparsityBiasMonitor()
    plugin.bind("sparsity_bias", 0)
    assert plugin.report(History([])) == []
    nothing = {
        "sparsity_bias/count": [0.0],
        "sparsity_bias/output": [math.nan],
        "sparsity_bias/truth": [math.nan],
    }
    (section,) = plugin.report(History([Record(1, 0, nothing)]))
    assert section.table[1][1:] == ["not defined", "not defined"]


def test_a_run_to_compare_with_must_be_there(write: Write) -> None:
    recipe = table(write, "{}", MONITOR.format(options="{baseline: runs/nowhere}"))
    with pytest.raises(
        UserError,
        match=r"recipe.yaml:8: plugins.sparsity_bias.baseline: runs/nowhere is not the folder",
    ):
        train(compose(recipe))


def test_the_monitor_refuses_wrong_options() -> None:
    for options in ({"points": 1}, {"output": "logits"}):
        with pytest.raises(ValidationError):
            SparsityBiasMonitor.model_validate(options)
