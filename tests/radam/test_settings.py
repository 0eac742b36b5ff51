"""Settings outside their range are refused by name, value and fix."""

import doctest
import sys

import pytest
import torch
from trainkit_plugins.radam import Adam2k, AdamEps, AdamWarmup, RAdam, rectification


def theta():
    return torch.nn.Parameter(torch.zeros(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": -1e-3}, "lr must be a finite number >= 0, got -0.001"),
        ({"lr": float("nan")}, "lr must be .* got nan"),
        ({"lr": float("inf")}, "lr must be .* got inf"),
        ({"eps": -1.0}, "eps must be .* got -1.0"),
        ({"weight_decay": -0.1}, "weight_decay must be .* got -0.1"),
        ({"betas": (1.0, 0.999)}, r"betas must be two numbers in \[0, 1\), got \(1.0, 0.999\)"),
        ({"betas": (0.9, -0.1)}, r"betas must be .* got \(0.9, -0.1\)"),
        ({"betas": (0.9,)}, r"betas must be .* got \(0.9,\)"),
        ({"unrectified": "adam"}, """unrectified must be "sgd" or "skip", got 'adam'"""),
        ({"fused": True, "foreach": True}, "exclude each other"),
    ],
)
def test_bad_settings_are_refused_by_the_constructor_and_in_a_group(settings, message):
    with pytest.raises(ValueError, match=message):
        RAdam([theta()], **settings)
    with pytest.raises(ValueError, match=message):
        RAdam([{"params": [theta()], **settings}])
    optimizer = RAdam([theta()])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [theta()], **settings})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: AdamWarmup([theta()], warmup_steps=-1),
            "warmup_steps must be a whole number >= 0, got -1",
        ),
        (lambda: AdamWarmup([theta()], warmup_steps=1.5), "warmup_steps .* got 1.5"),
        (
            lambda: Adam2k([theta()], freeze_steps=-2),
            "freeze_steps must be a whole number >= 0, got -2",
        ),
        (lambda: AdamEps([theta()], eps=-1e-4), "eps must be"),
    ],
)
def test_bad_settings_of_the_controls_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("named", [True, False])
def test_sparse_gradients_are_refused_before_anything_moves(named):
    dense, table = theta(), torch.nn.Embedding(4, 2, sparse=True)
    pairs = [("head", dense), ("table.weight", table.weight)]
    optimizer = RAdam(pairs if named else [p for _, p in pairs], lr=0.1)
    dense.grad = torch.ones(2)
    table(torch.tensor([1])).sum().backward()
    name = "table.weight" if named else "number 1"
    with pytest.raises(
        ValueError, match=rf"RAdam takes dense .* {name}, shape \(4, 2\).*sparse=False"
    ):
        optimizer.step()
    assert torch.equal(dense, torch.zeros(2))
    assert dense not in optimizer.state


def test_defaults_are_the_papers():
    assert RAdam([theta()]).defaults["decoupled_weight_decay"] is True
    assert AdamEps([theta()]).defaults["eps"] == 1e-4
    assert Adam2k([theta()]).defaults["freeze_steps"] == 2000


@pytest.mark.parametrize("public", [RAdam, rectification])
def test_examples_in_docstrings_run(public):
    result = doctest.testmod(sys.modules[public.__module__])
    assert result.attempted > 0
    assert result.failed == 0
