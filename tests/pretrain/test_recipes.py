"""pretrain/scripts/: recipes train, stop and resume; settings become options; wrong settings give one error line."""

import os
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from conftest import REPOSITORY, free_port
from resumable_checkpoints.complete_checkpoints import list_complete, step_of

RECIPES = REPOSITORY / "pretrain" / "scripts"
Environment = dict[str, str]


class Run:
    """A running recipe whose output goes to a file."""

    def __init__(self, recipe: Path, env: Environment, log: Path, *more: object) -> None:
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                ["bash", str(recipe), *map(str, more)], cwd=log.parent, env=env, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + 240
        while text not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.05)

    def output(self, status: int) -> str:
        """Wait for the end of the recipe; return its output. Raises AssertionError on another exit status."""
        assert self.process.wait(240) == status, self.log.read_text()
        return self.log.read_text()


@contextmanager
def running(*arguments: object, recipe: Path, env: Environment, log: Path) -> Iterator[Run]:
    """Start a recipe; afterwards kill all of its processes."""
    run = Run(recipe, env, log, *arguments)
    try:
        yield run
    finally:
        with suppress(psutil.NoSuchProcess):
            for each in [*psutil.Process(run.process.pid).children(recursive=True), run.process]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
        run.process.wait()


@pytest.fixture(scope="module")
def settings(extensions: Path, tiny_checkpoint: Path, two_sources: Path) -> Environment:
    """Return the environment of a run that does not end by itself; it has no OUT."""
    return os.environ | {
        "MODEL": str(tiny_checkpoint), "DATA": str(two_sources), "VENV": str(Path(sys.executable).parent.parent),
        "TORCH_EXTENSIONS_DIR": str(extensions), "OMP_NUM_THREADS": "1",
        "MICRO_BATCH": "4", "ACCUMULATION": "1", "BLOCK_SIZE": "128", "SOURCE_WEIGHTS": "zh=0.75,en=0.25",
        "MAX_STEPS": "100000", "SAVE_STEPS": "100000", "LOG_STEPS": "1", "REPORT_TO": "none", "PRECISION": "fp32",
        "MASTER_PORT": str(free_port()),
    }  # fmt: skip


def newest(output: Path) -> int:
    """Return the step of the newest complete checkpoint."""
    return max(step_of(path) for path in list_complete(output))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, settings: Environment) -> Path:
    """Return the output folder of train.sh on two ranks after SIGTERM to its process group."""
    output = tmp_path_factory.mktemp("one") / "trained"
    env = settings | {"OUT": str(output), "RANKS": "2"}
    with running(recipe=RECIPES / "train.sh", env=env, log=output.parent / "log") as run:
        run.wait_for("\nstep 2/")
        os.killpg(run.process.pid, signal.SIGTERM)
        printed = run.output(143)
    assert "8 sequences per step on 2 ranks (cpu), 100,000 steps\n" in printed
    assert "stopped by SIGTERM after step" in printed
    return output


@pytest.mark.slow
def test_sigterm_to_train_sh_saves_a_checkpoint_and_leaves_no_process(stopped: Path) -> None:
    assert newest(stopped) >= 2
    assert not (stopped / "config.json").exists()
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            assert str(stopped) not in process.cmdline()


@pytest.mark.slow
def test_sigterm_on_one_of_two_nodes_stops_both(tmp_path: Path, settings: Environment, stopped: Path) -> None:
    """Two nodes without ssh, one rank each, resume the run of one machine."""
    output = Path(shutil.copytree(stopped, tmp_path / "trained"))
    (tmp_path / "hosts").write_text("# in the order of the ranks\nlocalhost slots=1\n\n127.0.0.1 slots=1\n")
    env = settings | {"OUT": str(output), "HOSTFILE": str(tmp_path / "hosts"), "MASTER_ADDR": "127.0.0.1"}
    recipe = RECIPES / "train_multinode.sh"
    with (
        running(recipe=recipe, env=env | {"NODE_RANK": "0"}, log=tmp_path / "0") as first,
        running(recipe=recipe, env=env | {"NODE_RANK": "1"}, log=tmp_path / "1") as second,
    ):
        first.wait_for(f"\nstep {newest(stopped) + 2}/")
        second.process.terminate()
        printed, others = first.output(143), second.output(143)
    assert (
        f"8 sequences per step on 2 ranks (cpu), 100,000 steps from {output}/checkpoint-{newest(stopped)}\n" in printed
    )
    assert "node_rank=1" in others
    assert newest(output) >= newest(stopped) + 2


