"""Decay of scales and shifts: the authors' gradients, every optimizer's own kind of decay,
groups kept whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm.optim
import torch
from torch import Tensor
from torch.optim import Optimizer
from trainkit_plugins.batch_norm.norm_decay.decay import decay_groups, decay_toward_one
from trainkit_plugins.radam import RAdam

F64 = torch.float64


def parameters(values: list[float], dtype: torch.dtype = F64) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.tensor(values, dtype=dtype))


def test_sgd_takes_the_gradient_of_the_authors_penalty() -> None:
    """Their penalty, differentiated by autograd and added to the loss, against plain SGD with
    decay toward one.
    """
    wd, lr = 0.3, 0.1
    gamma, beta = parameters([2.0, 1.0, 0.25]), parameters([0.5, 0.0, -1.0])
    twin_gamma, twin_beta = (
        gamma.detach().clone().requires_grad_(),
        beta.detach().clone().requires_grad_(),
    )
    groups = decay_groups(
        [{"params": [gamma, beta]}], [gamma], [beta], scale=(wd, ""), shift=(wd, "")
    )
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    plain = torch.optim.SGD([twin_gamma, twin_beta], lr=lr, momentum=0.9)
    decay_toward_one(optimizer, [gamma])
    weights = torch.tensor([1.0, -2.0, 0.5], dtype=F64)
    for _ in range(20):
        optimizer.zero_grad()
        plain.zero_grad()
        (weights * gamma * beta).sum().backward()
        penalty = wd * (((twin_gamma - 1) ** 2).sum() / 2 + (twin_beta**2).sum() / 2)
        ((weights * twin_gamma * twin_beta).sum() + penalty).backward()
        optimizer.step()
        plain.step()
    torch.testing.assert_close(gamma, twin_gamma, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(beta, twin_beta, rtol=1e-12, atol=1e-12)


def test_decay_alone_moves_as_it_must() -> None:
    """gamma = 1 and beta = 0 stay exactly; gamma = 2 moves by lr * wd; nothing ever passes one."""
    gamma, beta = parameters([1.0, 2.0, 0.0]), parameters([0.0, 0.0, 0.0])
    optimizer = torch.optim.SGD(
        decay_groups(
            [{"params": [gamma, beta]}], [gamma], [beta], scale=(0.5, ""), shift=(0.5, "")
        ),
        lr=0.1,
    )
    decay_toward_one(optimizer, [gamma])
    for parameter in (gamma, beta):
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(
        gamma.detach(), torch.tensor([1.0, 1.95, 0.05], dtype=F64), rtol=0, atol=1e-15
    )
    assert gamma[0] == 1.0
    assert not beta.any()
    for _ in range(2000):
        optimizer.step()
    torch.testing.assert_close(gamma.detach(), torch.ones(3, dtype=F64), rtol=0, atol=1e-12)


def sgd(groups: Any) -> Optimizer:
    return torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)


def adamw(groups: Any) -> Optimizer:
    return torch.optim.AdamW(groups, lr=0.05)


def adam(groups: Any) -> Optimizer:
    return torch.optim.Adam(groups, lr=0.05)


def radam(groups: Any) -> Optimizer:
    return RAdam(groups, lr=0.05)


def of_timm(name: str) -> Callable[[Any], Optimizer]:
    def make(groups: Any) -> Optimizer:
        return timm.optim.create_optimizer_v2(groups, opt=name, lr=0.05)

    make.__name__ = name
    return make


MAKERS = [sgd, adam, adamw, radam, *map(of_timm, ("lion", "nadamw", "rmsproptf", "madgrad"))]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_any_optimizer_decays_toward_one_as_it_decays_toward_zero(
    make: Callable[[Any], Optimizer],
) -> None:
    """Of gamma with decay toward one and delta = gamma - 1 with plain decay, the one stays the
    other plus one.
    """
    start, pulls = (
        [1.5, 0.2, 1.0, -0.7],
        torch.randn(30, 4, dtype=F64, generator=torch.Generator().manual_seed(0)),
    )
    gamma, delta = parameters(start), parameters([s - 1 for s in start])
    shifted, plain = (
        make([{"params": [gamma], "weight_decay": 0.2}]),
        make([{"params": [delta], "weight_decay": 0.2}]),
    )
    free = parameters(start)
    undecayed = make([{"params": [free], "weight_decay": 0.0}])
    decay_toward_one(shifted, [gamma])
    for pull in pulls:
        for optimizer, parameter in ((shifted, gamma), (plain, delta), (undecayed, free)):
            parameter.grad = pull.clone()
            optimizer.step()
    torch.testing.assert_close(gamma.detach(), delta.detach() + 1, rtol=0, atol=1e-9)
    assert (gamma - free).abs().max() > 1e-3


def test_without_a_decay_the_optimizer_is_what_it_was() -> None:
    gammas = [parameters([1.5, 0.3], torch.float32), parameters([1.5, 0.3], torch.float32)]
    optimizers = [
        torch.optim.AdamW([{"params": [g], "weight_decay": 0.0}], lr=0.01) for g in gammas
    ]
    end = decay_toward_one(optimizers[0], [gammas[0]])
    for step in range(200):
        for optimizer, gamma in zip(optimizers, gammas, strict=True):
            gamma.grad = torch.tensor([1.0, -0.5]) * (-1) ** (step // 7)
            optimizer.step()
    torch.testing.assert_close(*gammas, rtol=0, atol=200 * 6e-8)
    end()
    before = gammas[0].detach().clone()
    gammas[0].grad = torch.zeros(2)
    optimizers[0].zero_grad()
    optimizers[0].step()
    assert torch.equal(gammas[0], before)


def test_groups_keep_what_they_say_and_are_not_changed() -> None:
    weight, gamma, beta, other, frozen = (parameters([1.0]) for _ in range(5))
    groups: list[dict[str, Any]] = [
        {"params": [weight], "weight_decay": 0.1, "name": "decay", "lr_scale": 0.5},
        {"params": [gamma, beta], "weight_decay": 0.7, "name": "no_decay", "lr_scale": 0.25},
        {"params": [other], "weight_decay": 0.0, "name": "rest", "lr_scale": 1.0},
    ]
    found = decay_groups(
        groups, [gamma, other, frozen], [beta], scale=(0.01, "up"), shift=(0.02, "down")
    )
    assert [(g["name"], g["weight_decay"], g["lr_scale"]) for g in found] == [
        ("decay", 0.1, 0.5),
        ("norm_scale_no_decay", 0.01, 0.25),
        ("norm_scale_rest", 0.01, 1.0),
        ("norm_shift", 0.02, 0.25),
    ]
    assert [group.get("rule") for group in found] == [None, "up", "up", "down"]
    assert [id(p) for g in found for p in g["params"]] == [
        id(p) for p in (weight, gamma, other, beta)
    ]
    assert [len(g["params"]) for g in groups] == [1, 2, 1]
    assert decay_groups(groups, [], [], scale=(0.1, ""), shift=(0.1, "")) == groups


@pytest.mark.parametrize("name", ["lamb", "lars", "adafactor"])
def test_optimizers_that_scale_steps_by_the_weights_are_refused(name: str) -> None:
    gamma = parameters([1.0], torch.float32)
    with pytest.raises(ValueError, match="steps that grow with the weights"):
        decay_toward_one(of_timm(name)([{"params": [gamma]}]), [gamma])


def test_a_wrapper_that_calls_no_hooks_is_refused_and_what_it_wraps_is_not() -> None:
    gamma = parameters([3.0], torch.float32)
    wrapper: Any = of_timm("lookahead_sgd")([{"params": [gamma], "weight_decay": 1.0}])
    with pytest.raises(ValueError, match=r"Lookahead\.step calls no step hooks"):
        decay_toward_one(wrapper, [gamma])
    decay_toward_one(wrapper._base_optimizer, [gamma])
    for _ in range(400):
        gamma.grad = torch.zeros(1)
        wrapper.step()
    torch.testing.assert_close(gamma.detach(), torch.ones(1), rtol=0, atol=1e-5)


def test_short_types_are_refused() -> None:
    gamma: Tensor = parameters([1.0], torch.bfloat16)
    with pytest.raises(ValueError, match=r"rounded coarsely in torch\.bfloat16"):
        decay_toward_one(torch.optim.SGD([gamma], lr=0.1), [gamma])
