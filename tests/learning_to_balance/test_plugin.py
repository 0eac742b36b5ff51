"""The `learning_to_balance` plugin in runs of `maml`."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from trainkit_plugins.learning_to_balance.plugin import LearningToBalance
from trainkit_plugins.maml.outer import predict_task

from tests.reference.tiny import train
from trainkit import UserError
from trainkit.errors import RecipeError
from trainkit.log.history import History
from trainkit.training.build import build, compose

RECIPE = """\
seed: 3
model: {name: conv4, in_chans: 1, args: {channels: 4}}
data: {name: digits, image_size: 16}
train: {epochs: 2, device: cpu}
optimizer: {name: adamw, lr: 1e-2, weight_decay: 0.1}
plugins:
  maml: {ways: 3, max_shot: 4, queries: 2, tasks: 2, steps: 2, steps_per_epoch: 2,
      val_episodes: 4, test_episodes: 4}
  learning_to_balance: {draws: 2}
"""


@pytest.fixture
def recipe(write: Callable[..., Path]) -> Path:
    return write(RECIPE)


def trained(recipe, *overrides):
    return train(compose(recipe, overrides))[0]


def state(run):
    return dict(run.model.state_dict())


def backbone(run):
    return {n: v for n, v in state(run).items() if not n.startswith("meta.")}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_it_needs_maml(recipe):
    with pytest.raises(
        RecipeError, match=r"recipe.yaml:\d+: plugins.learning_to_balance: needs the plugin maml"
    ):
        compose(recipe, ["~plugins.maml"])


def test_every_part_of_the_network_is_trained_and_none_decays(recipe):
    before = {
        n: v.clone() for n, v in state(build(compose(recipe))).items() if n.startswith("meta.")
    }
    run = trained(recipe)
    assert len(before) == 32
    for name, value in before.items():
        assert not torch.equal(value, state(run)[name]), name
    own = {id(p) for p in run.model.meta["learning_to_balance"].parameters()}
    decays = {
        group["weight_decay"]
        for g in [run.optimizer.param_groups]
        for group in g
        if id(group["params"][0]) in own
    }
    assert decays == {0.0}


def test_with_everything_off_it_equals_maml_bit_for_bit(recipe):
    off = [f"plugins.learning_to_balance.{o}" for o in ("omega=uniform", "gamma=false", "z=false")]
    assert same(
        state(trained(recipe, *off)), state(trained(recipe, "~plugins.learning_to_balance"))
    )


class AtPriorMean:
    """Makes every latent zero, whatever the support set: the means, and the deviations of the
    draws.
    """

    def __init__(self, monkeypatch):
        from trainkit_plugins.learning_to_balance import posterior

        zero = lambda self, generator: torch.zeros_like(self.mu)  # noqa: E731
        monkeypatch.setattr(posterior.DiagonalNormal, "sample", zero)
        monkeypatch.setattr(
            posterior.Posterior, "mean", lambda self: self.sample(torch.Generator())
        )


@pytest.mark.parametrize("step_sizes", [[], ["plugins.meta_sgd={}"]])
def test_with_every_latent_at_the_prior_mean_it_equals_maml_and_meta_sgd_bit_for_bit(
    recipe, monkeypatch, step_sizes
):
    plain = backbone(trained(recipe, "~plugins.learning_to_balance", *step_sizes))
    AtPriorMean(monkeypatch)
    assert same(backbone(trained(recipe, *step_sizes)), plain)


@pytest.mark.parametrize("on", ["omega", "gamma", "z"])
def test_each_variable_alone_changes_training(recipe, on):
    off = {"omega": "omega=uniform", "gamma": "gamma=false", "z": "z=false"}
    chosen = [f"plugins.learning_to_balance.{o}" for name, o in off.items() if name != on]
    run = trained(recipe, *chosen)
    heads = {n.split(".")[2] for n in state(run) if n.startswith("meta.")} & set(off)
    assert heads == {on}
    assert not same(backbone(run), backbone(trained(recipe, "~plugins.learning_to_balance")))


def test_multipliers_act_on_learned_step_sizes(recipe):
    run = build(compose(recipe, ["plugins.meta_sgd={initial: 0.2}"]))
    with torch.no_grad():
        run.model.meta["learning_to_balance"].gamma.mu.weight.zero_()
        run.model.meta["learning_to_balance"].gamma.mu.bias.fill_(math.log(2))
    plan = run.plugins["maml"]._plan_of(run.model, next(iter(run.data.val))[0], "validate", 0, run)
    for name in plan.adapt:
        shape = run.model.get_parameter(name).shape
        torch.testing.assert_close(plan.step_sizes[name].expand(shape), torch.full(shape, 0.4))


def test_weights_by_inverse_frequency_need_no_network(recipe):
    chosen = [
        f"plugins.learning_to_balance.{o}" for o in ("omega=inverse", "gamma=false", "z=false")
    ]
    run, plain = trained(recipe, *chosen), trained(recipe, "~plugins.learning_to_balance")
    assert state(run).keys() == state(plain).keys()
    assert not same(state(run), state(plain))
    # With equal shots they are uniform.
    equal = ["plugins.maml.max_shot=null", "plugins.maml.shots=2"]
    assert same(
        state(trained(recipe, *chosen, *equal)),
        state(trained(recipe, "~plugins.learning_to_balance", *equal)),
    )


def test_the_divergence_is_part_of_the_loss(recipe, tmp_path):
    losses = {}
    for weight in (0, 1, 3):
        folder = tmp_path / str(weight)
        folder.mkdir()
        train(
            compose(recipe, [f"plugins.learning_to_balance.kl_weight={weight}", "train.epochs=1"]),
            folder,
        )
        history = History.read(folder / "metrics.jsonl")
        losses[weight] = history.series("loss")[1][0]
        parts = [
            history.series(f"learning_to_balance/kl_{name}")[1][0]
            for name in ("omega", "gamma", "z")
        ]
    assert parts == pytest.approx([0.1067 * d for d in (3, 5, 32)], rel=0.05)
    assert losses[1] - losses[0] > 0
    assert losses[3] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-4)
    # sum(parts) / (N + M), averaged over two tasks of 3 to 12 and 6 images.
    assert sum(parts) / 18 < losses[1] - losses[0] < sum(parts) / 9


def test_tasks_on_threads_and_in_micro_batches_give_the_same_bits(recipe):
    one = ["plugins.maml.test_episodes=0", "plugins.maml.tasks=4", "train.epochs=1"]
    alone = trained(recipe, *one, "plugins.maml.workers=1")
    assert same(state(alone), state(trained(recipe, *one, "plugins.maml.workers=3")))
    halves = state(trained(recipe, *one, "train.accumulate=2"))
    for name, value in state(alone).items():
        if not re.fullmatch(
            r"conv\d.bias", name
        ):  # before batch statistics: its gradient is rounding noise
            torch.testing.assert_close(halves[name], value, rtol=1e-3, atol=1e-4)


def test_validation_uses_the_mean_and_the_test_several_draws(recipe, monkeypatch):
    from trainkit_plugins.learning_to_balance.posterior import Posterior

    calls = []
    for name in ("mean", "sample"):
        method = getattr(Posterior, name)
        monkeypatch.setattr(
            Posterior, name, lambda self, *a, m=method, n=name: calls.append(n) or m(self, *a)
        )
    monkeypatch.setattr(LearningToBalance, "_watch", lambda self, *a: None)
    trained(recipe, "train.epochs=1")
    assert calls == ["sample"] * 4 + ["mean"] * 4 + ["sample"] * 8


def test_draws_average_probabilities(recipe):
    run = build(compose(recipe, ["plugins.learning_to_balance.draws=3"]))
    maml, (episode, *_) = run.plugins["maml"], next(iter(run.data.val))
    with torch.no_grad():  # as initialized all draws predict alike
        run.model.meta["learning_to_balance"].gamma.rho.bias.fill_(2.0)
    (found,) = maml.predict_tasks(run.model, [episode], "test", run)
    plans = [maml._plan_of(run.model, episode, "test", draw, run) for draw in range(3)]
    loop = maml._loop(run, 2)
    logits = [
        predict_task(run.model, plan, episode.support, episode.query.inputs, loop) for plan in plans
    ]
    probabilities = torch.stack([z.softmax(1) for z in logits])
    assert probabilities.std(0).max() > 1e-3
    torch.testing.assert_close(found.softmax(1), probabilities.mean(0))
    assert not torch.allclose(found.softmax(1), torch.stack(logits).mean(0).softmax(1), atol=1e-5)
    assert [plan.predictive_draws for plan in plans] == [3, 3, 3]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["plugins.learning_to_balance.max_shot=1"], "max_shot: .*greater than or equal to 2"),
        (
            ["plugins.learning_to_balance.omega=off"],
            "omega: should be 'learned', 'inverse' or 'uniform'",
        ),
        (["plugins.learning_to_balance.gama=true"], "no such option; did you mean 'gamma'"),
    ],
)
def test_wrong_options_are_refused_with_their_place(recipe, overrides, said):
    with pytest.raises(RecipeError, match=said):
        compose(recipe, overrides)


def test_a_model_without_groups_is_refused(recipe, monkeypatch):
    from trainkit_plugins.maml import Conv4

    monkeypatch.delattr(Conv4, "group_matcher")
    with pytest.raises(
        UserError,
        match=r"recipe.yaml:9: plugins.learning_to_balance: Conv4 does not say which param",
    ):
        build(compose(recipe))


def test_what_a_plan_says(recipe):
    run = build(compose(recipe))
    lines = run.plugins["learning_to_balance"].explain(run)
    assert lines[1] == "step multipliers: conv1, conv2, conv3, conv4, head"
    assert lines[2] == "modulation: 32 channels of weights and biases of 4 layers"
    assert lines[3].endswith("divergence at the start about 4.3 nats a task")


def layout(name, **options):
    model = timm.create_model(name, num_classes=3)
    plugin = LearningToBalance(**options)
    return model, plugin._lay_out(model, None)


@pytest.mark.parametrize(
    ("name", "labels", "channels"),
    [
        ("resnet10t", ("conv1", "layer1.0", "layer2.0", "layer3.0", "layer4.0", "fc"), 2_936),
        ("resnet18", None, 4_800),
    ],
)
def test_groups_and_channels_of_timm_models(name, labels, channels):
    model, found = layout(name)
    assert labels is None or found.labels == labels
    assert found.channels == channels
    assert not found.shifted  # convolutions without bias
    assert not any(n.startswith("fc") for n in found.scaled)
    assert {n for n, p in model.named_parameters() if p.ndim > 1} <= found.groups.keys()


def test_modulation_of_the_last_stage_or_of_norms():
    _, found = layout("resnet10t", z_layers="last_stage")
    assert {n.split(".")[0] for n in found.scaled} == {"layer4"}
    model, found = layout("resnet10t", z_layers="norms")
    norms = {n for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert {n.rpartition(".")[0] for n in found.scaled} == norms
    assert found.scaled == tuple(n.replace(".bias", ".weight") for n in found.shifted)
    _, coarse = layout("resnet18", groups="stages")
    _, fine = layout("resnet18")
    assert len(coarse.labels) == 6
    assert len(fine.labels) == 10


def test_a_vision_transformer_has_groups_too():
    _, found = layout("test_vit")
    assert found.labels[-1] == "head"
    assert found.channels == sum(
        len(p)
        for n, p in timm.create_model("test_vit").named_parameters()
        if n in (*found.scaled, *found.shifted)
    )
    assert "patch_embed.proj.weight" in found.scaled
