"""Weight decay: what every stage applies it to, under every optimiser, and what resuming needs of it."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from timm.optim import AdafactorBigVision, Muon
from torch import Tensor, nn

from stages.base import BaseStage
from stages.optimisation import GROUPS, parameter_groups
from stages.super_resolution import SuperResolutionStage
from stages.vae import VAEStage
from tests.helpers.checkpoint_files import describe_again
from tests.helpers.environment import ROOT
from tests.helpers.experiments import COMMANDS, typed
from tests.helpers.starts import fit, start
from tests.helpers.training import ADAMW, SHARDED, arguments, copy_parents
from walt_pl.cli.config_files import extended_files
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.discriminator import DiscriminatorConfig
from walt_pl.models.vae import VAEConfig
from walt_pl.runs.checkpoint import Checkpoint, read_state
from walt_pl.text.small_encoder import SmallTextConfig

DENOISER = DenoiserConfig(
    width=16,
    depth=2,
    num_heads=2,
    size=(3, 4, 4),
    window_size=(3, 2, 2),
    num_classes=3,
    text_width=8,
    frame_prediction=0.1,
    super_resolution=True,
)
TABLES = {
    "denoiser.position.space",
    "denoiser.position.time",
    "denoiser.label.weight",
    "denoiser.null_text",
    *(f"denoiser.blocks.{layer}.attention.bias.table" for layer in range(2)),
}
"""Weights without decay in the denoiser beside norms and biases."""
VAE = VAEConfig(
    width=8, channel_multipliers=(1, 1), strides=((2, 2, 2),), num_res_blocks=(0, 1), num_middle_blocks=0, norm="layer", latent_channels=2
)
DISCRIMINATOR = DiscriminatorConfig(width=4, channel_multipliers=(2,), size=(8, 8))
QUIET: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def adamw(groups: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.3)


def configured(stage: L.LightningModule) -> list[tuple[set[str], set[str]]]:
    """Names of the weights with decay and without it, for each optimiser of the stage's own configure_optimizers."""
    stage.trainer = L.Trainer(accelerator="cpu", max_steps=2000, **QUIET)
    made = stage.configure_optimizers()
    optimizers = made[0] if isinstance(made, tuple) else [made["optimizer"]]
    names = {p: name for name, p in stage.named_parameters()}
    groups = [[{names[p] for p in group["params"]} for group in optimizer.param_groups] for optimizer in optimizers]
    for optimizer in optimizers:
        assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    assert sorted(names.values()) == sorted(name for of_one in groups for group in of_one for name in group), "each weight once"
    return [(decayed, plain) for decayed, plain in groups]


def is_norm_or_bias(stage: nn.Module, name: str) -> bool:
    owner = stage.get_submodule(name.rpartition(".")[0])
    return name.endswith("bias") or isinstance(owner, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm)


@pytest.mark.parametrize("lora_rank", [2, None])
def test_parameter_groups_of_super_resolution_decay_matrices_only(lora_rank: int | None) -> None:
    config = DenoiserConfig(**{**DENOISER.__dict__, "lora_rank": lora_rank})
    stage = SuperResolutionStage(config, adamw)
    ((decayed, plain),) = configured(stage)
    assert {name for name in plain if not is_norm_or_bias(stage, name)} == TABLES
    modulation = {"mlp.0.weight", "mlp.2.weight", "down", "up"} if lora_rank else {"weight"}
    assert {name for name in decayed if ".modulation." in name} == {f"denoiser.modulation.{name}" for name in modulation}
    assert {"denoiser.low_res_upsampler.conv.weight", "denoiser.patch_embed.weight", "denoiser.blocks.1.text.kv.weight"} <= decayed
    assert not [name for name in decayed if is_norm_or_bias(stage, name)]


def test_parameter_groups_of_the_base_decay_matrices_of_its_text_encoder() -> None:
    config = DenoiserConfig(**{**DENOISER.__dict__, "super_resolution": False})
    stage = BaseStage(config, adamw, SmallTextConfig(width=8, depth=1, num_heads=2, vocab_size=16, max_length=4))
    ((decayed, plain),) = configured(stage)
    assert {name for name in plain if not is_norm_or_bias(stage, name)} == TABLES | {"text.embedding.weight", "text.position"}
    layer = "text.layers.layers.0"
    parts = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    assert {name for name in decayed if name.startswith("text.")} == {f"{layer}.{part}" for part in parts}


def test_parameter_groups_of_the_vae_decay_kernels_of_both_networks() -> None:
    stage = VAEStage(VAE, adamw, DISCRIMINATOR)
    networks = configured(stage)
    assert len(networks) == 2
    for (decayed, plain), network in zip(networks, ("vae", "discriminator"), strict=True):
        assert all(name.startswith(f"{network}.") and name.endswith(".weight") for name in decayed)
        assert decayed and plain and all(is_norm_or_bias(stage, name) for name in plain)
        assert not [name for name in decayed if is_norm_or_bias(stage, name)]


