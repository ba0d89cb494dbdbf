"""A SLURM of its own on two machines: munged, slurmctld and two slurmd of Debian's packages, none of them a service of the host."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.machines import TOOLS, Machine, Pair, wait_until

SLURM_TOOLS = {
    **TOOLS,
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "sbatch": "slurm-wlm",
    "srun": "slurm-wlm",
    "munged": "munge",
}
"""Programs, and the packages of Debian that have them."""
CONFIG = """\
ClusterName=walt-test
SlurmctldHost={first}({first_address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/linear
SlurmdParameters=config_overrides
ReturnToService=2
MailProg=/bin/true
SwitchType=switch/none
MpiDefault=none
KillWait=10
NodeName={first} NodeAddr={first_address} CPUs=4 RealMemory=1000
NodeName={second} NodeAddr={second_address} CPUs=4 RealMemory=1000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


@dataclass
class Slurm:
    """A controller on the first machine and a node on each."""

    pair: Pair
    folder: Path

    @property
    def _environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str, environment: Mapping[str, str] | None = None) -> str:
        """Run a command of SLURM on the first machine, and return its output."""
        done = subprocess.run(
            self.pair.first.words(*command),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, **self._environment, **(environment or {})},
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, *words: str, environment: Mapping[str, str]) -> str:
        """Type sbatch, and return the number of the job."""
        return self.ask("sbatch", "--parsable", *words, environment=environment).strip()

    def job(self, number: str) -> dict[str, str]:
        """Return the fields of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", number)))

    def end_soon(self, number: str) -> None:
        """Give a running job a time limit of two to three minutes from now. SLURM counts in minutes."""
        hours, minutes, _ = self.job(number)["RunTime"].split(":")
        self.ask("scontrol", "update", f"JobId={number}", f"TimeLimit={int(hours) * 60 + int(minutes) + 3}")

    def wait(self, number: str, seconds: float, log: Path) -> dict[str, str]:
        """Wait for the end of a job, and return its fields."""

        def has_ended() -> bool:
            return self.job(number)["JobState"] not in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "REQUEUED")

        wait_until(has_ended, seconds, f"the end of job {number}", lambda: f"{self.job(number)}\n{log.read_text() if log.exists() else ''}")
        return self.job(number)

    @property
    def said(self) -> str:
        """Output of the controller and the nodes."""
        first, second = self.pair
        return "\n".join([first.said("slurmctld"), first.said("slurmd"), second.said("slurmd")])


def start_slurm(pair: Pair, folder: Path) -> Slurm:
    """Start the daemons, and wait until both nodes are idle. They end with the machines."""
    (folder / "state").mkdir(parents=True)
    values = {"first": pair.first.name, "first_address": pair.first.address}
    values |= {"second": pair.second.name, "second_address": pair.second.address, "folder": str(folder)}
    (folder / "slurm.conf").write_text(CONFIG.format(**values))
    slurm = Slurm(pair, folder)
    _start_munge(pair.first, folder)
    for machine in pair:
        machine.start("slurmd", "slurmd", "-D", "-N", machine.name, environment=slurm._environment)
    pair.first.start("slurmctld", "slurmctld", "-D", "-c", environment=slurm._environment)

    def are_idle() -> bool:
        asked = subprocess.run(
            pair.first.words("sinfo", "--noheader", "--Node", "--format", "%t"),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **slurm._environment},
        )
        return asked.stdout.split() == ["idle", "idle"]

    wait_until(are_idle, 60, "both nodes of SLURM are idle", lambda: slurm.said)
    return slurm


def _start_munge(machine: Machine, folder: Path) -> None:
    """Start one munged for both machines: a socket of the file system is reached from both networks."""
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    socket = folder / "munge.socket"
    files = [f"--key-file={key}", f"--socket={socket}", f"--pid-file={folder}/munge.pid", f"--seed-file={folder}/munge.seed"]
    machine.start("munged", "munged", "--foreground", "--force", *files, f"--log-file={folder}/munge.log")
    wait_until(socket.exists, 20, "munged listens", lambda: machine.said("munged"))
