"""Meta Dropout on the papers' network: what is drawn where, and how the parameters of the noise
are learned.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainkit_plugins.maml import (
    Conv4,
    InnerLoop,
    TaskPlan,
    adapt,
    isolate,
    plan_for,
    support_loss,
    task_loss,
)
from trainkit_plugins.meta_dropout import MetaDropout, attach, gate
from trainkit_plugins.meta_dropout.noise import UNIT, standard_normal

from tests.reference import meta_dropout as twin
from trainkit import Batch

SIZE, CHANNELS, WAYS = 16, 4, 3
LAYERS = {"conv1": "1", "conv2": "2", "conv3": "3", "conv4": "4"}


def network(init: str = "paper", **further: Any) -> tuple[nn.Module, MetaDropout]:
    """Return conv4 in float64 with weights that are not near 0, so that every gradient has a
    size.
    """
    torch.manual_seed(0)
    model = Conv4(num_classes=WAYS, in_chans=1, img_size=SIZE, channels=CHANNELS).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    noise = attach(
        model,
        torch.zeros(2, 1, SIZE, SIZE, dtype=torch.float64),
        init=init,
        generator=generator(1),
        **further,
    )
    if init == "paper":
        for parameter in noise.parameters():
            nn.init.normal_(parameter, std=0.5)
    return model, noise


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def episode(seed: int = 5, shots: int = 2) -> tuple[Batch, Batch]:
    torch.manual_seed(seed)
    return tuple(  # type: ignore[return-value]
        Batch(
            torch.randn(WAYS * n, 1, SIZE, SIZE, dtype=torch.float64), torch.arange(WAYS).repeat(n)
        )
        for n in (shots, 2)
    )


def noisy_loss(
    model: nn.Module, params: Mapping[str, Tensor], plan: TaskPlan, support: Batch
) -> Tensor:
    """What the plugin makes of the inner loss."""
    with model.meta["meta_dropout"].sampling(plan.extras["noise"]):
        return support_loss(model, params, plan, support)


def outer(
    model: nn.Module, *, seed: int = 7, samples: int = 1, steps: int = 2, second_order: bool = True
) -> Tensor:
    """Return the query loss of one task; the noise is a fixed function of the seed."""
    plan = replace(plan_for(model, 0.3), inner_samples=samples, extras={"noise": generator(seed)})
    loop = InnerLoop(steps=steps, second_order=second_order)
    return task_loss(model, plan, *episode(), loop, noisy_loss).loss


def grads(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


def letters(model: nn.Module) -> dict[str, Tensor]:
    """The weights of conv4 and its noise under the letters of the twin."""
    p = dict(model.named_parameters())
    phi = "meta.meta_dropout.gates.conv{}.phi.0.{}"
    w = {f"{a}{i}": p[f"conv{i}.{b}"] for i in "1234" for a, b in (("W", "weight"), ("b", "bias"))}
    w |= {
        f"{a}{i}": p[phi.format(i, b)] for i in "1234" for a, b in (("V", "weight"), ("c", "bias"))
    }
    w |= {f"beta{i}": p[f"norm{i}.bias"] for i in "1234"}
    w |= {"U": p["head.weight"], "d": p["head.bias"]}
    return w | {
        "v": p["meta.meta_dropout.logits.phi.weight"],
        "e": p["meta.meta_dropout.logits.phi.bias"],
    }


def drawn(g: torch.Generator) -> Callable[[str, Tensor], Tensor]:
    return lambda name, like: standard_normal(like, g)


def test_it_equals_the_twin_in_the_papers_letters_with_noise():
    model, _ = network()
    support, query = episode()
    g = generator(7)
    w = twin.adapt(
        letters(model), support, steps=2, alpha=0.3, samples=2, noise=lambda k, s: drawn(g)
    )
    wanted = F.cross_entropy(twin.forward(w, query.inputs), query.targets)
    loss = outer(model, samples=2)
    torch.testing.assert_close(loss, wanted, rtol=1e-10, atol=0)
    found, theirs = grads(model, loss), letters(model)
    for (name, tensor), gradient in zip(
        theirs.items(), torch.autograd.grad(wanted, list(theirs.values())), strict=True
    ):
        ours = next(found[n] for n, p in model.named_parameters() if p is tensor)
        torch.testing.assert_close(
            ours, gradient, rtol=0, atol=1e-7 * float(gradient.abs().max()), msg=name
        )


@pytest.mark.parametrize("what", ["theta", "phi"])
def test_the_meta_gradient_agrees_with_finite_differences(what):
    model, _ = network()
    gradients = grads(model, outer(model))
    chosen = {n: p for n, p in model.named_parameters() if n.startswith("meta.") == (what == "phi")}
    direction = {n: standard_normal(p, generator(i)) for i, (n, p) in enumerate(chosen.items())}
    slope = sum((gradients[n] * direction[n]).sum() for n in chosen)
    h, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for n, p in chosen.items():
                p.add_(direction[n], alpha=sign * h)
        values.append(outer(model).detach())
        with torch.no_grad():
            for n, p in chosen.items():
                p.sub_(direction[n], alpha=sign * h)
    torch.testing.assert_close((values[0] - values[1]) / (2 * h), slope, rtol=1e-5, atol=0)


def test_every_parameter_of_the_noise_is_learned_and_none_is_adapted():
    model, noise = network()
    before = copy.deepcopy(noise.state_dict())
    plan = replace(plan_for(model, 0.3), extras={"noise": generator(0)})
    assert not any(name.startswith("meta.") for name in (*plan.adapt, *plan.params))
    adapted = adapt(model, plan, episode()[0], InnerLoop(steps=2), noisy_loss)
    assert all(torch.equal(before[name], value) for name, value in noise.state_dict().items())
    assert not torch.equal(adapted["conv1.weight"], model.conv1.weight)
    for name, gradient in grads(model, outer(model)).items():
        assert gradient is not None, name
        assert float(gradient.abs().max()) > 1e-9, name


def test_first_order_leaves_the_noise_on_the_logits_unlearned_and_changes_the_gates_gradient():
    model, _ = network()
    second, first = grads(model, outer(model)), grads(model, outer(model, second_order=False))
    for name, gradient in first.items():
        if name.startswith("meta.meta_dropout.logits"):
            assert gradient is None
        elif name.startswith("meta."):
            assert float((gradient - second[name]).norm() / second[name].norm()) > 1e-3, name


def test_a_step_that_is_computed_again_meets_the_same_noise():
    model, _ = network()
    plan = replace(plan_for(model, 0.3), inner_samples=2)

    def learned(again: bool) -> dict[str, Tensor | None]:
        loop = InnerLoop(steps=2, checkpoint=again)
        noisy = replace(plan, extras={"noise": generator(7)})
        return grads(model, task_loss(model, noisy, *episode(), loop, noisy_loss).loss)

    kept, again = learned(False), learned(True)
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-9, atol=1e-12, msg=name)


def forget(model: nn.Module) -> nn.Module:
    """Return the same network without any noise."""
    plain = Conv4(num_classes=WAYS, in_chans=1, img_size=SIZE, channels=CHANNELS).double()
    plain.load_state_dict(
        {n: v for n, v in model.state_dict().items() if not n.startswith("meta.")}
    )
    return plain


def test_off_is_maml_bit_for_bit():
    model, noise = network()
    plain = forget(model)
    noise.switch.mode = "off"
    losses = [
        task_loss(m, plan_for(m, 0.3), *episode(), InnerLoop(steps=3)).loss for m in (model, plain)
    ]
    assert torch.equal(*losses)
    found, wanted = (grads(m, loss) for m, loss in zip((model, plain), losses, strict=True))
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())
    assert all(gradient is None for name, gradient in found.items() if name.startswith("meta."))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_unit_gate_is_maml_exactly(dtype):
    model, _ = network(init="unit")
    model, plain = model.to(dtype), forget(model).to(dtype)
    support, query = (part._replace(inputs=part.inputs.to(dtype)) for part in episode())
    losses = [
        task_loss(m, plan_for(m, 0.3), support, query, InnerLoop(steps=3)).loss
        for m in (model, plain)
    ]
    exact = bool(
        (gate(torch.full((64,), UNIT, dtype=dtype)) == 1).all()
    )  # softplus may be off by its last bit
    assert exact or dtype is torch.float64
    tolerance = 0.0 if exact else 1e-11
    torch.testing.assert_close(*losses, rtol=tolerance, atol=0)
    found, wanted = (grads(m, loss) for m, loss in zip((model, plain), losses, strict=True))
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=tolerance)


def test_the_gates_are_at_their_mean_outside_the_inner_loop():
    model, noise = network()
    x = episode()[1].inputs
    state = torch.get_rng_state()
    plain, again = model(x), model(x)
    assert torch.equal(plain, again)
    torch.testing.assert_close(plain, twin.forward(letters(model), x))
    with noise.sampling(generator(3)):
        assert not torch.allclose(model(x), plain)
    assert torch.equal(model(x), plain)  # the state of the generator is nothing to it
    with pytest.raises(ZeroDivisionError), noise.sampling(generator(3)):
        raise ZeroDivisionError
    assert noise.switch.mode == "mean"
    assert torch.equal(torch.get_rng_state(), state)


def test_equal_seeds_give_equal_logits_and_every_pass_draws_anew():
    model, noise = network()
    x = episode()[0].inputs

    def passes(seed: int) -> list[Tensor]:
        with noise.sampling(generator(seed)):
            return [model(x), model(x)]

    a, b, other = passes(1), passes(1), passes(2)
    assert all(map(torch.equal, a, b))
    assert not torch.allclose(a[0], a[1])
    assert not torch.allclose(a[0], other[0])


def test_steps_and_samples_draw_anew():
    seen: list[torch.Tensor] = []

    def watching(model: nn.Module, params: Any, plan: TaskPlan, support: Batch) -> Tensor:
        seen.append(plan.extras["noise"].get_state())
        return noisy_loss(model, params, plan, support)

    model, _ = network()
    plan = replace(plan_for(model, 0.3), inner_samples=3, extras={"noise": generator(0)})
    adapt(model, plan, episode()[0], InnerLoop(steps=2), watching)
    assert len(seen) == 6
    assert len({tuple(state.tolist()) for state in seen}) == 6


def test_the_moments_of_the_noise():
    """a - m is standard normal, and so is the noise on the logits over its deviation; every site
    has some.
    """
    model, noise = network()
    x = episode()[0].inputs[:1].expand(400, -1, -1, -1)
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def look(name: str, layer: nn.Module, args: tuple[Tensor, ...], result: Tensor) -> None:
        plain = (
            F.conv2d(args[0], layer.weight, layer.bias, padding=1)
            if name != "head"
            else layer_of(args[0])
        )
        phi = noise.gates[name].phi[0] if name != "head" else noise.logits.phi
        m = phi(args[0])
        if name == "head":
            eps = (result - plain) / F.softplus(m)
        else:
            eps = torch.log(torch.expm1(result / plain)) - m
        seen[name] = eps, result

    layer_of = partial(F.linear, weight=model.head.weight, bias=model.head.bias)
    for name in (*LAYERS, "head"):
        model.get_submodule(name).register_forward_hook(partial(look, name))
    with torch.no_grad(), noise.sampling(generator(4)):
        model(x)
    for name, (eps, result) in seen.items():
        count = eps.numel()
        assert abs(float(eps.mean())) < 4 / count**0.5, name
        assert abs(float(eps.var()) - 1) < 4 * (2 / count) ** 0.5, name
        assert float(result.var(0).min()) > 0, name
    assert len(seen) == 5
    assert seen["head"][0].shape == (
        400,
        WAYS,
    )  # one deviation per example, but noise of its own for every class


def test_the_inner_gradient_varies_as_one_over_the_number_of_samples():
    model, noise = network()
    with torch.no_grad():
        for parameter in noise.parameters():
            parameter.mul_(0.04)  # as small as at the start: gradients then have no heavy tails
    support, g = episode()[0], generator(0)

    def variance(samples: int, repeats: int) -> Tensor:
        plan = replace(plan_for(model, 1.0), inner_samples=samples, extras={"noise": g})
        steps = []
        for _ in range(repeats):
            adapted = adapt(
                model, plan, support, InnerLoop(steps=1), noisy_loss, differentiable=False
            )
            steps.append(
                torch.cat([(adapted[n] - plan.params[n]).flatten().detach() for n in plan.adapt])
            )
        return torch.stack(steps).var(0).sum()

    ratio = float(variance(1, 80) / variance(6, 30))
    assert 4.5 < ratio < 7.5


def test_the_number_of_parameters_on_omniglot():
    model = Conv4(num_classes=20, in_chans=1, img_size=28, channels=64)
    noise = attach(model, torch.zeros(2, 1, 28, 28))
    count = {
        part: sum(p.numel() for p in module.parameters()) for part, module in noise.named_children()
    }
    assert count == {"gates": 111_424, "logits": 65}


def test_a_copy_for_a_task_has_noise_of_its_own():
    """Threads work on copies whose parameters are the model's: drawing in one is nothing to the
    others.
    """
    model, noise = network()
    copies = [isolate(model) for _ in range(2)]
    x = episode()[0].inputs
    wanted = []
    for seed, one in enumerate(copies):
        own = one.meta["meta_dropout"]
        assert own is not noise
        assert {id(p) for p in own.parameters()} == {id(p) for p in noise.parameters()}
        with own.sampling(generator(seed)):
            assert noise.switch.mode == "mean"
            assert torch.equal(model(x), model(x))
            wanted.append(one(x))
    for seed, expected in enumerate(wanted):
        with noise.sampling(generator(seed)):
            assert torch.equal(model(x), expected)


def test_half_precision_draws_in_full():
    m = torch.zeros(50_000, dtype=torch.bfloat16)
    drawn_gate = gate(m, generator(0))
    assert drawn_gate.dtype is torch.bfloat16
    full = gate(m.float(), generator(0))
    assert torch.equal(drawn_gate, full.bfloat16())
    assert float(full.mean()) == pytest.approx(0.806, abs=0.01)
    assert float(full.std()) == pytest.approx(0.521, abs=0.01)


def test_sampling_needs_a_generator():
    _, noise = network()
    with pytest.raises(ValueError, match="Generator"), noise.switched("sample"):
        pass
