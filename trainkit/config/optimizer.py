"""The sections of a recipe that say how parameters move: `optimizer:` and `scheduler:`."""

from __future__ import annotations

from typing import Any, Literal, cast

from pydantic import BaseModel, Field, field_validator, model_validator

from trainkit.config.data_source import STRICT


class OptimizerSpec(BaseModel):
    """The `optimizer:` section: an optimizer of timm's factory (unless a plugin provides one)."""

    model_config = STRICT
    name: str = Field(
        "adamw", min_length=1, description="timm's name of the optimizer, also lookahead_NAME"
    )
    lr: float | None = Field(
        1e-3, gt=0, description="peak learning rate; null where lr_base says it"
    )
    lr_base: float | None = Field(
        None, gt=0, description="peak learning rate at lr_base_size examples a step, scaled"
    )
    lr_base_size: int = Field(256, ge=1, description="examples a step that lr_base is for")
    lr_base_scale: Literal["auto", "linear", "sqrt"] = Field(
        "auto",
        description="how lr_base grows with the step; auto: sqrt for ada… and lamb, else linear",
    )
    weight_decay: float = Field(
        0.05, ge=0, description="for weight matrices and kernels; biases and norms have none"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="for optimizers that have it")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="lr factor from each layer to the one below"
    )
    layer_decay_min_scale: float = Field(
        0.0, ge=0, le=1, description="layer_decay: least factor of a layer"
    )
    layer_decay_no_opt_scale: float | None = Field(
        None, gt=0, le=1, description="layer_decay: layers with a factor below it are not trained"
    )
    fallback: tuple[str, ...] | None = Field(
        None,
        description="muon: what its second rule moves, as [head.*]; default: all but hidden layers",
    )
    args: dict[str, Any] = Field(
        {}, description="further arguments of the optimizer, such as betas"
    )

    @model_validator(mode="after")
    def _check(self) -> OptimizerSpec:
        fields = type(self).model_fields
        if self.lr_base is not None:
            if self.lr is not None and "lr" in self.model_fields_set:
                raise ValueError("lr and lr_base both say the peak learning rate; leave one out")
            object.__setattr__(self, "lr", None)
        elif self.lr is None:
            raise ValueError("lr is null; give a number, or lr_base")
        for first, names in (
            ("lr_base", ("lr_base_size", "lr_base_scale")),
            ("layer_decay", ("layer_decay_min_scale", "layer_decay_no_opt_scale")),
        ):
            for name in names if getattr(self, first) is None else ():
                if getattr(self, name) != fields[name].default:
                    raise ValueError(f"{name} does nothing without {first}; leave it out")
        return self

    @property
    def lr_rule(self) -> Literal["linear", "sqrt"]:
        """How `lr_base` grows with the examples of a step; `auto` as timm's script has it."""
        if self.lr_base_scale != "auto":
            return self.lr_base_scale
        named = any(part in self.name.lower() for part in ("ada", "lamb"))
        return "sqrt" if named else "linear"

    def peak_lr(self, examples: int) -> float:
        """Return the peak learning rate of steps on so many examples, those of all ranks."""
        if self.lr_base is None:
            return cast(float, self.lr)  # `_check` sees to it
        ratio: float = examples / self.lr_base_size
        if self.lr_rule == "sqrt":
            ratio **= 0.5
        return self.lr_base * ratio


class SchedulerSpec(BaseModel):
    """The `scheduler:` section: one of timm's schedules."""

    model_config = STRICT
    name: Literal["cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant"] = (
        Field("cosine", description="timm's name of the schedule")
    )
    warmup_epochs: float = Field(0, ge=0, description="epochs of linear warm-up")
    warmup_lr: float = Field(
        1e-6, ge=0, description="learning rate at the first step of the warm-up"
    )
    min_lr: float = Field(0.0, ge=0, description="lowest learning rate")
    interval: Literal["step", "epoch"] = Field(
        "step",
        description="after what the rate changes: every step, or every epoch as in timm's script",
    )
    args: dict[str, Any] = Field(
        {}, description="further arguments of timm's create_scheduler_v2, such as decay_rate"
    )

    @field_validator("name", mode="before")
    @classmethod
    def _check_name(cls, name: Any) -> Any:
        if name == "plateau":
            raise ValueError(
                "plateau waits for a validation to say that the metric has stopped improving, so "
                "that no plan knows its rates, and validating less often would train otherwise; "
                "use step or multistep with the epochs at which the rate shall fall, or cosine"
            )
        if name == "none":
            raise ValueError("say constant, which also warms up if it shall")
        return name
