"""maml and meta_sgd in runs: what they build, log and refuse."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from trainkit_plugins.maml import step_weights
from trainkit_plugins.maml.accuracy import mean_and_interval

from trainkit.commands.session import start
from trainkit.errors import UserError
from trainkit.training.build import build, compose

RECIPE = """\
seed: 0
model: {name: MODEL, in_chans: 1}
data: {name: digits, image_size: 32}
train: {epochs: 1, device: cpu}
optimizer: {name: adam, lr: 1e-3, weight_decay: 0.1}
plugins:
  maml: {ways: 3, queries: 2, tasks: 2, steps: 2, steps_per_epoch: 2, val_episodes: 3,
      test_episodes: 4, OPTIONS}
"""


@pytest.fixture
def recipe(write: Callable[..., Path]) -> Callable[..., Path]:
    def make(options: str = "order: second", model: str = "test_resnet", more: str = "") -> Path:
        text = RECIPE.replace("OPTIONS", options).replace("MODEL", model)
        return write(text + more, "maml.yaml")

    return make


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_ends_with_a_test_whose_interval_is_over_tasks(
    recipe: Callable[..., Path], tmp_path: Path
):
    folder = start(recipe(), (), tmp_path / "run", ()).folder
    rows = metrics(folder)
    tested = next(row for row in rows if "test/accuracy" in row)
    assert len(tested["test/accuracies"]) == 4
    assert (tested["test/accuracy"], tested["test/accuracy_interval"]) == mean_and_interval(
        tested["test/accuracies"]
    )
    assert len(tested["test/accuracy_by_step"]) == 3
    assert any("val/accuracy_interval" in row for row in rows)
    assert any(
        note.startswith("test: accuracy")
        for note in json.loads((folder / "summary.json").read_text())["notes"]
    )
    assert "Test on new classes" in (folder / "report.html").read_text()


def test_the_interval_is_that_of_the_papers():
    mean, half = mean_and_interval([0.2, 0.4, 0.9])
    assert mean == pytest.approx(0.5)
    assert half == pytest.approx(1.96 * (0.13**0.5) / 3**0.5)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("ways: 5", "ways"),
        ("shots: 400", "shot"),
        ("norm_statistics: running, steps: 0, head: zero", "head"),
        ("multi_step_epochs: 3, steps: 1", "multi_step_epochs"),
        ("norm_statistics: per_step, steps: 0", "per_step"),
        ("test_episodes: 1, also_test: {far: {name: nowhere}}", "nowhere"),
    ],
)
def test_impossible_options_are_refused_by_name(
    recipe: Callable[..., Path], options: str, word: str
):
    text = recipe().read_text()
    names = [part.split(":")[0].strip() for part in options.split(", ")]
    for name in names:  # a key may be given once only
        text = re.sub(rf" {name}: [^,}}]+,", "", text)
    path = recipe()
    path.write_text(text.replace("order: second", options))
    with pytest.raises(UserError) as refused:
        build(compose(path))
    assert word in str(refused.value)
    assert "maml.yaml:" in str(refused.value)


def test_running_statistics_need_a_model_that_keeps_them(recipe: Callable[..., Path]):
    with pytest.raises(UserError, match="keeps no running averages"):
        build(compose(recipe("norm_statistics: running", "conv4")))


def test_a_norm_with_one_value_per_channel_in_a_task_is_refused_before_training(
    recipe: Callable[..., Path],
):
    path = recipe(more="  ghost_batch_norm: {size: 1}\n")
    setup = compose(path, ["data.image_size=16"])
    with pytest.raises(UserError, match=r":\d+: plugins.maml.norm_statistics: .* single value"):
        build(setup)


def test_a_model_that_cannot_be_differentiated_twice_is_refused_with_the_way_out(
    recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from trainkit_plugins.maml import operations

    monkeypatch.setattr(
        operations, "_REPLACED", {}
    )  # as if the model had an attention nobody can replace
    with pytest.raises(
        UserError, match=r"maml.order: test_vit has an operation .* set order to first"
    ):
        start(recipe(model="test_vit"), (), tmp_path / "run", ())
    start(recipe("order: first", "test_vit"), (), tmp_path / "first", ())


def test_meta_parameters_do_not_decay_and_plain_timm_loads_the_weights(recipe: Callable[..., Path]):
    run = build(
        compose(
            recipe("norm_statistics: per_step", more="  meta_sgd: {per: layer, each_step: true}\n")
        )
    )
    group = next(g for g in run.optimizer.param_groups if g["name"] == "meta")
    assert group["weight_decay"] == 0
    own = {id(p) for n, p in run.model.named_parameters() if n.startswith("meta.")}
    assert own == {id(p) for p in group["params"]}
    state = {n: t for n, t in run.model.state_dict().items() if not n.startswith("meta.")}
    timm.create_model("test_resnet", in_chans=1, num_classes=3).load_state_dict(state)


def test_step_sizes_at_inner_lr_are_maml_bit_for_bit(recipe: Callable[..., Path]):
    losses = []
    for more in (
        "",
        "  meta_sgd: {per: element}\n",
        "  meta_sgd: {per: tensor}\n",
        "  meta_sgd: {each_step: true}\n",
    ):
        run = build(compose(recipe(more=more)))
        batch = next(run.data.train.batches(0, 0))
        loss = run.hook.compute_loss(model=run.model, batch=batch, run=run)
        loss.backward()
        losses.append(loss.detach())
        alphas = [p for n, p in run.model.named_parameters() if n.startswith("meta.")]
        assert all(p.grad.isfinite().all() for p in alphas)
        assert not alphas or any(
            p.grad.abs().max() > 0 for p in alphas
        )  # a branch that starts at zero has none
        assert bool(alphas) == bool(more)
    assert all(torch.equal(loss, losses[0]) for loss in losses)


def test_step_weights_sum_to_one_and_end_at_the_last_step():
    assert step_weights(4, 0, 10) == pytest.approx([0.25] * 4)
    for epoch in range(12):
        assert sum(step_weights(4, epoch, 10)) == pytest.approx(1)
    early = [step_weights(4, epoch, 10)[0] for epoch in range(10)]
    assert early == sorted(early, reverse=True)
    assert min(early) >= 0.03 / 4
    assert step_weights(4, 10, 10) == [0, 0, 0, 1]


SWEEP = {
    "test_resnet": {}, "test_vit": {}, "test_convnext": {}, "test_vit4": {}, "resnet10t": {},
    "starnet_s050": {},
    "mobilenetv3_small_050": {}, "test_nfnet": {}, "levit_128s": {"img_size": 32},
    "coat_tiny": {"img_size": 32},
    "convit_tiny": {"img_size": 32}, "efficientformerv2_s0": {"img_size": 32},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEP)
def test_models_of_timm_adapt_with_second_order_and_stay_as_they_are(name: str):
    from trainkit_plugins.maml import InnerLoop, Workers, meta_gradient, predict_task

    from tests.reference.tasks import tasks

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3, **SWEEP[name])
    before = {n: t.clone() for n, t in model.state_dict().items()}
    jobs = tasks(model, 1, 0.01)
    parameters = list(model.parameters())
    second = meta_gradient(Workers(model), jobs, parameters, InnerLoop(1))
    first = meta_gradient(Workers(model), jobs, parameters, InnerLoop(1, second_order=False))
    assert all(g.isfinite().all() for g in second.gradients)
    assert torch.equal(second.loss, first.loss)
    assert any(
        not torch.equal(a, b) for a, b in zip(second.gradients, first.gradients, strict=True)
    )
    plan, support, query = jobs[0]
    torch.testing.assert_close(
        predict_task(model, plan, support, query.inputs, InnerLoop(1)),
        second.logits[0],
        rtol=1e-3,
        atol=1e-4,
    )
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
