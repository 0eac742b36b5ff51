"""Choosing alpha: scores against torchmetrics, the sweep against one model at a time, honesty of
the reported gain.
"""

from __future__ import annotations

import json
import math

import pytest
import timm
import torch
from torch import Tensor, nn
from torchmetrics import classification
from trainkit_plugins.batch_norm import convert_batch_norm, converted_layers
from trainkit_plugins.batch_norm.alphas import Point, calibration_error, points, score, sweep
from trainkit_plugins.batch_norm.choice import choose, choose_alpha, gain, halves
from trainkit_plugins.batch_norm.worth import choose_on_half, tune

ALPHAS = (0.0, 0.1, 1.0)


def made_up(n: int = 157, k: int = 7, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(k, (n,), generator=generator)
    return (
        3 * torch.randn(n, k, generator=generator) + 2 * nn.functional.one_hot(targets, k),
        targets,
    )


def test_points_are_the_metrics_that_runs_report() -> None:
    logits, targets = made_up()
    found = points(score(logits, targets)[None], [0.0])[0]
    assert found.accuracy == pytest.approx(
        float(classification.MulticlassAccuracy(7, average="micro")(logits, targets)), abs=1e-6
    )
    assert found.nll == pytest.approx(float(nn.functional.cross_entropy(logits, targets)), abs=1e-6)
    reference = classification.MulticlassCalibrationError(7, n_bins=15)(logits, targets)
    assert found.calibration_error == pytest.approx(float(reference), abs=1e-6)


def test_calibration_error_by_hand() -> None:
    confidence = torch.tensor([0.05, 0.05, 0.95, 1.0], dtype=torch.float64)
    correct = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    assert calibration_error(confidence, correct) == pytest.approx(
        (abs(1 - 0.1) + abs(1 - 1.95)) / 4
    )
    assert math.isnan(calibration_error(torch.tensor([math.nan]), torch.ones(1)))


def test_the_sweep_is_the_model_at_each_alpha() -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=4).eval()
    convert_batch_norm(model, example_weight=0.25)
    inputs, targets = torch.randn(7, 3, 32, 32), torch.arange(7) % 4
    read: list[int] = []

    def batches() -> object:
        for part in (slice(0, 4), slice(4, 7)):
            read.append(part.start)
            yield inputs[part], targets[part]

    found = sweep(model, batches(), lambda batch: (model(batch[0]), batch[1]), ALPHAS)
    assert read == [0, 4]
    assert {layer.example_weight for layer in converted_layers(model).values()} == {0.25}
    assert found.shape == (3, 3, 7)
    for alpha, scores in zip(ALPHAS, found, strict=True):
        convert_batch_norm(model, example_weight=alpha)
        with torch.no_grad():
            torch.testing.assert_close(scores, score(model(inputs), targets), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found[0], found[1])


def test_the_sweep_gives_alpha_back_after_an_error() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3)).eval()
    convert_batch_norm(model, example_weight=0.5)
    with pytest.raises(ZeroDivisionError):
        sweep(model, [0], lambda batch: 1 / batch, ALPHAS)  # type: ignore[arg-type, return-value]
    assert model[0].example_weight == 0.5
    with pytest.raises(ValueError, match="no example to tune on"):
        sweep(model, [], lambda batch: batch, ALPHAS)
    with pytest.raises(ValueError, match="Sequential has no converted batch norm"):
        sweep(nn.Sequential(nn.BatchNorm2d(3)), [], lambda batch: batch, ALPHAS)


def test_choosing() -> None:
    curve = [
        Point(0.0, 0.9, 0.5, 0.1),
        Point(0.1, 0.8, 0.3, 0.1),
        Point(0.2, 0.9, 0.4, 0.1),
        Point(0.3, 0.8, 0.3, 0.1),
        Point(1.0, 0.95, math.nan, math.nan),
    ]
    assert choose(curve, "nll").alpha == 0.1
    assert choose(curve, "accuracy").alpha == 0.2
    with pytest.raises(ValueError, match="no alpha gives finite predictions"):
        choose(curve[-1:], "nll")


def test_halves_share_sorted_classes_and_need_two_examples() -> None:
    scores = torch.arange(5.0).expand(1, 3, 5)
    assert [half[0, 0].tolist() for half in halves(scores)] == [[0, 2, 4], [1, 3]]
    with pytest.raises(ValueError, match="1 example cannot be split"):
        halves(scores[:, :, :1])


