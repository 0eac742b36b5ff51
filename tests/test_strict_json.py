"""What is written as JSON can be read by any reader of JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from trainkit import train
from trainkit.commands.app import app
from trainkit.system.strict_json import to_json

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def refuse(word: str) -> None:
    raise ValueError(word)


def strictly(text: str) -> Any:
    return json.loads(text, parse_constant=refuse)


@given(plain)
def test_any_plain_data_is_read_back_but_for_what_json_has_not(value: Any) -> None:
    def known(part: Any) -> Any:
        if isinstance(part, float) and not math.isfinite(part):
            return None
        if isinstance(part, dict):
            return {key: known(inner) for key, inner in part.items()}
        return [known(inner) for inner in part] if isinstance(part, list) else part

    assert strictly(to_json(value)) == known(value)


def test_nested_numbers_that_are_not_finite_are_null() -> None:
    value = {"a": (math.nan, [1.5, {"b": -math.inf}]), "c": math.inf, "d": 3}
    assert to_json(value) == '{"a": [null, [1.5, {"b": null}]], "c": null, "d": 3}'


def test_what_json_does_not_have_is_an_error() -> None:
    with pytest.raises(TypeError, match="complex"):
        to_json({"z": 1j})


def test_a_run_whose_metrics_are_nan_leaves_json_and_finite_weights(
    tiny: Path, tmp_path: Path
) -> None:
    home = tmp_path / "unsure.py"
    home.write_text(
        "import math, torch\nfrom trainkit import Plugin, Predictions, hookimpl\n\n\nclass"
        ' Unsure(Plugin):\n    """Answers with NaN."""\n\n    @hookimpl\n    def'
        " evaluate_batch(self, batch):\n        return Predictions(torch.full((len(batch.targets), "
        "4), math.nan), batch.targets)\n"
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{tiny.read_text()}  {home}:Unsure: {{}}\n")
    folder = train(recipe, run_dir=tmp_path / "run").folder
    told = strictly((folder / "summary.json").read_text())
    assert told["status"] == "finished"
    assert set(told["final"].values()) == {None}
    assert told["best"]["value"] is None
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        strictly(line)
    found = CliRunner().invoke(app, ["eval", str(folder), "--json"])
    assert found.exit_code == 0
    assert set(strictly(found.stdout).values()) == {None}
