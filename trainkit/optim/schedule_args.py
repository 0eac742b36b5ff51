"""The arguments of timm's schedules: which each of them has a use for, of what type and in what
range.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from trainkit.config.data_source import STRICT
from trainkit.config.raw import validate
from trainkit.config.recipe import Recipe
from trainkit.errors import Problem, suggest

_Positive = Annotated[float, Field(gt=0)]


class Args(BaseModel):
    """What every schedule understands. Numbers become floats: timm's powers of large integers
    take for ever.
    """

    model_config = STRICT

    noise: tuple[Annotated[float, Field(ge=0, le=1)], ...] | None = None
    noise_pct: float = Field(0.67, gt=0, le=1)
    noise_std: _Positive = 1.0
    noise_seed: int = Field(42, ge=0, lt=2**62)

    @field_validator("noise", mode="before")
    @classmethod
    def _as_tuple(cls, value: Any) -> Any:
        if isinstance(value, int | float):
            return (value,)
        if not isinstance(value, list):
            return value
        if len(value) not in (1, 2):
            raise ValueError(
                "should be the share of the run at which noise begins, or two: where it begins and "
                "ends"
            )
        return tuple(value)

    @model_validator(mode="after")
    def _check_noise(self) -> Args:
        alone = []
        for name in ("noise_pct", "noise_std", "noise_seed"):
            if name in self.model_fields_set:
                alone.append(name)
        if self.noise is None and alone:
            raise ValueError(f"{' and '.join(alone)} do nothing without noise")
        if self.noise_std > 100 * self.noise_pct:
            raise ValueError(
                "timm draws until the noise is within noise_pct; set noise_std to 100 times that at"
                " most"
            )
        return self


class Shifted(Args):
    """What may begin anew after the warm-up."""

    warmup_prefix: bool = False


class Ending(Args):
    """What decays to a lowest rate, which a cooldown then holds to the end of the run."""

    cooldown_epochs: float = Field(0, ge=0)


class Cycles(Shifted, Ending):
    """What decays once or in cycles."""

    cycle_mul: _Positive = 1.0
    cycle_decay: float = Field(0.1, gt=0, le=1)
    cycle_limit: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check_cycles(self) -> Cycles:
        alone = []
        for name in ("cycle_mul", "cycle_decay"):
            if name in self.model_fields_set:
                alone.append(name)
        if self.cycle_limit == 1 and alone:
            raise ValueError(f"{' and '.join(alone)} do nothing in a single cycle; set cycle_limit")
        return self


class Cosine(Cycles):
    """A cosine, whose time k-decay bends."""

    k_decay: _Positive = 1.0


class Poly(Cosine):
    """A polynomial, whose power timm calls decay_rate."""

    decay_rate: _Positive = 0.1


class Step(Shifted):
    """A factor at every so many epochs."""

    decay_epochs: _Positive = 90.0
    decay_rate: float = Field(0.1, gt=0, lt=1)


class Multistep(Shifted):
    """A factor at each milestone."""

    decay_milestones: tuple[_Positive, ...] = (90.0, 180.0, 270.0)
    decay_rate: float = Field(0.1, gt=0, lt=1)

    @model_validator(mode="after")
    def _check_order(self) -> Multistep:
        if not self.decay_milestones or list(self.decay_milestones) != sorted(
            self.decay_milestones
        ):
            raise ValueError("decay_milestones must be epochs, each later than the one before")
        return self


class Wsd(Ending):
    """Warm-up, a constant rate, and a decay at the end."""

    decay_epochs: _Positive = 0.2
    decay_fn: Literal["linear", "1-sqrt", "cosine", "power", "exp"] | None = None


class Rsqrt(Wsd):
    """Warm-up, one over the square root of time, and a decay at the end."""

    stable_timescale: _Positive | None = None


_ARGS: dict[str, type[Args]] = {
    "cosine": Cosine,
    "tanh": Cycles,
    "poly": Poly,
    "step": Step,
    "multistep": Multistep,
    "wsd": Wsd,
    "rsqrt": Rsqrt,
    "constant": Args,
}
_ELSEWHERE = {
    "sched": "scheduler.name",
    "num_epochs": "train.epochs",
    "warmup_epochs": "scheduler.warmup_epochs",
    "warmup_lr": "scheduler.warmup_lr",
    "min_lr": "scheduler.min_lr",
    "step_on_epochs": "scheduler.interval",
}
_FIXED = {
    "optimizer": "the run has one",
    "updates_per_epoch": "the data say how many there are",
    "patience_epochs": "it is of plateau, which is not offered here",
    "plateau_mode": "it is of plateau, which is not offered here",
}


def read_args(recipe: Recipe) -> tuple[Args | None, list[Problem]]:
    """Return the schedule's arguments, typed, and what is wrong with them."""
    spec, where = recipe.scheduler, recipe.raw.nearest
    known, problems = _ARGS[spec.name], []
    for name in [name for name in spec.args if name not in known.model_fields]:
        key = f"scheduler.args.{name}"
        owners = [owner for owner, args in _ARGS.items() if name in args.model_fields]
        if name in _ELSEWHERE:
            wrong = f"say it as {_ELSEWHERE[name]}"
        elif name in _FIXED:
            wrong = f"{_FIXED[name]}; leave it out"
        elif name == "warmup_prefix":
            when = "begins after the warm-up in any case"
            if spec.name == "constant":
                when = "never decays"
            wrong = f"{spec.name} {when}; leave it out"
        elif owners:
            wrong = f"{spec.name} has no use for it, only {', '.join(owners)}; leave it out"
        else:
            key = "scheduler.args"
            every = [n for args in _ARGS.values() for n in args.model_fields]
            wrong = f"timm has no {name!r}{suggest(name, every)}"
        problems.append(Problem(where("scheduler", "args", name), key, wrong))
    told = {name: value for name, value in spec.args.items() if name in known.model_fields}
    args, found = validate(known, told, recipe.raw, ("scheduler", "args"))
    return args, [*problems, *found]
