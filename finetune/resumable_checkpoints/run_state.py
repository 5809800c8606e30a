"""What a checkpoint says of the run that wrote it: what must be equal to resume, and where the run was."""

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
    """The state of a run; plain JSON values.

    identity: what must be equal for a run to be the continuation of another one, by the option that decides it.
    progress: where the run was in its data.
    """

    identity: dict[str, Any]
    progress: dict[str, Any]

    def write(self, checkpoint: Path) -> None:
        (checkpoint / STATE).write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, checkpoint: Path) -> "RunState":
        """The state of a checkpoint; raises ValueError where it has none."""
        try:
            return cls(**json.loads((checkpoint / STATE).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{checkpoint} has no readable {STATE} ({error}); resume from another") from None


def differences(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, str]:
    """The identities' unequal values, by option, each described; what only one of the two has is unequal."""
    return {
        option: f"{option} was {saved.get(option)} and is {now.get(option)}"
        for option in {**now, **saved}
        if saved.get(option) != now.get(option)
    }


def check_same_run(checkpoint: Path, identity: dict[str, Any], remedy: str) -> RunState:
    """The state of a checkpoint; raises ValueError, which ends with the remedy, where its identity is another one."""
    saved = RunState.read(checkpoint)
    if changes := differences(saved.identity, identity):
        raise ValueError(f"{checkpoint} is of another run: {'; '.join(changes.values())}; {remedy}")
    return saved


class CheckpointCompletion(TrainerCallback):
    """Completes each checkpoint that Trainer saved: run state, flush, marker; then the oldest ones are removed.

    Trainer itself would remove older checkpoints before the new one is complete, so --save_total_limit is taken from
    it while it trains. `state` is called by all ranks.
    """

    def __init__(self, state: Callable[[], RunState]) -> None:
        self.state = state
        self.limit: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.limit, args.save_total_limit = args.save_total_limit, None

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        args.save_total_limit = self.limit

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
