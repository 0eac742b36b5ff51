"""A recipe: every mistake at once with its line, strict types, and a resolved text that means
the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from trainkit.config.recipe import Recipe, read_recipe
from trainkit.data.digits import DigitsSource
from trainkit.data.timm_source import TimmSource
from trainkit.errors import Location, Problem, RecipeError, suggest
from trainkit.training.build import compose

Write = Callable[..., Path]

LEAST = "model: {name: test_vit}\ndata: {name: digits}\n"


def mistakes(path: Path, overrides: Sequence[str] = ()) -> list[str]:
    """Return everything that is wrong with a recipe before anything is built, without its
    folder.
    """
    with pytest.raises(RecipeError) as caught:
        compose(path, overrides)
    return str(caught.value).replace(f"{path.parent}/", "").splitlines()


def recipe_of(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    recipe, _, problems = read_recipe(path, overrides)
    assert recipe is not None
    assert problems == []
    return recipe


# Mistakes.


def test_six_different_mistakes_get_six_lines_in_one_go(write: Write) -> None:
    path = write(
        "seed: -1\n"
        "model: {name: resnet10}\n"
        "data: {name: digits, image_sise: 32}\n"
        "train: {epochs: ten}\n"
        "train: {epochs: 10}\n"
        "plugins:\n "
        " grad_clipp: {max_norm: 1}\n"
    )
    found = mistakes(path, ["optimizer.lr=0"])
    assert found[0] == "recipe.yaml:1: seed: should be greater than or equal to 0; got -1"
    assert found[1].startswith("recipe.yaml:2: model.name: timm ")
    assert "has no model 'resnet10'; did you mean 'resnet" in found[1]
    assert found[2].startswith(
        "recipe.yaml:3: data.image_sise: there is no such option; did you mean 'image_size'? "
        "(known: batch_size,"
    )
    assert found[3] == 'recipe.yaml:4: train.epochs: should be a valid integer; got "ten"'
    assert found[4] == "recipe.yaml:5: train: this key is already on line 4; remove one of them"
    assert found[5].startswith(
        "recipe.yaml:7: plugins.grad_clipp: no plugin of this name is installed"
    )
    assert (
        found[6] == "command line `optimizer.lr=0`: optimizer.lr: should be greater than 0; got 0"
    )
    assert len(found) == 7


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("seed: yes", 'seed: should be a valid integer; got "yes"'),
        ("seed: 1.0", "seed: should be a valid integer; got 1.0"),
        (
            "seed: 9223372036854775808",
            "seed: should be less than 9223372036854775808; got 9223372036854775808",
        ),
        ("train: {compile: on}", 'train.compile: should be a valid boolean; got "on"; write true'),
        ("train: {epochs: 0}", "train.epochs: should be greater than or equal to 1; got 0"),
        (
            "train: {precision: fp8}",
            "train.precision: should be 'fp32', 'bf16' or 'fp16'; got \"fp8\"",
        ),
        (
            "train: {device: gpu}",
            (
                "train.device: string should match pattern '^(auto|cpu|mps|cuda(:\\d+)?)$'; got"
                ' "gpu"'
            ),
        ),
        ("train: {accumulate: 2.5}", "train.accumulate: should be a valid integer; got 2.5"),
        ("train: {loss: {smoothing: 1}}", "train.loss.smoothing: should be less than 1; got 1"),
        (
            "train: {loss: {nme: bce}}",
            (
                "train.loss.nme: there is no such option; did you mean 'name'? (known: name, "
                "smoothing, target_threshold)"
            ),
        ),
        ("train:", "train: should be a mapping; got null"),
        ("optimizer: {lr: 0}", "optimizer.lr: should be greater than 0; got 0"),
        ("optimizer: {lr: .inf}", "optimizer.lr: should be a finite number; got Infinity"),
        (
            "optimizer: {weight_decay: .nan}",
            "optimizer.weight_decay: should be a finite number; got NaN",
        ),
        ("checkpoint: {mode: most}", "checkpoint.mode: should be 'max' or 'min'; got \"most\""),
        (
            "scheduler: {name: exponential}",
            (
                "scheduler.name: should be 'cosine', 'tanh', 'step', 'multistep', 'poly', 'wsd', "
                "'rsqrt' or 'constant'; got \"exponential\""
            ),
        ),
        ("plugins: [ema]", 'plugins: should be a mapping; got ["ema"]; write `plugins: {ema: {}}`'),
        (
            "plugins: {ema: 3}",
            (
                "plugins.ema: should be a mapping; got 3; `ema:` with nothing behind it switches "
                "the plugin on"
            ),
        ),
        ("plugins: ema", 'plugins: should be a mapping; got "ema"; write `plugins: {ema: {}}`'),
        (
            "sceduler: {}",
            (
                "sceduler: there is no such option; did you mean 'scheduler'? "
                "(known: seed, model, data, train, optimizer, scheduler, checkpoint, plugins)"
            ),
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_line(write: Write, text: str, expected: str) -> None:
    assert mistakes(write(f"{LEAST}{text}\n")) == [f"recipe.yaml:3: {expected}"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("digits", 'data: should be a mapping; got "digits"'),
        ("{name: 3, root: x}", "data.name: should be a valid string; got 3"),
        ("{root: x}", "data.name: is required and not given"),
        ("{name: folder}", "data.root: is required and not given"),
        ("{name: digits, root: x}", "data.root: there is no such option (known: batch_size,"),
        ("{name: digits, val_fraction: 1}", "data.val_fraction: should be less than 1; got 1"),
        (
            "{name: folder, root: x, augment: {hflp: 1}}",
            "data.augment.hflp: there is no such option; did you mean 'hflip'?",
        ),
        ("{name: folder, root: x, mean: [a]}", 'data.mean.0: should be a valid number; got "a"'),
    ],
)
def test_mistakes_in_the_data_name_keys_of_the_recipe_only(
    write: Write, data: str, expected: str
) -> None:
    found = mistakes(write(f"model: {{name: test_vit}}\ndata: {data}\n"))
    assert len(found) == 1
    assert found[0].startswith(f"recipe.yaml:2: {expected}")


@pytest.mark.parametrize("text", ["", "# nothing\n", "plugins:\n"])
def test_an_empty_recipe_lacks_its_two_required_sections(write: Write, text: str) -> None:
    assert mistakes(write(text)) == [
        "recipe.yaml:1: model: is required and not given",
        "recipe.yaml:1: data: is required and not given",
    ]


def test_names_that_timm_does_not_know_are_told_beside_wrong_types(write: Write) -> None:
    path = write(
        "seed: x\nmodel: {name: rasnet18}\ndata: {name: digits}\noptimizer: {name: adamv}\n"
    )
    first, second, third = mistakes(path)
    assert first == 'recipe.yaml:1: seed: should be a valid integer; got "x"'
    assert "recipe.yaml:2: model.name: timm" in second
    assert "has no model 'rasnet18'; did you mean 'resnet18'" in second
    assert "recipe.yaml:4: optimizer.name: timm" in third
    assert "has no optimizer 'adamv'; did you mean 'adam" in third
    empty = mistakes(write("model: {name: ''}\ndata: {name: digits}\noptimizer: {name: ''}\n"))
    assert [line.partition(";")[0] for line in empty] == [
        f"recipe.yaml:{line}: {section}.name: string should have at least 1 character"
        for line, section in ((1, "model"), (3, "optimizer"))
    ]


def test_mistakes_come_in_the_order_of_the_file_and_overrides_last() -> None:
    late, early, line = Location("b.yaml", 9), Location("b.yaml", 2), Location("command line `x`")
    error = RecipeError(
        [Problem(line, "x", "m"), Problem(late, "y", "m"), Problem(early, "z", "m")] * 2
    )
    assert str(error) == "b.yaml:2: z: m\nb.yaml:9: y: m\ncommand line `x`: x: m"


def test_a_suggestion_is_made_only_where_one_is_near() -> None:
    assert suggest("max_nrom", ["max_norm", "mode"]) == "; did you mean 'max_norm'?"
    assert suggest("zebra", ["max_norm", "mode"]) == ""
    assert suggest("x", []) == ""


# Values.


def test_the_least_recipe_has_every_default(write: Write) -> None:
    recipe = recipe_of(write(LEAST))
    assert recipe.seed == 0
    assert isinstance(recipe.data, DigitsSource)
    assert (recipe.data.batch_size, recipe.data.workers, recipe.data.augment) == (64, 0, None)
    assert (recipe.train.epochs, recipe.train.precision, recipe.train.accumulate) == (10, "fp32", 1)
    assert (recipe.optimizer.name, recipe.optimizer.lr) == ("adamw", 1e-3)
    assert recipe.plugins == {}


def test_any_other_data_set_is_timms(write: Write) -> None:
    recipe = recipe_of(
        write("model: {name: a}\ndata: {name: torch/cifar10, root: here, mean: [0.5, 0.5, 0.5]}\n")
    )
    assert isinstance(recipe.data, TimmSource)
    assert recipe.data.mean == (0.5, 0.5, 0.5)
    assert recipe.data.augment is not None


def test_where_a_value_was_written(write: Write) -> None:
    path = write("model: {name: test_vit}\ndata: {name: digits}\noptimizer:\n  lr: 1\n")
    recipe = recipe_of(path, ["train.epochs=3", "model={name: test_resnet}"])
    assert recipe.where("optimizer", "lr") == Location(str(path), 4)
    assert recipe.where("optimizer", "weight_decay") == Location("default")
    assert str(recipe.where("train", "epochs")) == "command line `train.epochs=3`"
    assert str(recipe.where("model", "name")) == "command line `model={name: test_resnet}`"
    assert str(recipe_of(path, ["~optimizer.lr"]).where("optimizer", "lr")) == "default"


def test_a_recipe_made_in_code_has_no_lines() -> None:
    recipe = Recipe.model_validate({"model": {"name": "test_vit"}, "data": {"name": "digits"}})
    assert recipe.where("model", "name") == Location("default")
    assert "name: test_vit" in recipe.dump()


def resolved(write: Write, recipe: Recipe) -> Recipe:
    return recipe_of(write(recipe.dump(), "elsewhere/resolved.yaml"))


def test_the_resolved_recipe_is_the_same_recipe(write: Write) -> None:
    path = write(
        "model:\n "
        " name: test_vit\n "
        " args: {label: '1e-3', pad: '08', word: on, deep: [1, 2.5e-9, null, true, {x: -.inf}]}\n"
        "data: {name: folder, root: ordner-ä, augment: {scale: [0.5, 1]}}\n"
        "optimizer: {lr: 1, args: {betas: [0.9, 0.999]}}\n"
        "plugins: {b: {max_norm: .inf}, a: {}}\n"
    )
    recipe = recipe_of(path)
    again = resolved(write, recipe)
    assert again.model_dump() == recipe.model_dump()
    assert again.model.args == {
        "label": "1e-3",
        "pad": "08",
        "word": "on",
        "deep": [1, 2.5e-9, None, True, {"x": -math.inf}],
    }
    assert list(again.plugins.items()) == [("b", {"max_norm": math.inf}), ("a", {})]
    assert again.dump() == recipe.dump()


def test_the_resolved_recipe_names_local_plugins_by_their_whole_path(write: Write) -> None:
    write("plugins: {./trick.py:Trick: {size: 1}}\n", "shared/base.yaml")
    path = write(
        f"extends: shared/base.yaml\n{LEAST}plugins: {{../own.py:Own: {{}}}}\n", "top.yaml"
    )
    recipe = recipe_of(path)
    folder = path.parent
    assert list(resolved(write, recipe).plugins.items()) == [
        (f"{(folder / 'shared' / 'trick.py').resolve()}:Trick", {"size": 1}),
        (f"{(folder.parent / 'own.py').resolve()}:Own", {}),
    ]


def test_overrides_are_part_of_the_resolved_recipe(write: Write) -> None:
    recipe = recipe_of(write(LEAST), ["train.epochs=3", "model.args.drop_rate=1e-1"])
    again = resolved(write, recipe)
    assert again.train.epochs == 3
    assert again.model.args == {"drop_rate": 0.1}


def test_recipes_are_frozen(write: Write) -> None:
    recipe: Any = recipe_of(write(LEAST))
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3
