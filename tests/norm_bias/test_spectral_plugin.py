"""The `spectral_rank` plugin in small trainings: when it acts, on what, and what it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from trainkit_plugins.norm_bias.spectral_rank import Geometry, effective_rank, project, spectrum
from trainkit_plugins.norm_bias.spectral_rank.plugin import SpectralRank

import trainkit.testing
from trainkit import Run, UserError, hookimpl
from trainkit.commands.verify import differences
from trainkit.errors import TrainingError
from trainkit.log.history import History
from trainkit.log.records import Record
from trainkit.testing import Case
from trainkit.testing.training import Trace, make, undisturbed
from trainkit.training.build import build

LAYER = "layer2.0.conv2"


def case(options: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> Case:
    return Case("spectral_rank", options, recipe=recipe or {})


def train(
    options: Mapping[str, Any], recipe: Mapping[str, Any] | None = None, **further: Any
) -> Trace:
    with undisturbed():
        return case(options, recipe).train(**further)


def built(options: Mapping[str, Any], recipe: Mapping[str, Any] | None = None) -> Run:
    with undisturbed():
        return make(case(options, recipe).setup())


class Before:
    """Keeps the weights as the optimizer leaves them at one step, before any plugin."""

    def __init__(self, step: int) -> None:
        self.step, self.weights = step, dict[str, torch.Tensor]()

    @hookimpl(tryfirst=True)
    def after_optimizer_step(self, model: torch.nn.Module, run: Run) -> None:
        if run.step == self.step:
            self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}


@trainkit.testing.parametrize(
    Case("spectral_rank", {"every": 2}),
    Case(
        "spectral_rank",
        {"mode": "minimize", "threshold": 1.0, "every": 1},
        recipe={"model": {"name": "test_vit"}},
    ),
)
def test_spectral_rank_conforms(check):
    check()


@pytest.mark.parametrize(("mode", "threshold"), [("maximize", 0.6), ("minimize", 0.6)])
def test_every_few_steps_each_layer_is_what_the_function_makes_of_it(mode, threshold):
    before = Before(step=6)
    trace = train({"mode": mode, "threshold": threshold, "every": 3}, observers=[before])
    run = built({})
    layers, _ = run.plugins["spectral_rank"]._find(run)
    assert len(layers) > 5
    for layer in layers:
        weight = before.weights[f"{layer.name}.weight"]
        wanted = project(weight, layer.geometry, mode, threshold)
        assert torch.equal(trace.state["model"][f"{layer.name}.weight"], wanted.weight)
        steps, ranks = trace.history.series(f"spectral_rank/effective_rank/{layer.name}")
        assert steps == [3, 6]
        assert ranks[-1] == pytest.approx(wanted.effective_rank.item(), rel=1e-5)
        assert trace.history.series(f"spectral_rank/changed/{layer.name}")[1][-1] == pytest.approx(
            wanted.changed.item()
        )
    touched = {f"{layer.name}.weight" for layer in layers}
    for name, weight in before.weights.items():
        assert name in touched or torch.equal(trace.state["model"][name], weight)


def test_the_geometry_is_that_of_the_real_feature_maps():
    layers, refused = built({}).plugins["spectral_rank"]._find(built({}))
    kinds = {layer.name: layer.kind for layer in layers}
    assert kinds[LAYER].startswith("convolution")
    assert kinds["fc"].startswith("matrix 10 x")
    assert list(refused.values()) == ["the model's first layer"]


def test_measuring_alone_logs_the_effective_rank_and_changes_nothing():
    options = {"mode": "minimize", "threshold": 0.0, "every": 3}
    on, off = train(options), train(options, on=False)
    assert next(differences(on.state["model"], off.state["model"]), None) is None
    run = built(options)
    layer = next(
        layer for layer in run.plugins["spectral_rank"]._find(run)[0] if layer.name == LAYER
    )
    wanted = effective_rank(spectrum(on.state["model"][f"{LAYER}.weight"], layer.geometry)).item()
    assert on.history.series(f"spectral_rank/effective_rank/{LAYER}")[1][-1] == pytest.approx(
        wanted, rel=1e-5
    )
    assert "measures the effective rank of" in run.plugins["spectral_rank"].explain(run)[0]


def test_plan_names_every_layer_and_why_others_are_left_alone():
    options = {"exclude": ["fc", "layer1*"], "mode": "minimize", "threshold": 0.4, "every": 9}
    run = built(options)
    lines = run.plugins["spectral_rank"].explain(run)
    assert lines[0].startswith("every 9 steps: sets to zero singular values below 0.4, in ")
    text = "\n".join(lines)
    assert "left alone, excluded" in text
    for name, p in run.model.named_parameters():
        if p.ndim > 1:
            assert name.removesuffix(".weight") in text, name


def test_what_is_frozen_or_no_layer_is_left_alone_with_its_reason():
    run = built({}, {"model": {"name": "test_vit"}})
    run.model.blocks[0].mlp.fc1.weight.requires_grad = False
    layers, refused = run.plugins["spectral_rank"]._find(run)
    assert refused["blocks.0.mlp.fc1"] == "not trained"
    assert refused["pos_embed"] == "part of VisionTransformer, not a layer's weight"
    assert refused["patch_embed.proj"] == "the model's first layer"
    assert "blocks.0.attn.qkv" in {layer.name for layer in layers}
    assert all(layer.geometry == Geometry() for layer in layers)


def test_a_model_of_which_nothing_is_left_is_refused():
    setup = case({"exclude": ["*"]}).setup()
    with undisturbed():
        run = build(setup)
        with pytest.raises(
            UserError, match=r"spectral_rank.exclude: of test_resnet no layer is left to project"
        ):
            run.hook.on_fit_start(run=run)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "maximize", "threshold": 0}, "threshold 0 would set every weight to zero"),
        ({"threshold": -1}, "threshold"),
        ({"every": 0}, "every"),
        ({"mode": "max"}, "mode"),
    ],
)
def test_options_without_a_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SpectralRank(**options)


@pytest.mark.parametrize("count", [3, 30])
def test_the_report_has_a_line_and_a_row_for_each_layer(count):
    names = [f"layer{i}" for i in range(count)]
    rows = [
        {f"spectral_rank/effective_rank/{n}": 0.9 - 0.1 * step for n in names}
        | {f"spectral_rank/changed/{n}": 0.5 for n in names}
        for step in (1, 2)
    ]
    (section,) = SpectralRank().report(
        History([Record(i, 0, dict(row)) for i, row in enumerate(rows)])
    )
    assert section.table[1:] == [[n, "0.800", "0.700", "50.0%", "50.0%"] for n in names]
    assert len(section.figures[0].axes[0].lines) == count
    assert SpectralRank().report(History([])) == []


class Grows:
    """Makes a layer's weights very large or useless before the plugin looks at them."""

    def __init__(self, value: float) -> None:
        self.value = value

    @hookimpl
    def before_optimizer_step(self, model: torch.nn.Module, run: Run) -> None:
        if run.step == 1:
            with torch.no_grad():
                model.get_parameter(f"{LAYER}.weight").view(-1)[0] = self.value


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("mode", ["maximize", "minimize"])
def test_weights_that_have_no_singular_values_are_named_with_the_step(
    value: float, mode: str
) -> None:
    with pytest.raises(
        TrainingError, match=rf"parameter {LAYER}\.weight holds (nan|inf) after step 2 "
    ):
        train(
            {"every": 2, "mode": mode},
            {"optimizer": {"name": "sgd", "lr": 1e-3}},
            observers=[Grows(value)],
        )