def test_parameter_groups_leave_out_frozen_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    assert [len(group["params"]) for group in parameter_groups(model)] == [1, 1]


OPTIMISERS: dict[str, Any] = {
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.1, weight_decay=0.5),
    "Adam": lambda groups: torch.optim.Adam(groups, lr=0.1, betas=(0.0, 0.99), weight_decay=0.5),
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=0.5),
    "Muon": lambda groups: Muon(groups, lr=0.1, weight_decay=0.5),
    "Adafactor": lambda groups: AdafactorBigVision(groups, lr=0.1, weight_decay=0.5),
}


def step_without_gradients(make: Any) -> tuple[Denoiser, dict[str, Tensor]]:
    """A step that only weight decay can move, and the weights before."""
    denoiser = Denoiser(DENOISER)
    for p in denoiser.parameters():
        nn.init.constant_(p, 0.5)
        p.grad = torch.zeros_like(p)
    before = {name: p.detach().clone() for name, p in denoiser.named_parameters()}
    make(parameter_groups(denoiser)).step()
    return denoiser, before


@pytest.mark.parametrize("name", OPTIMISERS)
def test_parameter_groups_first_is_decayed_and_second_is_not(name: str) -> None:
    denoiser, before = step_without_gradients(OPTIMISERS[name])
    after = dict(denoiser.named_parameters())
    shrunk = {name for name, value in before.items() if after[name].detach().abs().max() < value.abs().max()}
    moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
    names = {p: name for name, p in denoiser.named_parameters()}
    assert shrunk == moved == {names[p] for p in parameter_groups(denoiser)[0]["params"]}


def test_muon_chooses_by_shape_in_every_parameter_group() -> None:
    denoiser = Denoiser(DENOISER)
    for p in denoiser.parameters():
        p.grad = torch.randn_like(p)
    one, two = Muon(denoiser.parameters(), lr=0.1), OPTIMISERS["Muon"](parameter_groups(denoiser))
    for optimizer in (one, two):
        optimizer.step()
    chosen = {p: state["use_muon"] for p, state in two.state.items()}
    assert chosen == {p: state["use_muon"] for p, state in one.state.items()}
    assert all(p.ndim > 1 for p, muon in chosen.items() if muon) and not all(chosen.values())


def written(line: Sequence[str]) -> dict[str, Any]:
    """The optimiser's arguments that stand in the files of a command line."""
    configs = [ROOT / name for word, name in pairwise(line) if word == "--config"]
    found: dict[str, Any] = {}
    for path in [*extended_files(configs[0]), *configs]:
        model = yaml.safe_load(path.read_text(encoding="utf-8")).get("model", {})
        found |= model.get("init_args", {}).get("optimizer", {}).get("init_args", {})
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_experiment_stage_states_its_weight_decay(command: str) -> None:
    for line in typed(command):
        assert isinstance(written(line).get("weight_decay"), float), line


# ---- Going on from a checkpoint ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def parents(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with an autoencoder of two steps."""
    run = tmp_path_factory.mktemp("parents")
    fit(*arguments("vae", run, painted, "--trainer.max_steps", "2", "--model.warmup_steps", "1", "--data.val_videos", "0"))
    return run


def forget_groups(checkpoint: Checkpoint) -> None:
    """Make a checkpoint as older programs wrote it: without a record of its groups."""
    files = [checkpoint.state] if checkpoint.state.is_file() else sorted(checkpoint.state.rglob("*model_states.pt"))
    for file in files:
        state = torch.load(file, weights_only=False)
        assert state.pop(GROUPS)
        torch.save(state, file)
    describe_again(checkpoint.path)


@pytest.mark.parametrize("stage, more", [("vae", []), ("base", []), ("base", [*SHARDED, *ADAMW])], ids=["vae", "base", "base with ZeRO 2"])
def test_check_groups_on_resume_from_one_group_says_what_to_type(
    stage: str, more: list[str], painted: Path, parents: Path, tmp_path: Path
) -> None:
    run, ranks = tmp_path / "run", 2 if more else 1
    if stage != "vae":
        copy_parents(parents, run, stage)
    command = arguments(stage, run, painted, "--trainer.max_steps", "4", "--data.val_videos", "0", *more)
    fit(*command, "--checkpoint.every_n_train_steps", "2", ranks=ranks)
    checkpoint = Checkpoint.all(run / "training" / stage / "checkpoints")[0]
    assert len(read_state(checkpoint.state)[GROUPS]) == (2 if stage == "vae" else 1)
    named = ["--ckpt_path", str(checkpoint.path)]
    assert "going on from" in fit(*command, *named, ranks=ranks)
    checkpoint = Checkpoint.all(run / "training" / stage / "checkpoints")[0]
    forget_groups(checkpoint)
    refused = start("fit", *command, *named, ranks=ranks)
    assert refused.wait() == 1
    assert "no record (one group, as older programs wrote)" in refused.said and "with --from_scratch true --init DIR" in refused.said
