"""Observers come after the plugins: they see what plugins made of a moment, and answer only
where no plugin does.
"""

from __future__ import annotations

from typing import Any

from torchmetrics import MetricCollection

from trainkit import Plugin, hookimpl
from trainkit.errors import Location
from trainkit.hooks.manager import make_manager
from trainkit.hooks.order import Entry

MEASURED = MetricCollection({})


class Core:
    @hookimpl(trylast=True)
    def build_metrics(self) -> str:
        return "core"


class Observer:
    def __init__(self, name: str, told: list[str]) -> None:
        self.name, self.told = name, told

    @hookimpl
    def on_fit_start(self) -> None:
        self.told.append(self.name)


class Answering(Observer):
    @hookimpl
    def build_metrics(self) -> str:
        return self.name


class Told(Plugin):
    @hookimpl
    def on_fit_start(self, run: Any) -> None:
        run.append("plugin")


class Provides(Told):
    @hookimpl
    def build_metrics(self) -> MetricCollection:
        return MEASURED


def test_observers_are_told_after_the_plugins_in_their_own_order() -> None:
    told: list[str] = []
    observers = [Observer("first", told), Observer("second", told)]
    manager, problems = make_manager([Entry("told", Told(), Location("here"))], Core(), observers)
    manager.hook.on_fit_start(run=told)
    assert not problems
    assert told == ["plugin", "first", "second"]


def test_an_observer_answers_before_core_and_after_a_plugin() -> None:
    observer = Answering("observer", [])
    without, _ = make_manager([Entry("told", Told(), Location("here"))], Core(), [observer])
    assert without.hook.build_metrics(run=None) == "observer"
    with_plugin, problems = make_manager(
        [Entry("provides", Provides(), Location("here"))], Core(), [observer]
    )
    assert not problems
    assert with_plugin.hook.build_metrics(run=None) is MEASURED
