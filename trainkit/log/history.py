"""What a run logged, read back from `metrics.jsonl` in a bounded share of memory, however long the
run.

The file is read once, from front to back. Of records with the same names so many are kept, evenly
spread, the last among them; whole epochs are summed up, and of every number the lowest and highest
of each stretch are kept. A short run is kept as it is.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from trainkit.log.records import Record, Value
from trainkit.log.thinning import Extremes, Spread
from trainkit.system.paths import is_file

Row = tuple[int, int, dict[str, Any]]
"""Step, epoch and values as JSON has them."""

MOST_RECORDS = 8192
"""Records with the same names that are kept; the other half goes when there are more."""
_MOST_FAMILIES = 64  # sets of names; a plugin may log another name at every step
_MOST_NAMES = 2000
_MOST_EPOCHS = 1000
_AT_ONCE = 2000  # lines


@dataclass
class Epoch:
    """One epoch in short: the last step logged in it, its mean training loss, its last
    validation.
    """

    epoch: int
    step: int
    losses: int = 0
    loss_sum: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)

    def take(self, step: int, values: Mapping[str, Any]) -> None:
        """Count one record of the epoch."""
        self.step = max(step, self.step)
        loss = values.get("loss")
        if type(loss) is float or "loss" in values:
            self.losses += 1
            self.loss_sum += math.nan if loss is None or isinstance(loss, list) else loss
        for name, value in values.items():
            if name.startswith("val/") and not isinstance(value, list):
                self.metrics[name] = math.nan if value is None else value

    @property
    def loss(self) -> float | None:
        """Mean training loss over the steps logged."""
        if self.losses:
            return self.loss_sum / self.losses
        return None


class History:
    """What a run logged.

    Of a long run it is a selection: every second, fourth … record, and always the last of each
    kind. `extremes` has the lowest and highest values between them.

    Args:
        records: the run's records in order.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self._given = tuple(records)
        self._path: Path | None = None
        self.unreadable = 0
        """Lines of the file that are no records; the last line of a killed run, which may be cut
        short, not counted.
        """
        self._take((r.step, r.epoch, r.values) for r in self._given)

    @classmethod
    def read(cls, path: Path) -> History:
        """Read `metrics.jsonl`; nulls become NaN. A last line cut short by a crash is left out."""
        found = cls.__new__(cls)
        found._given, found._path, found.unreadable = (), path, 0
        found._take(found._rows())
        return found

    def _take(self, rows: Iterable[Row]) -> None:
        names: dict[str, bool] = {}
        families: dict[tuple[str, ...], Spread[tuple[int, Row]]] = {}
        extremes: dict[str, Extremes] = {}
        epochs: Spread[Epoch] = Spread(_MOST_EPOCHS)
        epoch = Epoch(-1, 0)
        for position, row in enumerate(rows):
            step, number, values = row
            if number != epoch.epoch:
                epoch = Epoch(number, step)
                epochs.add(epoch)
            epoch.take(step, values)
            kind, size = tuple(values), 0
            for name, value in values.items():
                if isinstance(value, list):
                    size += len(value)
                    if name not in names and len(names) < _MOST_NAMES:
                        names[name] = False
                    continue
                if name not in extremes:
                    if len(extremes) >= _MOST_NAMES:
                        continue
                    extremes[name], names[name] = Extremes(), True
                extremes[name].add(step, math.nan if value is None else value)
            if kind not in families:
                if not (len(families) < _MOST_FAMILIES):
                    kind = ()
                families.setdefault(kind, Spread(MOST_RECORDS))
            families[kind].add((position, row), size + len(values))
        self._columns, self._extremes, self._epochs = names, extremes, epochs
        self.every = max((family.every for family in families.values()), default=1)
        """Of how many records at most one is kept."""
        kept: list[tuple[int, Row]] = []
        for family in families.values():
            kept += family.items()
        records = []
        for _, (step, number, values) in sorted(kept):
            converted = {name: _from_json(value) for name, value in values.items()}
            records.append(Record(step, number, converted))
        self.records = tuple(records)

    @property
    def names(self) -> list[str]:
        """Every name that was logged, in order of first appearance."""
        return list(self._columns)

    def series(self, name: str) -> tuple[list[int], list[Any]]:
        """Return the steps at which `name` was logged and its values there."""
        steps, values = [], []
        for record in self.records:
            if name in record.values:
                steps.append(record.step)
                values.append(record.values[name])
        return steps, values

    def together(self, *names: str) -> tuple[list[int], list[tuple[Any, ...]]]:
        """Return the steps at which all of `names` were logged, and their values side by side."""
        steps, rows = [], []
        for record in self.records:
            if record.values.keys() >= set(names):
                steps.append(record.step)
                rows.append(tuple(map(record.values.__getitem__, names)))
        return steps, rows

    def extremes(self, name: str) -> tuple[list[int], list[float]]:
        """Return steps and values of the scalar `name`, the lowest and highest of each stretch of
        the run among them.

        What is not finite is left out.
        """
        steps: list[int] = []
        values: list[float] = []
        if name in self._extremes:
            for step, value in self._extremes[name].points():
                steps.append(step)
                values.append(value)
        return steps, values

    def not_finite(self, name: str) -> tuple[int, list[int]]:
        """Return how often the scalar `name` was not finite, and at which steps: of many, some."""
        found = self._extremes.get(name)
        if found and found.broken:
            return (found.not_finite, found.broken.items())
        return (0, [])

    def epochs(self) -> list[Epoch]:
        """Return the epochs in order; of more than a thousand every second, fourth …, and the
        last.
        """
        return sorted(
            {epoch.epoch: epoch for epoch in self._epochs.items()}.values(), key=lambda e: e.epoch
        )

    def write_csv(self, path: Path) -> None:
        """Write every scalar of every record as one table with a column per name; empty where
        nothing was logged.
        """
        columns = [name for name, is_scalar in self._columns.items() if is_scalar]
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "epoch", *columns])
            for step, epoch, values in self._rows():
                row = (values.get(name, "") for name in columns)
                writer.writerow(
                    [step, epoch + 1, *(math.nan if value is None else value for value in row)]
                )

    def _rows(self) -> Iterator[Row]:
        """Yield every record: those of the file where there is one, read anew."""
        if self._path is None:
            yield from ((r.step, r.epoch, r.values) for r in self._given)
            return
        self.unreadable, cut = 0, False
        for lines in _some_lines(self._path):
            self.unreadable += cut
            for row in _parsed(lines):
                cut = row is None
                if row is None:
                    self.unreadable += 1
                else:
                    yield row
            self.unreadable -= cut  # it counts where more follows


