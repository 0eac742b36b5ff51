"""Two sets of examples as streams of this rank, as a recipe's `data:` and `train:` sections say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from trainkit.config.recipe import Recipe
from trainkit.data.loader import Keyed, OrderedStream, ShuffledStream
from trainkit.data.missing import described, hide
from trainkit.data.types import Data
from trainkit.data.workers import number
from trainkit.errors import UserError
from trainkit.seeds import derive_seed

if TYPE_CHECKING:
    from trainkit.training.device import Device


def make_streams(
    train: Keyed,
    val: Keyed,
    recipe: Recipe,
    device: Device,
    *,
    outputs: int,
    input_size: tuple[int, ...],
    summary: str,
    targets: Literal["classes", "numbers"] = "classes",
    missing: bool = False,
    columns: Mapping[str, int] | None = None,
    repeats: float = 1.0,
) -> Data:
    """Return the streams over two sets of examples, of which `data.missing` hides entries.

    Args:
        train: the training examples, such as `Rows` or `Images`.
        val: the validation examples.
        recipe: the recipe.
        device: says which rank this is, of how many.
        outputs: how many outputs the model needs: classes, or numbers to predict.
        input_size: channels, height and width of one image; the number of features of one row.
        summary: one line that says what the data are.
        targets: `classes` [N], or `numbers` [N, outputs].
        missing: inputs hold NaN where an entry is not there, whatever `data.missing` hides.
        columns: of rows of features: the place of each column of numbers among them.
        repeats: copies of each training example that follow one another.

    Raises:
        UserError: there are too few examples, or the recipe hides what they do not have.
    """
    spec = recipe.data
    train, val = hide(train, recipe, "train", columns), hide(val, recipe, "val", columns)
    shared: dict[str, Any] = {
        "rank": device.rank,
        "world": device.world,
        "workers": number(spec.workers),
        "pin": device.torch.type == "cuda",
    }
    try:
        shuffled = ShuffledStream(
            train,
            seed=derive_seed(recipe.seed, "data"),
            batch_size=spec.batch_size,
            accumulate=recipe.train.accumulate,
            drop_last=spec.drop_last,
            repeats=repeats,
            **shared,
        )
        ordered = OrderedStream(val, batch_size=spec.eval_batch_size or spec.batch_size, **shared)
    except ValueError as error:
        raise UserError(f"{recipe.raw.nearest('data')}: data: {error}") from None
    summary += described(spec.missing)
    missing = missing or spec.missing is not None
    return Data(shuffled, ordered, outputs, input_size, summary, targets, missing)
