import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from timm.utils.agc import adaptive_clip_grad
from trainkit_plugins.grad_clip import clip_by_global_norm, gradient_of, local_smoothness, snapshot
from trainkit_plugins.grad_clip.plugin import GradClip, SmoothnessMonitor

from trainkit import History, Plugin, Record, hookimpl
from trainkit.testing import Case

FLAT = {"model": {"args": {"drop_rate": 0.0}}}


def merged(*parts):
    found = {}
    for part in parts:
        for key, value in part.items():
            found[key] = found.get(key, {}) | value if isinstance(value, dict) else value
    return found


def train(plugin, options, *parts, observers=()):
    return Case(plugin, options, recipe=merged(*parts)).train(observers=observers)


def series(trace, name):
    return trace.history.series(name)[1]


class Watch:
    """Looks at the gradients before and after clipping, from outside the plugin."""

    def __init__(self, clip):
        self.clip, self.agreed = clip, []

    @hookimpl(tryfirst=True)
    def before_optimizer_step(self, model):
        params = [p for p in model.parameters() if p.grad is not None]
        kept = snapshot(p.grad for p in params)
        self.clip(model, params)
        self.expected = snapshot(p.grad for p in params)
        for p, g in zip(params, kept, strict=True):
            p.grad.copy_(g)

    @hookimpl
    def after_optimizer_step(self, model):
        found = [p.grad for p in model.parameters() if p.grad is not None]
        self.agreed.append(all(map(torch.allclose, found, self.expected)))


def by_norm(model, params):
    clip_by_global_norm(params, 2.0)


def by_value(model, params):
    torch.nn.utils.clip_grad_value_(params, 0.01)


def adaptively(model, params):
    adaptive_clip_grad([p for p in params if p not in set(model.fc.parameters())])


@pytest.mark.parametrize(
    "train_spec", [{}, {"accumulate": 2}, {"precision": "bf16"}], ids=["plain", "windows", "bf16"]
)
@pytest.mark.parametrize(
    ("options", "clip"),
    [
        ({"max_norm": 2.0}, by_norm),
        ({"mode": "value", "max_value": 0.01}, by_value),
        ({"mode": "adaptive"}, adaptively),
    ],
    ids=["norm", "value", "adaptive"],
)
def test_the_optimizer_gets_gradients_clipped_once_per_step(options, clip, train_spec):
    watch = Watch(clip)
    trace = train(GradClip, options, {"train": train_spec}, observers=[watch])
    assert len(watch.agreed) == trace.state["step"]
    assert all(watch.agreed)
    before, after, clipped = (
        series(trace, f"grad_clip/{n}") for n in ("norm_before", "norm_after", "clipped")
    )
    assert [b > a for a, b in zip(after, before, strict=True)] == [c == 1.0 for c in clipped]
    assert any(clipped)
    assert max(after) <= 2.0 or "mode" in options


def test_options_of_another_mode_are_refused_unless_they_are_the_defaults():
    with pytest.raises(
        ValidationError, match="max_norm does nothing in mode value; drop it, or set mode to norm"
    ):
        GradClip(mode="value", max_norm=0.5)
    with pytest.raises(
        ValidationError, match="factor does nothing in mode norm; drop it, or set mode to adaptive"
    ):
        GradClip(factor=0.5)
    written = GradClip(mode="adaptive", factor=0.1).model_dump()
    assert GradClip(**written).model_dump() == written


def test_what_a_plan_says():
    lines = {}
    for options in ({"max_norm": 0.5}, {"mode": "value"}, {"mode": "adaptive"}):
        Case(GradClip, options).train(
            begun=lambda run, _: lines.update({run.plugins["grad_clip"].mode: explain(run)})
        )
    assert lines["norm"] == ["joint norm of the gradients of 47 tensors: at most 0.5"]
    assert lines["value"] == ["each entry of a gradient: between -0.1 and 0.1"]
    assert lines["adaptive"] == [
        "gradient norm of each unit: at most 0.01 of its weights'; not clipped: fc"
    ]


def explain(run):
    (plugin,) = run.plugins.values()
    return plugin.explain(run)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_measured_gradient_is_the_one_that_made_the_step(accumulate, precision):
    # Windows of 2 x 8 and 1 x 8 or 3 images: each micro-batch must count by its size.
    spec = {
        "train": {"accumulate": accumulate, "precision": precision},
        "data": {"drop_last": False},
    }
    trace = train(
        SmoothnessMonitor, {"every": 1}, FLAT, spec, {"plugins": {"grad_clip": {"max_norm": 0.5}}}
    )
    steps, rows = trace.history.together("smoothness/gradient_norm", "grad_clip/norm_before")
    # In fp16 the first steps overflow and are not taken, so there is nothing to measure.
    taken = [
        at
        for at, norm in zip(*trace.history.series("grad_clip/norm_before"), strict=True)
        if math.isfinite(norm)
    ]
    assert steps == taken
    assert len(taken) == trace.state["step"] or (precision == "fp16" and len(taken) >= 2)
    for measured, used in rows:
        assert measured == pytest.approx(used, rel=1e-3 if precision == "fp16" else 1e-6)


