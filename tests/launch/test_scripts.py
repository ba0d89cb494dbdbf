"""The scripts of launch/ with programs in the place of SLURM's and torchrun's: who is started again, and how often."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from torch.distributed.run import parse_args

from tests.helpers.environment import ROOT
from walt_pl.processes import process_use

SAVE = 'save() { local f="$RUN/training/base/checkpoints/step=0000000$1"; mkdir -p "$f"; touch "$f/checkpoint.json"; }\n'
SLURM = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NODELIST": "a,b"}
MACHINE = {"NODES": "2", "NODE_RANK": "0", "HEAD": "a", "GPUS": "1", "GRACE": "10"}


class Checkout:
    """A folder with the scripts, an experiment, and programs in front of the system's."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "runs" / "mine"
        shutil.copytree(ROOT / "launch", folder / "launch")
        for name in ("mine/base", "mine/vae", "strategy/zero2"):
            (folder / "experiments" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "experiments" / f"{name}.yaml").touch()
        self.programs = folder / "programs"
        self.programs.mkdir()
        self.program("sleep", "exec /bin/sleep 0.02")

    def program(self, name: str, body: str) -> Path:
        """Write a program that notes its words in a file of its name, and does something."""
        path = self.programs / name
        path.write_text(f'#!/bin/bash\necho "$@" >> "{self.folder}/{name}.words"\n{SAVE}{body}\n')
        path.chmod(0o755)
        return path

    def words(self, name: str) -> list[str]:
        """Return the words of each start of a program. The script's own questions to Python are left out."""
        path = self.folder / f"{name}.words"
        return (
            [line for line in path.read_text().split("\n") if line.startswith("-m ") or (line and name != "agent")] if path.exists() else []
        )

    def start(self, script: str, *words: str, **variables: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "EXP": "mine",
            "STRATEGY": "zero2",
            "RUN": str(self.run),
            **variables,
        }
        # bash traps no signal that was ignored at its start, as SIGHUP is where nohup has started the tests.
        command = ["env", "--default-signal=HUP", "bash", f"launch/{script}", *words]
        return subprocess.Popen(
            command, cwd=self.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )

    def end(self, script: str, *words: str, **variables: str) -> tuple[int, str]:
        """Exit code and output of a script."""
        started = self.start(script, *words, **variables)
        said, _ = started.communicate(timeout=60)
        return started.returncode, said


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_slurm_script_starts_fit_on_all_nodes(checkout: Checkout) -> None:
    checkout.program("srun", "exit 0")
    code, said = checkout.end("slurm.sbatch", "--data.flip", "true", PYTHON="python3", SLURM_CPUS_PER_TASK="12", **SLURM)
    assert code == 0 and "the stage is done" in said
    configs = "--config experiments/mine/base.yaml --config experiments/strategy/zero2.yaml"
    assert checkout.words("srun") == [
        f"--kill-on-bad-exit=0 --wait=60 python3 -m walt_pl fit {configs} --run {checkout.run} --stage base --data.flip true "
        "--trainer.devices 4 --trainer.num_nodes 2"
    ]


@pytest.mark.parametrize(
    ("code", "saves", "ends", "requeued", "told"),
    [
        (0, True, 0, False, "the stage is done"),
        (138, True, 0, True, "out of time after step 2 (step 1 before); putting job 7 into the queue again"),
        (138, False, 138, False, "this start saved no step after step 1; not put into the queue again"),
        (143, True, 143, False, "ended by SIGTERM after step 2"),
        (1, True, 1, False, "failed with exit code 1 after step 2"),
    ],
)
def test_slurm_script_requeues_only_a_job_that_was_out_of_time_and_moved_on(
    checkout: Checkout, code: int, saves: bool, ends: int, requeued: bool, told: str
) -> None:
    checkout.program("scontrol", "exit 0")
    checkout.program("first", "save 1")
    subprocess.run([checkout.programs / "first"], env={"RUN": str(checkout.run), "PATH": os.environ["PATH"]}, check=True)
    # A part of a checkpoint, which a kill has left, is no progress.
    (checkout.run / "training" / "base" / "checkpoints" / "step=00000009.part").mkdir()
    (checkout.run / "training" / "base" / "checkpoints" / "step=00000009.part" / "checkpoint.json").touch()
    checkout.program("srun", f"{'save 2' if saves else ''}\nexit {code}")
    ended, said = checkout.end("slurm.sbatch", **SLURM)
    assert (ended, checkout.words("scontrol")) == (ends, ["requeue 7"] if requeued else []), said
    assert told in said


def test_slurm_script_says_that_a_requeue_was_refused(checkout: Checkout) -> None:
    checkout.program("scontrol", "exit 1")
    checkout.program("srun", "save 2; exit 138")
    code, said = checkout.end("slurm.sbatch", **SLURM)
    assert code == 138 and "SLURM does not put the job into the queue again; the same sbatch command goes on" in said


