"""checkpointing.py: a checkpoint is complete or ignored; a run goes on only as what it was."""

from dataclasses import replace
from pathlib import Path

import pytest
from pretraining import checkpointing
from pretraining.checkpointing import RunState
from sequence_packing.sampler import Schedule


def make(output: Path, step: int, complete: bool = True) -> Path:
    folder = output / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "global_step/rank_0.pt").write_bytes(b"weights")
    (folder / "trainer_state.json").write_text("{}")
    checkpointing.flush(folder)
    if complete:
        checkpointing.mark_complete(folder)
    return folder


def test_a_checkpoint_is_complete_when_all_its_files_are_there_in_full(tmp_path: Path) -> None:
    folder = make(tmp_path, 3, complete=False)
    assert not checkpointing.is_complete(folder)
    checkpointing.mark_complete(folder)
    assert checkpointing.is_complete(folder)
    (folder / "added.txt").write_text("later")
    assert checkpointing.is_complete(folder)
    (folder / "global_step/rank_0.pt").write_bytes(b"weigh")
    assert not checkpointing.is_complete(folder)
    (folder / "global_step/rank_0.pt").unlink()
    assert not checkpointing.is_complete(folder)
    folder = make(tmp_path, 4)
    (folder / "complete.json").write_text("{")
    assert not checkpointing.is_complete(folder)


def test_the_newest_complete_one_is_resumed_and_broken_ones_go(tmp_path: Path) -> None:
    for step, complete in ((5, True), (10, True), (15, False)):
        make(tmp_path, step, complete)
    (tmp_path / "checkpoint-best").mkdir()  # not one of these
    assert checkpointing.resume_point("True", tmp_path) == tmp_path / "checkpoint-10"
    assert checkpointing.resume_point(str(tmp_path / "checkpoint-5"), tmp_path) == tmp_path / "checkpoint-5"
    assert checkpointing.resume_point("False", tmp_path) is None
    with pytest.raises(ValueError, match="checkpoint-15 is not complete"):
        checkpointing.resume_point(str(tmp_path / "checkpoint-15"), tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint-7 does not exist"):
        checkpointing.resume_point(str(tmp_path / "checkpoint-7"), tmp_path)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        checkpointing.resume_point("True", tmp_path / "other")
    assert checkpointing.remove_broken(tmp_path) == [f"{tmp_path}/checkpoint-15 was not written to its end; removed"]
    assert [path.name for path in checkpointing.checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]
    assert (tmp_path / "checkpoint-best").is_dir()


def test_only_complete_checkpoints_count_towards_the_limit(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        make(tmp_path, step)
    make(tmp_path, 20, complete=False)
    checkpointing.keep_newest(tmp_path, 2)
    assert [checkpointing.step_of(path) for path in checkpointing.checkpoints(tmp_path)] == [10, 15, 20]
    checkpointing.keep_newest(tmp_path, None)
    assert len(checkpointing.checkpoints(tmp_path)) == 3


def test_what_makes_another_run_is_told() -> None:
    schedule = Schedule({"zh": 10, "en": 20}, {"zh": 1, "en": 1}, 4)
    saved = RunState(
        {"bin": "a"}, {"block_size": 64, "packed": True}, 16, 4, schedule.state(), 160, 9, world_size=2,
    )  # fmt: skip
    assert not checkpointing.differences(saved, replace(saved, world_size=3, next_row=0, tokens=0))
    heavier = Schedule({"zh": 10, "en": 20}, {"zh": 3, "en": 1}, 4).state()
    by_type = Schedule({"0": 30}, {"0": 1}, 4).state()
    for change, said in (
        ({"corpus": {"bin": "b"}}, "--data_path"),
        ({"packing": {"block_size": 32, "packed": True}}, "block_size was 64 and is 32"),
        ({"global_batch": 8}, "a step had 16 rows and would have 8"),
        ({"seed": 5}, "--seed was 4 and is 5"),
        ({"schedule": heavier}, "--source_weights gives other shares"),
        ({"schedule": by_type}, "rows came from zh, en and would come from 0"),
    ):
        found = checkpointing.differences(saved, replace(saved, **change))
        assert len(found) == 1
        assert said in found[0]


def test_a_state_is_read_back(tmp_path: Path) -> None:
    state = RunState({"bin": "a"}, {"block_size": 64}, 16, 4, {"names": []}, 160, 9, 2)
    state.write(tmp_path)
    assert RunState.read(tmp_path) == state
    (tmp_path / "run_state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no readable run_state\.json"):
        RunState.read(tmp_path)
