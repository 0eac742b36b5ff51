"""How the code is built: sizes, density of the lines, and who imports whom.

Run: python benchmarks/house.py [--root CHECKOUT]

A code line is neither blank nor a comment; docstrings count. Ternaries and comprehensions are given
per 100 code lines. A wing is a folder or a module directly in `trainkit/`. An arrow leads from one
wing to another that it imports when it runs. A wing's floor is one above the highest wing that it
imports; imports that pyproject.toml exempts from the layers are named and not counted.
"""

from __future__ import annotations

import argparse
import ast
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

FILE, FUNCTION, WIDTH, CORE = 300, 40, 100, 2700  # the bounds of the house
CORE_WINGS = ("config", "hooks", "training")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass
class Counts:
    """What was counted in some files."""

    files: int = 0
    lines: int = 0
    code: int = 0
    wide: int = 0
    ternaries: int = 0
    comprehensions: int = 0
    long_files: list[str] = field(default_factory=list)
    long_functions: list[str] = field(default_factory=list)

    def per_100(self, number: int) -> float:
        """Return a number per 100 code lines."""
        return 100 * number / max(self.code, 1)


def code_lines(text: str) -> list[str]:
    """Return the lines that are neither blank nor comments."""
    return [line for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]


def statements(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the number of statements in a function, inner functions included.

    Neither its own `def` nor its docstring counts.
    """
    inside = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
    return inside - (ast.get_docstring(function) is not None)


def add_file(counts: Counts, path: Path, root: Path) -> None:
    """Count one file."""
    text, where = path.read_text(), path.relative_to(root)
    tree, length = ast.parse(text), len(text.splitlines())
    lines = code_lines(text)
    counts.files += 1
    counts.lines += length
    counts.code += len(lines)
    counts.wide += sum(len(line) > WIDTH for line in lines)
    if length > FILE:
        counts.long_files.append(f"{where}: {length} lines")
    for node in ast.walk(tree):
        counts.ternaries += isinstance(node, ast.IfExp)
        counts.comprehensions += isinstance(node, COMPREHENSIONS)
        if isinstance(node, FUNCTIONS) and statements(node) > FUNCTION:
            name = f"{where}:{node.lineno}: {node.name}"
            counts.long_functions.append(f"{name}: {statements(node)} statements")


def count(folder: Path, root: Path) -> Counts:
    """Count all files under a folder."""
    counts = Counts()
    for path in sorted(folder.rglob("*.py")):
        add_file(counts, path, root)
    return counts


def parts(root: Path) -> dict[str, Path]:
    """Return the parts of the repository that hold code: the host, each package of plugins, …"""
    packages = [path.parent for path in sorted((root / "plugins").glob("*/__init__.py"))]
    folders = [root / "trainkit", *packages, root / "benchmarks", root / "tests"]
    return {folder.name: folder for folder in folders if folder.is_dir()}


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below `node`, without those that only a type checker sees."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_run_time(child)


def imported(path: Path, package: str) -> Iterator[str]:
    """Yield the whole name of everything that a file of a package imports when it runs."""
    for node in at_run_time(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


def exempt(root: Path) -> set[tuple[str, str]]:
    """Return the imports that a contract in pyproject.toml names as exceptions, as modules."""
    tools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]
    named: set[tuple[str, str]] = set()
    for contract in tools["importlinter"]["contracts"]:
        for line in contract.get("ignore_imports", []):
            importer, _, target = line.partition(" -> ")
            named.add((importer, target))
    return named


def arrows(host: Path, exceptions: set[tuple[str, str]]) -> dict[str, set[str]]:
    """Return the wings of the host, each with those that it imports."""
    files = [path for path in sorted(host.rglob("*.py")) if path.stem[:2] != "__"]
    files += [path for path in sorted(host.rglob("__init__.py")) if path.parent != host]
    wings = {path.relative_to(host).parts[0].removesuffix(".py") for path in files}
    found: dict[str, set[str]] = {wing: set() for wing in sorted(wings)}
    for path in files:
        place = path.relative_to(host.parent).with_suffix("").parts
        own = place[1]
        for name in imported(path, ".".join(place[:-1])):
            top, wing = f"{name}.".split(".")[:2]
            target = name.rpartition(".")[0]
            if top != host.name or wing not in wings or wing == own:
                continue
            if (".".join(place), target) not in exceptions:
                found[own].add(wing)
    return found


def floors(graph: dict[str, set[str]]) -> dict[int, list[str]]:
    """Return the wings on each floor, from the ground up.

    Raises:
        SystemExit: wings import one another in a circle.
    """
    climbing: list[str] = []

    @cache
    def floor(wing: str) -> int:
        if wing in climbing:
            circle = " -> ".join([*climbing[climbing.index(wing) :], wing])
            raise SystemExit(f"wings import one another in a circle: {circle}")
        climbing.append(wing)
        height = 1 + max(map(floor, graph[wing]), default=0)
        climbing.pop()
        return height

    house: dict[int, list[str]] = defaultdict(list)
    for wing in graph:
        house[floor(wing)].append(wing)
    return dict(sorted(house.items()))


def print_sizes(counted: dict[str, Counts]) -> None:
    """Print one row for each part of the repository."""
    wide, ternaries, comprehensions = f"> {WIDTH} columns", "ternaries", "comprehensions"
    print(f"{'':18}{'files':>6}{'lines':>8}{'code':>8}", end="")
    print(f"{wide:>15}{ternaries:>11}{comprehensions:>16}")
    for name, counts in counted.items():
        print(f"{name:18}{counts.files:6}{counts.lines:8,}{counts.code:8,}", end="")
        print(f"{counts.per_100(counts.wide):14.2f}%", end="")
        print(f"{counts.per_100(counts.ternaries):11.2f}", end="")
        print(f"{counts.per_100(counts.comprehensions):16.2f}")


def print_long(what: str, found: list[str]) -> None:
    """Print what exceeds a bound, or that nothing does."""
    print(f"\n{what}: {len(found) or 'none'}")
    for line in found:
        print(f"  {line}")


def print_graph(root: Path) -> None:
    """Print the wings from the top floor down, and what each imports."""
    exceptions = exempt(root)
    graph = arrows(root / "trainkit", exceptions)
    house = floors(graph)
    between = sum(map(len, graph.values()))
    print(f"\n{len(graph)} wings, {between} arrows, {len(house)} floors, from the top down:")
    for height, wings in reversed(house.items()):
        for wing in wings:
            below = ", ".join(sorted(graph[wing])) or "nothing"
            print(f"  {height}  {wing} -> {below}")
    for importer, target in sorted(exceptions):
        if importer.startswith("trainkit."):
            print(f"  not counted: {importer} -> {target}")


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    here = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=Path, default=here, help="the checkout that is counted")
    root: Path = parser.parse_args().root.resolve()

    counted = {name: count(folder, root) for name, folder in parts(root).items()}
    print_sizes(counted)

    core = {name: count(root / "trainkit" / name, root).lines for name in CORE_WINGS}
    shares = " + ".join(f"{name} {lines:,}" for name, lines in core.items())
    print(f"\n{shares} = {sum(core.values()):,} lines (at most {CORE:,})")

    judged = [counts for name, counts in counted.items() if name != "tests"]
    long_files = [line for counts in judged for line in counts.long_files]
    long_functions = [line for counts in counted.values() for line in counts.long_functions]
    print_long(f"files above {FILE} lines, tests aside", long_files)
    print_long(f"functions above {FUNCTION} statements", long_functions)

    print_graph(root)


if __name__ == "__main__":
    main()
