"""What a plugin that learns from few-shot tasks has in common with another: the tasks, their
metrics, and the test.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from trainkit_data.few_shot import (
    ClassPool,
    GeneratedEval,
    GeneratedStream,
    class_pool,
    target_pool,
)

from trainkit import (
    Batch,
    Data,
    History,
    Plugin,
    Predictions,
    Run,
    Section,
    figure,
    hookimpl,
)

from .accuracy import EpisodeMetrics, by_step, in_order, mean_and_interval
from .episodes import Episode, EpisodeSampler
from .hookspecs import MamlHooks
from .plan import Phase
from .plots import draw_steps

Episodes = Sequence[Episode[Batch]]


class Episodic(Plugin):
    """A plugin whose data are few-shot tasks; a subclass says how classes are predicted after
    adapting to one.
    """

    ways: int = Field(5, ge=2, description="classes of a task")
    train_ways: int | None = Field(
        None,
        ge=2,
        description="classes of a training task, if not as many: more of them make it harder",
    )
    shots: int = Field(1, ge=1, description="support images of each class; not used with max_shot")
    max_shot: int | None = Field(
        None,
        ge=1,
        description=(
            "any-shot tasks: a fair coin says whether the classes draw their shots from 1 … "
            "max_shot each for itself or together; null: always `shots`"
        ),
    )
    queries: int = Field(15, ge=1, description="query images of each class")
    tasks: int = Field(
        4, ge=1, description="tasks of an optimizer step, on all ranks and micro-batches together"
    )
    steps_per_epoch: int = Field(
        100, ge=1, description="optimizer steps in an epoch, which has no other meaning here"
    )
    val_episodes: int = Field(
        200, ge=2, le=1_000_000, description="tasks of every validation, the same each time"
    )
    test_episodes: int = Field(
        600, ge=0, le=1_000_000, description="tasks of the test after training; 0 for no test"
    )
    also_test: dict[str, dict[str, Any]] = Field(
        {},
        description="further data to test on: sections like `data:`, each under a name of its own",
    )

    _tests: dict[str, GeneratedEval[Episode[Batch]]] = PrivateAttr(default_factory=dict)

    def ways_of(self, phase: Phase) -> int:
        """Return how many classes a task has."""
        return self.train_ways if phase == "train" and self.train_ways else self.ways

    @abstractmethod
    def predict_tasks(
        self,
        model: nn.Module,
        episodes: Episodes,
        phase: Phase,
        run: Run,
        *,
        every_step: bool = False,
    ) -> list[Tensor]:
        """Return each task's query logits [M, ways] after adapting, or [K + 1, M, ways] after 0
        … K steps.
        """

    @hookimpl
    def build_data(self, run: Run) -> Data:
        """Tasks of the training classes, and fixed tasks of the validation and test classes."""
        recipe, device = run.recipe, run.device
        train, val = class_pool(recipe, "train"), class_pool(recipe, "validation")
        tests = {"test": class_pool(recipe, "test")} if self.test_episodes else {}
        for name, section in self.also_test.items() if self.test_episodes else ():
            tests[f"test_{name}"] = target_pool(
                recipe, section, "plugins", self.name, "also_test", name
            )
        shots = None if self.max_shot else self.shots
        sampler = EpisodeSampler(self.ways, self.queries, shots=shots, max_shot=self.max_shot)
        wide = replace(sampler, ways=self.ways_of("train"))
        for split, pool in {"training": train, "validation": val, **tests}.items():
            try:
                (wide if pool is train else sampler).check(pool)
            except ValueError as error:
                option = "train_ways" if pool is train and self.train_ways else "ways"
                self.refuse(run, option, f"{split} classes: {error}")
        share: dict[str, Any] = {"rank": device.rank, "world": device.world, "noun": "tasks"}
        try:
            stream = GeneratedStream(
                partial(_draw, wide, train, recipe.seed),
                steps_per_epoch=self.steps_per_epoch,
                items_per_step=self.tasks,
                accumulate=recipe.train.accumulate,
                **share,
            )
            fixed = {
                name: GeneratedEval(
                    partial(_fixed, sampler, pool, name),
                    count=count,
                    batch_size=self.tasks,
                    **share,
                )
                for name, pool, count in (
                    ("val", val, self.val_episodes),
                    *((name, pool, self.test_episodes) for name, pool in tests.items()),
                )
            }
        except ValueError as error:
            self.refuse(run, "tasks", str(error))
        self._tests = {name: fixed[name] for name in tests}
        wider = "" if wide == sampler else f" ({wide.ways}-way in training)"
        summary = (
            f"{recipe.data.name}: {self.ways}-way tasks{wider} of "
            f"{shots or f'1 to {self.max_shot}'} shot(s) and {self.queries} queries, from "
            f"{len(train):,} training and {len(val):,} validation classes"
        )
        notes = tuple(note for pool in (train, val, *tests.values()) for note in pool.notes)
        return Data(stream, fixed["val"], self.ways, train.shape, summary, notes=notes)

    @hookimpl(wrapper=True)
    def build_metrics(self, run: Run) -> Generator[None, Any, Any]:
        """Add the interval of the accuracy over tasks."""
        return EpisodeMetrics((yield), self.ways * self.queries, run.device.gather)

    @hookimpl
    def evaluate_batch(self, model: nn.Module, batch: Any, run: Run) -> Predictions:
        """The query logits of some tasks after adapting to each."""
        episodes = run.device.move(batch)
        logits = self.predict_tasks(model, episodes, "validate", run)
        return Predictions(
            torch.cat(logits), torch.cat([episode.query.targets for episode in episodes])
        )

    def test(self, run: Run) -> None:
        """Test the model on the test tasks, and log what was found."""
        for name, stream in self._tests.items():
            cast(MamlHooks, run.hook).on_test_start(name=name, run=run)
            own: list[list[float]] = []
            with ExitStack() as streams:
                for plugin in run.plugins.values():
                    streams.enter_context(plugin.isolated_streams(name))
                for batch in stream:
                    episodes = run.device.move(batch)
                    logits = self.predict_tasks(run.model, episodes, "test", run, every_step=True)
                    own += [
                        by_step(z, episode.query.targets)
                        for z, episode in zip(logits, episodes, strict=True)
                    ]
            found = in_order(run.device.gather(own))
            means, intervals = zip(
                *(mean_and_interval(values) for values in zip(*found, strict=True)), strict=True
            )
            run.log.record(f"{name}/accuracy", means[-1])
            run.log.record(f"{name}/accuracy_interval", intervals[-1])
            run.log.record(f"{name}/accuracy_by_step", torch.tensor(means, dtype=torch.float64))
            run.log.record(
                f"{name}/accuracies",
                torch.tensor([values[-1] for values in found], dtype=torch.float64),
            )
            run.log.note(
                f"{name}: accuracy {means[-1]:.4f} ± {intervals[-1]:.4f} (95%) after "
                f"{len(means) - 1} steps, {means[0]:.4f} before, on {len(found)} tasks"
            )

    def report(self, history: History) -> list[Section]:
        """Tabulate the tests, and plot accuracy against the steps of adaptation."""
        names = [
            name.removesuffix("/accuracy_by_step")
            for name in history.names
            if name.endswith("/accuracy_by_step")
        ]
        if not names:
            return []
        curves = {name: history.series(f"{name}/accuracy_by_step")[1][-1] for name in names}
        rows = [["tasks", "accuracy", "95% interval", "before adapting", "number"]]
        for name, curve in curves.items():
            interval, each = (
                history.series(f"{name}/{what}")[1][-1]
                for what in ("accuracy_interval", "accuracies")
            )
            rows.append(
                [name, f"{curve[-1]:.4f}", f"± {interval:.4f}", f"{curve[0]:.4f}", str(len(each))]
            )
        drawn, axes = figure(width=5.4, height=3.2)
        draw_steps(axes, curves)
        text = (
            "Accuracy on query images of classes that were never trained on, after adapting to each"
            " task."
        )
        return [Section("Test on new classes", text, [drawn], rows)]


def _draw(
    sampler: EpisodeSampler, pool: ClassPool, seed: int, epoch: int, number: int
) -> Episode[Batch]:
    return sampler.episode(pool, seed, "train", epoch, number)


def _fixed(sampler: EpisodeSampler, pool: ClassPool, name: str, number: int) -> Episode[Batch]:
    # The same tasks whatever the recipe's seed, so that runs can be compared task by task.
    return sampler.episode(pool, name, number)
