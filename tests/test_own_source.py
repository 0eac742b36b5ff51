"""Sources of data that are not trainkit's: by path and by entry point, listed, refused, checked."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from trainkit.commands.app import app
from trainkit.commands.schema import recipe_schema
from trainkit.config import find_source
from trainkit.config.recipe import read_recipe
from trainkit.data.build import build_source
from trainkit.errors import PluginError, RecipeError, UserError
from trainkit.testing import CheckError, check_source
from trainkit.training.build import build, compose
from trainkit.training.checkpointer import Checkpointer
from trainkit.training.device import Device
from trainkit.training.loop import fit

Write = Callable[..., Path]
ROOT = Path(__file__).parents[1]
WAVES = f"{ROOT}/docs/sources/waves.py:Waves"
SMALL = {"rows": 22, "points": 5}
HEAD = """\
import torch
from pydantic import Field, field_validator
from trainkit import Data, DataSource, Rows, make_streams

class Own(DataSource):
    \"\"\"Twenty rows of noise.\"\"\"

    size: int = Field(3, ge=1, le=9, description="features")

"""
ROWS = """\
    def build(self, recipe, device):
        made = torch.Generator().manual_seed(0)
        inputs, targets = torch.randn(20, self.size, generator=made), torch.arange(20) % 2
        rows = Rows(inputs, targets)
        size = (self.size,)
        return make_streams(rows, rows, recipe, device, outputs=2, input_size=size, summary="rows")
