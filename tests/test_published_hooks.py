"""Hooks that a plugin publishes for others are hooks like core's."""

from __future__ import annotations

from typing import ClassVar

from pydantic import PrivateAttr

from tests.reference.entries import Quiet, entries_of, refusals
from trainkit import Plugin, hookimpl, moment, value
from trainkit.hooks.manager import make_manager
from trainkit.hooks.order import arrange


class Spoken:
    """Hooks of a plugin."""

    @value
    def choose_word(self, start, run):
        """Value: a word."""

    @moment
    def word_spoken(self, word, run):
        """Moment: it was said."""


class Speaker(Plugin):
    hookspecs: ClassVar[type | None] = Spoken

    @hookimpl
    def choose_word(self, start):
        return start


class Louder(Plugin):
    requires: ClassVar[tuple[str, ...]] = ("speaker",)

    @hookimpl(wrapper=True)
    def choose_word(self):
        return (yield).upper()


class Listener(Plugin):
    _heard: list[str] = PrivateAttr(default_factory=list)

    @hookimpl
    def word_spoken(self, word):
        self._heard.append(word)


def test_a_plugins_own_hooks_are_hooks_like_any_other() -> None:
    listener = Listener()
    manager, problems = make_manager(entries_of(Louder(), listener, Speaker()), Quiet())
    assert problems == []
    word = manager.hook.choose_word(start="hey", run=None)
    manager.hook.word_spoken(word=word, run=None)
    assert word == "HEY"
    assert listener._heard == ["HEY"]


def test_a_published_hook_is_unknown_without_its_plugin() -> None:
    class Eager(Plugin):
        @hookimpl
        def choose_word(self, start): ...

    assert refusals(Eager()) == ["r.yaml:1: plugins.eager: there is no hook 'choose_word'"]


def test_where_a_required_plugin_is_missing_its_hooks_are_not_missed_as_well() -> None:
    assert refusals(Louder()) == []
    assert "needs the plugin speaker" in arrange(entries_of(Louder()))[1][0].message


def test_an_optional_hook_may_be_missing() -> None:
    class Maybe(Plugin):
        @hookimpl(optionalhook=True)
        def choose_word(self, start): ...

    assert refusals(Maybe()) == []


def test_published_hooks_are_checked_as_cores_are() -> None:
    class Quieter(Plugin):
        @hookimpl
        def choose_word(self, stert):
            return "psst"

    assert refusals(Speaker(), Quieter()) == [
        "r.yaml:2: plugins.quieter: hook choose_word has no argument 'stert'; did you mean 'start'?"
        " (it has: start, run)"
    ]


def test_two_plugins_cannot_publish_the_same_hook_nor_one_of_cores() -> None:
    class Again(Plugin):
        hookspecs: ClassVar[type | None] = Spoken

    class Steal(Plugin):
        class Own:
            @moment
            def on_fit_start(self, run): ...

        hookspecs: ClassVar[type | None] = Own

    class Nothing(Plugin):
        hookspecs: ClassVar[type | None] = Quiet

    assert refusals(Speaker(), Again(), Steal(), Nothing()) == [
        (
            "r.yaml:2: plugins.again: it publishes a hook choose_word, but there is one of that "
            "name already; rename it"
        ),
        (
            "r.yaml:2: plugins.again: it publishes a hook word_spoken, but there is one of that "
            "name already; rename it"
        ),
        (
            "r.yaml:3: plugins.steal: it publishes a hook on_fit_start, but there is one of that "
            "name already; rename it"
        ),
        "r.yaml:4: plugins.nothing: its hookspecs Quiet has no method marked @value or @moment",
    ]
