"""What a task must not do to the model, to another task, or by the order in which threads
finish.
"""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainkit_plugins.maml import (
    InnerLoop,
    Task,
    Workers,
    adapt,
    adapted_names,
    deliver,
    isolate,
    meta_gradient,
    norm_names,
    plan_for,
    predict,
    predict_task,
    task_loss,
)

from tests.reference.tasks import Examples, examples, tasks


def resnet(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("test_resnet", num_classes=3, drop_rate=0.2)


def test_a_task_leaves_parameters_buffers_gradients_modes_and_random_streams_alone():
    model = resnet()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters, modes = list(model.parameters()), [m.training for m in model.modules()]
    stream = torch.get_rng_state()
    plan, support, query = tasks(model, 1)[0]
    adapt(model, plan, support, InnerLoop(2))
    task_loss(model, plan, support, query, InnerLoop(2))
    predict_task(model, plan, support, query.inputs, InnerLoop(2))
    meta_gradient(Workers(model), [Task(plan, support, query)], parameters, InnerLoop(1))
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert all(p.grad is None for p in parameters)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), stream)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_running_averages_move_in_the_copy_only_and_start_anew_for_every_task():
    model = resnet()
    plan, support, _ = tasks(model, 1)[0]
    twin = isolate(model)
    predict(twin, plan.params, support.inputs)
    moved = [name for name, b in twin.named_buffers() if not torch.equal(b, model.get_buffer(name))]
    assert any("running_mean" in name for name in moved)
    seen: list[float] = []

    def loss(copy: nn.Module, params: dict[str, Tensor], plan: object, support: Examples) -> Tensor:
        seen.append(float(copy.get_buffer("bn1.running_mean").abs().sum()))
        return F.cross_entropy(predict(copy, params, support.inputs), support.targets)

    workers = Workers(model)
    for _ in range(2):
        list(workers.map(lambda copy, i: adapt(copy, plan, support, InnerLoop(1), loss), 2))
    assert seen == [0.0] * 4


def test_threads_give_the_same_bits_as_one_task_after_the_other():
    model = resnet()
    parameters = list(model.parameters())
    jobs = tasks(model, 5)
    one, many = Workers(model), Workers(model, count=3)
    first = meta_gradient(one, jobs, parameters, InnerLoop(2))
    for _ in range(3):
        again = meta_gradient(many, jobs, parameters, InnerLoop(2))
        assert torch.equal(again.loss, first.loss)
        assert all(torch.equal(a, b) for a, b in zip(again.gradients, first.gradients, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(again.logits, first.logits, strict=True))
    many.close()
    assert torch.get_num_threads() == 1


def test_the_meta_gradient_is_the_mean_of_the_tasks_and_is_delivered_as_the_gradient_of_a_scalar():
    model = resnet()
    parameters = list(model.parameters())
    jobs = tasks(model, 3)
    found = meta_gradient(Workers(model), jobs, parameters, InnerLoop(1))
    single = [meta_gradient(Workers(model), [job], parameters, InnerLoop(1)) for job in jobs]
    for i, gradient in enumerate(found.gradients):
        torch.testing.assert_close(
            gradient, sum(s.gradients[i] for s in single) / 3, rtol=1e-5, atol=1e-6
        )
    (3 * deliver(found.loss, found.gradients, parameters)).backward()
    for parameter, gradient in zip(parameters, found.gradients, strict=True):
        assert torch.equal(parameter.grad, 3 * gradient)


def test_scaling_losses_does_not_change_the_meta_gradient():
    model = resnet()
    parameters = list(model.parameters())
    jobs = tasks(model, 2)
    plain = meta_gradient(Workers(model), jobs, parameters, InnerLoop(2))
    scaled = meta_gradient(Workers(model), jobs, parameters, InnerLoop(2, scale=1024.0))
    for a, b in zip(plain.gradients, scaled.gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)  # a power of two only moves exponents


@pytest.mark.parametrize(
    ("policy", "together"), [("batch", True), ("support", False), ("running", False)]
)
def test_a_query_logit_depends_on_other_query_images_only_where_statistics_are_the_batchs(
    policy: str, together: bool
):
    model = resnet()
    plan, support, query = tasks(model, 1, 0.0)[0]
    loop = InnerLoop(1, norm_statistics=policy)
    logits = predict_task(model, plan, support, query.inputs, loop)
    other = query.inputs.clone()
    other[1:] = 3 * other[1:].flip(3) + 1
    changed = predict_task(model, plan, support, other, loop)
    assert torch.allclose(changed[0], logits[0], atol=1e-5) != together


def test_support_statistics_are_differentiated_through():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2 * 36, 3)
    ).double()
    support, query = (
        e._replace(inputs=e.inputs.double()) for e in (examples(0, side=8), examples(1, side=8))
    )
    plan, loop = plan_for(model, 0.1), InnerLoop(1, norm_statistics="support")
    weight = model[0].weight

    def loss() -> Tensor:
        return task_loss(model, plan, support, query, loop).loss

    (gradient,) = torch.autograd.grad(loss(), weight)
    direction = torch.randn(
        weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    values = []
    for sign in (1e-6, -2e-6):
        weight.data.add_(direction, alpha=sign)
        values.append(loss().item())
    assert (gradient * direction).sum().item() == pytest.approx(
        (values[0] - values[1]) / 2e-6, rel=1e-5
    )


def test_norms_never_adapt_whatever_their_class():
    vit, convnext, resnet_ = (
        timm.create_model(n, num_classes=3) for n in ("test_vit4", "test_convnext", "test_resnet")
    )
    for model in (vit, convnext, resnet_):
        norms = norm_names(model)
        assert norms
        for name in norms:
            assert model.get_parameter(name).ndim == 1
        assert not norms & set(adapted_names(model))
        assert set(adapted_names(model, "head")) | set(adapted_names(model, "body")) == set(
            adapted_names(model)
        )
