"""The meta-gradient against closed forms and finite differences, in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainkit_plugins.maml import (
    Conv4,
    InnerLoop,
    TaskPlan,
    Workers,
    adapt,
    head_names,
    isolate,
    plan_for,
    predict,
    task_loss,
)
from trainkit_plugins.maml import meta_gradient as meta_gradient_of

from tests.reference.tasks import tasks


class Examples(NamedTuple):
    inputs: Tensor
    targets: Tensor


def draw(
    seed: int, ways: int = 3, shots: int = 2, queries: int = 3, side: int = 16
) -> tuple[Examples, Examples]:
    """Return an episode of random images: every class has a mean image of its own."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(ways, 1, side, side, generator=generator, dtype=torch.float64)

    def examples(each: int) -> Examples:
        targets = torch.arange(ways).repeat(each)
        noise = torch.randn(ways * each, 1, side, side, generator=generator, dtype=torch.float64)
        return Examples(means[targets] + noise, targets)

    return examples(shots), examples(queries)


def conv4(seed: int = 0, **arguments: int) -> Conv4:
    torch.manual_seed(seed)
    model = Conv4(**({"num_classes": 3, "img_size": 16, "channels": 4} | arguments)).double()
    with torch.no_grad():  # weights of deviation 0.02 make everything small next to the norms' eps
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def meta_gradient(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(
        loss, list(named.values()), allow_unused=True, materialize_grads=True
    )
    return dict(zip(named, found, strict=True))


def directional(
    model: nn.Module, loss: Callable[[], Tensor], seed: int = 1, h: float = 1e-6
) -> tuple[float, float]:
    """Return the derivative along a random direction: by autograd, and by central differences."""
    generator = torch.Generator().manual_seed(seed)
    named = dict(model.named_parameters())
    direction = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in named.items()
    }
    gradient = meta_gradient(model, loss())
    exact = sum(float((gradient[n] * d).sum()) for n, d in direction.items())
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            for n, p in named.items():
                p.add_(direction[n], alpha=sign * h)
        values.append(loss().item())
        with torch.no_grad():
            for n, p in named.items():
                p.sub_(direction[n], alpha=sign * h)
    return exact, (values[0] - values[1]) / (2 * h)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_second_order_equals_finite_differences_and_first_order_does_not(
    steps: int, max_norm: float | None
):
    model = conv4()
    support, query = draw(0)
    plan = plan_for(model, 0.4)

    def loss(second_order: bool) -> Tensor:
        loop = InnerLoop(steps, second_order=second_order, max_norm=max_norm)
        return task_loss(model, plan, support, query, loop).loss

    exact, measured = directional(model, lambda: loss(True))
    assert exact == pytest.approx(measured, rel=1e-5)
    first, measured_again = directional(model, lambda: loss(False))
    assert measured_again == measured  # the loss itself is the same
    assert abs(first - measured) > 0.05 * abs(measured)


