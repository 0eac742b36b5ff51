"""The inner loop: a few gradient steps from shared initial parameters, differentiable through all
of them.

Legend (Finn et al. 2017): theta the initial parameters, theta_k those after k steps, alpha the step
    sizes, K steps,
L the support loss:

    theta_{k+1} = theta_k - alpha * dL/dtheta (theta_k)

Differentiating the query loss at theta_K with respect to theta gives prod_k (I - alpha H_k) times
its gradient; first order replaces every factor by I. Losses are means over examples: Finn et al.
divide a sum by the shots alone, so their alpha of 0.4 for 5 ways is 2.0 here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.precision import promoted
from .checkpoint import Params, step_again
from .forward import predict
from .head import Head, initial_head
from .isolation import META, Adapt, NormStatistics, adapted_names, is_isolated, isolate
from .plan import Examples, TaskPlan

Loss = Callable[[nn.Module, Mapping[str, Tensor], TaskPlan, Examples], Tensor]
"""One draw of the support loss at some parameters."""


@dataclass(frozen=True)
class InnerLoop:
    """How a task adapts, as far as it is the same for all tasks.

    Attributes:
        steps: K.
        second_order: differentiate through the inner gradients.
        max_norm: rescale the inner gradient to at most this joint L2 norm; None leaves it.
        scale: what losses are multiplied by while gradients are taken, and gradients divided by:
            fp16 needs it.
        autocast: makes the context of every forward pass.
        norm_statistics: what batch norms normalise with. `batch`: the statistics of the images that
            are passed, so the query set is classified as a whole (transductive). `support`: the
            query set by the support set's, measured at theta_K; each query image is classified by
            itself. `running`: the model's running averages, which stay as they are. `per_step`: as
            `batch`, with norm parameters for every step (`TaskPlan.step_params`).
        checkpoint: compute each step again in the backward pass instead of keeping its graph
            (second order only).
        head: what the classifier starts from in every task, whatever the plan's parameters say of
            it: `zero`, or `prototypes` of the support set (`trainkit_plugins.maml.head`). `learned`
            leaves the plan's.
        prototype_scale: what squared distances to prototypes are multiplied by.
    """

    steps: int
    second_order: bool = True
    max_norm: float | None = None
    scale: float = 1.0
    autocast: Callable[[], AbstractContextManager[object]] = nullcontext
    norm_statistics: NormStatistics = "batch"
    checkpoint: bool = False
    head: Head = "learned"
    prototype_scale: float = 1.0


def plan_for(model: nn.Module, inner_lr: float, which: Adapt = "all") -> TaskPlan:
    """Return plain MAML's plan: every task starts from the model's parameters, with one step size.

    Args:
        model: its parameters, except those under `meta.`, are the initial ones.
        inner_lr: alpha, for the mean loss.
        which: what the inner loop moves.
    """
    params = {name: p for name, p in model.named_parameters() if not name.startswith(META)}
    names = adapted_names(model, which)
    alpha = torch.tensor(inner_lr, dtype=params[names[0]].dtype, device=params[names[0]].device)
    return TaskPlan(params, names, dict.fromkeys(names, alpha))


def support_loss(
    model: nn.Module, params: Mapping[str, Tensor], plan: TaskPlan, support: Examples
) -> Tensor:
    """Return the mean cross entropy of a support set, or with class weights w: ways/N * sum_i
    w[y_i] * CE_i.
    """
    logits = promoted(predict(model, params, support.inputs))
    losses = F.cross_entropy(logits, support.targets, reduction="none")
    if plan.class_weights is not None:
        # Uniform weights become ones, and the sum is taken as without weights: they change no bit.
        losses = (len(plan.class_weights) * plan.class_weights)[support.targets] * losses
    return losses.mean()


def trajectory(
    model: nn.Module,
    plan: TaskPlan,
    support: Examples,
    loop: InnerLoop,
    loss: Loss = support_loss,
    *,
    differentiable: bool = True,
) -> Iterator[Params]:
    """Yield theta_0, theta_1, … theta_K, each as all parameters that a forward pass takes.

    Args:
        model: the model, or a copy of it from `isolate`; it is left as it is.
        plan: where to start, what moves and how far.
        support: what is learned from.
        loop: K, order, clipping.
        loss: the support loss.
        differentiable: keep the graph from theta to theta_K. Without it every step starts from
            detached tensors.
    """
    model = own_copy(model, loop)
    params = initial_params(model, plan, support, loop, differentiable=differentiable)
    yield params
    for k in range(loop.steps):
        params |= at_step(plan.step_params, k)
        if differentiable and loop.second_order and loop.checkpoint:

            def again(params: Params, plan: TaskPlan, differentiable: bool, k: int = k) -> Params:
                return step(
                    model, params, plan, support, k, loop, loss, differentiable=differentiable
                )

            params = step_again(again, model, params, plan)
        else:
            params = step(
                model, params, plan, support, k, loop, loss, differentiable=differentiable
            )
        yield params


def initial_params(
    model: nn.Module, plan: TaskPlan, support: Examples, loop: InnerLoop, *, differentiable: bool
) -> Params:
    """Return theta_0."""
    params = {name: p if differentiable else p.detach() for name, p in plan.params.items()}
    params |= at_step(plan.step_params, 0)
    with torch.set_grad_enabled(differentiable), loop.autocast():
        params |= initial_head(model, params, support, loop.head, loop.prototype_scale)
    for name in plan.adapt:
        if not params[name].requires_grad:
            params[name] = params[name].detach().requires_grad_()
        elif loop.head == "prototypes":
            # A name of its own for the inner gradient, which takes the prototypes as given.
            params[name] = params[name].view_as(params[name])
    return params


def at_step(mappings: Sequence[Mapping[str, Tensor]], k: int) -> Mapping[str, Tensor]:
    """Return the mapping of step k: the last one where there are fewer, an empty one where there
    are none.
    """
    if not mappings:
        return {}
    return mappings[min(k, len(mappings) - 1)]


def own_copy(model: nn.Module, loop: InnerLoop) -> nn.Module:
    """Return `model` if `isolate` made it, else a copy of it."""
    return model if is_isolated(model) else isolate(model, loop.norm_statistics)


def step(
    model: nn.Module,
    params: Params,
    plan: TaskPlan,
    support: Examples,
    k: int,
    loop: InnerLoop,
    loss: Loss,
    *,
    differentiable: bool,
) -> Params:
    """Return theta_{k+1} from theta_k."""
    moved = [params[name] for name in plan.adapt]
    gradients = _gradients(
        model, params, moved, plan, support, loop, loss, differentiable and loop.second_order
    )
    if loop.max_norm is not None:
        gradients = clip(gradients, loop.max_norm)
    params, scales = dict(params), at_step(plan.step_scales, k)
    with torch.set_grad_enabled(differentiable):
        for name, p, g in zip(plan.adapt, moved, gradients, strict=True):
            size = plan.step_sizes[name]
            if name in scales:
                size = size * scales[name]
            params[name] = p - size * g
            if not differentiable:
                params[name].requires_grad_()
    return params


def _gradients(
    model: nn.Module,
    params: Params,
    moved: Sequence[Tensor],
    plan: TaskPlan,
    support: Examples,
    loop: InnerLoop,
    loss: Loss,
    create_graph: bool,
) -> list[Tensor]:
    """Return the gradient of the support loss, averaged over its draws one by one: each draw's
    graph ends with it.
    """
    total: list[Tensor] | None = None
    with torch.enable_grad():
        for _ in range(plan.inner_samples):
            with loop.autocast():
                value = loss(model, params, plan, support)
            if loop.scale != 1:
                value = value * loop.scale
            found = torch.autograd.grad(
                value,
                moved,
                create_graph=create_graph,
                allow_unused=True,
                materialize_grads=True,
            )
            if total is None:
                total = list(found)
            else:
                total = [a + b for a, b in zip(total, found, strict=True)]
    assert total is not None  # there is at least one draw
    divisor = plan.inner_samples * loop.scale
    if divisor != 1:
        total = [g / divisor for g in total]
    return total


def clip(gradients: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """Return gradients rescaled to at most `max_norm` in joint L2 norm; differentiable."""
    norm = torch.stack([g.square().sum() for g in gradients]).sum()
    # Where nothing is clipped the square root must not be differentiated: at zero it has no
    # derivative.
    factor = torch.where(
        norm > max_norm**2, max_norm * norm.clamp(min=max_norm**2).rsqrt(), torch.ones_like(norm)
    )
    return [factor * g for g in gradients]


def adapt(
    model: nn.Module,
    plan: TaskPlan,
    support: Examples,
    loop: InnerLoop,
    loss: Loss = support_loss,
    *,
    differentiable: bool = True,
) -> Params:
    """Return theta_K, as a function of the plan's parameters; the arguments are those of
    `trajectory`.
    """
    steps = trajectory(model, plan, support, loop, loss, differentiable=differentiable)
    params: Params = {}
    for params in steps:  # noqa: B007 - only the last is wanted
        pass
    return params
