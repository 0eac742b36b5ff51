"""Classifiers that start at zero or as prototypes, and training tasks of more classes than test
tasks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainkit_plugins.maml import (
    InnerLoop,
    adapt,
    isolate,
    plan_for,
    predict,
    task_loss,
    trajectory,
)
from trainkit_plugins.maml.head import class_means, initial_head, linear_head

from trainkit.commands.session import start
from trainkit.errors import UserError
from trainkit.training.build import build, compose

from .test_meta_gradient import Examples, conv4, directional, draw, meta_gradient
from .test_plugin import RECIPE, metrics


def embed(model: nn.Module, inputs: Tensor) -> Tensor:
    return model.forward_head(model.forward_features(inputs), pre_logits=True)


def uneven(examples: Examples) -> Examples:
    """Drop examples, so that the classes 0, 1, 2 have 3, 2 and 1."""
    kept = torch.tensor([0, 1, 2, 3, 4, 6])
    return Examples(examples.inputs[kept], examples.targets[kept])


def test_a_prototype_head_orders_classes_by_distance_to_their_mean_features():
    model = conv4()
    support, query = draw(0, shots=3)
    support = uneven(support)
    f, q = embed(model, support.inputs), embed(model, query.inputs)
    centres = torch.stack([f[support.targets == k].mean(0) for k in range(3)])
    torch.testing.assert_close(class_means(f, support.targets, 3), centres)
    for scale in (1.0, 0.1):
        loop = InnerLoop(0, head="prototypes", prototype_scale=scale)
        logits = task_loss(model, plan_for(model, 0.3), support, query, loop).logits
        distances = torch.cdist(q, centres).square()
        torch.testing.assert_close(logits.log_softmax(1), (-scale * distances).log_softmax(1))


def test_without_steps_it_is_the_prototypical_networks_loss_and_gradient():
    model = conv4()
    support, query = draw(1)
    loop = InnerLoop(0, head="prototypes")
    found = meta_gradient(model, task_loss(model, plan_for(model, 0.3), support, query, loop).loss)
    centres = class_means(embed(model, support.inputs), support.targets, 3)
    wanted = meta_gradient(
        model,
        F.cross_entropy(-torch.cdist(embed(model, query.inputs), centres).square(), query.targets),
    )
    assert wanted["conv1.weight"].abs().max() > 0
    for name in found:
        torch.testing.assert_close(found[name], wanted[name])


@pytest.mark.parametrize("which", ["all", "head", "body"])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_the_meta_gradient_goes_through_the_prototypes(which: str, checkpoint: bool):
    model = conv4()
    support, query = draw(2)
    plan = plan_for(model, 0.05, which)
    loop = InnerLoop(2, head="prototypes", prototype_scale=0.3, checkpoint=checkpoint)
    exact, measured = directional(model, lambda: task_loss(model, plan, support, query, loop).loss)
    assert exact == pytest.approx(measured, rel=1e-5)


@pytest.mark.parametrize("second_order", [True, False])
def test_the_inner_gradient_takes_the_prototypes_as_given(second_order: bool):
    model = conv4()
    support, _ = draw(3)
    plan = plan_for(model, 0.05)
    loop = InnerLoop(2, second_order, head="prototypes", prototype_scale=0.3)
    found = adapt(model, plan, support, loop)
    twin = isolate(model)
    with torch.no_grad():
        head = initial_head(twin, plan.params, support, "prototypes", 0.3)
    given = replace(plan, params={**plan.params, **head})
    wanted = adapt(model, given, support, InnerLoop(2, second_order))
    plain = adapt(model, plan, support, loop, differentiable=False)
    for name in found:
        torch.testing.assert_close(found[name], wanted[name])
        torch.testing.assert_close(found[name], plain[name])
    assert not torch.equal(found["head.weight"], head["head.weight"])


@pytest.mark.parametrize("head", ["zero", "prototypes"])
def test_a_task_may_have_more_classes_than_the_model(head: str):
    model = conv4()
    support, query = draw(4, ways=5)
    loop = InnerLoop(2, head=head)
    found = task_loss(model, plan_for(model, 0.1), support, query, loop)
    assert found.logits.shape == (15, 5)
    first = next(trajectory(model, plan_for(model, 0.1), support, loop))
    assert first["head.weight"].shape[0] == first["head.bias"].shape[0] == 5
    assert bool(first["head.weight"].abs().max() == 0) == (head == "zero")
    assert (
        meta_gradient(model, found.loss)["head.weight"].abs().max() == 0
    )  # no task uses the model's own


def test_prototypes_leave_no_hook_and_no_tensor_behind():
    model = isolate(conv4())
    support, _ = draw(5)
    before = dict(model.named_parameters())
    initial_head(model, plan_for(model, 0.1).params, support, "prototypes")
    assert not linear_head(model)[1]._forward_pre_hooks
    assert all(p is before[name] for name, p in model.named_parameters())


@pytest.mark.parametrize(
    "name", ["test_vit", "test_resnet", "mobilenetv3_small_050", "swin_tiny_patch4_window7_224"]
)
def test_prototypes_are_means_of_what_timm_calls_pre_logits(name: str):
    torch.manual_seed(0)
    size = (
        {"img_size": 32}
        if name == "test_vit"
        else {"img_size": 64, "window_size": 2}
        if "swin" in name
        else {}
    )
    model = timm.create_model(name, num_classes=3, **size).eval()
    twin = isolate(model, "running")
    inputs = torch.randn(4, 3, size.get("img_size", 64), size.get("img_size", 64))
    support = Examples(inputs, torch.tensor([0, 1, 2, 2]))
    with torch.no_grad():
        found = initial_head(twin, dict(twin.named_parameters()), support, "prototypes", 1.0)
        wanted = class_means(embed(model, inputs), support.targets, 3)
    head, _ = linear_head(model)
    torch.testing.assert_close(found[f"{head}.weight"], 2 * wanted)
    torch.testing.assert_close(found[f"{head}.bias"], -wanted.square().sum(1))
    params = {**dict(twin.named_parameters()), **found}
    with torch.no_grad():
        assert predict(twin, params, inputs).shape == (4, 3)


def test_a_classifier_that_is_not_one_linear_layer_is_refused():
    with pytest.raises(ValueError, match="not one linear layer"):
        linear_head(
            timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, num_classes=3)
        )
    with pytest.raises(ValueError, match="no get_classifier"):
        linear_head(nn.Linear(2, 2))


@pytest.fixture
def recipe(write: Callable[..., Path]) -> Callable[..., Path]:
    def make(options: str, model: str = "conv4", more: str = "") -> Path:
        text = (
            RECIPE.replace("OPTIONS", options).replace("MODEL", model).replace("ways: 3", "ways: 2")
        )
        return write(text + more, "maml.yaml")

    return make


@pytest.mark.parametrize("head", ["zero", "prototypes"])
def test_training_tasks_have_train_ways_and_test_tasks_ways(
    recipe: Callable[..., Path], tmp_path: Path, head: str
):
    path = recipe(
        f"head: {head}, train_ways: 4, inner_lr: 0.01, workers: 2",
        more="  meta_sgd: {per: tensor}\n",
    )
    run = build(compose(path))
    batch = next(run.data.train.batches(0, 0))
    assert {int(episode.support.targets.max()) + 1 for episode in batch} == {4}
    assert "4-way in training" in run.data.summary
    folder = start(path, (), tmp_path / "run", ()).folder
    rows = metrics(folder)
    tested = next(row for row in rows if "test/accuracy" in row)
    assert all((4 * value) % 1 == 0 for value in tested["test/accuracies"])  # of 2 x 2 query images
    assert (tested["test/accuracy_by_step"][0] == 0.5) == (head == "zero")
    again = start(path, (), tmp_path / "again", ()).folder
    assert metrics(again)[-1] == rows[-1]


def test_the_other_methods_take_training_tasks_of_more_classes(
    recipe: Callable[..., Path], tmp_path: Path
):
    more = "  meta_dropout: {test_samples: 2}\n  learning_to_balance: {draws: 2}\n"
    folder = start(
        recipe("head: prototypes, train_ways: 4, inner_lr: 0.01, max_shot: 3", more=more),
        (),
        tmp_path / "run",
        (),
    ).folder
    assert any("test/accuracy" in row for row in metrics(folder))


@pytest.mark.parametrize(
    ("options", "model", "more", "said"),
    [
        ("train_ways: 4", "conv4", "", "train_ways: a learned classifier"),
        (
            "head: zero, train_ways: 9",
            "conv4",
            "",
            "train_ways: training classes: 9 ways need as many classes",
        ),
        (
            "head: prototypes",
            "deit_tiny_distilled_patch16_224",
            "",
            "head: .* not one linear layer",
        ),
        (
            "head: zero, train_ways: 4",
            "conv4",
            "  meta_sgd: {per: element}\n",
            r"meta_sgd.per: .* has 4 classes",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    recipe: Callable[..., Path], options: str, model: str, more: str, said: str
):
    with pytest.raises(UserError) as refused:
        build(compose(recipe(options, model, more)))
    assert re.search(said, str(refused.value)), str(refused.value)
    assert "maml.yaml:" in str(refused.value)