def programs(folder: Path, **texts: str) -> Path:
    """Write executable scripts to a folder; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        path = folder / name.replace("_", "-")
        path.write_text(text)
        path.chmod(stat.S_IRWXU)
    return folder


SHOW = '#!/bin/bash\nprintf "%s\\n" "$@"\n[ -z "${DS_ENV_FILE:-}" ] || cat "$DS_ENV_FILE"\n'
EIGHT_GPUS = '#!/bin/bash\nfor gpu in 0 1 2 3 4 5 6 7; do echo "GPU $gpu: a GPU"; done\n'


@pytest.fixture
def shown(tmp_path: Path) -> Environment:
    """Return an environment with stand-ins: nvidia-smi lists eight GPUs, ssh succeeds, deepspeed prints arguments."""
    for name in ("base/config.json", "corpus.json", "home/.deepspeed_env"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("NCCL_IB_HCA=mlx5\n" if name.startswith("home") else "{}")
    (tmp_path / "hosts").write_text("node1 slots=8\nnode2 slots=8\nnode3 slots=8")
    (tmp_path / "one").write_text("node1 slots=8\n")
    (tmp_path / "bad").write_text("node1 slots=8\nnode2\n")
    bare = "#!/bin/bash\n"
    bin = programs(tmp_path / "bin", deepspeed=SHOW, nvidia_smi=EIGHT_GPUS, ssh=bare, pdsh=bare)
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "DS_", "SLURM"))}
    return keep | {
        "VENV": str(tmp_path), "PATH": f"{bin}:{os.environ['PATH']}", "HOME": str(tmp_path / "home"),
        "MODEL": str(tmp_path / "base"), "DATA": str(tmp_path / "corpus"), "OUT": str(tmp_path / "out"),
        "HOSTFILE": str(tmp_path / "hosts"), "MASTER_PORT": "29500",
    }  # fmt: skip


def run_recipe(name: str, env: Environment, *more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["bash", str(RECIPES / name), *more], env=env, capture_output=True, text=True, timeout=60)


def test_defaults_follow_the_machine_and_settings_become_options(shown: Environment) -> None:
    printed = run_recipe("train.sh", shown, "--seed", "7").stdout.split()
    assert printed[:3] == ["--master_port", "29500", "pretrain/train.py"]  # no --num_gpus: all GPUs
    assert printed[-2:] == ["--seed", "7"]
    pairs = " ".join(printed)
    for pair in ("--bf16 True", "--gradient_checkpointing True", "--deepspeed pretrain/configs/zero3.json"):
        assert pair in pairs
    assert not {"--max_steps", "--block_size", "--resume_from_checkpoint"} & set(printed)
    Path(shown["OUT"], "checkpoint-5").mkdir(parents=True)
    Path(shown["OUT"], "checkpoint-5", "complete.json").touch()
    given = {"PRECISION": "fp16", "RANKS": "4", "MAX_STEPS": "9", "BLOCK_SIZE": "64", "WARMUP": "3", "EPOCHS": "2"}
    pairs = " ".join(run_recipe("train.sh", shown | given).stdout.split())
    for pair in (
        "--num_gpus 4", "--fp16 True", "--deepspeed pretrain/configs/zero3-fp16.json", "--max_steps 9",
        "--block_size 64", "--warmup_steps 3", "--num_train_epochs 2", "--resume_from_checkpoint True",
    ):  # fmt: skip
        assert pair in pairs


def test_only_listed_variables_are_exported_to_other_nodes(shown: Environment) -> None:
    given = {"GLOO_SOCKET_IFNAME": "ib0", "SSH_PORT": "2222", "HF_TOKEN": "secret", "MASTER_ADDR": "10.0.0.1"}
    printed = run_recipe("train_multinode.sh", shown | given).stdout.splitlines()
    start = f"--hostfile {shown['HOSTFILE']} --master_port 29500 --master_addr 10.0.0.1 --ssh_port 2222".split()
    assert printed[: len(start) + 1] == [*start, "pretrain/train.py"]
    assert {"GLOO_SOCKET_IFNAME=ib0", "NCCL_IB_HCA=mlx5"} < set(printed)
    assert any(line.startswith("PATH=") for line in printed)
    assert "secret" not in "".join(printed)


@pytest.mark.parametrize(
    ("recipe", "change", "message"),
    [
        ("train.sh", {"PRECISION": "int8"}, "PRECISION=int8 is not bf16, fp16 or fp32"),
        ("train.sh", {"MICRO_BATCH": "many"}, "MICRO_BATCH=many is not a whole number"),
        ("train.sh", {"MODEL": "nowhere"}, "MODEL=nowhere is not a checkpoint folder"),
        ("train.sh", {"DATA": "nowhere"}, "DATA=nowhere is not the prefix of a corpus"),
        ("train.sh", {"CONFIG": "nowhere.json"}, "CONFIG=nowhere.json does not exist"),
        ("train.sh", {"OUT": "{base}"}, "holds a finished run, so nothing was done; to train it further, set a new"),
        ("train.sh", {"RANKS": "2", "CUDA_VISIBLE_DEVICES": "4,5"}, "both choose GPUs"),
        ("train_multinode.sh", {"HOSTFILE": "nowhere"}, "HOSTFILE=nowhere does not exist"),
        ("train_multinode.sh", {"HOSTFILE": "{one}"}, "fewer than two nodes"),
        ("train_multinode.sh", {"HOSTFILE": "{bad}"}, "'node2 ' is not of the form: node1 slots=8"),
        ("train_multinode.sh", {"NODE_RANK": "3"}, "NODE_RANK=3 is not from 0 to 2"),
        ("train_multinode.sh", {"NODE_RANK": "0"}, "MASTER_ADDR, an address of the first node"),
        ("train_multinode.sh", {"BASH_ENV": "{no_ssh}"}, "ssh to node1 fails"),
        ("train.slurm", {}, "submit it from the repository's top: sbatch pretrain/scripts/train.slurm"),
    ],
)
def test_bad_settings_give_one_error_line_and_status_2(
    tmp_path: Path, shown: Environment, recipe: str, change: Environment, message: str
) -> None:
    (tmp_path / "no_ssh").write_text("ssh() { return 255; }\n")
    names = {name: str(tmp_path / name) for name in ("base", "one", "bad", "no_ssh")}
    done = run_recipe(recipe, shown | {name: value.format(**names) for name, value in change.items()})
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith("error: ") and message in done.stderr and done.stderr.count("\n") == 1
    assert not done.stdout
