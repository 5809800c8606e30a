"""resumable_checkpoints/: complete and incomplete checkpoints, and the state of the run that wrote them."""

import resource
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from resumable_checkpoints import complete_checkpoints as checkpoints
from resumable_checkpoints.run_state import CheckpointCompletion, RunState, differences
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from training_loop.run_folders import write_errors_of

WORDS = Tokenizer(models.WordLevel({str(index): index for index in range(2000)}, "0"))


def make(output: Path, step: int, complete: bool = True) -> Path:
    folder = output / f"checkpoint-{step}"
    (folder / "global_step").mkdir(parents=True)
    (folder / "global_step/rank_0.pt").write_bytes(b"weights")
    (folder / "trainer_state.json").write_text("{}")
    checkpoints.flush(folder)
    if complete:
        checkpoints.mark_complete(folder)
    return folder


def test_checkpoint_is_complete_only_with_all_files_at_full_size(tmp_path: Path) -> None:
    folder = make(tmp_path, 3, complete=False)
    assert not checkpoints.is_complete(folder)
    checkpoints.mark_complete(folder)
    assert checkpoints.is_complete(folder)
    (folder / "added.txt").write_text("later")
    assert checkpoints.is_complete(folder)
    (folder / "global_step/rank_0.pt").write_bytes(b"weigh")
    assert not checkpoints.is_complete(folder)
    (folder / "global_step/rank_0.pt").unlink()
    assert not checkpoints.is_complete(folder)
    folder = make(tmp_path, 4)
    (folder / "complete.json").write_text("{")
    assert not checkpoints.is_complete(folder)


def test_adapter_that_lost_a_tensor_makes_its_checkpoint_incomplete(tmp_path: Path) -> None:
    folder = make(tmp_path, 1, complete=False)
    weights = {f"layers.{layer}.lora_A.weight": torch.ones(4, 4) for layer in range(2)}
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    checkpoints.mark_complete(folder)
    assert checkpoints.is_complete(folder)
    weights.pop("layers.1.lora_A.weight")
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    assert not checkpoints.is_complete(folder)


def test_newest_complete_checkpoint_is_resumed_and_incomplete_ones_are_removed(tmp_path: Path) -> None:
    for step, complete in ((5, True), (10, True), (15, False)):
        make(tmp_path, step, complete)
    (tmp_path / "checkpoint-best").mkdir()  # not a checkpoint-N
    assert checkpoints.resume_point("True", tmp_path) == tmp_path / "checkpoint-10"
    assert checkpoints.resume_point(str(tmp_path / "checkpoint-5"), tmp_path) == tmp_path / "checkpoint-5"
    for given in (None, "False"):
        with pytest.raises(ValueError, match="holds checkpoints of an earlier run; resume it"):
            checkpoints.resume_point(given, tmp_path)
        assert checkpoints.resume_point(given, tmp_path / "other") is None
    with pytest.raises(ValueError, match="checkpoint-15 is not complete"):
        checkpoints.resume_point(str(tmp_path / "checkpoint-15"), tmp_path)
    with pytest.raises(FileNotFoundError, match="checkpoint-7 does not exist"):
        checkpoints.resume_point(str(tmp_path / "checkpoint-7"), tmp_path)
    with pytest.raises(FileNotFoundError, match="no complete checkpoint"):
        checkpoints.resume_point("True", tmp_path / "other")
    (notice,) = checkpoints.remove_incomplete(tmp_path)
    assert notice.startswith(f"{tmp_path}/checkpoint-15 was incomplete")
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == ["checkpoint-5", "checkpoint-10"]
    assert (tmp_path / "checkpoint-best").is_dir()


def test_limit_counts_complete_checkpoints_and_spares_the_best(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        make(tmp_path, step)
    make(tmp_path, 20, complete=False)
    checkpoints.keep_newest(tmp_path, 2, best=str(tmp_path / "checkpoint-5"))
    checkpoints.keep_newest(tmp_path, None)
    assert len(checkpoints.list_checkpoints(tmp_path)) == 4
    checkpoints.keep_newest(tmp_path, 2)
    assert [checkpoints.step_of(path) for path in checkpoints.list_checkpoints(tmp_path)] == [10, 15, 20]


def test_partly_removed_checkpoint_is_not_listed_and_the_next_run_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stand-in for rmtree removes nothing, like a removal that fails; permissions cannot stop root."""
    make(tmp_path, 5), make(tmp_path, 10)
    with monkeypatch.context() as broken:
        broken.setattr(checkpoints.shutil, "rmtree", lambda *_, **__: None)
        checkpoints.keep_newest(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-5.partial"]
    assert checkpoints.list_checkpoints(tmp_path) == [tmp_path / "checkpoint-10"]
    assert checkpoints.remove_incomplete(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]


def test_differences_name_each_unequal_option() -> None:
    saved = {"--seed": 4, "--block_size": 64, "--mix": "a=1"}
    assert differences(saved, saved) == {}
    assert differences(saved, {"--seed": 5, "--block_size": 64}) == {
        "--seed": "--seed was 4 and is 5", "--mix": "--mix was a=1 and is None",
    }  # fmt: skip


def test_run_state_is_read_back_or_refused(tmp_path: Path) -> None:
    state = RunState({"--seed": 4}, {"next_index": 160})
    state.write(tmp_path)
    assert RunState.read(tmp_path) == state
    (tmp_path / "run_state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"no readable run_state\.json"):
        RunState.read(tmp_path)


def write_text(file: Path) -> None:
    with file.open("w") as out:
        out.write("a" * 100_000)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda file: save_file({"a": torch.zeros(100_000)}, file), r".*File too large \(os error 27\)"),
        (lambda file: torch.save(torch.zeros(100_000), file), "torch.save failed"),
        (lambda _: torch.save(torch.zeros(10), "/dev/full"), "torch.save failed"),  # fails at the end of the file
        (lambda file: WORDS.save(str(file)), r"File too large \(os error 27\)"),
        (write_text, r"\[Errno 27\] File too large"),
    ],
    ids=["safetensors", "torch", "torch-at-the-end", "tokenizers", "text"],
)
def test_full_disk_gives_one_error_line_with_every_library(
    tmp_path: Path, write: Callable[[Path], None], reason: str
) -> None:
    """A limit of the file size stands in for a full disk. Errors of other kinds are not changed."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        line = (
            rf"^{tmp_path} cannot be written \({reason}; \d+\.\d\d GB free\); make room .*--resume_from_checkpoint True"
        )
        with pytest.raises(ValueError, match=line), write_errors_of(tmp_path):
            write(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(RuntimeError, match="another"), write_errors_of(tmp_path):
        raise RuntimeError("another")
    with pytest.raises(RuntimeError, match="meta"), write_errors_of(tmp_path):
        torch.save(torch.zeros(3, device="meta").untyped_storage(), tmp_path / "file")


def test_limit_is_applied_at_the_end_of_a_run_that_saves_no_checkpoint(tmp_path: Path) -> None:
    """The interrupted run stopped between a new checkpoint and the removal of the old one."""
    for step in (5, 10):
        make(tmp_path, step)
    completion = CheckpointCompletion(lambda: RunState({}, {}))
    arguments = SimpleNamespace(output_dir=str(tmp_path), save_total_limit=1, should_save=True)
    state = SimpleNamespace(best_model_checkpoint=None)
    completion.on_train_begin(arguments, state, None)
    completion.on_train_end(arguments, state, None)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    assert arguments.save_total_limit == 1
