"""A layer before timm's models: names of weights, wider first layers, calls, and loading into
plain timm.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import trainkit_data.tabular.models  # noqa: F401 - registers mlp
from safetensors.torch import save_file
from timm.models import load_checkpoint
from torch import Tensor, nn
from trainkit_plugins.sparsity_norm import MaskAsInput, SparsityNorm, ZeroImputation, attach

MODELS = [
    ("test_resnet", 3), ("test_resnet", 1), ("test_vit", 2), ("test_efficientnet", 5),
    ("test_convnext", 3),
    ("mlp", 2),
]  # fmt: skip


def make(name: str, channels: int) -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": 32} if name in ("test_vit", "mlp") else {}
    return timm.create_model(name, in_chans=channels, num_classes=4, **size).eval()


def gappy(channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, channels, 32, 32, generator=generator)
    return x.masked_fill(torch.rand(x.shape, generator=generator) < 0.4, float("nan"))


@pytest.mark.parametrize(("name", "channels"), MODELS)
def test_calls_go_through_the_layer_and_names_stay(name: str, channels: int) -> None:
    plain = make(name, channels)
    model, layer = copy.deepcopy(plain), SparsityNorm(center=True)
    x = gappy(channels)
    layer.fit([x])
    attach(model, layer, (channels, 32, 32))
    state = model.state_dict()
    assert set(state) - set(plain.state_dict()) == {"sparsity_norm.k", "sparsity_norm.mean"}
    assert set(plain.state_dict()) <= set(state)
    assert torch.equal(model(x), plain(layer(x)))
    assert model(x).isfinite().all()


@pytest.mark.parametrize(("name", "channels"), MODELS)
@pytest.mark.parametrize("mask", ["entry", "pixel"])
def test_a_mask_as_input_starts_as_zero_imputation_and_can_be_learned_from(
    name: str, channels: int, mask: Any
) -> None:
    plain = make(name, channels)
    model, x = copy.deepcopy(plain), gappy(channels)
    attach(model, MaskAsInput(mask=mask), (channels, 32, 32))
    assert list(model.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(model(x), plain(ZeroImputation(mask=mask)(x)), rtol=1e-4, atol=1e-5)
    model(x).square().sum().backward()
    first = model.get_submodule(model.pretrained_cfg["first_conv"])
    entries = plain.get_parameter(f"{model.pretrained_cfg['first_conv']}.weight").shape[1]
    assert first.weight.grad is not None
    assert first.weight.grad[:, entries:].abs().sum() > 0


def test_rows_of_features_grow_too() -> None:
    model = timm.create_model("mlp", in_chans=5, num_classes=2, hidden=[3])
    attach(model, MaskAsInput(), (5,))
    assert model.layers[0].in_features == 10
    assert model(torch.tensor([[1.0, float("nan"), 2.0, 3.0, 4.0]])).isfinite().all()


def test_kept_weights_load_into_plain_timm_and_plain_weights_into_a_model_with_the_layer(
    tmp_path: Path,
) -> None:
    x = gappy(3)
    model, layer = make("test_resnet", 3), SparsityNorm(center=True)
    layer.fit([x])
    attach(model, layer, (3, 32, 32))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(1)
    plain = timm.create_model("test_resnet", num_classes=4).eval()
    with pytest.raises(
        RuntimeError, match=r'Unexpected key.*"sparsity_norm.k", "sparsity_norm.mean"'
    ):
        load_checkpoint(plain, str(tmp_path / "weights.safetensors"))
    found = load_checkpoint(plain, str(tmp_path / "weights.safetensors"), strict=False)
    assert found.missing_keys == []
    assert found.unexpected_keys == ["sparsity_norm.k", "sparsity_norm.mean"]
    assert torch.equal(plain(layer(x)), model(x))
    # And into timm's model with a new layer before it, which takes over what the file knows.
    again = timm.create_model("test_resnet", num_classes=4).eval()
    attach(again, SparsityNorm(center=True), (3, 32, 32))
    load_checkpoint(again, str(tmp_path / "weights.safetensors"))
    assert torch.equal(again(x), model(x))
    assert again.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []


def test_the_handle_takes_the_layer_away_from_calls() -> None:
    model, x = make("test_resnet", 3), torch.randn(2, 3, 32, 32)
    before = model(x)
    handle = attach(model, SparsityNorm(5.0), (3, 32, 32))
    assert not torch.equal(model(x), before)
    handle.remove()
    assert torch.equal(model(x), before)


def test_a_copy_has_a_layer_of_its_own() -> None:
    model, x = make("test_resnet", 3), gappy(3)
    attach(model, SparsityNorm(5.0), (3, 32, 32))
    twin = copy.deepcopy(model)
    model.sparsity_norm.k.fill_(50.0)
    assert not torch.equal(model(x), twin(x))


def test_it_stays_before_a_model_that_is_called_functionally() -> None:
    model, x = make("test_resnet", 3), gappy(3)
    attach(model, SparsityNorm(5.0), (3, 32, 32))
    state = dict([*model.named_parameters(), *model.named_buffers()])
    assert torch.equal(torch.func.functional_call(model, state, (x,)), model(x))


def test_where_a_mask_would_enter_must_be_known() -> None:
    with pytest.raises(
        ValueError, match="Sequential does not say which of its layers takes the 3 channels"
    ):
        attach(nn.Sequential(nn.Conv2d(3, 4, 3)), MaskAsInput(), (3, 8, 8))
    grouped: Any = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2))
    grouped.pretrained_cfg = {"first_conv": "0"}
    with pytest.raises(ValueError, match="cannot be fed to it; choose another method"):
        attach(grouped, MaskAsInput(), (4, 8, 8))


def test_a_second_layer_is_refused() -> None:
    model = make("test_resnet", 3)
    attach(model, SparsityNorm(5.0), (3, 32, 32))
    with pytest.raises(ValueError, match="already has a layer sparsity_norm"):
        attach(model, SparsityNorm(5.0), (3, 32, 32))
