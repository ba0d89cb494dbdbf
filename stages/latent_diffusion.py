"""Training of latent diffusion, shared by the base and the super-resolution stages (docs/METHOD.md, sections 1 and 3)."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from stages.optimisation import (
    GROUPS,
    LRSchedule,
    check_groups,
    clip_gradients,
    fuse_on_gpu,
    group_sizes,
    learning_rate,
    parameter_groups,
)
from walt_pl.blocks.frames import FrameLayout
from walt_pl.blocks.transfer import to_device
from walt_pl.data.batch import JointBatch, Space, first_videos
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.objective import TrainingDraws, denoising_error
from walt_pl.diffusion.rng import PerSampleRNG, splitmix64
from walt_pl.models.autoencoder import Autoencoder
from walt_pl.models.compiled_blocks import compile_blocks, pad_text
from walt_pl.models.denoiser import Denoiser, DenoiserConfig
from walt_pl.models.latent_normalizer import LatentNormalizer
from walt_pl.runs.artifact import Artifact, load
from walt_pl.runs.checkpoint import read_state
from walt_pl.sampling.stage_sampler import StageSampler, text_condition
from walt_pl.text.features import HASHES, CachedTextEncoder, encoder_sha256
from walt_pl.text.small_encoder import PretrainedTextConfig, TextEncoder
from walt_pl.training.compiled_blocks import CompileChoice, is_compiled
from walt_pl.training.strategies.zero import ZeROStrategy

VALIDATION_TIMESTEPS = range(50, 1000, 100)
"""The ten timesteps of the validation loss."""


class LatentDiffusion(L.LightningModule):
    """Train a denoiser on joint batches of latents.

    Arguments name the parent stages by their artifact folders; the program fills them in from the run. Parents are frozen, so they stay
    out of the module's parameters and checkpoints.

    Args:
        denoiser: size and inputs of the network; its probabilities of self-conditioning and frame prediction are those of training. With
            frame prediction of probability 1 (Kinetics-600), validation uses context frames too.
        optimizer: optimiser of all weights that this stage trains (see stages/optimisation.py).
        vae: artifact of the autoencoder.
        diffusion: schedule, objective and defaults of sampling; the artifact keeps it.
        warmup_steps: optimiser steps of linear warm-up.
        lr_schedule: learning rate after the warm-up.
        condition_dropout: probability of dropping a sample's caption or label (for guidance).
        gradient_clip_val: largest gradient norm; null for none.
        seed: seed of every random draw of the training.
        preview_steps: sampling steps of the previews.
        compile: torch.compile each layer of the denoiser: auto on GPUs, except with ZeRO 3; true on CPUs, too, where it needs a C++
            compiler. The first step of each kind takes seconds longer (speed/compile_seconds).
    """

    kind = "base"

    def __init__(
        self,
        denoiser: DenoiserConfig,
        optimizer: OptimizerCallable,
        vae: str | None = None,
        diffusion: DiffusionConfig = DiffusionConfig(),
        warmup_steps: int = 1000,
        lr_schedule: LRSchedule = "cosine",
        condition_dropout: float = 0.1,
        gradient_clip_val: float | None = 1.0,
        seed: int = 0,
        preview_steps: int = 20,
        compile: CompileChoice = "auto",
    ) -> None:
        super().__init__()
        if denoiser.frame_prediction == 1 and diffusion.guidance.scale != 1:
            raise ValueError(
                f"model.diffusion.guidance.scale is {diffusion.guidance.scale:g}, but with model.denoiser.frame_prediction 1 no step "
                "trains the unconditional branch, which has no context: set the scale to 1, or model.denoiser.frame_prediction below 1"
            )
        self.denoiser = Denoiser(denoiser)
        self.compile_choice: CompileChoice = compile
        self.compiled = False
        self.diffusion = diffusion
        self.path = diffusion.path()
        self.optimizer = optimizer
        self.warmup_steps = warmup_steps
        self.lr_schedule = lr_schedule
        self.condition_dropout = condition_dropout
        self.gradient_clip_val = gradient_clip_val
        self.seed = seed
        self.preview_steps = preview_steps
        self.vae_path = vae
        self._vae: list[Autoencoder] = []
        self._normalizer = LatentNormalizer.identity(denoiser.latent_channels)
        self.cached_text: CachedTextEncoder | None = None
        self.classes: dict[int, str] = {}

    # ---- Parents ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        if self.vae_path is None:
            raise ValueError("model.vae: no autoencoder given; name its artifact folder, or a run that has one (--run)")
        if not self._vae:
            artifact = load(self.vae_path, verify=True)
            self._check_latents(artifact)
            self._vae = [cast(Autoencoder, artifact.model("vae"))]
            self._normalizer = LatentNormalizer.choose(
                artifact.card, self.denoiser.config.latent_channels, self.diffusion.normalize_latents
            )
        self.compiled = is_compiled(self.compile_choice, self.trainer.strategy)  # here, since the strategy knows the device
        if self.compiled:
            compile_blocks(self.denoiser.blocks)
        if self.denoiser.config.num_classes and stage == "fit":
            self.classes = self.trainer.datamodule.classes()  # type: ignore[attr-defined]

    def _check_latents(self, artifact: Artifact) -> None:
        channels = cast(Autoencoder, artifact.model("vae")).latent_channels
        if channels != self.denoiser.config.latent_channels:
            raise ValueError(
                f"denoiser.latent_channels is {self.denoiser.config.latent_channels}, but {artifact.path} has {channels}; they must agree"
            )

    @property
    def vae(self) -> Autoencoder:
        """The frozen autoencoder, on this module's device."""
        return self._vae[0].to(self.device)

    @property
    def text_encoder(self) -> TextEncoder | None:
        """Text encoder of the captions, on this module's device; None for models without text."""
        return self.cached_text.to(self.device) if self.cached_text is not None else None

    def use_pretrained_text(self, config: PretrainedTextConfig, stage: str) -> None:
        """Use a frozen text encoder. Before training, compute the features that are not on disk yet.

        Args:
            config: of the encoder.
            stage: Lightning's, such as "fit".

        Raises:
            ValueError: the encoder's files are missing, or are not those that the checkpoint was trained with.
        """
        if self.cached_text is not None:
            return
        trainer, data = self.trainer, self.trainer.datamodule  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            encoder_sha256(config, self.text_hashes)  # writes the hashes to a file, so the other ranks need not read the weights
        trainer.strategy.barrier("text encoder")
        self.cached_text = CachedTextEncoder(config, encoder_sha256(config, self.text_hashes), data.cache_dir, trainer.strategy.root_device)
        if stage == "fit":
            if trainer.ckpt_path is not None:  # check now: hours of features of a wrong encoder would be lost
                self.on_load_checkpoint(read_state(trainer.ckpt_path, mapped=True))
            barrier = partial(trainer.strategy.barrier, "text features")
            self.cached_text.fill(data.captions(validation=True), trainer.global_rank, trainer.world_size, barrier)

    @property
    def text_hashes(self) -> Path:
        """File with the hashes of encoders' files."""
        folder: Path = self.trainer.datamodule.cache_dir  # type: ignore[attr-defined]
        return folder / HASHES

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[GROUPS] = group_sizes([self])
        if self.cached_text is not None:
            checkpoint["text_encoder"] = self.cached_text.sha256

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        text, wanted = self.cached_text, checkpoint.get("text_encoder")
        if text is not None and wanted not in (None, text.sha256):
            raise ValueError(
                f"the text encoder {text.config.path} is not the one that training began with (found {text.sha256[:12]}, wanted "
                f"{wanted[:12]}): restore its files, or start over with --from_scratch true"
            )

    # ---- Training ---------------------------------------------------------------------------------------------------

    def training_step(self, batch: JointBatch, batch_idx: int) -> Tensor:
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        rng = PerSampleRNG(self.seed, step, batch.global_batch_index, batch.videos.device)
        x0, layout = self.latents(batch.videos, batch.images, batch.space)
        condition = self.condition(batch, x0, layout, rng)
        draws = self.draws(x0, layout, rng)
        error = denoising_error(self.denoiser, self.path, x0, condition, draws)
        weight = self.frame_weight(batch, condition)
        self._log_kinds("train", error, weight, layout)
        loss = self._mean(error, weight)
        self.log("train/loss", loss, sync_dist=True)  # of the global batch; with prog_bar Lightning would read it in every step
        return loss

    def latents(self, videos: Tensor, images: Tensor, space: Space) -> tuple[Tensor, FrameLayout]:
        """Return normalised latents of a batch.

        Args:
            videos: pixels or raw latents [v c t h w].
            images: pixels or raw latents [i c 1 h w].
            space: "pixels" or "latents", the content of both tensors.

        Returns:
            Latents as frames [f c h w], float32, and their layout.
        """
        if space == "pixels":
            videos, images = (self._encode(x) for x in (videos, images))
        layout = FrameLayout(len(videos), videos.shape[2], len(images))
        return self._normalizer.normalize(layout.join(videos.float(), images.float())), layout

    @torch.no_grad()
    def _encode(self, x: Tensor) -> Tensor:
        factors = self.vae.factors
        if not len(x):
            t, h, w = x.shape[2:]
            return x.new_zeros(0, self.denoiser.config.latent_channels, 1 + (t - 1) // factors[0], h // factors[1], w // factors[2])
        return self.vae.encode(x).mean

    def draws(self, x0: Tensor, layout: FrameLayout, rng: PerSampleRNG) -> TrainingDraws:
        """Draw the timesteps, noise and self-conditioning of an optimiser step, for frames `x0` [f c h w]."""
        timestep = rng.randint(self.path.num_timesteps)
        noise = rng.randn_frames(layout, x0.shape[1:])
        probability = self.denoiser.config.self_conditioning
        return TrainingDraws(timestep, noise, rng.bernoulli(probability) if probability else None)

    def condition(self, batch: JointBatch, x0: Tensor, layout: FrameLayout, rng: PerSampleRNG) -> Condition:
        """Return the condition of a training batch with the latents `x0` [f c h w]."""
        condition_kept = ~rng.bernoulli(self.condition_dropout)
        condition = self.build_condition(batch.captions, batch.labels, layout, condition_kept)
        if self.denoiser.config.frame_prediction:
            given = rng.bernoulli(self.denoiser.config.frame_prediction)
            options = self.diffusion.context_frames
            count = to_device(torch.tensor(options), given.device)[rng.randint(len(options))]
            condition = condition.with_context(x0, torch.where(given, count, 0))
        return condition

    def build_condition(self, captions: Sequence[str], labels: Tensor, layout: FrameLayout, condition_kept: Tensor) -> Condition:
        """Return captions and labels as a condition; an empty caption becomes the null.

        Args:
            captions: one for each sample.
            labels: class numbers [s], on the CPU, where they are checked.
            layout: of the samples.
            condition_kept: [s] bool, false where caption and label are dropped.

        Raises:
            ValueError: a label is not a class of the model.
        """
        classes = self.denoiser.config.num_classes
        if classes and not bool(((labels >= 0) & (labels < classes)).all()):
            raise ValueError(f"labels must be 0 .. {classes - 1} (denoiser.num_classes), got {labels.tolist()}; see the index column label")
        labels = to_device(labels, condition_kept.device)
        condition = text_condition(self.text_encoder, captions, labels, layout, condition_kept)
        return pad_text(condition) if self.compiled else condition

    def frame_weight(self, batch: JointBatch, condition: Condition) -> Tensor:
        """Return the weight of each frame in the loss, [f]: 0 for unreadable samples and for context frames."""
        weight = condition.layout.per_frame(batch.weight)
        if condition.context_mask is not None:
            weight = weight * (1 - condition.context_mask[:, 0, 0, 0])
        return weight

    def _mean(self, error: Tensor, weight: Tensor) -> Tensor:
        """Return this rank's part of the mean over the frames of the global batch; the mean of all ranks' parts is that mean.

        The count is over all ranks: a rank with an unreadable clip or more context frames must not weight its other frames more.
        """
        count = self.trainer.strategy.reduce(weight.sum(), reduce_op="mean").clamp(min=1 / self.trainer.world_size)
        return (error * weight).sum() / count

    def _log_kinds(self, phase: str, error: Tensor, weight: Tensor, layout: FrameLayout) -> None:
        cut = layout.video_frames
        for name, part in (("video", slice(0, cut)), ("image", slice(cut, None))):
            if len(error[part]):
                total = weight[part].sum()
                self.log(
                    f"{phase}/loss_{name}",
                    (error[part].detach() * weight[part]).sum() / total.clamp(min=1),
                    batch_size=len(weight[part]),
                )

    def configure_gradient_clipping(self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        # ZeRO's engine clips at `gradient_clip_val` itself, since only it has the norm over all shards.
        if not isinstance(self.trainer.strategy, ZeROStrategy):
            self.log("train/gradient_norm", clip_gradients(self.parameters(), self.gradient_clip_val))

    def configure_optimizers(self) -> Any:
        # Check here, not in `on_load_checkpoint`: before that, DeepSpeed has restored the optimiser, or failed to.
        check_groups(self.trainer.ckpt_path, [self])
        optimizer = fuse_on_gpu(self.optimizer(parameter_groups(self)))
        schedule = learning_rate(optimizer, self.warmup_steps, int(self.trainer.max_steps), self.lr_schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- Validation and previews ------------------------------------------------------------------------------------

    def validation_step(self, batch: JointBatch, batch_idx: int) -> None:
        x0, layout = self.latents(batch.videos, batch.images, batch.space)
        errors = []
        for timestep in VALIDATION_TIMESTEPS:
            # Equal noise at every validation, so that two values of this loss differ only by the weights.
            rng = PerSampleRNG(self.seed, splitmix64(timestep, batch_idx), batch.global_batch_index, x0.device)
            condition = self.validation_condition(batch, x0, layout, rng)
            draws = self.draws(x0, layout, rng)
            per_sample = torch.full_like(draws.timestep, timestep)
            error = denoising_error(self.denoiser, self.path, x0, condition, TrainingDraws(per_sample, draws.noise, None))
            errors.append(self._mean(error, self.frame_weight(batch, condition)))
            self.log(f"val/loss_{timestep:03d}", errors[-1], batch_size=layout.total_frames, sync_dist=True)
        self.log("val/loss", torch.stack(errors).mean(), batch_size=layout.total_frames, sync_dist=True, prog_bar=True)

    def validation_condition(self, batch: JointBatch, x0: Tensor, layout: FrameLayout, rng: PerSampleRNG) -> Condition:
        """Return the condition of a validation batch: all captions and labels.

        Context frames are part of it only where training always has them (frame prediction of probability 1).
        """
        condition_kept = torch.ones(layout.num_samples, dtype=torch.bool, device=batch.videos.device)
        condition = self.build_condition(batch.captions, batch.labels, layout, condition_kept)
        if self.denoiser.config.frame_prediction < 1:
            return condition
        return condition.with_context(x0, torch.full((layout.num_samples,), max(self.diffusion.context_frames), device=x0.device))

    def preview_samples(self, batch: JointBatch, count: int = 8) -> tuple[Tensor, list[str]]:
        """Sample clips for the first captions of a batch from fixed noise.

        Args:
            batch: with the captions.
            count: largest number of clips.

        Returns:
            Pixels [b 3 t h w] in -1..1, and the captions.
        """
        batch = first_videos(batch, count)
        return self.measured_clips(batch), batch.captions

    def measured_clips(self, batch: JointBatch) -> Tensor:
        """Sample a clip for each video of a batch, from noise that depends on the seed and its `global_batch_index` alone.

        Captions, labels, context frames and low-resolution clips are those of the batch, as in a validation.

        Returns:
            Pixels [b 3 t h w] in -1..1.
        """
        x0, layout = self.latents(batch.videos, batch.images, batch.space)
        rng = PerSampleRNG(self.seed, 0, batch.global_batch_index, x0.device)
        condition = self.validation_condition(batch, x0, layout, rng)
        noise = rng.randn_frames(layout, x0.shape[1:])
        # A graph would be captured anew for each batch of previews and metrics, and hold memory of the training.
        sampler = StageSampler(self.denoiser, self.diffusion, self._normalizer, use_graphs=False)
        videos = sampler.sample(condition, noise, self.preview_steps, self.diffusion.guidance)
        return self.vae.decode(videos).clamp(-1, 1)

    def measured_config(self) -> dict[str, Any]:
        """Return the settings of `measured_clips`, for the artifact's card."""
        return {"clips": "samples", "steps": self.preview_steps, "guidance": self.diffusion.guidance.scale, "seed": self.seed}

    def previews(self, batch: JointBatch) -> Mapping[str, tuple[Tensor, list[str], int]]:
        """Return clips for visual inspection, by name: pixels [b 3 t h w], captions, and clips a row."""
        return {"samples": (*self.preview_samples(batch), 4)}

    # ---- Artifact ---------------------------------------------------------------------------------------------------

    def components(self) -> Mapping[str, nn.Module]:
        """Return the models of the artifact by section name."""
        return {"denoiser": self.denoiser}

    def sampling_config(self) -> dict[str, Any]:
        """Return the plain sections of model.yaml that sampling needs beside the models."""
        return {"diffusion": self.diffusion.to_plain(), **({"classes": self.classes} if self.classes else {})}

    def extra_files(self) -> dict[str, bytes]:
        """Return further files of the artifact by name."""
        return {}

    def card_entries(self) -> dict[str, Any]:
        """Return the entries of the card beside provenance."""
        return {}


def artifact_at(path: str | None, what: str) -> Artifact:
    """Load the artifact of a parent stage.

    Args:
        path: of its folder.
        what: name of the argument, for the message.

    Raises:
        ValueError: there is no such folder.
    """
    if path is None or not Path(path).is_dir():
        raise ValueError(f"model.{what}: no artifact at {path}; train that stage first or name its folder")
    return load(path, verify=True)