def _some_lines(path: Path) -> Iterator[list[str]]:
    if not is_file(path):
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        while lines := list(islice(file, _AT_ONCE)):
            yield lines


def _parsed(lines: list[str]) -> Iterator[Row | None]:
    """Yield each line's record, or None where it is none."""
    try:
        found = json.loads(f"[{','.join(lines)}]")  # one call for all of them takes half the time
    except (ValueError, RecursionError):
        found = []
    if len(found) != len(lines):
        found = [_json(line) for line in lines]
    for row in found:
        yield _row(row)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _row(row: Any) -> Row | None:
    """Return step, epoch and values of what a line holds; values that are no numbers are left
    out.
    """
    if (
        type(row) is not dict
        or type(row.get("step")) is not int
        or type(row.get("epoch")) is not int
    ):
        return None
    step, epoch = row.pop("step"), row.pop("epoch") - 1  # in files they count from 1
    for value in row.values():
        if type(value) is not float and value is not None and not _is_value(value):
            return step, epoch, {name: value for name, value in row.items() if _is_value(value)}
    return step, epoch, row


def _is_value(value: Any) -> bool:
    if type(value) is list:
        return all(
            v is None or type(v) is float or (type(v) is int and abs(v) < 2**63) for v in value
        )
    return value is None or type(value) is float or (type(value) is int and abs(value) < 2**63)


def _from_json(value: Any) -> Value:
    if isinstance(value, list):
        found = []
        for v in value:
            found.append(math.nan if v is None else float(v))
        return found
    if value is None:
        return math.nan
    return float(value)
