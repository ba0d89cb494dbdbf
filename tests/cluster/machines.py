"""Two "machines" on this one: namespaces with a host name, a network, processes and mounts of their own, joined by a veth pair.

The network of the host is not touched: the pair is made inside the first namespace. Each machine has a process 1 of its own, so that the
end of that process ends all others. The files are those of the host.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.helpers.environment import ROOT

LINK = "veth0"
"""Network card of each machine."""
NAMESPACES = ("--net", "--uts", "--mount", "--pid")
UNSHARE = ("unshare", *NAMESPACES, "--fork")
TOOLS = {"ip": "iproute2", "nsenter": "util-linux", "setpriv": "util-linux", "unshare": "util-linux"}
"""Programs, and the packages of Debian that have them."""


@dataclass
class Machine:
    """A host name with a network, processes and mounts of its own."""

    name: str
    address: str
    logs: Path
    """Folder of the output of its commands."""
    keeper: subprocess.Popen[bytes]
    """Process of the host whose end ends the machine."""
    init: int
    """Process 1 of the machine, as the host counts."""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def words(self, *command: str) -> list[str]:
        """Return a command line of the host that runs a command on this machine."""
        return ["nsenter", "--target", str(self.init), *NAMESPACES, "--wd=" + str(ROOT), "--", *command]

    def run(self, *command: str, timeout: float = 60) -> str:
        """Run a command to its end, and return its output.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(self.words(*command), capture_output=True, text=True, timeout=timeout, check=False)
        assert done.returncode == 0, f"{' '.join(command)} on {self.name}: {done.stdout}{done.stderr}"
        return done.stdout

    def start(self, log: str, *command: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start a command that goes on by itself. Its output is added to a file of the logs."""
        with open(self.logs / f"{self.name}-{log}.log", "ab") as output:
            process = subprocess.Popen(
                self.words(*command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
            )
        self.started.append(process)
        return process

    def said(self, log: str) -> str:
        """Return the output of a started command."""
        return (self.logs / f"{self.name}-{log}.log").read_text(errors="replace")

    def processes(self, *words: str, without: str = "\n") -> list[int]:
        """Return the processes of this machine, as the host counts, whose command lines have all of these words, and not the other one."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended
                line = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                is_here = os.readlink(process / "ns" / "pid") == self._pids and line[0] != "nsenter"
                if is_here and without not in line and all(word in line for word in words):
                    found.append(int(process.name))
        return sorted(found)

    @property
    def _pids(self) -> str:
        return os.readlink(f"/proc/{self.init}/ns/pid")

    def close(self) -> None:
        """End every process of the machine. Its network ends with the last one."""
        self.keeper.kill()
        self.keeper.wait()
        for process in self.started:
            process.wait(30)


@dataclass
class Pair:
    """Two machines that reach each other, and nothing else."""

    first: Machine
    second: Machine
    folder: Path

    def __iter__(self) -> Iterator[Machine]:
        return iter((self.first, self.second))

    def cut(self) -> None:
        """Take the link down. Neither side is told: packets are lost."""
        for machine in self:
            machine.run("ip", "link", "set", LINK, "down")

    def mend(self) -> None:
        """Take the link up again."""
        for machine in self:
            machine.run("ip", "link", "set", LINK, "up")

    def close(self) -> None:
        """End both machines."""
        with contextlib.ExitStack() as stack:  # the second one ends even if the first does not
            for machine in self:
                stack.callback(machine.close)


def find_missing(tools: Mapping[str, str]) -> str:
    """Return why two machines cannot be made here, in a sentence with the command that helps; empty if they can."""
    if os.geteuid() != 0:
        return "two machines are two namespaces of the network, which only root can make: run make test-cluster as root"
    missing = sorted(name for name in tools if shutil.which(name) is None)
    if missing:
        packages = sorted({tools[name] for name in missing})
        return f"there is no {', '.join(missing)} here; Debian has them: apt-get install {' '.join(packages)}"
    tried = subprocess.run([*UNSHARE, "true"], capture_output=True, text=True, check=False)
    return (
        f"this root may make no namespaces ({tried.stderr.strip()}): run make test-cluster outside of a container"
        if tried.returncode
        else ""
    )


def make_pair(folder: Path) -> Pair:
    """Make two machines, to be closed by the caller.

    Args:
        folder: folder for the output of their commands and for their file of hosts.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {"walt-1": "10.77.0.1", "walt-2": "10.77.0.2"}
    hosts = folder / "hosts"
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in names.items())]
    hosts.write_text("\n".join(lines) + "\n")
    machines: list[Machine] = []
    try:
        for name, address in names.items():
            machines.append(_make(name, address, folder))
        pair = Pair(machines[0], machines[1], folder)
        peer = ("peer", "name", LINK, "netns", str(pair.second.init))
        # From the host's processes, since each machine sees only its own.
        enter = ["nsenter", "--target", str(pair.first.init), "--net", "--", "ip", "link", "add", LINK, "type", "veth", *peer]
        subprocess.run(enter, check=True, capture_output=True)
        for machine in pair:
            machine.run("mount", "--bind", str(hosts), "/etc/hosts")
            machine.run("hostname", machine.name)
            machine.run("ip", "link", "set", "lo", "up")
            machine.run("ip", "address", "add", f"{machine.address}/24", "dev", LINK)
        pair.mend()
        pair.first.run("getent", "hosts", pair.second.name)
        return pair
    except BaseException:
        for machine in machines:
            machine.close()
        raise


def _make(name: str, address: str, folder: Path) -> Machine:
    """Start process 1 of a machine, a shell that waits: it takes up the ends of processes that have lost their parents."""
    keeper = subprocess.Popen(
        # A test that is killed ends its machines, too.
        ["setpriv", "--pdeathsig", "KILL", *UNSHARE, "--kill-child", "--mount-proc", "bash", "-c", "while :; do sleep 3600; done"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children")
    machine = Machine(name, address, folder, keeper, 0)
    try:
        wait_until(lambda: bool(children.read_text().split()), 10, "process 1 of a machine")
        machine.init = int(children.read_text().split()[0])
        # /proc is mounted by the child itself, after its start.
        wait_until(lambda: machine.run("cat", "/proc/1/comm").strip() == "bash", 10, "the /proc of a machine")
    except BaseException:
        machine.close()
        raise
    return machine


def wait_until(holds: Callable[[], bool], seconds: float, told: str, said: Callable[[], str] = lambda: "") -> None:
    """Wait until a condition holds.

    Raises:
        AssertionError: it does not hold in time; with the end of what was said.
    """
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not within {seconds:g} s: {told}\n{said()[-6000:]}"
        time.sleep(0.2)


def wait_for_end(process: subprocess.Popen[bytes], seconds: float, said: Callable[[], str]) -> int:
    """Return the exit code of a process.

    Raises:
        AssertionError: it does not end in time.
    """
    wait_until(lambda: process.poll() is not None, seconds, f"the end of {' '.join(map(str, _argv(process)))[-200:]}", said)
    return int(process.returncode)


def _argv(process: subprocess.Popen[bytes]) -> Sequence[object]:
    return process.args if isinstance(process.args, list) else [process.args]
