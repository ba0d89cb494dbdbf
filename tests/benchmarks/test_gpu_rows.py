"""Rows of benchmarks/gpu: failed or skipped, their order, what they run, and what they are compared with."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import benchmarks.gpu.__main__ as command_line
from benchmarks.gpu import run_part as run_part_module
from benchmarks.gpu.autoencoders import measure_coding
from benchmarks.gpu.bench import Bench, Missing
from benchmarks.gpu.denoiser_pass import WAYS, check_gradients
from benchmarks.gpu.goals import judge
from benchmarks.gpu.parts import attention, fit, gpu_tests, resume, training_steps
from benchmarks.gpu.report import render
from benchmarks.gpu.results import hash_sources
from benchmarks.gpu.stage_training import build_stage
from walt_pl.training.step_flops import has_discriminator


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "rows.jsonl", tmp_path, quick=True)


def written(bench: Bench) -> list[dict[str, Any]]:
    return [json.loads(line) for line in bench.rows.read_text().splitlines()]


def fail(error: Exception) -> Any:
    raise error


def test_bench_attempt_skips_what_is_missing_and_fails_for_every_other_error(bench: Bench) -> None:
    for error in (
        Missing("needs a GPU"),
        ModuleNotFoundError("No module named 'decord'"),
        torch.OutOfMemoryError("40 GB"),
        ImportError("x"),
    ):
        bench.attempt(type(error).__name__, lambda error=error: fail(error))  # type: ignore[misc]
    assert [next(iter(line)) for line in written(bench)] == ["skipped", "skipped", "failed", "failed"]
    assert written(bench)[2]["reason"] == "OutOfMemoryError: 40 GB"


def run_written(monkeypatch: pytest.MonkeyPatch, write: Callable[[Bench], None]) -> tuple[dict[str, Any], str]:
    """Return a part whose process only writes rows, and its page."""

    def start(name: str, rows: Path, folder: Path, quick: bool) -> Any:
        write(Bench(rows, folder, quick))
        return SimpleNamespace(exitcode=0, join=lambda limit: None)

    monkeypatch.setattr(run_part_module, "_start", start)
    monkeypatch.setattr(run_part_module, "_end", lambda process: None)
    part = run_part_module.run_part("fit", True, 1)
    facts = dict.fromkeys(("card", "date", "quick", "note", "memory_gb", "torch", "cuda", "driver", "triton", "python", "commit"), "")
    return part, render({"facts": facts, "goals": [], "parts": {"fit": part}})


def test_run_part_with_a_failed_row_is_not_done_and_the_page_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    part, page = run_written(monkeypatch, lambda bench: bench.fail("a", "RuntimeError: b"))
    assert (part["state"], part["failed"], part["error"]) == ("failed", {"a": "RuntimeError: b"}, "")
    assert "- a: failed: RuntimeError: b" in page


def test_run_part_takes_figures_called_failed_and_skipped_for_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of gpu_tests have such counts. One that failed and one that was skipped stand beside them."""

    def write(bench: Bench) -> None:
        bench.add("tests/test_a.py", passed=3, failed=1, skipped=2, reason="text")
        bench.skip("b", "needs a GPU")
        bench.fail("c", "RuntimeError: d")

    part, page = run_written(monkeypatch, write)
    assert part["rows"] == [{"row": "tests/test_a.py", "passed": 3, "failed": 1, "skipped": 2, "reason": "text"}]
    assert (part["skipped"], part["failed"], part["state"]) == ({"b": "needs a GPU"}, {"c": "RuntimeError: d"}, "failed")
    assert "| tests/test_a.py | 3 | 1 | 2 | text |" in page and "- b: skipped, needs a GPU\n- c: failed: RuntimeError: d" in page
    part, _ = run_written(monkeypatch, lambda bench: bench.add("pytest -m gpu", passed=3, failed=1, skipped=0))
    (goal,) = (goal for goal in judge({"gpu_tests": part}) if goal["part"] == "gpu_tests")
    assert (part["state"], goal["value"], goal["met"]) == ("done", 1, False)


