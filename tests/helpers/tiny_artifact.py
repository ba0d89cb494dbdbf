"""A tiny model with a config, and its artifact."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.runs.card import card_text


@dataclass(frozen=True)
class TinyConfig:
    width: int = 4
    levels: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.width % 2:
            raise ValueError(f"vae.width must be even, got {self.width}")


class Tiny(nn.Module):
    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(nn.Linear(config.width, config.width) for _ in config.levels)
        self.register_buffer("count", torch.tensor(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def save(folder: Path, model: nn.Module | None = None, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "kind": "vae",
        "models": {"vae": model or Tiny(TinyConfig())},
        "sampling_config": {"diffusion": {"steps": 1000, "guidance": 1e-6}},
        "card": {
            "latents": {"mean": [0.1, 0.2], "std": [1.0, 2.0]},
            "steps": 7,
            "index": {"sha256": "ab", "videos": 3},
        },
        "train_config": "trainer:\n  max_steps: 7\n",
        "files": {"tokenizer.model": b"pieces"},
    }
    return save_artifact(folder, **{**arguments, **changes})


def flip(path: Path, at: int = -1) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def siblings(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.parent.iterdir())


def rewrite_card(folder: Path, **changes: Any) -> None:
    card = json.loads((folder / "card.json").read_text())
    del card["checksum"]
    (folder / "card.json").write_text(card_text({**card, **changes}))
