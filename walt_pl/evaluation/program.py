"""Facts of the program and the machine that a figure was computed with."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

from walt_pl import __version__
from walt_pl.plain_text import split_lines
from walt_pl.runs.artifact_writing import code_revision

PACKAGES = ("torch", "torchmetrics", "torch-fidelity")
"""Packages that sums and distances come from."""


def describe_program(device: str, processes: int) -> dict[str, Any]:
    """Return version, code revision, versions of packages, machine, device and number of processes, for a card."""
    facts: dict[str, Any] = {"walt": __version__, "revision": code_revision(), "python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            facts[package] = importlib.metadata.version(package)
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return {**facts, "machine": machine(), "device": name, "processes": processes}


def machine() -> str:
    """Return the processor, its cores and torch's threads, to report beside measurements."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = split_lines(info.read_text(encoding="utf-8"))
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
