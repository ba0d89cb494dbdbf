"""Stages three and four: super-resolution by two, from noised low-resolution latents (docs/METHOD.md, section 4)."""

from collections.abc import Mapping

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from stages.latent_diffusion import LatentDiffusion, artifact_at
from stages.optimisation import LRSchedule
from walt_pl.blocks.frames import FrameLayout
from walt_pl.data.batch import JointBatch, Space, first_videos
from walt_pl.diffusion.condition import Condition
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.diffusion.rng import PerSampleRNG
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.sampling.stage_sampler import with_low_res
from walt_pl.text.features import recorded_encoder
from walt_pl.text.small_encoder import SmallTextEncoder, TextEncoder, trained_text_encoder
from walt_pl.training.compiled_blocks import CompileChoice


class SuperResolutionStage(LatentDiffusion):
    """Train a denoiser with the low-resolution latents of each clip, at half the size, as condition.

    `LatentDiffusion` explains the arguments that are not explained here. Its `diffusion` has the noise augmentation.

    Args:
        base: artifact of the base model, for its frozen text encoder; needed when the denoiser takes text.
        text_path: path of a pretrained text encoder, if not that of the base's training.
    """

    kind = "super_resolution"

    def __init__(
        self,
        denoiser: DenoiserConfig,
        optimizer: OptimizerCallable,
        base: str | None = None,
        text_path: str | None = None,
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
        super().__init__(
            denoiser,
            optimizer,
            vae,
            diffusion,
            warmup_steps,
            lr_schedule,
            condition_dropout,
            gradient_clip_val,
            seed,
            preview_steps,
            compile,
        )
        if not denoiser.super_resolution:
            raise ValueError("denoiser.super_resolution is false; a super-resolution stage needs it true")
        self.base_path = base
        self.text_path = text_path
        self._text: list[SmallTextEncoder] = []

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.denoiser.config.text_width and self.text_encoder is None:
            artifact = artifact_at(self.base_path, "base")
            frozen = recorded_encoder(artifact, self.text_path, "--model.text_path", self.text_hashes)
            if frozen is not None:
                self.use_pretrained_text(frozen, stage)
                return
            text = trained_text_encoder(artifact)
            if text is None:
                raise ValueError(f"{artifact.path} has no text encoder; denoiser.text_width must be null")
            self._text = [text]

    @property
    def text_encoder(self) -> TextEncoder | None:
        return self._text[0].to(self.device) if self._text else super().text_encoder

    def condition(self, batch: JointBatch, x0: Tensor, layout: FrameLayout, rng: PerSampleRNG) -> Condition:
        condition = super().condition(batch, x0, layout, rng)
        return self.add_low_res(condition, batch, rng.randint(self.diffusion.noise_aug_max), rng)

    def validation_condition(self, batch: JointBatch, x0: Tensor, layout: FrameLayout, rng: PerSampleRNG) -> Condition:
        condition = super().validation_condition(batch, x0, layout, rng)
        level = torch.full((layout.num_samples,), self.diffusion.noise_aug_level, device=x0.device)
        return self.add_low_res(condition, batch, level, rng)

    def add_low_res(self, condition: Condition, batch: JointBatch, noise_aug_level: Tensor, rng: PerSampleRNG) -> Condition:
        """Add low-resolution latents to a condition, noised before the network upscales them.

        Args:
            condition: of the samples.
            batch: with the low-resolution clips.
            noise_aug_level: noise augmentation level (a timestep) of each sample, int64 [s].
            rng: source of the noise.

        Raises:
            ValueError: the batch has no low-resolution clips, or they have another size than half the denoiser's.
        """
        if batch.low_res_videos is None or batch.low_res_images is None:
            raise ValueError("data.low_res_size is not set; a super-resolution stage wants half of data.size")
        low_res, layout = self.latents(batch.low_res_videos, batch.low_res_images, batch.space)
        wanted = tuple(side // 2 for side in self.denoiser.config.size[1:])
        if low_res.shape[2:] != wanted:
            raise ValueError(
                f"data.low_res_size gives latents of {tuple(low_res.shape[2:])}, the denoiser wants {wanted}; set it to half of data.size"
            )
        return with_low_res(condition, self.path, low_res, rng.randn_frames(layout, low_res.shape[1:]), noise_aug_level)

    def previews(self, batch: JointBatch) -> Mapping[str, tuple[Tensor, list[str], int]]:
        batch = first_videos(batch, 4)
        assert batch.low_res_videos is not None and batch.low_res_images is not None
        samples, captions = self.preview_samples(batch, 4)
        original = self._decode(batch.videos, batch.images, batch.space)
        low_res = self._decode(batch.low_res_videos, batch.low_res_images, batch.space)
        low_res = low_res.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
        rows = torch.stack([low_res, samples, original], dim=1).flatten(0, 1)
        return {"super_resolution": (rows, [c for caption in captions for c in ("low", caption, "original")], 3)}

    def _decode(self, videos: Tensor, images: Tensor, space: Space) -> Tensor:
        """Return the autoencoder's reconstruction of the videos of a batch, [v 3 t h w] in -1..1."""
        latents, layout = self.latents(videos, images, space)
        return self.vae.decode(layout.split(self._normalizer.denormalize(latents))[0]).clamp(-1, 1)