def test_no_example_is_measured_with_an_alpha_that_it_chose() -> None:
    """Even examples prefer alpha 1, odd ones alpha 0: each half gets what the other wants, and
    loses by it.
    """
    nll = torch.tensor([[1.0, 0.0] * 4, [0.0, 2.0] * 4], dtype=torch.float64)
    correct = torch.tensor([[0.0, 1.0] * 4, [1.0, 1.0] * 4], dtype=torch.float64)
    found = tune(torch.stack([nll, torch.ones(2, 8), correct], dim=1), (0.0, 1.0), "nll")
    assert (found.alpha, found.alphas, found.examples) == (0.0, (1.0, 0.0), 8)
    # Odd examples at alpha 1 lose 2 each; even ones at alpha 0 stay what they are.
    assert (found.nll.mean, found.accuracy.mean) == (1.0, 0.0)
    assert json.loads(json.dumps(found.facts()))["curve"][1] == {
        "alpha": 1.0,
        "accuracy": 1.0,
        "nll": 1.0,
        "calibration_error": 0.0,
    }


def test_the_gain_of_choosing_among_equals_is_no_gain() -> None:
    """Alphas that differ by noise alone: the best looks better on the data that chose it, but
    not when cross-fitted.
    """
    alphas, seen, told = tuple(i / 10 for i in range(11)), [], []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        found = tune(torch.rand(11, 3, 60, generator=generator, dtype=torch.float64), alphas, "nll")
        seen.append(choose(found.curve, "nll").nll - found.curve[0].nll)
        told.append(found.nll.mean)
    assert sum(seen) / 200 < -0.05
    assert abs(sum(told) / 200) < 0.01


def test_an_alpha_that_is_better_by_luck_is_not_taken() -> None:
    """Equal alphas: hardly ever; one that gains 0.2 on average over noise of 0.4, always."""
    alphas, taken, found = tuple(i / 10 for i in range(11)), 0, 0
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        scores = torch.rand(11, 3, 400, generator=generator, dtype=torch.float64)
        taken += choose_alpha(scores, alphas, "nll") > 0
        scores[3, 0] -= 0.2
        scores[3, 2] += 0.2
        found += (
            choose_alpha(scores, alphas, "nll") == choose_alpha(scores, alphas, "accuracy") == 0.3
        )
    assert taken < 40
    assert found == 100
    assert choose_alpha(torch.rand(11, 3, 1), alphas, "nll") == 0.0


def test_gain_has_the_interval_of_the_paired_mean() -> None:
    values, baseline = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 0.0, 0.0])
    found = gain(values, baseline)
    assert found.mean == pytest.approx(7 / 3)
    assert found.half == pytest.approx(
        1.96 * (((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 2 / 3) ** 0.5
    )
    assert str(found).startswith("+2.3333 ± ")
    assert math.isnan(gain(values[:1], baseline[:1]).half)


def test_the_half_that_reports_has_no_say() -> None:
    """Even examples prefer alpha 1 and odd ones lose by it: it is chosen all the same, and the
    loss is told.
    """
    nll = torch.tensor([[1.0, 0.0] * 4, [0.0, 2.0] * 4], dtype=torch.float64)
    correct = torch.tensor([[0.0, 1.0] * 4, [1.0, 0.0] * 4], dtype=torch.float64)
    scores = torch.stack([nll, torch.ones(2, 8), correct], dim=1)
    found = choose_on_half(scores, (0.0, 1.0), "nll")
    assert (found.alpha, found.examples) == (1.0, (4, 4))
    assert list(found.stages) == ["as it came", "alpha 1"]
    assert (found.nll.mean, found.accuracy.mean) == (2.0, -1.0)
    assert found.summary().startswith(
        "alpha 1; against the model as it came: nll +2.0000 ± 0.0000, accuracy -1"
    )
    assert found.verdict()[1:] == [
        ["as it came", "1.0000", "0.0000", "0.0000"],
        ["alpha 1", "0.0000", "2.0000", "1.0000"],
    ]
    renewed = choose_on_half(scores.flip(0), (0.0, 1.0), "nll", before=scores[:1] + 0.5)
    assert list(renewed.stages) == ["as it came", "statistics measured anew", "alpha 0"]
    assert renewed.nll.mean == 1.5
    assert (
        "alpha 0 is kept: on the half that chooses no other is better by more than chance; against"
        in renewed.summary()
    )
