"""Two sets of examples as streams of this rank, as a recipe's `data:` and `train:` sections say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from trainkit.config.recipe import Recipe
from trainkit.data.loader import Keyed, OrderedStream, ShuffledStream
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
) -> Data:
    """Return the streams over `train` and `val`; the other arguments are those of `Data`.

    Raises:
        UserError: there are too few examples.
    """
    spec = recipe.data
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
            **shared,
        )
        ordered = OrderedStream(val, batch_size=spec.eval_batch_size or spec.batch_size, **shared)
    except ValueError as error:
        raise UserError(f"{recipe.raw.nearest('data')}: data: {error}") from None
    return Data(shuffled, ordered, outputs, input_size, summary, targets, missing)
