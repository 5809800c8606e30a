"""A real Slurm on this machine for the slow tests: munge, slurmctld and two slurmd (node1, node2) on 127.0.0.1.

It needs root. It uses free ports and one folder for keys, state and logs; the system's services are neither used nor
changed.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from conftest import free_port

INSTALL = "apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=15  # seconds; a requeued job waits at least as long
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
SlurmdParameters=config_overrides  # each node has the CPUs below, whatever the machine has
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
KillWait=120
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 RealMemory=100000 Gres=gpu:2
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 RealMemory=100000 Gres=gpu:2
PartitionName=cpu Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class SlurmCluster:
    """Runs commands of a Slurm cluster; `env` has the variable that makes sbatch and other clients use it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}

    def command(self, *words: object, **more: str) -> str:
        """Run a Slurm command with `more` environment variables; return its stdout."""
        done = subprocess.run(
            list(map(str, words)), env=os.environ | self.env | more, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def jobs(self) -> list[str]:
        """Return the ids of all jobs that Slurm remembers; all tasks of a job array have the same id."""
        return self.command("squeue", "--states=all", "--noheader", "--format=%F").split()

    def fields(self, job: str) -> dict[str, str]:
        """Return the fields of `scontrol show job`, such as JobState and Restarts."""
        shown = self.command("scontrol", "--oneliner", "show", "job", job)
        return dict(word.partition("=")[::2] for word in shown.split())

    def wait_for(self, job: str, *states: str, seconds: float = 300) -> dict[str, str]:
        """Wait until a job is in one of the states; return its fields."""
        until = time.monotonic() + seconds
        while (fields := self.fields(job))["JobState"] not in states:
            assert fields["JobState"] in ("PENDING", "RUNNING", "COMPLETING"), fields
            assert time.monotonic() < until, f"job {job} is {fields['JobState']}, not {states}: {fields}"
            time.sleep(0.2)
        return fields


def require_slurm() -> None:
    """Skip the test if it does not run as root, or if Slurm's packages are missing."""
    if os.geteuid():
        pytest.skip("these tests start Slurm, which needs root")
    if not all(map(shutil.which, ("munged", "slurmctld", "slurmd", "sbatch"))):
        pytest.skip(f"Slurm is not installed; run: {INSTALL}")


@contextmanager
def running_slurm(folder: Path) -> Iterator[SlurmCluster]:
    """Start Slurm in a folder; afterwards kill its daemons and everything that its jobs have started."""
    host = socket.gethostname().partition(".")[0]
    ports = [free_port() for _ in range(3)]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder, ports=ports))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null,/dev/zero\n")  # any devices; the jobs use the CPU
    for name in ("state", "node1", "node2"):
        (folder / name).mkdir()
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    names = ("socket", "key-file", "pid-file", "log-file", "seed-file")
    munge = [f"--{name}={folder}/munge.{name.partition('-')[0]}" for name in names]
    cluster = SlurmCluster(folder)
    daemons = []
    try:
        for command in (
            ["munged", "--foreground", "--force", *munge], ["slurmctld", "-D"], ["slurmd", "-D", "-N", "node1"],
            ["slurmd", "-D", "-N", "node2"],
        ):  # fmt: skip
            with (folder / "printed").open("ab") as out:
                daemons.append(subprocess.Popen(command, env=os.environ | cluster.env, stdout=out, stderr=out))
            while command[0] == "munged" and not (folder / "munge.socket").exists():
                assert daemons[0].poll() is None, (folder / "printed").read_text()
                time.sleep(0.05)
        until = time.monotonic() + 60
        while cluster.command("sinfo", "--noheader", "--format=%T") != "idle":
            assert time.monotonic() < until, (folder / "printed").read_text()
            time.sleep(0.1)
        yield cluster
    finally:
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("SLURM_CONF") == cluster.env["SLURM_CONF"]:
                    process.kill()
        for daemon in daemons:
            daemon.wait()