def test_fit_command_that_ends_with_an_error_is_a_failure() -> None:
    with pytest.raises(RuntimeError, match="ended with 1"):
        fit._walt("no_such_command", [])


def test_check_gradients_refuses_those_that_are_zero_or_missing() -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(ArithmeticError, match="2 gradients"):
        check_gradients(model)
    model(torch.zeros(1, 2)).sum().backward()
    with pytest.raises(ArithmeticError, match=r"1 gradients .* weight"):
        check_gradients(model)
    model(torch.ones(1, 2)).sum().backward()
    check_gradients(model)


def test_attention_and_denoiser_come_to_triton_last(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[str] = []
    monkeypatch.setattr(bench, "attempt", lambda row, measure: rows.append(row))
    attention.measure(bench)
    for order in (rows, list(WAYS)):
        last = ["triton" in row for row in order]
        assert any(last) and last == sorted(last)


@pytest.mark.parametrize("changes", [resume.KINDS["autoencoder"][1], training_steps.SMALL["shapes/vae_gan"].changes])
def test_adversarial_rows_train_the_discriminator_from_the_first_step(changes: dict[str, Any]) -> None:
    assert has_discriminator(build_stage("shapes/vae_gan", changes), 0)


def test_measure_coding_freezes_the_weights(bench: Bench) -> None:
    frozen: list[bool] = []

    class Coder(nn.Conv3d):
        def encode(self, x: Tensor) -> Tensor:
            frozen.append(not any(weight.requires_grad for weight in self.parameters()))
            return self(x)

    measure_coding(bench, "a", lambda: Coder(3, 3, 1), lambda coder, x: coder.encode(x), lambda coder, z: coder(z))
    assert frozen and all(frozen) and "failed" not in {key for line in written(bench) for key in line}


def test_gpu_files_are_those_with_a_gpu_test(tmp_path: Path) -> None:
    (tmp_path / "test_a.py").write_text("import no_such_package\n")
    (tmp_path / "test_b.py").write_text("@pytest.mark.gpu\ndef test(): ...\n")
    assert gpu_tests.gpu_files(tmp_path) == [tmp_path / "test_b.py"]


def test_gpu_tests_pass_output_on_and_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "test_b.py"
    file.write_text(
        "import pytest\n@pytest.mark.gpu\ndef test_good(): ...\n@pytest.mark.gpu\ndef test_bad(): assert 0\ndef test_other(): ...\n"
    )
    broken = tmp_path / "test_c.py"
    broken.write_text("import no_such_package\n# @pytest.mark.gpu\n")
    found = gpu_tests.count(gpu_tests.run_tests([broken, file]))
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 2, 0) and "test_bad - assert 0" in str(found["failures"])
    assert "test_bad" in capsys.readouterr().out


@pytest.mark.parametrize(("ours", "met"), [(200.0, True), (50.0, False)])
def test_goal_over_another_row_is_their_ratio(ours: float, met: bool) -> None:
    def part(row: str, speed: float) -> dict[str, Any]:
        return {"rows": [{"row": row, "frames_per_second": speed}]}

    parts = {"autoencoder": part("light: encode", ours), "other_autoencoders": part("Wan 2.1: encode", 100.0)}
    (goal,) = (goal for goal in judge(parts) if goal["row"] == "light: encode")
    assert (goal["value"], goal["met"]) == (ours / 100, met)
    del parts["other_autoencoders"]
    assert all(goal["met"] is None for goal in judge(parts))


def test_hash_sources_follows_every_file_of_the_code(tmp_path: Path) -> None:
    for folder in ("walt_pl", "stages", "benchmarks"):
        (tmp_path / folder).mkdir()
        before = hash_sources(tmp_path)
        (tmp_path / folder / "a.py").write_text("x = 1\n")
        between = hash_sources(tmp_path)
        (tmp_path / folder / "a.py").write_text("x = 2\n")
        assert len({before, between, hash_sources(tmp_path)}) == 3


def test_command_without_quick_refuses_a_machine_without_cuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu", "--out", str(tmp_path)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(command_line, "_run_all", lambda *_: [])
    with pytest.raises(SystemExit, match=r"--quick.*benchmarks\.autoencoder"):
        command_line.main()
