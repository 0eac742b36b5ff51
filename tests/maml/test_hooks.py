"""What the hooks of `maml` tell a plugin: that a test begins, and the classes of a task."""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, ClassVar

from pydantic import PrivateAttr

from tests.reference.tiny import train, with_plugins
from trainkit import Plugin, Run, hookimpl

RECIPE = """\
seed: 0
model: {name: test_resnet, in_chans: 1}
data: {name: digits, image_size: 32}
train: {epochs: 1, device: cpu}
optimizer: {name: adam, lr: 1e-3}
plugins:
  maml: {ways: 2, train_ways: 3, head: zero, queries: 2, tasks: 1, steps: 1, steps_per_epoch: 2,
      val_episodes: 2, test_episodes: 2, also_test: {far: {name: digits}}}
"""


class Told(Plugin):
    """Writes down what it is told, in the order in which it is told."""

    requires: ClassVar[tuple[str, ...]] = ("maml",)
    after: ClassVar[tuple[str, ...]] = ("maml",)

    _told: list[tuple[str, object]] = PrivateAttr(default_factory=list)

    @hookimpl
    def on_test_start(self, name: str, run: Run) -> None:
        """Write the name of the test."""
        assert run.step == 2
        self._told.append(("test begins", name))

    @hookimpl(wrapper=True)
    def plan_task(self, support: Any, ways: int, phase: str) -> Generator[None, Any, Any]:
        """Write the number of classes."""
        assert sorted(set(support.targets.tolist())) == list(range(ways))
        self._told.append((phase, ways))
        return (yield)


def test_each_test_is_told_before_its_tasks_and_each_task_tells_its_classes(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    plugin = Told()
    train(with_plugins(write(RECIPE, "maml.yaml"), [], plugin), tmp_path / "run")
    tests = [("test begins", "test"), *[("test", 2)] * 2]
    far = [("test begins", "test_far"), *[("test", 2)] * 2]
    assert plugin._told == [*[("train", 3)] * 2, *[("validate", 2)] * 2, *tests, *far]
