"""Computing inner steps again gives the gradients that keeping their graphs gives."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from trainkit_plugins.maml import Conv4, InnerLoop, plan_for, predict, task_loss


class Examples(NamedTuple):
    inputs: Tensor
    targets: Tensor


class Noisy(nn.Module):
    """A network whose support loss has a meta-parameter and draws noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Conv4(num_classes=3, img_size=16, channels=3)
        self.meta = nn.ModuleDict({"scale": nn.Linear(1, 1)})

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def noisy_loss(model, params, plan, support):
    generator = plan.extras["noise"]
    noise = torch.randn(support.inputs.shape, generator=generator, dtype=support.inputs.dtype)
    scale = model.meta["scale"].weight.view(())
    logits = predict(model, params, support.inputs + scale * noise)
    losses = F.cross_entropy(logits, support.targets, reduction="none")
    return (plan.class_weights[support.targets] * losses).sum()


def test_gradients_for_parameters_plan_and_meta_parameters_are_those_of_the_kept_graph():
    torch.manual_seed(0)
    model = Noisy().double()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    examples = [
        Examples(torch.randn(6, 1, 16, 16, dtype=torch.float64), torch.arange(3).repeat(2))
        for _ in range(2)
    ]
    sizes = {
        n: torch.full_like(p, 0.1).requires_grad_() for n, p in plan_for(model, 0.1).params.items()
    }
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64, requires_grad=True)
    found = []
    for checkpoint in (False, True):
        plan = plan_for(model, 0.1)
        generator = torch.Generator().manual_seed(5)
        scales = [{name: torch.ones((), dtype=torch.float64) for name in plan.adapt}]
        plan = replace(
            plan,
            step_sizes={name: sizes[name] for name in plan.adapt},
            step_scales=scales,
            class_weights=weights,
            inner_samples=2,
            extras={"noise": generator},
        )
        loop = InnerLoop(3, checkpoint=checkpoint)
        loss = task_loss(model, plan, *examples, loop, noisy_loss).loss
        leaves = [*model.parameters(), *plan.step_sizes.values(), weights]
        state = generator.get_state()
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
        assert torch.equal(generator.get_state(), state)
        found.append((loss, *gradients))
    for kept, again in zip(*found, strict=True):
        torch.testing.assert_close(again, kept, rtol=1e-12, atol=1e-14)
    assert (
        dict(zip([n for n, _ in model.named_parameters()], found[1][1:], strict=False))[
            "meta.scale.weight"
        ].abs()
        > 0
    )