class ByHand(Plugin):
    """Measures each step as the monitor should, from copies that it takes itself."""

    citation = ""

    @hookimpl
    def before_optimizer_step(self, model):
        self.__dict__["start"] = snapshot(model.parameters())

    @hookimpl
    def after_optimizer_step(self, model, batch, run):
        params = list(model.parameters())
        buffers = snapshot(model.buffers())
        gradient = gradient_of(
            lambda: run.hook.compute_loss(model=model, batch=batch, run=run), params
        )
        found = local_smoothness(gradient, params, self.__dict__["start"], grid=(0.25, 0.5, 0.75))
        for buffer, value in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(value)
        run.log.record("by_hand/smoothness", found.smoothness)
        run.log.record("by_hand/step_norm", found.step_norm)


def test_the_measurement_is_that_of_the_function_on_the_steps_own_batch():
    case = {"plugins": {f"{__file__}:ByHand": {}}}
    trace = train(SmoothnessMonitor, {"every": 2, "points": 3}, FLAT, case)
    steps, rows = trace.history.together(
        "smoothness/smoothness", "by_hand/smoothness", "smoothness/step_norm", "by_hand/step_norm"
    )
    assert steps == [2, 4, 6]
    for smoothness, by_hand, step, step_by_hand in rows:
        assert smoothness == pytest.approx(by_hand, rel=1e-6)
        assert step == pytest.approx(step_by_hand, rel=1e-6)


def test_a_fixed_batch_is_the_same_at_every_measurement_and_in_any_run():
    # With a learning rate of almost 0 the fixed gradient stays what it was, the step's own changes
    # with its batch.
    still = {"optimizer": {"lr": 1e-8}, "scheduler": {"name": "constant", "warmup_epochs": 0}}
    fixed = train(SmoothnessMonitor, {"every": 1, "batch": 20}, FLAT, still)
    rare = train(SmoothnessMonitor, {"every": 3, "batch": 20}, FLAT, still)
    own = train(SmoothnessMonitor, {"every": 1}, FLAT, still)
    norms = series(fixed, "smoothness/gradient_norm")
    assert norms == pytest.approx([norms[0]] * len(norms), rel=1e-3)
    assert series(rare, "smoothness/gradient_norm") == norms[2::3]
    changing = series(own, "smoothness/gradient_norm")
    assert max(changing) / min(changing) > 1.05


def test_a_step_that_goes_nowhere_is_not_measured():
    trace = train(SmoothnessMonitor, {"every": 1}, {"optimizer": {"lr": 1e-30}})
    assert series(trace, "smoothness/smoothness") == []


class Chatty(Plugin):
    """Draws from a generator of its own, and logs, whenever a loss is computed."""

    citation = ""

    @hookimpl(wrapper=True)
    def compute_loss(self, run):
        loss = yield
        noise = torch.rand((), generator=self.generator())
        run.log.record("chatty/noise", noise)
        return loss + noise * loss


@pytest.mark.parametrize(
    "options", [{"every": 1}, {"every": 1, "batch": 20}, {"every": 2, "points": 2}]
)
def test_other_plugins_do_not_notice_the_measurement(options):
    case = Case(SmoothnessMonitor, options, recipe={"plugins": {f"{__file__}:Chatty": {}}})
    watched, quiet = case.train(), case.train(on=False)
    assert series(watched, "chatty/noise") == series(quiet, "chatty/noise")
    assert series(watched, "loss") == series(quiet, "loss")
    assert len(set(series(quiet, "chatty/noise"))) > 3


def test_gradient_checkpointing_and_channels_last():
    spec = {"train": {"grad_checkpointing": True, "channels_last": True}}
    trace = train(SmoothnessMonitor, {"every": 1}, FLAT, spec)
    plain = train(SmoothnessMonitor, {"every": 1}, FLAT)
    assert series(trace, "smoothness/smoothness") == pytest.approx(
        series(plain, "smoothness/smoothness"), rel=0.05
    )


@pytest.mark.parametrize("batch", [0, -3, "some", 2.5])
def test_a_batch_that_is_no_number_of_examples_is_refused(batch):
    with pytest.raises(ValidationError, match="batch"):
        SmoothnessMonitor(batch=batch)


def history(rows):
    return History([Record(i + 1, 0, row) for i, row in enumerate(rows)])


def clip_row(before, limit=1.0):
    after = min(before, limit) if math.isfinite(before) else before
    return {
        "grad_clip/norm_before": before,
        "grad_clip/norm_after": after,
        "grad_clip/clipped": float(after < before),
    }


def smooth_row(norm, smoothness):
    return {"smoothness/gradient_norm": norm, "smoothness/smoothness": smoothness}


