"""The shape of data as the loop sees it. A plugin that provides `build_data` returns these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol


@dataclass(frozen=True)
class Window:
    """One optimizer step's share of an epoch: its micro-batches on this rank.

    Attributes:
        weights: what each micro-batch's mean loss counts, so that averaging over ranks gives the
            mean over all of the window's examples, however short its last micro-batch.
        examples: how many examples the window has on all ranks together.
    """

    weights: tuple[float, ...]
    examples: int


class TrainStream(Protocol):
    """Training data whose order is a pure function of (seed, epoch, position)."""

    steps_per_epoch: int
    examples_per_step: int
    """Examples in a full window, on all ranks together: the effective batch size."""

    def window(self, epoch: int, position: int) -> Window:
        """Return the shape of the window at `position` in [0, steps_per_epoch)."""

    def batches(self, epoch: int, position: int) -> Iterator[Any]:
        """Yield this rank's micro-batches in order, from the window at `position` to the end of
        the epoch.
        """

    def describe(self, epoch: int, position: int) -> str:
        """Name the examples of a window, for error messages."""


class EvalStream(Protocol):
    """Validation data: this rank's share, each example on exactly one rank."""

    def __iter__(self) -> Iterator[Any]:
        """Yield batches, in the same order every time."""

    def __len__(self) -> int:
        """Return the number of batches."""


@dataclass(frozen=True)
class Data:
    """What a run trains and validates on.

    Attributes:
        train: the training data.
        val: the validation data.
        num_classes: how many outputs the model needs: classes, or numbers to predict.
        input_size: channels, height and width of one image; the number of features of one row.
        summary: one line that says what this is and how many examples it has.
        targets: `classes` [N], or `numbers` [N, num_classes] in which NaN is not known and not
            counted.
        missing: inputs hold NaN where an entry is not there. A plugin that makes the model take
            such inputs sets `takes_missing = True` on the model; without one the run is refused.
        class_names: of the classes, in order; empty where there are none, or they are not known.
        train_counts: how many training examples each class has; empty where that is not known.
        val_counts: how many validation examples, likewise.
        preparation: how validation images are prepared, and where the model was made for something
            else, in lines.
        aug_splits: how often a training batch of N examples has each of them: its inputs are
            [aug_splits * N, ...], one split after the other, its targets repeated likewise.
        notes: what the user should know of the files, such as what in them was left out; core logs
            them.
    """

    train: TrainStream
    val: EvalStream
    num_classes: int
    input_size: tuple[int, ...]
    summary: str
    targets: Literal["classes", "numbers"] = "classes"
    missing: bool = False
    class_names: tuple[str, ...] = ()
    train_counts: tuple[int, ...] = ()
    val_counts: tuple[int, ...] = ()
    preparation: tuple[str, ...] = ()
    aug_splits: int = 1
    notes: tuple[str, ...] = ()

    def close(self) -> None:
        """End what the streams keep running, such as processes that read; streams without
        `close` keep nothing.
        """
        for stream in (self.train, self.val):
            if close := getattr(stream, "close", None):
                close()