class Quartic(nn.Module):
    """sum w^4, whatever the input."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.5, -0.3, 0.2], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.pow(4).sum() + 0 * x.sum()


def raw_loss(
    model: nn.Module, params: dict[str, Tensor], plan: TaskPlan, support: Examples
) -> Tensor:
    return predict(model, params, support.inputs)


@pytest.mark.parametrize("second_order", [True, False])
def test_one_step_on_a_quartic_has_its_closed_form(second_order: bool):
    model, a = Quartic(), 0.1
    nothing = Examples(torch.zeros(1, dtype=torch.float64), torch.zeros(1))
    fast = adapt(model, plan_for(model, a), nothing, InnerLoop(1, second_order), raw_loss)
    w = model.w.detach()
    adapted = w - a * 4 * w**3
    torch.testing.assert_close(fast["w"], adapted)
    (gradient,) = torch.autograd.grad(fast["w"].pow(4).sum(), model.w)
    factor = 1 - 12 * a * w**2 if second_order else 1
    torch.testing.assert_close(gradient, 4 * adapted**3 * factor)


def test_two_steps_multiply_the_factors_of_each():
    model, a = Quartic(), 0.1
    nothing = Examples(torch.zeros(1, dtype=torch.float64), torch.zeros(1))
    fast = adapt(model, plan_for(model, a), nothing, InnerLoop(2), raw_loss)
    w0 = model.w.detach()
    w1 = w0 - a * 4 * w0**3
    (gradient,) = torch.autograd.grad(fast["w"].sum(), model.w)
    torch.testing.assert_close(gradient, (1 - 12 * a * w0**2) * (1 - 12 * a * w1**2))


def test_the_first_order_meta_gradient_is_the_query_gradient_at_the_adapted_parameters():
    model = conv4()
    support, query = draw(1)
    plan = plan_for(model, 0.4)
    loop = InnerLoop(2, second_order=False)
    gradient = meta_gradient(model, task_loss(model, plan, support, query, loop).loss)
    adapted = {n: p.detach().requires_grad_() for n, p in adapt(model, plan, support, loop).items()}
    loss = F.cross_entropy(predict(isolate(model), adapted, query.inputs), query.targets)
    for name, wanted in zip(
        adapted, torch.autograd.grad(loss, list(adapted.values())), strict=True
    ):
        torch.testing.assert_close(gradient[name], wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("steps", "lr"), [(0, 0.4), (2, 0.0)])
def test_without_steps_or_step_size_it_is_plain_multi_task_training(steps: int, lr: float):
    model = conv4()
    support, query = draw(2)
    gradient = meta_gradient(
        model, task_loss(model, plan_for(model, lr), support, query, InnerLoop(steps)).loss
    )
    plain = meta_gradient(model, F.cross_entropy(model(query.inputs), query.targets))
    for name in plain:
        torch.testing.assert_close(gradient[name], plain[name], rtol=1e-12, atol=1e-15)


def test_norms_stay_but_are_meta_learned():
    model = conv4()
    support, query = draw(3)
    plan = plan_for(model, 0.4)
    fast = adapt(model, plan, support, InnerLoop(2))
    assert all((fast[name] is plan.params[name]) == ("norm" in name) for name in fast)
    gradient = meta_gradient(model, task_loss(model, plan, support, query, InnerLoop(2)).loss)
    assert all(gradient[f"norm{i}.bias"].abs().max() > 0 for i in (1, 2, 3, 4))


def test_step_sizes_of_one_value_equal_one_step_size_bit_for_bit():
    model = conv4()
    support, query = draw(4)
    plan = plan_for(model, 0.3)
    alpha = {name: torch.full_like(plan.params[name], 0.3) for name in plan.adapt}
    for loop in (InnerLoop(2), InnerLoop(2, second_order=False)):
        plain = task_loss(model, plan, support, query, loop).loss
        learned = {name: value.clone().requires_grad_() for name, value in alpha.items()}
        loss = task_loss(model, replace(plan, step_sizes=learned), support, query, loop).loss
        assert torch.equal(loss, plain)
        for gradient in torch.autograd.grad(loss, list(learned.values())):
            assert (
                gradient.abs().max() > 0 or gradient.ndim == 1
            )  # a bias before a norm moves nothing


def test_a_zero_head_makes_the_predictor_equivariant_to_the_labels():
    model = conv4()
    support, query = draw(5)
    plan = plan_for(model, 0.5)
    zero = {name: torch.zeros_like(plan.params[name]) for name in head_names(model)}
    plan = replace(plan, params={**plan.params, **zero})
    permutation = torch.tensor([2, 0, 1])
    loop = InnerLoop(3)
    logits = task_loss(model, plan, support, query, loop).logits
    renamed = support._replace(targets=permutation[support.targets])
    torch.testing.assert_close(
        task_loss(model, plan, renamed, query, loop).logits[:, permutation], logits
    )
    first = adapt(model, plan, support, InnerLoop(1))
    for name in (
        plan.adapt
    ):  # the shifts of the head get no gradient either where every class has as many examples
        assert torch.equal(first[name], plan.params[name]) == (name != "head.weight"), name


def test_weights_of_steps_weigh_the_query_losses_after_each_step():
    model = conv4()
    support, query = draw(6)
    plan = plan_for(model, 0.3)
    weights = [0.2, 0.0, 0.5]
    found = task_loss(model, plan, support, query, InnerLoop(3), step_weights=weights)
    each = [task_loss(model, plan, support, query, InnerLoop(k)).loss for k in (1, 2, 3)]
    torch.testing.assert_close(
        found.loss, sum(w * loss for w, loss in zip(weights, each, strict=True))
    )
    with pytest.raises(ValueError, match="2 weights for 3 steps"):
        task_loss(model, plan, support, query, InnerLoop(3), step_weights=[0.5, 0.5])


def test_the_penalty_and_class_weights_of_a_plan_enter_where_they_should():
    model = conv4()
    support, query = draw(7)
    plan = plan_for(model, 0.3)
    plain = task_loss(model, plan, support, query, InnerLoop(2)).loss
    uniform = replace(plan, class_weights=torch.full((3,), 1 / 3, dtype=torch.float64))
    torch.testing.assert_close(task_loss(model, uniform, support, query, InnerLoop(2)).loss, plain)
    penalty = torch.tensor(0.7, dtype=torch.float64)
    torch.testing.assert_close(
        task_loss(model, replace(plan, penalty=penalty), support, query, InnerLoop(2)).loss,
        plain + 0.7,
    )
    # A class of weight zero teaches nothing: without its images the same, but for the statistics of
    # the norms.
    one = replace(plan, class_weights=torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64))
    relabelled = support._replace(targets=torch.where(support.targets == 1, 2, support.targets))
    first, second = (adapt(model, one, s, InnerLoop(2)) for s in (support, relabelled))
    for name in plan.adapt:
        torch.testing.assert_close(first[name], second[name])


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_parameter_that_no_task_uses_has_gradient_zero_which_the_sum_may_hold(
    count: int, checkpoint: bool
):
    torch.manual_seed(0)
    model = Conv4(num_classes=3, in_chans=3, img_size=32, channels=3)
    model.meta = nn.ModuleDict({"idle": nn.Linear(2, 2)})
    parameters = dict(model.named_parameters())
    loop = InnerLoop(2, checkpoint=checkpoint)
    found = meta_gradient_of(Workers(model), tasks(model, count), list(parameters.values()), loop)
    gradients = dict(zip(parameters, found.gradients, strict=True))
    assert not any(gradient.requires_grad for gradient in gradients.values())
    assert not gradients["meta.idle.weight"].any()
    assert gradients["conv1.weight"].any()
