"""What a plan says in words: the data's classes and preparation, augmentation, loss and
schedule.
"""

from __future__ import annotations

from typing import Any

from trainkit.config.optimizer import SchedulerSpec
from trainkit.config.recipe import LossSpec
from trainkit.data.images import AugmentSpec
from trainkit.data.policies import leaves_jitter_out
from trainkit.data.types import Data

_ALL = 10  # classes that are listed one by one; of more, the first and the last
_FEW = 4


def data_facts(data: Data) -> dict[str, Any]:
    """Return the classes, and how validation images are prepared, as plain data."""
    counts = data.train_counts
    largest = None
    if sum(counts):
        largest = max(range(len(counts)), key=counts.__getitem__)
    return {
        "classes": list(data.class_names),
        "train_counts": list(counts),
        "val_counts": list(data.val_counts),
        "largest": (
            None
            if largest is None
            else {"class": data.class_names[largest], "share": counts[largest] / sum(counts)}
        ),
        "preparation": list(data.preparation),
    }


def data_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows that `data_facts` make on a page: what they are of, and what they say."""
    rows = []
    if facts["classes"]:
        rows.append(("classes", _classes(facts)))
    if facts["preparation"]:
        rows.append(("validation images", "\n".join(facts["preparation"])))
    return rows


def _classes(facts: dict[str, Any]) -> str:
    names, counts = facts["classes"], facts["train_counts"]
    if counts:
        listed = []
        for name, count in zip(names, counts, strict=True):
            listed.append(f"{name} ({count:,})")
    else:
        listed = names
    if len(listed) <= _ALL:
        text = ", ".join(listed)
    else:
        text = f"{', '.join(listed[:_FEW])} … {listed[-1]}; {len(names):,} in all"
    largest = facts["largest"]
    if largest is None:
        return text
    spread = ""
    if len(listed) > _ALL:
        spread = f", of {min(counts):,} to {max(counts):,} training examples"
    return (
        f"{text}{spread}; the largest, {largest['class']}, is {largest['share']:.1%} of the "
        "training examples"
    )


def augmentation_words(spec: AugmentSpec | None) -> str:
    """Say how training images are changed at random."""
    if spec is None:
        return "none: training images are prepared as those of validation"
    low, high = spec.scale
    what = _CROPS[spec.crop_mode].format(low, high, *spec.ratio)
    chances = {
        "left-right flip": spec.hflip,
        "up-down flip": spec.vflip,
        _erasing(spec): spec.re_prob,
        "greys": spec.grayscale_prob,
        "blur": spec.gaussian_blur_prob,
    }
    parts = [what]
    for what, chance in chances.items():
        if chance:
            parts.append(f"{what} with probability {chance:g}")
    if spec.auto_augment:
        parts.append(f"policy {spec.auto_augment}")
    if spec.color_jitter and not leaves_jitter_out(spec.auto_augment):
        parts.append(f"colour jitter of strength {spec.color_jitter:g}{_at_times(spec)}")
    parts.append(f"{spec.interpolation} interpolation")
    if spec.repeats > 1:
        parts.append(
            f"{spec.repeats:g} versions of an image, one after the other over the ranks; an epoch "
            f"has {1 / spec.repeats:.0%} of the images"
        )
    if spec.splits > 1:
        parts.append(
            f"each batch {spec.splits} times over: cropped and flipped alone, then "
            f"{spec.splits - 1} times with all of this"
        )
    return "; ".join(parts)


_CROPS = {
    "rrc": "crop of {:.0%} to {:.0%} of the area, sides {:.3g} to {:.3g}",
    "rkrc": "the whole resized as for {:.0%} to {:.0%} of its area in half of the cases, sides "
    "changed by {:.3g} to {:.3g} in half of them, and the middle cut out",
    "rkrr": "the whole resized as for {:.0%} to {:.0%} of its area in half of the cases, sides "
    "changed by {:.3g} to {:.3g} in half of them, and a random place cut out",
}


def _erasing(spec: AugmentSpec) -> str:
    """Say what is erased, and what comes in its place."""
    what = "a rectangle" if spec.re_count == 1 else f"1 to {spec.re_count} rectangles"
    filled = {"const": "", "rand": " with one random colour", "pixel": " with noise"}
    return f"erasing of {what}{filled[spec.re_mode]}"


def _at_times(spec: AugmentSpec) -> str:
    if spec.color_jitter_prob is None:
        return ""
    return f" with probability {spec.color_jitter_prob:g}"


def loss_words(spec: LossSpec) -> str:
    """Say what is minimised."""
    parts = [spec.name.replace("_", " ")]
    if spec.smoothing:
        parts.append(f"label smoothing {spec.smoothing:g}")
    if spec.target_threshold is not None:
        parts.append(f"targets above {spec.target_threshold:g} count as 1")
    return ", ".join(parts)


def schedule_words(spec: SchedulerSpec) -> str:
    """Say how the learning rate goes."""
    parts: list[str] = [spec.name]
    if spec.warmup_epochs:
        parts.append(f"{spec.warmup_epochs:g} epochs of warm-up from {spec.warmup_lr:g}")
    if spec.name != "constant":
        parts.append(f"down to {spec.min_lr:g}")
    if spec.interval == "epoch":
        parts.append("changed between epochs only")
    return ", ".join([*parts, *(f"{name} {value}" for name, value in spec.args.items())])
