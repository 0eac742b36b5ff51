"""Plugins that declare themselves wrongly, each in one way; `fails` names the check that must
find it.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, field_validator

from trainkit import Plugin, Run, hookimpl

Yields = Generator[None, Any, Any]


class Scales(Plugin):
    """What they share: they multiply the loss, and there is no paper."""

    citation: ClassVar[str] = ""
    fails: ClassVar[str]

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Yields:
        loss = yield
        return loss * 0.5


class Undocumented(Scales):
    fails = "check_found"


class NeedsAnOption(Scales):
    """Cannot be switched on without an option, and the kit is given none."""

    fails = "check_options"
    strength: float = Field(gt=0, description="how much")


class Percent(Scales):
    """Takes a percentage and keeps a fraction, which is read as a percentage the next time."""

    fails = "check_options"
    keep: Annotated[float, BeforeValidator(lambda value: value / 100)] = Field(
        50.0, ge=0, le=1, description="how much to keep, in percent"
    )


class EqualByValue(Scales):
    """Is equal to any other of its kind with the same options."""

    fails = "check_options"
    strength: float = Field(1.0, gt=0, description="how much")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, EqualByValue) and self.strength == other.strength

    __hash__ = None  # type: ignore[assignment]


class NoDescription(Scales):
    """Has an option that nothing explains."""

    fails = "check_descriptions"
    strength: float = Field(1.0, gt=0)


class NoRange(Scales):
    """Takes any number."""

    fails = "check_ranges"
    strength: float = Field(1.0, description="how much")


class NoRangeInside(Scales):
    """Takes any number as the second of two."""

    fails = "check_ranges"
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], float] = Field(
        (0.9, 0.99), description="decay rates"
    )


class ClampsQuietly(Scales):
    """Makes numbers outside its range fit instead of refusing them."""

    fails = "check_ranges"
    strength: float = Field(1.0, ge=0, le=1, description="how much")

    @field_validator("strength", mode="before")
    @classmethod
    def _clamp(cls, value: float) -> float:
        return min(max(value, 0.0), 1.0)


class RefusesNamelessly(Scales):
    """Refuses a number without saying which option it was."""

    fails = "check_ranges"
    strength: float = Field(1.0, description="how much")

    def model_post_init(self, context: Any) -> None:
        if not 0 < self.strength < 10:
            raise ValueError("out of range")


class NoCitation(Plugin):
    """Leaves open whether there is a paper."""

    fails: ClassVar[str] = "check_citation"

    @hookimpl(wrapper=True)
    def compute_loss(self) -> Yields:
        loss = yield
        return loss * 0.5


class CitesInProse(Scales):
    """Names its paper, but not in BibTeX."""

    fails = "check_citation"
    citation = "Liu et al., On the Variance of the Adaptive Learning Rate and Beyond, ICLR 2020"


class Misspelt(Scales):
    """Has a hook of a name that there is not."""

    fails = "check_hooks"

    @hookimpl
    def befor_optimizer_step(self, run: Run) -> None:
        run.log.record("nothing", 0.0)


class Unmarked(Scales):
    """Has a hook without the mark."""

    fails = "check_hooks"

    def before_optimizer_step(self, run: Run) -> None:
        run.log.record("nothing", 0.0)


class AsksForTooMuch(Scales):
    """Wants an argument that the hook does not have."""

    fails = "check_hooks"

    @hookimpl
    def on_epoch_end(self, model: Any, run: Run) -> None:
        run.log.record("nothing", 0.0)


class AfterLetters(Scales):
    """Names another plugin in a string where a tuple belongs: each letter would be a name."""

    fails = "check_hooks"
    after = "ema"  # type: ignore[assignment]


class ListsFailures(Scales):
    """Names known failures without their reasons."""

    fails = "check_hooks"
    known_failures = ("check_hooks",)  # type: ignore[assignment]


class NeedsTheUnknown(Scales):
    """Requires a plugin that nobody has."""

    fails = "check_hooks"
    requires = ("not_installed_anywhere",)
