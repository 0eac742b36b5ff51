"""A plugin's random streams while they are set apart."""

from __future__ import annotations

import pytest
import torch

from trainkit import Plugin


def plugin(seed: int = 0) -> Plugin:
    made = Plugin()
    made.bind("noise", seed)
    return made


def draw(made: Plugin) -> float:
    return torch.rand((), generator=made.generator()).item()


def test_streams_set_apart_belong_to_their_purpose_and_the_others_go_on_where_they_were():
    made, other = plugin(), plugin()
    draw(made)
    with made.isolated_streams("evaluate", 3):
        first = draw(made)
    with other.isolated_streams("evaluate", 3):
        assert draw(other) == first  # whatever was drawn before
    with made.isolated_streams("evaluate", 4):
        assert draw(made) != first
    alone = plugin()
    draw(alone)
    assert draw(made) == draw(alone)
    assert draw(other) == draw(plugin())


def fail(made: Plugin) -> None:
    with made.isolated_streams("test"):
        draw(made)
        raise ValueError("stop")


def test_streams_come_back_after_an_error():
    made = plugin()
    with pytest.raises(ValueError, match="stop"):
        fail(made)
    assert draw(made) == draw(plugin())
