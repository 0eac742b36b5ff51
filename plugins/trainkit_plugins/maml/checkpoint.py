"""Inner steps that keep no graph: each is computed a second time when its gradient is asked for.

The peak then holds one step's graph instead of all K, for one more forward and backward pass per
step. torch's own checkpointing does not serve: it would compute the step again for the inner
gradient, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .isolation import META, swapped
from .plan import TaskPlan

Params = dict[str, Tensor]


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Any, generators: Sequence[torch.Generator], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.function, ctx.generators = function, generators
        ctx.states = [generator.get_state() for generator in generators]
        ctx.save_for_backward(*tensors)
        moved = function([tensor.detach() for tensor in tensors], False)
        return tuple(tensor.detach() for tensor in moved)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        later = [generator.get_state() for generator in ctx.generators]
        for generator, state in zip(ctx.generators, ctx.states, strict=True):
            generator.set_state(state)
        leaves = [
            t.detach().requires_grad_(n)
            for t, n in zip(ctx.saved_tensors, ctx.needs_input_grad[2:], strict=True)
        ]
        with torch.enable_grad():
            moved = ctx.function(leaves, True)
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        found = iter(torch.autograd.grad(moved, wanted, cotangents, allow_unused=True))
        for generator, state in zip(ctx.generators, later, strict=True):
            generator.set_state(state)
        return None, None, *(next(found) if leaf.requires_grad else None for leaf in leaves)


def step_again(
    step: Callable[[Params, TaskPlan, bool], Params],
    model: nn.Module,
    params: Params,
    plan: TaskPlan,
) -> Params:
    """Return step(params, plan, differentiable), a function of all tensors in them and of the
    model's meta-parameters.

    Args:
        step: computes theta_{k+1}; called without a graph now, with one in the backward pass.
        model: the copy that it uses; its parameters under `meta.` may enter the loss.
        params: theta_k.
        plan: its tensors are differentiated through, those in `extras` are not; generators in
            `extras` are rewound.
    """
    meta: Params = {name: p for name, p in model.named_parameters() if name.startswith(META)}
    scales = [dict(scale) for scale in plan.step_scales]
    parts: list[dict[str, Tensor]] = [params, meta, dict(plan.step_sizes), *scales]
    weights = [] if plan.class_weights is None else [plan.class_weights]

    def function(tensors: Sequence[Tensor], differentiable: bool) -> list[Tensor]:
        given = iter(tensors)
        now, own, sizes, *rest = ({name: next(given) for name in part} for part in parts)
        again = replace(
            plan, step_sizes=sizes, step_scales=rest, class_weights=next(given) if weights else None
        )
        for name in plan.adapt:
            if not now[name].requires_grad:
                now[name].requires_grad_()
        with swapped(model, own):
            moved = step(now, again, differentiable)
        return [moved[name] for name in plan.adapt]

    generators = [value for value in plan.extras.values() if isinstance(value, torch.Generator)]
    tensors = [tensor for part in parts for tensor in part.values()] + weights
    found = _Again.apply(function, generators, *tensors)
    return params | dict(zip(plan.adapt, found, strict=True))