@pytest.mark.parametrize(
    ("words", "variables", "told"),
    [
        (["--from-scratch", "true"], {}, "leave --from-scratch out: this script may start the training several times"),
        (["--ckpt_path=x"], {}, "leave --ckpt_path=x out"),
        (["--run", "x"], {}, "leave --run out: give RUN and STAGE as variables"),
        ([], {"EXP": ""}, "which experiment?"),
        (
            [],
            {"STAGE": "sr7"},
            "there is no experiments/mine/sr7.yaml; set EXP, and STAGE or CONFIG, to one of: experiments/mine/base.yaml",
        ),
        ([], {"EXP": "nothing"}, "there is no experiments/nothing/base.yaml; set EXP, and STAGE or CONFIG, to one of: experiments/mine/"),
        ([], {"STRATEGY": "zero9"}, "there is no experiments/strategy/zero9.yaml"),
    ],
)
@pytest.mark.parametrize("script", ["slurm.sbatch", "torchrun.sh"])
def test_launch_script_refuses(checkout: Checkout, script: str, words: list[str], variables: dict[str, str], told: str) -> None:
    checkout.program("srun", "exit 0")
    agent = checkout.program("agent", "exit 0")
    code, said = checkout.end(script, *words, **{**SLURM, **MACHINE, "PYTHON": str(agent), **variables})
    assert code not in (0, 138) and told in said, said
    assert not checkout.words("srun") and not checkout.words("agent")


def test_torchrun_script_starts_the_agent_of_its_machine(checkout: Checkout) -> None:
    agent = checkout.program("agent", "exit 0")
    code, said = checkout.end("torchrun.sh", PYTHON=str(agent), ADDRESS="b", **{**MACHINE, "NODE_RANK": "1"})
    assert code == 0 and "the stage is done" in said
    (words,) = checkout.words("agent")
    assert words.startswith(
        "-m torch.distributed.run --nnodes 2 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d --rdzv-endpoint a:29500"
    )
    assert "is_host=false" in words and words.endswith(f"--run {checkout.run} --stage base --trainer.devices 1 --trainer.num_nodes 2")
    asked = parse_args(words.split()[2:])
    assert (asked.module, asked.training_script, asked.max_restarts) == (True, "walt_pl", 3)
    assert asked.training_script_args[0] == "fit" and asked.training_script_args[-1] == "2", "none of them is taken for torchrun's"
    code, said = checkout.end("torchrun.sh", PYTHON=str(agent), **{**MACHINE, "NODE_RANK": "2"})
    assert code == 2 and "NODE_RANK is 2, and there are machines 0 to 1" in said


def test_torchrun_script_gives_up_when_no_start_moves_on(checkout: Checkout) -> None:
    agent = checkout.program("agent", "exit 3")
    code, said = checkout.end("torchrun.sh", PYTHON=str(agent), RESTARTS="2", **MACHINE)
    assert code == 3 and len(checkout.words("agent")) == 3
    assert "the agent ended with exit code 3, and 3 starts in a row saved no step after step 0" in said


def test_torchrun_script_goes_on_while_every_start_saves_a_step(checkout: Checkout) -> None:
    agent = checkout.program("agent", f'n=$(wc -l < "{checkout.folder}/agent.words"); save $n; [ $n -lt 5 ]; exit $((1 - $?))')
    code, said = checkout.end("torchrun.sh", PYTHON=str(agent), RESTARTS="0", **MACHINE)
    assert code == 0 and len(checkout.words("agent")) == 5, said


def test_torchrun_script_ends_what_a_killed_agent_left_and_starts_it_again(checkout: Checkout) -> None:
    """The rank has a session of its own, as under torchrun. It saves a checkpoint on SIGTERM."""
    rank = checkout.program("rank", 'trap "save 1; exit" TERM; echo $$ > "$RUN.pid"; while :; do /bin/sleep 0.05; done')
    (checkout.run.parent).mkdir()
    first = f'if [ ! -e "$RUN.pid" ]; then setsid {rank} & while [ ! -s "$RUN.pid" ]; do /bin/sleep 0.05; done; kill -KILL $$; fi; exit 0'
    agent = checkout.program("agent", first)
    code, said = checkout.end("torchrun.sh", PYTHON=str(agent), **MACHINE)
    assert code == 0 and len(checkout.words("agent")) == 2, said
    left = Path(f"{checkout.run}.pid").read_text().strip()
    assert f"processes were left behind; ending them: {left}" in said
    assert "the agent ended with exit code 137 after step 1; starting it again (0 of 3" in said
    assert process_use(int(left))[0] in ("", "Z"), "it has ended"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_torchrun_script_ends_with_its_agent_after_a_signal(checkout: Checkout, number: signal.Signals) -> None:
    agent = checkout.program("agent", f'trap "save 1; exit 1" TERM; touch "{checkout.folder}/there"; while :; do /bin/sleep 0.05; done')
    started = checkout.start("torchrun.sh", PYTHON=str(agent), **MACHINE)
    end = time.monotonic() + 30
    while not (checkout.folder / "there").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    started.send_signal(number)
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 128 + number and len(checkout.words("agent")) == 1
    assert "ended by a signal after step 1; the same command goes on" in said


