"""A command in which rank 1 fails with a user error while rank 0 waits in a barrier; a test starts it with torchrun."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "pretrain"))

from rank_group import rank_errors
from torch import distributed

rank_errors.GRACE = 0.5


@rank_errors.user_errors_in_turn()
def main() -> None:
    distributed.init_process_group("gloo")
    if os.environ["RANK"] == "1":
        raise ValueError("rank 1 has no data")
    distributed.barrier()


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
