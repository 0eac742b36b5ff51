"""Which batch norms are exposed: answers that were checked by hand and by gradients, and what
the walk leaves alone.
"""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from trainkit_plugins.batch_norm.norm_decay.exposure import exposed_norms, is_batch_norm, is_norm


def on_meta(name: str, **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name, num_classes=10, **arguments)


ANSWERS: dict[str, list[str]] = {
    "vgg11_bn": ["features.26"],
    "resnet18": ["layer4.0.bn2", "layer4.0.downsample.1", "layer4.1.bn2"],
    "resnet10t": ["layer4.0.bn2", "layer4.0.downsample.2"],
    "resnetv2_18": ["norm"],
    "densenet121": ["features.norm5"],
    "efficientnet_b0": ["bn2"],
    "mobilenetv2_050": ["bn2"],
    "mobilenetv3_small_050": ["blocks.5.0.bn1"],
    "regnetx_002": [
        "s4.b1.conv3.bn",
        "s4.b1.downsample.bn",
        *(f"s4.b{i}.conv3.bn" for i in range(2, 8)),
    ],
    "repvgg_a0": ["stages.3.0.conv_kxk.bn", "stages.3.0.conv_1x1.bn"],
    "levit_128s": ["head.bn", "head_dist.bn"],
    "convnext_atto": [],
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_answer_for_a_timm_model(name: str) -> None:
    assert exposed_norms(on_meta(name)) == ANSWERS[name]


@pytest.mark.parametrize(
    ("name", "size", "alone", "with_others"),
    [
        ("mobilevit_xxs", 256, 1, 1),
        ("xcit_nano_12_p8_224", 224, 13, 0),
        ("coatnet_nano_rw_224", 224, 8, 0),
    ],
)
def test_other_norms_block_where_asked(name: str, size: int, alone: int, with_others: int) -> None:
    model = on_meta(name)
    assert len(exposed_norms(model, (3, size, size))) == alone
    assert len(exposed_norms(model, (3, size, size), blocking=is_norm)) == with_others


def test_every_output_counts() -> None:
    features = timm.create_model("test_resnet", features_only=True)
    plain = timm.create_model("test_resnet")
    assert len(exposed_norms(features, (3, 32, 32))) > len(exposed_norms(plain, (3, 32, 32)))
    assert exposed_norms(timm.create_model("test_resnet", num_classes=0)) == exposed_norms(plain)


@pytest.mark.parametrize("name", ["test_resnet", "test_byobnet", "resnet10t", "starnet_s050"])
def test_gradients_say_the_same(name: str) -> None:
    """A norm is exposed exactly where its scale still has a gradient when nothing flows into any
    norm.
    """
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    norms = {n: m for n, m in model.named_modules() if is_batch_norm(m)}
    wanted = exposed_norms(model, (3, 32, 32))
    for norm in norms.values():
        norm.register_forward_pre_hook(lambda _, inputs: inputs[0].detach())
    scales = [norm.weight for norm in norms.values()]
    found = torch.autograd.grad(model(torch.randn(2, 3, 32, 32)).sum(), scales, allow_unused=True)
    assert [n for n, gradient in zip(norms, found, strict=True) if gradient is not None] == wanted


class Branches(nn.Module):
    """Two norms in a row, and a third beside them that may be skipped; a norm that is called
    twice.
    """

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.beside = (nn.BatchNorm2d(3, affine=False) for _ in range(3))
        self.twice = nn.BatchNorm2d(3)
        self.last = nn.BatchNorm2d(3)
        self.last.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = nn.functional.relu(x, inplace=True)
        y = nn.functional.relu(self.second(self.first(x)), inplace=True)
        z = self.last(self.twice(y))
        return {
            "logits": (z, [self.twice(x) + y]),
            "extra": nn.functional.relu(self.beside(x), inplace=True),
        }


def test_in_place_work_frozen_and_bare_norms_and_nested_outputs() -> None:
    assert exposed_norms(Branches(), (3, 4, 4)) == ["second", "beside", "twice", "last"]


def test_a_norm_that_does_not_block_is_seen_and_passed() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.LayerNorm([3, 4, 4]), nn.BatchNorm2d(3)
    )
    assert exposed_norms(model, (3, 4, 4), blocking=lambda m: False) == ["0", "1", "3"]
    assert exposed_norms(model, (3, 4, 4), blocking=lambda m: isinstance(m, nn.LayerNorm)) == ["3"]


def test_the_model_and_the_random_streams_are_left_alone() -> None:
    model = timm.create_model("test_resnet", drop_rate=0.5, drop_path_rate=0.2).eval()
    model.layer1.train()
    modes = [m.training for m in model.modules()]
    values = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = [tensor.data_ptr() for tensor in model.state_dict().values()]
    stream = torch.get_rng_state()
    hooks = [len(m._forward_hooks) for m in model.modules()]
    assert exposed_norms(model)
    assert torch.equal(torch.get_rng_state(), stream)
    assert [m.training for m in model.modules()] == modes
    assert [len(m._forward_hooks) for m in model.modules()] == hooks
    assert [tensor.data_ptr() for tensor in model.state_dict().values()] == places
    assert all(torch.equal(tensor, values[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_shared_modules_are_not_changed() -> None:
    norm = nn.BatchNorm2d(3)
    model = nn.ModuleDict({"a": norm, "b": nn.Sequential(norm, nn.Conv2d(3, 3, 1))})
    model.forward = lambda x: model["b"](model["a"](x))  # type: ignore[method-assign]
    weight = norm.weight
    assert exposed_norms(model, (3, 4, 4)) == ["a"]
    assert model["b"][0].weight is weight


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (
            nn.BatchNorm2d(3),
            None,
            r"BatchNorm2d does not say how large its input is; give input_size=\(C, H, W\)",
        ),
        (nn.BatchNorm2d(3), (4, 8, 8), r"cannot run on inputs of size \(4, 8, 8\)"),
    ],
)
def test_what_cannot_be_walked_is_said(
    model: nn.Module, size: tuple[int, ...] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        exposed_norms(model, size)


def test_an_output_that_depends_on_nothing_is_said() -> None:
    class Constant(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return torch.zeros(2, device="meta")

    with pytest.raises(ValueError, match="no output of the model depends"):
        exposed_norms(Constant(3), (3, 4, 4))
