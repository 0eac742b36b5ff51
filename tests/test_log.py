"""What is logged: one value per name and step, brought to the host late, and cut back exactly on
resume.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainkit import History, Record
from trainkit.errors import UserError
from trainkit.log.records import Log


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_values_belong_to_the_step_that_is_committed_next(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl")
    log.record("loss", torch.tensor(1.5))
    log.record("lr", 0.1)
    log.commit(1, 0)
    log.record("loss", torch.tensor(0.5))
    log.commit(2, 0)
    log.commit(3, 0)  # nothing was recorded: nothing is kept
    assert log.pending == 2
    assert not log.path.exists()  # type: ignore[union-attr]
    assert log.flush() == [Record(1, 0, {"loss": 1.5, "lr": 0.1}), Record(2, 0, {"loss": 0.5})]
    assert log.pending == 0
    assert log.flush() == []
    assert lines(tmp_path / "metrics.jsonl") == [
        {"step": 1, "epoch": 1, "loss": 1.5, "lr": 0.1},
        {"step": 2, "epoch": 1, "loss": 0.5},
    ]


def test_the_last_value_of_a_name_in_a_step_counts() -> None:
    log = Log()
    log.record("x", 1)
    log.record("x", 2)
    log.commit(1, 0)
    assert log.flush() == [Record(1, 0, {"x": 2.0})]


def test_scalars_vectors_and_numbers_of_any_kind() -> None:
    log = Log()
    log.record("scalar", torch.tensor(1, dtype=torch.int64))
    log.record("flag", torch.tensor(True))
    log.record("vector", torch.tensor([1.0, 2.5]))
    log.record("one", torch.tensor([3.0]))
    log.record("none", torch.zeros(0))
    log.record("number", 4)
    log.record("half", torch.tensor(0.1, dtype=torch.bfloat16))
    log.record("exact", torch.tensor(0.1, dtype=torch.float32))
    log.commit(1, 0)
    (record,) = log.flush()
    assert record.values == {
        "scalar": 1.0,
        "flag": 1.0,
        "vector": [1.0, 2.5],
        "one": [3.0],
        "none": [],
        "number": 4.0,
        "half": 0.10009765625,
        "exact": 0.10000000149011612,
    }


def test_a_recorded_tensor_may_change_afterwards_and_keeps_no_graph() -> None:
    log = Log()
    weight = torch.ones((), requires_grad=True)
    running = torch.zeros(())
    for step in (1, 2):
        running += 1
        log.record("running", running)
        log.record("loss", weight * step)
        log.commit(step, 0)
    assert not any(
        value.requires_grad for _, _, values in log._pending for value in values.values()
    )  # type: ignore[union-attr]
    assert [record.values for record in log.flush()] == [
        {"running": 1.0, "loss": 1.0},
        {"running": 2.0, "loss": 2.0},
    ]


def test_the_host_waits_for_a_device_once_per_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers = []
    to_list = torch.Tensor.tolist
    monkeypatch.setattr(
        torch.Tensor, "tolist", lambda self: transfers.append(self.shape) or to_list(self)
    )
    log = Log()
    for step in range(5):
        log.record("loss", torch.tensor(float(step)))
        log.record("norm", torch.tensor([1.0, 2.0]))
        log.commit(step, 0)
    log.flush()
    assert transfers == [torch.Size([15])]


@pytest.mark.parametrize("name", ["step", "epoch"])
def test_names_that_every_record_has_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"a record has its own '{name}'; log the value under another name"
    ):
        Log().record(name, 1)


def test_the_loss_is_averaged_over_ranks_and_nothing_else_is(tmp_path: Path) -> None:
    log = Log(tmp_path / "metrics.jsonl", average=lambda values: [value + 10 for value in values])
    log.record("loss", torch.tensor(1.0))
    log.record("other", 1.0)
    log.commit(1, 0)
    log.record("val/accuracy", 0.5)
    log.commit(1, 0)
    log.record("loss", 2.0)
    log.commit(2, 0)
    values = [record.values for record in log.flush()]
    assert values == [{"loss": 11.0, "other": 1.0}, {"val/accuracy": 0.5}, {"loss": 12.0}]
    assert [row.get("loss") for row in lines(tmp_path / "metrics.jsonl")] == [11.0, None, 12.0]


def test_what_is_not_finite_is_null_in_the_file_and_nan_when_read_back(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(path)
    log.record("loss", torch.tensor(math.nan))
    log.record("norms", torch.tensor([1.0, math.inf]))
    log.commit(1, 0)
    (record,) = log.flush()
    assert math.isnan(record.values["loss"])  # type: ignore[arg-type]
    assert path.read_text() == '{"step": 1, "epoch": 1, "loss": null, "norms": [1.0, null]}\n'
    (read,) = History.read(path).records
    assert math.isnan(read.values["loss"])  # type: ignore[arg-type]
    assert read.values["norms"][0] == 1.0  # type: ignore[index]
    assert math.isnan(read.values["norms"][1])  # type: ignore[index]


def test_a_resumed_log_goes_on_where_the_checkpoint_was_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"

    def log_steps(log: Log, steps: range) -> None:
        for step in steps:
            log.record("loss", float(step))
            log.commit(step, 0)
        log.flush()

    log = Log(path)
    log_steps(log, range(3))
    log.note("said once")
    log.note("said once")
    state = log.state_dict()
    assert state == {"bytes": path.stat().st_size, "notes": ["said once"]}
    log_steps(log, range(3, 6))
    whole = path.read_bytes()

    path.write_bytes(whole[:-7])  # a crash in the middle of a line
    again = Log(path)
    again.load_state_dict(state)
    assert again.notes == ["said once"]
    assert [row["step"] for row in lines(path)] == [0, 1, 2]
    log_steps(again, range(3, 6))
    assert path.read_bytes() == whole


def test_a_log_that_lost_lines_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "epoch": 0}\n')
    with pytest.raises(UserError) as caught:
        Log(path).load_state_dict({"bytes": 100, "notes": []})
    assert (
        str(caught.value) == f"{path}: has 24 bytes but the checkpoint was written after 100; "
        "the file was changed since: restore it, or start a new run"
    )
    path.unlink()
    with pytest.raises(UserError, match="has 0 bytes but the checkpoint was written after 100"):
        Log(path).load_state_dict({"bytes": 100, "notes": []})


def test_a_log_without_a_file_keeps_no_place(tmp_path: Path) -> None:
    log = Log()
    log.note("here")
    assert log.state_dict() == {"bytes": 0, "notes": ["here"]}
    fresh = Log()
    fresh.load_state_dict({"bytes": 3, "notes": ["there"]})
    assert fresh.notes == ["there"]
    unwritten = Log(tmp_path / "metrics.jsonl")
    unwritten.load_state_dict({"bytes": 0, "notes": []})
    assert not (tmp_path / "metrics.jsonl").exists()


# History.


def history() -> History:
    return History(
        [
            Record(1, 0, {"loss": 2.0, "norm": 1.0}),
            Record(2, 0, {"loss": 1.0, "hist": [1.0, 2.0]}),
            Record(2, 0, {"val/accuracy": 0.5}),
            Record(3, 1, {"loss": 0.5, "norm": 3.0}),
        ]
    )


def test_a_history_gives_series_by_name() -> None:
    assert history().names == ["loss", "norm", "hist", "val/accuracy"]
    assert history().series("loss") == ([1, 2, 3], [2.0, 1.0, 0.5])
    assert history().series("norm") == ([1, 3], [1.0, 3.0])
    assert history().series("nothing") == ([], [])
    assert history().together("loss", "norm") == ([1, 3], [(2.0, 1.0), (0.5, 3.0)])


def test_a_history_becomes_a_table_of_its_scalars(tmp_path: Path) -> None:
    history().write_csv(tmp_path / "metrics.csv")
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "step,epoch,loss,norm,val/accuracy",
        "1,1,2.0,1.0,",
        "2,1,1.0,,",
        "2,1,,,0.5",
        "3,2,0.5,3.0,",
    ]


def test_a_history_leaves_out_a_last_line_that_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "epoch": 0, "loss": 1.0}\n{"step": 2, "epo')
    assert History.read(path).series("loss") == ([1], [1.0])
    assert History.read(tmp_path / "none.jsonl").records == ()


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(
    rows=st.lists(
        st.dictionaries(st.sampled_from("abc"), NUMBERS | st.lists(NUMBERS), min_size=1), max_size=5
    )
)
def test_what_is_logged_is_read_back_bit_for_bit(
    rows: list[dict[str, float | list[float]]],
) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.jsonl"
        log = Log(path)
        for step, values in enumerate(rows):
            for name, value in values.items():
                log.record(name, torch.tensor(value))
            log.commit(step, 0)
        records = log.flush()
        assert [record.values for record in records] == rows
        assert list(History.read(path).records) == records
