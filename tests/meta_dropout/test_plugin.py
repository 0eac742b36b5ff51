"""The `meta_dropout` plugin in runs of `maml`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import PrivateAttr
from torch import Tensor
from torch.nn import functional as F
from trainkit_plugins.maml import Conv4
from trainkit_plugins.maml.isolation import backbone_names
from trainkit_plugins.meta_dropout import attach

from tests.reference.tiny import train
from trainkit import Plugin, Run, UserError, hookimpl
from trainkit.errors import Location, RecipeError
from trainkit.hooks.order import Entry
from trainkit.training.build import Setup, build, compose

RECIPE = """\
seed: 3
model: {name: conv4, in_chans: 1, args: {channels: 4}}
data: {name: digits, image_size: 16}
train: {epochs: 2, device: cpu}
optimizer: {name: adamw, lr: 1e-2, weight_decay: 0.1}
plugins:
  maml: {ways: 3, queries: 2, tasks: 2, steps: 2, steps_per_epoch: 2, val_episodes: 3,
      test_episodes: 3, workers: 1}
  meta_dropout: {test_samples: 3}
"""


@pytest.fixture
def recipe(write: Callable[..., Path]) -> Path:
    return write(RECIPE)


class Watch(Plugin):
    """Notes the plan of every task."""

    _seen: list[tuple[str, int, Any]] = PrivateAttr(default_factory=list)

    @hookimpl(wrapper=True)
    def plan_task(self, support: Any, phase: str, run: Run) -> Any:
        plan = yield
        self._seen.append((phase, run.step, plan))
        return plan


def trained(recipe: Path, *overrides: str, first: Sequence[Plugin] = ()) -> Run:
    setup = compose(recipe, overrides)
    return train(
        Setup(
            setup.recipe,
            [*(Entry("watch", plugin, Location("test")) for plugin in first), *setup.entries],
        )
    )[0]


def state(run: Run) -> dict[str, Tensor]:
    return dict(run.model.state_dict())


def test_it_needs_maml(recipe):
    changes = ["~plugins.maml", "model.name=test_resnet", "model.args={}"]
    with pytest.raises(RecipeError) as caught:
        compose(recipe, changes)
    (message,) = str(caught.value).splitlines()
    assert message.endswith(
        "recipe.yaml:9: plugins.meta_dropout: needs the plugin maml; add `maml: {}` to `plugins:`"
    )


def test_the_noise_is_meta_learned_in_every_part(recipe):
    setup = compose(recipe)
    before = {name: value.clone() for name, value in state(build(setup)).items()}
    after = state(trained(recipe))
    assert {name for name in before if name.startswith("meta.meta_dropout.logits")}
    for name, value in before.items():
        assert not torch.equal(value, after[name]), name


def test_no_weight_decay_pulls_the_noise(recipe):
    run = build(compose(recipe))
    own = {id(p) for p in run.model.meta["meta_dropout"].parameters()}
    for group in run.optimizer.param_groups:
        inside = [id(p) in own for p in group["params"]]
        assert all(inside) or not any(inside)
        assert not any(inside) or group["weight_decay"] == 0


@pytest.mark.parametrize(("mode", "gates"), [("sample", True), ("mean", True), ("off", False)])
def test_the_mode_says_what_is_added(recipe, mode, gates):
    run = build(compose(recipe, [f"plugins.meta_dropout.mode={mode}"]))
    names = {
        name.split(".")[2] for name, _ in run.model.named_parameters() if name.startswith("meta.")
    }
    assert names == ({"gates", "logits"} if mode == "sample" else {"gates"} if gates else set())
    assert run.plugins["meta_dropout"].explain(run)


def test_off_equals_maml_bit_for_bit(recipe):
    off, without = (
        state(trained(recipe, change))
        for change in ("plugins.meta_dropout.mode=off", "~plugins.meta_dropout")
    )
    assert off.keys() == without.keys()
    assert all(torch.equal(off[name], value) for name, value in without.items())


def test_off_beside_meta_sgd_is_meta_sgd_and_on_both_learn(recipe):
    with_sgd = "plugins.meta_sgd={}"
    off = state(trained(recipe, with_sgd, "plugins.meta_dropout.mode=off"))
    without, both = (
        state(trained(recipe, with_sgd, "~plugins.meta_dropout")),
        state(trained(recipe, with_sgd)),
    )
    assert off.keys() == without.keys()
    assert all(torch.equal(off[name], value) for name, value in without.items())
    assert {name.split(".")[1] for name in both if name.startswith("meta.")} == {
        "meta_dropout",
        "meta_sgd",
    }
    rates = [name for name in both if name.startswith("meta.meta_sgd")]
    assert any(not torch.equal(both[name], without[name]) for name in rates)


def test_the_kept_weights_fit_a_model_with_the_same_noise(recipe):
    kept = state(trained(recipe, "train.epochs=1"))
    model = Conv4(num_classes=3, in_chans=1, img_size=16, channels=4)
    attach(model, torch.zeros(2, 1, 16, 16))
    model.load_state_dict(kept)


def plans(recipe: Path, *overrides: str) -> dict[str, list[tuple[int, int, int]]]:
    """Return for each phase the step, the seed of the noise and the number of samples of every
    task.
    """
    watch = Watch()
    trained(recipe, *overrides, first=[watch])
    found: dict[str, list[tuple[int, int, int]]] = {}
    for phase, step, plan in watch._seen:
        seed = plan.extras["meta_dropout"].initial_seed()
        found.setdefault(phase, []).append((step, seed, plan.inner_samples))
    return found


def test_samples_are_averaged_in_the_test_alone(recipe):
    samples = {phase: {n for _, _, n in found} for phase, found in plans(recipe).items()}
    assert samples == {"train": {1}, "validate": {1}, "test": {3}}


def test_every_task_has_noise_of_its_own_that_the_recipes_seed_decides(recipe):
    found = plans(recipe)
    seeds = {phase: [seed for _, seed, _ in tasks] for phase, tasks in found.items()}
    assert {phase: len(s) for phase, s in seeds.items()} == {"train": 8, "validate": 6, "test": 3}
    everywhere = [seed for s in seeds.values() for seed in s]
    assert len(set(everywhere)) == len(everywhere)
    assert plans(recipe) == found
    other = plans(recipe, "seed=4")
    assert not {seed for s in other.values() for _, seed, _ in s} & set(everywhere)


def test_a_task_meets_the_same_noise_in_whichever_micro_batch_and_however_often_validated(recipe):
    found = plans(recipe)
    assert plans(recipe, "train.accumulate=2")["train"] == found["train"]
    rarely = plans(recipe, "train.evaluate_every=2")
    assert rarely["train"] == found["train"]
    assert rarely["test"] == found["test"]
    assert rarely["validate"] == found["validate"][3:]


def test_a_task_that_comes_again_meets_other_noise(recipe):
    run = build(compose(recipe))
    plugin, support = run.plugins["meta_dropout"], next(run.data.train.batches(0, 0))[0].support

    def seed(phase: str = "train", draw: int = 0) -> int:
        return plugin._stream(support, phase, draw, run).initial_seed()

    first = seed()
    assert seed() == first
    assert len({first, seed(draw=1), seed("test"), seed("validate")}) == 4
    run.step += 1
    assert seed() != first


def test_tasks_on_threads_give_the_bits_of_tasks_in_turn(recipe):
    shared = ("plugins.maml.tasks=4", "plugins.maml.test_episodes=0", "train.epochs=1")
    alone, together = (state(trained(recipe, f"plugins.maml.workers={n}", *shared)) for n in (1, 3))
    assert all(torch.equal(alone[name], value) for name, value in together.items())


def test_the_query_set_meets_no_noise(recipe):
    """What a task is judged by is the network with its gates at their mean, at the parameters
    after adapting.
    """
    run = build(compose(recipe, ["plugins.maml.steps=0"]))
    episode = next(iter(run.data.val))[0]
    (logits,) = run.plugins["maml"].predict_tasks(run.model, [episode], "validate", run)
    torch.testing.assert_close(logits, run.model(episode.query.inputs).detach())
    loss = run.hook.compute_loss(model=run.model, batch=[episode], run=run)
    wanted = F.cross_entropy(run.model(episode.query.inputs), episode.query.targets)
    torch.testing.assert_close(loss.detach(), wanted.detach())


def test_the_inner_loss_is_noisy_and_the_support_set_alone_sees_it(recipe):
    run = build(compose(recipe))
    episode = next(iter(run.data.val))[0]
    params = {name: run.model.get_parameter(name) for name in backbone_names(run.model)}
    common: dict[str, Any] = {"params": params, "support": episode.support, "run": run}
    plan = run.hook.plan_task(query_size=6, ways=3, phase="train", draw=0, **common)
    losses = [run.hook.inner_loss(model=run.model, plan=plan, **common).detach() for _ in range(2)]
    plain = F.cross_entropy(run.model(episode.support.inputs), episode.support.targets).detach()
    assert len({float(loss) for loss in (*losses, plain)}) == 3


def test_pretrained_weights_get_gates_of_one(recipe):
    run = build(compose(recipe, ["plugins.meta_dropout.init=unit"]))
    gates = [F.softplus(gate.phi[0].bias) for gate in run.model.meta["meta_dropout"].gates.values()]
    assert all(torch.equal(gate, torch.ones_like(gate)) for gate in gates)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["plugins.meta_dropout.sites=[conv5]"],
            r"plugins.meta_dropout: `sites`: .* fits 'conv5'; .* such as conv4",
        ),
        (
            ["train.grad_checkpointing=true"],
            (
                r"train.grad_checkpointing: meta_dropout would draw other noise .*checkpoint_steps"
                r" of maml"
            ),
        ),
        (
            ["model.num_classes=0"],
            r"plugins.meta_dropout: noise on the logits needs .* Identity; .*head_noise: false",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_its_place(recipe, overrides, said):
    with pytest.raises(UserError, match=r"^(\S+recipe.yaml:\d+|command line `.*`): " + said):
        build(compose(recipe, overrides))


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("plugins.meta_dropout.mode=gate", "plugins.meta_dropout.mode: "),
        ("plugins.meta_dropout.test_samples=0", "plugins.meta_dropout.test_samples: "),
        ("plugins.meta_dropout.site=auto", "plugins.meta_dropout.site: "),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(recipe, override, said):
    with pytest.raises(RecipeError, match=said):
        compose(recipe, [override])


def test_it_says_what_it_does(recipe):
    run = build(compose(recipe, ["plugins.maml.order=first"]))
    lines = run.plugins["meta_dropout"].explain(run)
    assert (
        lines[0]
        == "gates 4 layers (conv1, conv2, conv3, conv4); 489 parameters of the noise, never adapted"
    )
    assert "3 in the test" in lines[1]
    assert "no gradient" in lines[2]
