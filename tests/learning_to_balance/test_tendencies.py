"""What the report shows: class weights by shots, step multipliers by task size."""

from __future__ import annotations

import math

import pytest
import torch
from trainkit_plugins.learning_to_balance.plots import weight_table
from trainkit_plugins.learning_to_balance.plugin import LearningToBalance
from trainkit_plugins.learning_to_balance.tendencies import multipliers_by_size, weights_by_shots

from trainkit import History, Record


def test_class_weights_by_shots():
    shots = torch.tensor([[1.0, 2.0], [2.0, 4.0], [3.0, 3.0]])
    omega = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.4, 0.6]])
    found = weights_by_shots(shots, omega, most=5)
    assert found.mean.tolist() == pytest.approx([0.7, 0.4, math.nan, 0.5, math.nan], nan_ok=True)
    assert found.deviation[1].item() == pytest.approx(0.1)
    assert found.inverse.tolist() == pytest.approx(
        [2 / 3, 0.5, math.nan, 1 / 3, math.nan], nan_ok=True
    )
    assert found.unevenness.item() == pytest.approx(0.2)  # the third task, whose classes are alike


def test_tasks_of_one_kind_leave_the_other_empty():
    alike = weights_by_shots(torch.full((2, 3), 2.0), torch.full((2, 3), 1 / 3), most=3)
    assert alike.mean.isnan().all()
    assert alike.unevenness.item() == pytest.approx(0, abs=1e-6)
    mixed = weights_by_shots(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5, 0.5]]), most=2)
    assert mixed.unevenness.isnan()


def test_step_multipliers_by_size():
    sizes = torch.tensor([5.0, 6.0, 20.0, 25.0])
    gamma = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    found = multipliers_by_size(sizes, gamma, bins=2)
    assert found.size.tolist() == [5.5, 22.5]
    assert found.gamma.tolist() == [[2, 3], [6, 7]]
    same = multipliers_by_size(torch.tensor([4.0, 4.0]), gamma[:2], bins=3)
    assert same.size.tolist() == pytest.approx([4, math.nan, math.nan], nan_ok=True)


def history(purposes):
    values = {}
    for purpose in purposes:
        values |= {
            f"learning_to_balance/{purpose}/{name}": value
            for name, value in {
                "omega_mean": [0.4, math.nan, 0.2],
                "omega_deviation": [0.1, math.nan, 0.05],
                "omega_inverse": [0.5, math.nan, 0.1],
                "omega_unevenness": 0.02,
                "size": [5.0, math.nan, 20.0],
                "gamma_conv1": [0.5, math.nan, 1.5],
                "gamma_head": [4.0, math.nan, 2.0],
            }.items()
        }
    return History([Record(1, 0, {"loss": 1.0}), Record(2, 0, values)])


def plugin():
    made = LearningToBalance()
    made.bind("learning_to_balance", 0)
    return made


def test_the_report_shows_both_for_each_test():
    sections = plugin().report(history(["validation", "test", "test_digits"]))
    assert [s.title for s in sections] == [
        "Class weights and shots, test",
        "Step multipliers and task size, test",
        "Class weights and shots, test_digits",
        "Step multipliers and task size, test_digits",
    ]
    assert "farthest from uniform was 2.0% off" in sections[0].text
    learned, inverse = sections[0].figures[0].axes[0].lines
    assert list(learned.get_xdata()) == [1, 3]
    assert list(learned.get_ydata()) == [0.4, 0.2]
    assert list(inverse.get_ydata()) == [0.5, 0.1]
    assert sections[0].table[1] == ["1", "0.400", "0.500", "0.400"]
    assert sections[1].table == [
        ["examples", "conv1", "head"],
        ["5", "0.500", "4.000"],
        ["20", "1.500", "2.000"],
    ]
    lines = sections[1].figures[0].axes[0].lines
    assert [line.get_label() for line in lines] == ["conv1", "head"]
    assert list(lines[1].get_ydata()) == [4.0, 2.0]


def test_without_a_test_it_shows_the_validation():
    assert len(plugin().report(history(["validation"]))) == 2
    assert plugin().report(History([Record(1, 0, {"loss": 1.0})])) == []


def test_a_long_table_is_thinned():
    rows = weight_table([0.1] * 50, [0.2] * 50)
    assert len(rows) == 13
    assert [row[0] for row in rows[1:]][:2] == ["1", "5"]
    assert rows[-1][0] == "50"
