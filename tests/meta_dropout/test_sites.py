"""Which layers of timm's models get noise, and that gating them leaves the models what they are."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainkit_plugins.maml import Conv4, isolate
from trainkit_plugins.meta_dropout import attach
from trainkit_plugins.meta_dropout.sites import Site, choose, is_activation, is_norm, probe

MODELS: dict[str, tuple[int, dict[str, Any]]] = {
    "conv4": (4, {"in_chans": 3, "img_size": 32, "channels": 8}),
    "test_resnet": (12, {}),
    "test_byobnet": (10, {}),
    "test_convnext": (19, {}),
    "test_efficientnet": (13, {}),  # depthwise convolutions; squeeze-and-excitation
    "test_mambaout": (11, {}),
    "test_nfnet": (17, {}),  # no norm, standardized weights
    "test_vit": (6, {"img_size": 32}),
    "tf_mobilenetv3_small_minimal_100": (34, {}),  # pads by the size of what it reads
}


def create(name: str, size: int = 32) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make = Conv4 if name == "conv4" else partial(timm.create_model, name)
    model: nn.Module = make(num_classes=5, **MODELS[name][1])
    for parameter in model.parameters():
        if not parameter.any():  # some begin with residual branches that give nothing
            nn.init.constant_(parameter, 0.1)
    return model, torch.randn(4, 3, size, size)


class Wrapped(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_the_noise_gets_a_gradient(name):
    model, x = create(name)
    noise = attach(model, x, init="paper", generator=torch.Generator().manual_seed(0))
    with noise.sampling(torch.Generator().manual_seed(1)):
        loss = F.cross_entropy(model(x), torch.arange(4))
    loss.backward()
    assert len(noise.sites) == MODELS[name][0]
    for parameter, value in noise.named_parameters():
        assert value.grad is not None, parameter
        assert float(value.grad.abs().max()) > 0, parameter


@pytest.mark.parametrize("name", MODELS)
def test_unit_gates_give_the_model_as_it_was(name):
    model, x = create(name)
    model = isolate(model)  # batch statistics, nothing else random
    wanted, names = model(x), [n for n, _ in model.named_parameters()]
    noise = attach(model, x, init="unit")
    torch.testing.assert_close(model(x), wanted, rtol=1e-5, atol=1e-5)
    assert [n for n, _ in model.named_parameters() if not n.startswith("meta.")] == names
    with noise.switched("off"):
        assert torch.equal(model(x), wanted)


def test_the_shortcuts_of_residual_blocks_get_none():
    model, x = create("test_resnet")
    found = {site.name: site for site in probe(model, x)}
    chosen = [site.name for site in choose(model, list(found.values()))]
    convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert sorted(set(convolutions) - set(chosen)) == [
        f"layer{i}.0.downsample.1" for i in (2, 3, 4)
    ]
    assert found["layer2.0.conv1"] == Site("layer2.0.conv1", 1, "norm")
    assert found["layer2.0.downsample.1"].reader == "other"


def test_downsampling_without_a_branch_beside_it_is_no_shortcut():
    model, x = create("test_mambaout")
    chosen = [site.name for site in choose(model, probe(model, x))]
    assert [name for name in chosen if "downsample" in name] == [
        f"stages.{i}.downsample.conv" for i in (1, 2, 3)
    ]


def test_gates_of_squeeze_and_excitation_get_none():
    for name in ("test_efficientnet", "test_nfnet"):
        model, x = create(name)
        chosen = [site.name for site in choose(model, probe(model, x))]
        assert not any("se." in one or "attn" in one for one in chosen)


def test_a_transformer_is_disturbed_before_its_nonlinearity():
    model, x = create("test_vit")
    noise = attach(model, x)
    assert noise.sites == [f"blocks.{i}.mlp.fc1" for i in range(6)]
    gates = [F.softplus(gate.phi[0].bias) for gate in noise.gates.values()]
    assert all(
        torch.allclose(gate, torch.ones(())) for gate in gates
    )  # no norm would take another factor back


def test_a_layer_that_is_called_twice_has_noise_of_its_own_for_each_call():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor, *, stop: bool = False) -> Tensor:
            x = self.norm(self.conv(x))
            if stop:
                raise ZeroDivisionError
            return self.norm(self.conv(x))

    model, x = Twice().train(), torch.randn(4, 3, 8, 8)
    noise = attach(model, x, logits=False, generator=torch.Generator().manual_seed(0))
    first, second = noise.gates["conv"].phi
    assert not torch.equal(first.weight, second.weight)
    with noise.switched("off"):
        h = model.norm(model.conv(x) * F.softplus(first(x)))
        wanted = model.norm(model.conv(h) * F.softplus(second(h)))
    torch.testing.assert_close(model(x), wanted)
    with pytest.raises(ZeroDivisionError):
        model(x, stop=True)
    torch.testing.assert_close(model(x), wanted)  # counted from the first call again


def test_patterns_choose_layers():
    model, x = create("test_resnet")
    assert attach(model, x, sites=["layer4.*.conv?", "conv1.0"]).sites == [
        "conv1.0",
        "layer4.0.conv1",
        "layer4.0.conv2",
    ]


def test_a_pattern_that_fits_nothing_is_answered_with_names():
    model, x = create("test_resnet")
    with pytest.raises(
        ValueError, match=r"fits 'layer4.0.conv9'; there are 16, such as layer4.0.conv"
    ):
        attach(model, x, sites=["layer4.0.conv9"])


def test_a_model_without_such_layers_is_refused():
    model, x = Wrapped(nn.Flatten(), nn.Linear(12, 3)), torch.randn(2, 3, 2, 2)
    with pytest.raises(ValueError, match=r"name layers in `sites`, such as layers.1"):
        attach(model, x, logits=False)
    assert not hasattr(model, "meta")
    assert attach(model, x, sites=["layers.1"], logits=False).sites == ["layers.1"]


def test_a_sequence_would_call_the_noise_as_a_layer():
    with pytest.raises(ValueError, match="wrap it"):
        attach(
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)),
            torch.randn(2, 3, 2, 2),
            logits=False,
        )


def test_noise_on_the_logits_needs_a_linear_classifier():
    model, x = create("test_resnet")
    model.reset_classifier(0)
    with pytest.raises(
        ValueError, match=r"this model's is Identity; go without it \(head_noise: false\)"
    ):
        attach(model, x)
    with pytest.raises(ValueError, match="none that timm would name"):
        attach(Wrapped(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)), x)


def test_noise_is_attached_once():
    model, x = create("conv4")
    attach(model, x)
    with pytest.raises(ValueError, match="already"):
        attach(model, x)


def test_attaching_draws_from_the_given_generator_alone_and_leaves_the_model_as_it_was():
    model, x = create("test_resnet")
    before, mode = {n: v.clone() for n, v in model.state_dict().items()}, model.training
    state = torch.get_rng_state()
    a = attach(model, x, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(model.state_dict()[n], v) for n, v in before.items())
    assert all(module.training == mode for module in model.modules())
    b = attach(create("test_resnet")[0], x, generator=torch.Generator().manual_seed(3))
    assert all(map(torch.equal, a.parameters(), b.parameters()))


@pytest.mark.parametrize(
    ("module", "norm", "activation"),
    [
        (nn.BatchNorm2d(3), True, False),
        (timm.layers.BatchNormAct2d(3), True, False),
        (timm.layers.RmsNorm(3), True, False),
        (timm.layers.EvoNorm2dS0(4), True, False),
        (timm.layers.ConvNormAct(3, 3), False, False),
        (nn.GELU(), False, True),
        (timm.layers.Swish(), False, True),
        (nn.Sigmoid(), False, False),
        (nn.Identity(), False, False),
        (nn.MultiheadAttention(4, 2), False, False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_what_is_a_norm_and_what_an_activation(module, norm, activation):
    assert (is_norm(module), is_activation(module)) == (norm, activation)
