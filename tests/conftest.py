"""A painted set, small enough for every test that needs real files, made once."""

import multiprocessing
import os
import pickle
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.environment import ROOT, Bomb, Ended, SetDtype, Walt
from tests.helpers.starts import fork_server, start

# torch's own choice is the folder for temporary files.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(ROOT / ".pytest_cache" / "inductor"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts commands in the background so, and their children inherit it. Tests press Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Rich asks these about the terminal.
os.environ["TERM"] = "xterm"
for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def one_fork_server() -> None:
    """Start the server of processes before a test can start one with fewer modules, or with an environment of its own."""
    fork_server()


@pytest.fixture(autouse=True)
def no_processes_left() -> Iterator[None]:
    """Fail a test that leaves worker processes behind: the next test of the same process would find them."""
    yield
    left = multiprocessing.active_children()
    for process in left:
        process.kill()
    assert not left, f"processes left running: {left}"
    if sys.platform == "linux":
        assert os.sched_getscheduler(0) == os.SCHED_OTHER, "the test made this process a real-time one, before which all others wait"


@pytest.fixture
def default_dtype() -> Iterator[SetDtype]:
    """Sets torch's default dtype for the rest of the test."""
    import torch

    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Index of a small embedded set."""
    from walt_pl.shapes.dataset import write_set

    return write_set(tmp_path_factory.mktemp("shapes"), videos=16, images=20, validation=6, seed=3)


@pytest.fixture(scope="session")
def walt() -> Walt:
    """Runs the program: ``walt("status", "--run", ...)``."""

    def run(*arguments: str, check: bool = True) -> Ended:
        started = start(*arguments)
        done = Ended(started.wait(), started.said)
        assert not (check and done.code), f"{' '.join(arguments)}\nexit code {done.code}\n{done.said[-5000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a T5 encoder of width 16 with random weights, and a sentencepiece model of a few captions."""
    import io

    import sentencepiece
    import torch
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("t5")
    captions = [f"a {way} {colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square") for way in ("left", "plain")]
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions),
        model_writer=pieces,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "spiece.model").write_bytes(pieces.getvalue())
    # 100 sentinels follow the pieces in every T5.
    size = sentencepiece.SentencePieceProcessor(model_proto=pieces.getvalue()).vocab_size() + 100
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = T5Config(vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
        T5EncoderModel(config).save_pretrained(folder)
    return folder


@pytest.fixture
def bomb(tmp_path: Path) -> Bomb:
    """One that has been seen to go off."""
    tried = tmp_path / "tried"
    pickle.loads(pickle.dumps(Bomb(tried)))
    assert tried.exists(), "the bomb of this test is a dud"
    return Bomb(tmp_path / "ran")
