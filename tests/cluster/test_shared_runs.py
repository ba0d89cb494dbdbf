"""Two machines of which the second does not see the folder of the run."""

import re
from pathlib import Path

import pytest

from tests.cluster.conftest import START
from tests.cluster.machines import TOOLS, Pair, find_missing
from tests.cluster.test_torchrun import Training

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.skipif(bool(find_missing(TOOLS)), reason=find_missing(TOOLS))]


def test_machine_that_does_not_see_the_run_ends_the_start_on_all(pair: Pair, run: Path, painted: Path) -> None:
    pair.second.run("mount", "-t", "tmpfs", "none", str(run))
    training = Training(pair, run, painted, variables={"MAX_RESTARTS": "0", "RESTARTS": "0"})
    assert 0 not in training.codes(START), training.said
    # torchrun gives rank zero, which writes, to either machine.
    names = r"(walt-1 does not see what walt-2|walt-2 does not see what walt-1)"
    sentence = rf"error: --run {re.escape(str(run))}: {names} writes into {re.escape(str(run))}; name a folder on a file system"
    for machine in pair:
        assert re.search(sentence, machine.said("torchrun")), training.said
    assert not (run / "training" / "base").exists() and not list(run.glob(".shared-*"))
