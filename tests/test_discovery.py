"""Finding plugins: local ones by path, installed ones by entry point, and nothing imported that
is not named.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest

from trainkit.errors import RecipeError, UserError
from trainkit.hooks.discovery import GROUP, Listing, describe, installed, load_class
from trainkit.training.build import compose

Write = Callable[..., Path]

PLUGIN = '''"""A third party's plugin."""
import os
from pathlib import Path
from pydantic import Field
from trainkit import Plugin, hookimpl

if "WITNESS" in os.environ:
    Path(os.environ["WITNESS"]).touch()


class Shout(Plugin):
    """Say the loss aloud.

    More about it.
    """

    volume: int = Field(1, ge=1, description="how loud")

    @hookimpl
    def on_epoch_end(self, run):
        print("epoch", run.epoch, "volume", self.volume)

    @hookimpl(wrapper=True)
    def compute_loss(self):
        return (yield)

    def not_a_hook(self): ...
'''
PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "shouting"
version = "1.2"

[project.entry-points."trainkit.plugins"]
shout = "shouting.plugin:Shout"

[tool.hatch.build.targets.wheel]
packages = ["shouting"]
"""
RECIPE = "model: {name: test_vit}\ndata: {name: digits}\nplugins:\n"


def offer(
    folder: Path, monkeypatch: pytest.MonkeyPatch, points: dict[str, str], **modules: str
) -> None:
    """Lay out an installed distribution `offered` by hand and put its folder on the path."""
    info = folder / "offered-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offered\nVersion: 1.0\n")
    lines = "".join(f"{name} = {value}\n" for name, value in points.items())
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n{lines}")
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(str(folder))


def refusal(key: str, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_class(key, folder)
    return str(caught.value)


# Installed plugins.


def test_a_third_partys_package_is_found_listed_and_used(tmp_path: Path) -> None:
    source, target, witness = tmp_path / "source", tmp_path / "target", tmp_path / "imported"
    (source / "shouting").mkdir(parents=True)
    (source / "pyproject.toml").write_text(PROJECT)
    (source / "shouting" / "__init__.py").write_text("raise RuntimeError('imported too early')\n")
    (source / "shouting" / "plugin.py").write_text(PLUGIN)
    build = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(tmp_path),
    ]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(target)  # what installing a wheel of pure Python comes to

    listing = """
import json, sys
from trainkit.hooks.discovery import describe, installed, load_class
found = describe(installed()["shout"])
facts = [found.name, found.summary, found.hooks, found.distribution]
print(json.dumps([*facts, "torch" in sys.modules]))
"""
    path = os.pathsep.join([str(target), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "WITNESS": str(witness)}
    done = subprocess.run(
        [sys.executable, "-c", listing], env=environment, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [
        "shout",
        "Say the loss aloud.",
        ["on_epoch_end", "compute_loss"],
        "shouting",
        False,
    ]
    assert not witness.exists()

    (target / "shouting" / "__init__.py").write_text("")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{RECIPE}  shout: {{volume: 3}}\n")
    using = f"""
from pathlib import Path
from trainkit.hooks.entries import read_entries
(entry,) = read_entries(Path({str(recipe)!r}))
print(entry.name, entry.plugin.volume, type(entry.plugin).__module__)
"""
    done = subprocess.run(
        [sys.executable, "-c", using], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "shout 3 shouting.plugin\n"
    assert witness.exists()


def test_only_what_a_recipe_names_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    points = {"good": "good_one:Shout", "bad": "bad_one:Nothing"}
    offer(
        tmp_path / "site",
        monkeypatch,
        points,
        good_one=PLUGIN,
        bad_one="raise RuntimeError('do not import me')\n",
    )
    assert {"good", "bad"} <= installed().keys()
    assert describe(installed()["bad"]).summary == "(no class Nothing found in bad_one)"
    setup = compose(write(f"{RECIPE}  good: {{}}\n"))
    assert [entry.name for entry in setup.entries] == ["good"]
    assert "bad_one" not in sys.modules


def test_a_plugin_that_cannot_be_imported_is_named_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Write
) -> None:
    site = tmp_path / "site"
    modules = {
        "raises": "x = 1\n\nraise RuntimeError('not today')\n",
        "imports": "import x_is_not_there\n",
        "typo": "def f(:\n",
        "empty": "",
    }
    points = {name: f"{name}:Shout" for name in modules} | {"gone": "gone_module:Shout"}
    offer(site, monkeypatch, points, **modules)
    expected = {
        "raises": f"cannot be imported: RuntimeError: not today ({site}/raises.py:3)",
        "imports": (
            "cannot be imported: ModuleNotFoundError: No module named 'x_is_not_there' "
            f"({site}/imports.py:1)"
        ),
        "typo": f"cannot be imported: SyntaxError: invalid syntax ({site}/typo.py:1)",
        "empty": "cannot be imported: AttributeError: module 'empty' has no attribute 'Shout'",
        "gone": "cannot be imported: ModuleNotFoundError: No module named 'gone_module'",
    }
    path = write(RECIPE + "".join(f"  {name}: {{}}\n" for name in expected))
    with pytest.raises(RecipeError) as caught:
        compose(path)
    assert str(caught.value).splitlines() == [
        f"{path}:{i + 4}: plugins.{name}: {message}"
        for i, (name, message) in enumerate(expected.items())
    ]


def test_what_is_not_a_plugin_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, monkeypatch, {"number": "odd:X", "other": "odd:Y"}, odd="X = 3\nclass Y: ...\n")
    assert refusal("number", tmp_path) == "3 is not a subclass of trainkit.Plugin"
    assert refusal("other", tmp_path) == "<class 'odd.Y'> is not a subclass of trainkit.Plugin"


def test_an_unknown_plugin_gets_a_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, monkeypatch, {"shout": "a:B"})
    assert (
        refusal("shuot", tmp_path)
        == "no plugin of this name is installed; did you mean 'shout'? (`trainkit plugins` lists"
        " them)"
    )
    assert (
        refusal("zzzzzz", tmp_path)
        == "no plugin of this name is installed (`trainkit plugins` lists them)"
    )


def test_two_distributions_cannot_offer_one_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path / "one", monkeypatch, {"shout": "a:B"})
    other = tmp_path / "two" / "second-1.0.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: second\nVersion: 1.0\n")
    (other / "entry_points.txt").write_text(f"[{GROUP}]\nshout = c:D\n")
    monkeypatch.syspath_prepend(str(tmp_path / "two"))
    with pytest.raises(UserError) as caught:
        installed()
    assert (
        str(caught.value) == "two installed plugins are called 'shout' (c:D and a:B); uninstall one"
    )


def test_the_same_distribution_twice_on_the_path_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("one", "two"):
        offer(tmp_path / folder, monkeypatch, {"shout": "a:B"})
    assert installed()["shout"].value == "a:B"


@pytest.mark.parametrize(
    ("text", "summary"),
    [
        ("class Shout(Plugin):\n    '''One line.\n\n    Two.\n    '''\n", "One line."),
        ("class Shout(Plugin): ...\n", ""),
        ("from other import Shout\n", "(no class Shout found in shape)"),
        ("class Shout(:\n", "({site}/shape.py cannot be read: SyntaxError)"),
        ("# -*- coding: nonsense -*-\n", "({site}/shape.py cannot be read: SyntaxError)"),
    ],
)
def test_a_listing_survives_any_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, summary: str
) -> None:
    offer(tmp_path, monkeypatch, {"shape": "shape:Shout"}, shape=text)
    expected = Listing("shape", summary.format(site=tmp_path), (), "offered", room="shape")
    assert describe(installed()["shape"]) == expected


def test_a_listing_looks_into_packages_without_importing_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "outer_pkg" / "inner"
    package.mkdir(parents=True)
    (tmp_path / "outer_pkg" / "__init__.py").write_text("raise RuntimeError\n")
    (package / "room.py").write_text(PLUGIN)  # `inner` has no __init__.py: a namespace package
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("shout", "outer_pkg.inner.room:Shout [extra]", GROUP)
    hooks = ("on_epoch_end", "compute_loss")
    assert describe(point) == Listing(
        "shout", "Say the loss aloud.", hooks, "unknown", room="inner"
    )
    gone = describe(EntryPoint("gone", "outer_pkg.nowhere.room:Shout", GROUP))
    assert gone.summary == "(no class Shout found in outer_pkg.nowhere.room)"
    assert "outer_pkg" not in sys.modules


def test_every_plugin_here_has_a_summary() -> None:
    own = [
        point for point in entry_points(group=GROUP) if point.value.startswith("trainkit_plugins.")
    ]
    for point in own:
        listing = describe(point)
        assert listing.summary
        assert not listing.summary.startswith("(")


# Local plugins.


def test_a_local_plugin_is_found_from_the_recipes_folder(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("class Nothing: ...\n" + PLUGIN, "tricks/my_trick.py")
    name, cls = load_class("./tricks/my_trick.py:Shout", path.parents[1])
    assert (name, cls.__name__, cls.model_fields["volume"].default) == ("Shout", "Shout", 1)
    assert load_class(f"{path}:Shout", Path("/"))[1] is cls
    setup = compose(write(f"{RECIPE}  ./tricks/my_trick.py:Shout: {{volume: 2}}\n"))
    (entry,) = setup.entries
    assert (entry.name, entry.plugin.volume) == ("Shout", 2)  # type: ignore[attr-defined]


def test_two_files_of_one_name_are_two_modules(write: Write) -> None:
    one = write(PLUGIN, "one/trick.py")
    two = write(PLUGIN.replace("how loud", "how quiet"), "two/trick.py")
    classes = [load_class(f"{path}:Shout", Path())[1] for path in (one, two)]
    assert [cls.model_fields["volume"].description for cls in classes] == ["how loud", "how quiet"]


def test_a_local_plugin_may_use_annotations_as_strings_and_dataclasses(write: Write) -> None:
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom trainkit "
        "import Plugin\n@dataclass\nclass Pair:\n    a: int = 1\n\nclass Trick(Plugin):\n    size: "
        "int = 1\n"
    )
    _, cls = load_class(f"{write(text, 'late.py')}:Trick", Path())
    assert cls(size=2).size == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("./trick.py", "", "name the class too: `./trick.py:MyPlugin`"),
        ("./trick.py:", "", "name the class too: `./trick.py:MyPlugin`"),
        ("./nope.py:Trick", "", "there is no file {folder}/nope.py"),
        ("./trick.py:Trick", "x = 1\n", "there is no class 'Trick' in ./trick.py"),
        ("./trick.py:x", "x = 1\n", "1 is not a subclass of trainkit.Plugin"),
        (
            "./trick.py:Trick",
            "import math\n\nmath.sqrt(-1)\n",
            "{folder}/trick.py cannot be imported: ValueError: {math} ({folder}/trick.py:3)",
        ),
        (
            "./trick.py:Trick",
            "x = (\n",
            (
                "{folder}/trick.py cannot be imported: SyntaxError: '(' was never closed "
                "({folder}/trick.py:1)"
            ),
        ),
        (
            "./trick.py:Trick",
            "from nowhere_at_all import x\n",
            (
                "{folder}/trick.py cannot be imported: ModuleNotFoundError: No module named "
                "'nowhere_at_all' ({folder}/trick.py:1)"
            ),
        ),
    ],
)
def test_a_local_plugin_that_cannot_be_used_says_why(
    write: Write, key: str, text: str, message: str
) -> None:
    folder = write(text, "trick.py").parent
    try:
        import math

        math.sqrt(-1)
    except ValueError as error:
        said = str(error)  # Python's wording changes between versions
    assert refusal(key, folder) == message.format(folder=folder, math=said)


def test_a_file_that_failed_is_read_again_when_it_is_mended(write: Write) -> None:
    path = write("raise RuntimeError('first')\n", "trick.py")
    assert "first" in refusal(f"{path}:Shout", Path())
    write(PLUGIN, "trick.py")
    assert load_class(f"{path}:Shout", Path())[0] == "Shout"