@pytest.mark.parametrize("count", [1, 5, 2000])
def test_the_report_of_clipping(count):
    norms = [0.5 + 1.5 * (i % 4 == 0) for i in range(count)]
    (section,) = GradClip().report(history([clip_row(n) for n in [*norms, math.inf, math.nan]]))
    share = sum(n > 1 for n in norms) / count
    assert f"{share:.1%} of {count:,} steps were clipped" in section.text
    assert "At 2 further steps it was not finite, and nothing was clipped." in section.text
    top, bottom = section.figures[0].axes
    assert [line.get_label() for line in top.lines] == [
        "before clipping",
        "after clipping",
        "threshold 1",
    ]
    assert top.dataLim.ymax == max(norms)  # also where 400 medians stand for 2000 steps
    assert max(top.lines[1].get_ydata()) <= 1
    assert len(top.lines[0].get_xdata()) == min(count, 400)
    shares, edges, _ = bottom.patches[0].get_data()
    widths = [b - a for a, b in itertools.pairwise(edges)]
    assert sum(s * w for s, w in zip(shares, widths, strict=True)) / sum(widths) == pytest.approx(
        share, abs=1e-9
    )


def test_a_report_without_a_threshold_or_without_numbers():
    (section,) = GradClip(max_norm=math.inf).report(
        history([clip_row(n, math.inf) for n in (1.0, 2.0, 0.0)])
    )
    assert len(section.figures[0].axes[0].lines) == 2
    assert section.text.startswith("0.0% of 3 steps")
    assert GradClip().report(history([clip_row(math.nan)])) == []
    assert GradClip().report(history([{"loss": 1.0}])) == []


def test_the_report_of_smoothness():
    norms = [10 ** (i / 20 - 1) for i in range(40)]
    rows = [smooth_row(g, 1 + 2 * g) for g in norms] + [smooth_row(1.0, math.nan)]
    (section,) = SmoothnessMonitor().report(history(rows))
    table = {row[0]: row[1:] for row in section.table}
    assert table["L0, the part that does not depend on the norm"][0] == "1"
    assert table["L1, the part proportional to the norm"][0] == "2"
    above = sum(g > 0.5 for g in norms) / 40
    assert table["threshold by theory, min(10 L0, L0/L1)"] == [
        "0.5",
        f"would clip {above:.1%} of steps",
    ]
    scatter, _bar = section.figures[0].axes
    assert len(scatter.collections[0].get_offsets()) == 40
    assert scatter.lines[0].get_label() == "1 + 2 · norm"
    assert list(scatter.lines[0].get_ydata()) == pytest.approx(
        [1 + 2 * g for g in scatter.lines[0].get_xdata()]
    )


def test_thresholds_are_judged_by_every_norm_that_clipping_logged():
    rows = [smooth_row(g, g) | clip_row(g) for g in (1.0, 2.0, 3.0)] + [clip_row(9.0)] * 97
    (section,) = SmoothnessMonitor().report(history(rows))
    table = {row[0]: row[1:] for row in section.table}
    assert table["threshold by quantile, 90% of the norms"] == ["9", "would clip 0.0% of steps"]
    assert table["threshold by theory, min(10 L0, L0/L1)"] == [
        "none (L0 is 0)",
        "would clip 100.0% of steps",
    ]


@pytest.mark.parametrize("rows", [[], [smooth_row(1.0, 2.0)] * 2, [smooth_row(1.0, 2.0)] * 9])
def test_a_report_of_too_little_says_so(rows):
    (section,) = SmoothnessMonitor().report(history(rows))
    assert section.text.startswith(f"No line can be fitted to {len(rows)} measurements: ")
    assert not section.figures


RECIPE = """\
seed: 0
model: {name: test_vit, in_chans: 1}
data: {name: digits, image_size: 32, batch_size: %d, drop_last: true}
train: {epochs: 1, device: cpu, accumulate: 2}
plugins:
  grad_clip: {max_norm: 0.5}
  smoothness: {every: 3, points: 2, batch: %s}
"""


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["same", "200"])
def test_two_ranks_measure_what_one_measures_on_the_same_global_batch(tmp_path: Path, batch):
    logs = []
    for ranks, size in ((1, 128), (2, 64)):
        recipe, folder = tmp_path / f"{ranks}.yaml", tmp_path / f"run{ranks}"
        recipe.write_text(RECIPE % (size, batch))
        launch = ["-m", "torch.distributed.run", "--nproc-per-node", "2"] if ranks == 2 else []
        command = [
            sys.executable,
            *launch,
            "-m",
            "trainkit",
            "train",
            str(recipe),
            "--run-dir",
            str(folder),
        ]
        subprocess.run(command, check=True, capture_output=True)
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        logs.append([row for row in map(json.loads, lines) if "loss" in row])
    assert any("smoothness/smoothness" in row for row in logs[0])
    for one, two in zip(*logs, strict=True):
        for name, value in one.items():
            if name.startswith(("smoothness/", "grad_clip/norm")):
                assert two[name] == pytest.approx(value, rel=1e-3), (one["step"], name)