def test_torchrun_script_ends_after_a_signal_between_two_agents(checkout: Checkout) -> None:
    agent = checkout.program("agent", "exit 3")
    checkout.program("sleep", f'[ "$1" = 5 ] && touch "{checkout.folder}/waits"; exec /bin/sleep 3')
    started = checkout.start("torchrun.sh", PYTHON=str(agent), **MACHINE)
    end = time.monotonic() + 30
    while not (checkout.folder / "waits").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    said, _ = started.communicate(timeout=60)
    assert started.returncode == 143 and len(checkout.words("agent")) == 1, said


def test_torchrun_script_ends_the_agent_of_a_killed_script_and_not_that_of_a_living_one(checkout: Checkout) -> None:
    """The agent would kill a rank with a second SIGTERM, so it gets the only one."""
    there = checkout.folder / "there"
    body = f'[ -e "{there}" ] && exit 0; trap "save 1; exit 1" TERM; touch "{there}"; while :; do /bin/sleep 0.05; done'
    agent = checkout.program("agent", body)
    first = checkout.start("torchrun.sh", PYTHON=str(agent), **MACHINE)
    end = time.monotonic() + 30
    while not there.exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    code, said = checkout.end("torchrun.sh", PYTHON=str(agent), **MACHINE)
    assert code == 2 and f'process {first.pid} trains stage "base"' in said and len(checkout.words("agent")) == 1
    code, said = checkout.end("torchrun.sh", PYTHON=str(agent), **{**MACHINE, "NODE_RANK": "1"})
    assert code == 0, "another machine, here on the same host"
    first.kill()
    first.wait(30)
    code, said = checkout.end("torchrun.sh", PYTHON=str(agent), **MACHINE)
    assert code == 0 and "processes were left behind; ending them:" in said, said
    assert (checkout.run / "training" / "base" / "checkpoints" / "step=00000001").is_dir(), "the agent was told, and had its time"


@pytest.mark.parametrize(("rank", "given", "address"), [("0", {}, "127.0.0.1"), ("1", {}, "127.0.0.1"), ("1", {"ADDRESS": "b"}, "b")])
def test_torchrun_script_tells_the_others_an_address_that_they_reach(
    checkout: Checkout, rank: str, given: dict[str, str], address: str
) -> None:
    agent = checkout.program("agent", f'[ "$1" = -c ] && exec {sys.executable} "$@"; exit 0')
    code, said = checkout.end("torchrun.sh", PYTHON=str(agent), **{**MACHINE, "NODE_RANK": rank, "HEAD": "127.0.0.1", **given})
    assert code == 0 and f"--local-addr {address} " in checkout.words("agent")[0], said


def test_torchrun_script_says_that_there_is_no_way_to_the_head(checkout: Checkout) -> None:
    agent = checkout.program("agent", '[ "$1" != -c ]')
    code, said = checkout.end("torchrun.sh", PYTHON=str(agent), **{**MACHINE, "NODE_RANK": "1"})
    assert code == 1 and "this machine finds no way to a" in said and not checkout.words("agent")


def test_skypilot_file_names_commands_and_files_that_exist() -> None:
    """Its fields were compared with SkyPilot's own schema by hand."""
    task = yaml.safe_load((ROOT / "launch" / "skypilot.yaml").read_text())
    assert set(task) == {"name", "num_nodes", "workdir", "resources", "volumes", "envs", "setup", "run"}
    assert all(isinstance(value, str) for value in task["envs"].values())
    envs = task["envs"]
    assert (ROOT / "experiments" / envs["EXP"] / f"{envs['STAGE']}.yaml").is_file()
    assert (ROOT / "experiments" / "strategy" / f"{envs['STRATEGY']}.yaml").is_file()
    options = envs["OPTIONS"].split()
    assert (ROOT / options[options.index("--config") + 1]).is_file()
    assert "make setup" in task["setup"] and "launch/torchrun.sh $OPTIONS" in task["run"]
    for part in ("setup", "run"):
        assert subprocess.run(["bash", "-n", "-c", task[part]], check=False).returncode == 0
    assert os.access(ROOT / "launch" / "torchrun.sh", os.X_OK)
    wanted = {"EXP", "STAGE", "STRATEGY", "RUN", "NODES", "NODE_RANK", "HEAD", "GPUS"}
    assert wanted <= {name for name in wanted if f"{name}=" in task["run"] or name in envs}
