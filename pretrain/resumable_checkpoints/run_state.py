"""The state of the run that wrote a checkpoint: settings that must be equal to resume it, and the data position."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rank_group.ranks import wait_for_ranks
from transformers import TrainerCallback

from resumable_checkpoints import complete_checkpoints

STATE = "run_state.json"


@dataclass(frozen=True)
class RunState:
    """The state of a run, as JSON values.

    identity: the settings that must be equal to resume the run, by option.
    progress: the position in the data.
    """

    identity: dict[str, Any]
    progress: dict[str, Any]

    def write(self, checkpoint: Path) -> None:
        (checkpoint / STATE).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, checkpoint: Path) -> "RunState":
        """Read the state of a checkpoint; raises ValueError if it is missing or unreadable."""
        try:
            return cls(**json.loads((checkpoint / STATE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(
                f"{checkpoint} has no readable {STATE} ({error}); resume from another checkpoint"
            ) from None


def differences(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """Return a description of each option whose value differs or that only one identity has, by option."""
    return {
        option: f"{option} was {saved.get(option)} and is {now.get(option)}"
        for option in {**now, **saved}
        if saved.get(option) != now.get(option)
    }


def check_same_run(checkpoint: Path, identity: dict[str, Any], remedy: str) -> RunState:
    """Read the state of a checkpoint; raises ValueError if its identity differs. remedy: the end of the message."""
    saved = RunState.read(checkpoint)
    if changes := differences(saved.identity, identity):
        raise ValueError(f"{checkpoint} is of another run: {'; '.join(changes.values())}; {remedy}")
    return saved


class CheckpointCompletion(TrainerCallback):
    """Adds the run state and complete.json to each checkpoint that Trainer saves, then removes old checkpoints.

    --save_total_limit is applied here: Trainer would remove older checkpoints before the new one is complete.
    state: returns the run state; all ranks call it.
    """

    def __init__(self, state: Callable[[], RunState]) -> None:
        self.state = state
        self.limit: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.limit, args.save_total_limit = args.save_total_limit, None

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        args.save_total_limit = self.limit
        if args.should_save:  # a resumed run may save no checkpoint, and the interrupted run may have left older ones
            complete_checkpoints.keep_newest(Path(args.output_dir), self.limit, state.best_model_checkpoint)

    def on_save(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        output = Path(args.output_dir)
        checkpoint = output / f"checkpoint-{state.global_step}"
        run_state = self.state()
        if args.should_save:
            run_state.write(checkpoint)
        wait_for_ranks()
        if args.local_process_index == 0:
            complete_checkpoints.flush(checkpoint)
        wait_for_ranks()
        if args.should_save:
            complete_checkpoints.mark_complete(checkpoint)
            complete_checkpoints.keep_newest(output, self.limit, state.best_model_checkpoint)
        wait_for_ranks()
