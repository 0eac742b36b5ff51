"""Every room that is differentiated twice, against finite differences, in float64, as recipes
build it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.reference.derivatives import FLAT, by_part, derivatives, fill
from trainkit import Run
from trainkit.training.build import build, compose

RECIPE = """\
seed: 1
model: {name: conv4, in_chans: 1, args: {channels: 3}}
data: {name: digits, image_size: 16}
train: {epochs: 1, device: cpu}
plugins:
  maml: {ways: 3, max_shot: 3, queries: 2, tasks: 1, steps: 2, inner_lr: 0.3, workers: 1}
"""
META_SGD = "plugins.meta_sgd={}"
META_DROPOUT = "plugins.meta_dropout={}"
BALANCE = "plugins.learning_to_balance={z_scale: 0.5}"
EFFICIENTNET = "model={name: test_efficientnet, in_chans: 1}"
AGAIN = "plugins.maml.checkpoint_steps=true"

CASES = {
    "maml": [],
    "maml, steps again": [AGAIN],
    "maml, clipped": ["plugins.maml.max_inner_norm=0.5"],
    "maml, support statistics": ["plugins.maml.norm_statistics=support"],
    "maml, statistics of each step": [
        f"plugins.maml.{o}" for o in ("norm_statistics=per_step", "multi_step_epochs=2")
    ],
    "maml, prototypes": ["plugins.maml.head=prototypes"],
    "maml, only the body": ["plugins.maml.adapt=body"],
    "meta_sgd": [META_SGD],
    "meta_sgd, each step, steps again": ["plugins.meta_sgd={per: layer, each_step: true}", AGAIN],
    "meta_dropout": [META_DROPOUT],
    "meta_dropout, steps again": [META_DROPOUT, AGAIN],
    "learning_to_balance": [BALANCE],
    "learning_to_balance, steps again": [BALANCE, AGAIN],
    "all together": [BALANCE, META_SGD, META_DROPOUT],
    "all together, steps again": [BALANCE, META_SGD, META_DROPOUT, AGAIN],
    "inverted residuals": [EFFICIENTNET, META_SGD],
    "ghost batches": [EFFICIENTNET, "plugins.ghost_batch_norm={size: 4}"],
    "groups of channels": [
        EFFICIENTNET,
        "plugins.batch_group_norm={channel_groups: 2, examples: 2}",
    ],
    "groups of channels, another eps": [
        EFFICIENTNET,
        "plugins.batch_group_norm={channel_groups: 2, examples: 2}",
        "plugins.maml.norm_eps=1e-2",
    ],
    "a transformer": ["model={name: test_vit, in_chans: 1, args: {img_size: 16}}", META_SGD],
}


def in_float64(batch: Sequence[Any]) -> list[Any]:
    def wide(examples: Any) -> Any:
        return examples._replace(inputs=examples.inputs.double())

    return [task._replace(support=wide(task.support), query=wide(task.query)) for task in batch]


def meta_loss(run: Run) -> Callable[[], Tensor]:
    batch = in_float64(next(iter(run.data.train.batches(0, 0))))
    return lambda: run.hook.compute_loss(model=run.model, batch=batch, run=run)


@pytest.mark.parametrize("case", CASES)
def test_the_meta_gradient_is_the_finite_difference(case: str, write: Callable[..., Path]) -> None:
    run = build(compose(write(RECIPE), CASES[case]))
    run.model.double()
    fill(run.model)
    found = derivatives(meta_loss(run), by_part(run.model))
    wrong = {name: d for name, d in found.items() if not d.agrees()}
    assert not wrong
    still = {name for name, d in found.items() if abs(d.measured) < FLAT}
    # With norm parameters of their own for every step, those of the model are not used.
    assert still == (
        {"norm1", "norm2", "norm3", "norm4"} if "each step" in case and "maml" in case else set()
    )