"""


def recipe_with(write: Write, code: str, options: str = "") -> Path:
    write(code, "own.py")
    return write(f"model: {{name: mlp}}\ndata: {{name: ./own.py:Own{options}}}\n")


def refusal(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        compose(path)
    return str(caught.value).removeprefix(f"{path}:")


# The example of the documentation.


def test_the_example_is_on_the_page_and_conforms() -> None:
    assert '--8<-- "docs/sources/waves.py"' in (ROOT / "docs" / "data.md").read_text()
    check_source(WAVES, SMALL)


def test_the_example_trains_and_its_resolved_recipe_names_it_by_its_whole_path(
    write: Write, tmp_path: Path
) -> None:
    data = f"{{name: '{WAVES}', rows: 22, points: 5}}"
    path = write(f"model: {{name: mlp}}\ndata: {data}\ntrain: {{epochs: 1, device: cpu}}\n")
    run = build(compose(path), tmp_path / "run")
    fit(run, Checkpointer(run.folder, run))
    assert run.data.summary == "22 waves to train on, 5 to validate"
    assert yaml.safe_load(run.recipe.dump())["data"]["name"] == WAVES


# By path.


def test_a_path_counts_from_the_recipe_and_missing_entries_are_hidden(write: Write) -> None:
    hidden = ", size: 4, missing: {kind: at_random}"
    recipe = compose(recipe_with(write, HEAD + ROWS, hidden)).recipe
    data = build_source(recipe, Device(recipe))
    assert data.input_size == (4,)
    assert data.missing
    assert next(iter(data.val)).inputs.isnan().any()
    assert data.summary == "rows, 5% to 95% of each example hidden (at random)"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (", sise: 4", "2: data.sise: there is no such option; did you mean 'size'? (known: batch"),
        (", size: 10", "2: data.size: should be less than or equal to 9; got 10"),
        (", bach_size: 1", "2: data.bach_size: there is no such option; did you mean 'batch_size'"),
    ],
)
def test_a_wrong_option_has_its_line(write: Write, options: str, message: str) -> None:
    assert refusal(recipe_with(write, HEAD + ROWS, options)).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./own.py:Other", "there is no class 'Other' in ./own.py"),
        ("./own.py", "name the class too: `./own.py:MySource`"),
        ("./none.py:Own", "there is no file"),
        ("./own.py:Rows", "is not a subclass of trainkit.DataSource"),
        ("./bad.py:Own", "cannot be imported: ValueError: no ("),
    ],
)
def test_what_is_no_source_is_refused_beside_other_mistakes(
    write: Write, name: str, message: str
) -> None:
    write("raise ValueError('no')\n", "bad.py")
    write(HEAD + ROWS, "own.py")
    path = write(f"seed: -1\nmodel: {{name: mlp}}\ndata: {{name: '{name}', batch_size: 0}}\n")
    lines = refusal(path).splitlines()
    assert len(lines) == 3
    (said,) = (line for line in lines if ":3: data.name: " in line)
    assert message in said
    assert any("seed: should be greater" in line for line in lines)
    assert any(":3: data.batch_size: should be greater" in line for line in lines)


def test_an_exception_while_building_names_the_source_and_the_line(write: Write) -> None:
    code = HEAD + "    def build(self, recipe, device):\n        return {}['x']\n"
    path = recipe_with(write, code)
    with pytest.raises(PluginError) as caught:
        build(compose(path))
    message = str(caught.value)
    assert message.startswith("data source ./own.py:Own: build failed at ")
    assert "own.py:11 (`return {}['x']`): KeyError: 'x'" in message


def test_an_exception_of_a_validator_names_the_source_and_the_line(write: Write) -> None:
    code = HEAD + '    @field_validator("size")\n    def _check(cls, size):\n        return 1 / 0\n'
    with pytest.raises(PluginError, match=r"Own: making it failed at .*own.py"):
        compose(recipe_with(write, code, ", size: 2"))


def test_what_build_returns_is_looked_at(write: Write) -> None:
    path = recipe_with(write, HEAD + "    def build(self, recipe, device):\n        return 3\n")
    with pytest.raises(PluginError, match=r"build returned int; it must return trainkit.Data"):
        build(compose(path))


def test_a_source_that_hides_nothing_refuses_missing(write: Write) -> None:
    code = HEAD + (
        "    def build(self, recipe, device):\n"
        "        empty = recipe.data.model_copy(update={'missing': None})\n"
        "        recipe = recipe.model_copy(update={'data': empty})\n"
    )
    code += ROWS.partition("\n")[2]
    path = recipe_with(write, code, ", missing: {kind: at_random}")
    with pytest.raises(UserError, match=r"recipe.yaml:2: data.missing: .* hides no entries"):
        build(compose(path))


# By entry point.


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(ROOT / "docs" / "sources")
    monkeypatch.syspath_prepend(folder)
    points = find_source.installed_sources()
    points["waves"] = EntryPoint("waves", "waves:Waves", "trainkit.data")
    monkeypatch.setattr(find_source, "installed_in", lambda *_: points)


@pytest.mark.usefixtures("installed")
def test_an_installed_source_is_named_suggested_and_in_the_schema(write: Write) -> None:
    path = write("model: {name: mlp}\ndata: {name: waves, rows: 10}\n")
    recipe, _, problems = read_recipe(path)
    assert recipe is not None
    assert not problems
    assert type(recipe.data).__name__ == "Waves"
    path = write("model: {name: mlp}\ndata: {name: wafes}\n", "other.yaml")
    assert "no data set has this name; did you mean 'waves'?" in refusal(path)
    schema = recipe_schema()
    assert {"$ref": "#/$defs/Waves"} in schema["properties"]["data"]["anyOf"]
    assert schema["$defs"]["Waves"]["properties"]["name"] == {"const": "waves", "type": "string"}
    check_source("waves", SMALL)


def test_the_command_lists_all_sources_or_shows_one() -> None:
    listed = CliRunner().invoke(app, ["data"]).output
    assert "Letters rendered from matplotlib's fonts" in listed
    assert all(f"  {name} " in listed for name in find_source.installed_sources())
    one = CliRunner().invoke(app, ["data", WAVES]).output
    assert "points: int = 16" in one
    wrong = CliRunner().invoke(app, ["data", "dgits"])
    assert wrong.exit_code == 2


# The checks.

GLOBAL = ROWS.replace("generator=made", "generator=None")
FAULTS = {
    "has no docstring": (HEAD.replace('"""Twenty rows of noise."""', "") + ROWS),
    "options without a description: size": HEAD.replace(', description="features"', "") + ROWS,
    "building draws from the global random streams": HEAD + GLOBAL,
    "a class is not in [0, 2)": HEAD + ROWS.replace("% 2", "% 3"),
    "inputs have NaN, and missing=False": HEAD + ROWS.replace("% 2", "% 2; inputs[3] = torch.nan"),
    "an input is infinite": HEAD + ROWS.replace("% 2", "% 2; inputs[3] = torch.inf"),
    "inputs are [4, 3], not [4, 4]": HEAD + ROWS.replace("(self.size,)", "(self.size + 1,)"),
    "another seed gives other validation data": HEAD
    + ROWS.replace("manual_seed(0)", "manual_seed(recipe.seed)"),
    "two ranks do not share the validation data": HEAD
    + ROWS.replace("manual_seed(0)", "manual_seed(device.rank)"),
}


@pytest.mark.parametrize("message", FAULTS)
def test_the_checks_find_a_fault(write: Write, message: str) -> None:
    path = write(FAULTS[message], f"own_{len(message)}.py")
    with pytest.raises(CheckError) as caught:
        check_source(f"{path}:Own", recipe={"data": {"workers": 0}})
    assert message in str(caught.value)
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("digits", {"image_size": 8, "val_fraction": 0.97}, marks=pytest.mark.slow),
        ("table", {"path": "iris", "batch_size": 16}),
        ("ratings", {"users": 20, "items": 12, "rate": [0.5, 0.9]}),
        ("glyphs", {"image_size": 8, "scripts": ["greek"], "letters": 2, "variants": 1}),
    ],
)
def test_trainkits_own_sources_conform(name: str, options: dict[str, object]) -> None:
    check_source(name, options, recipe={"model": {"in_chans": 1}})
