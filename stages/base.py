"""Stage two: the base model, which samples latents of the smallest size from text or a class (docs/METHOD.md, section 3)."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from stages.latent_diffusion import LatentDiffusion
from stages.optimisation import LRSchedule
from stages.vocabulary import load_trained_vocabulary
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.text.caption_words import WORDS
from walt_pl.text.features import encoder_section
from walt_pl.text.small_encoder import VOCABULARY, PretrainedTextConfig, SmallTextConfig, SmallTextEncoder, TextEncoder
from walt_pl.training.compiled_blocks import CompileChoice


class BaseStage(LatentDiffusion):
    """Train the base denoiser, together with a small text encoder where the config has one.

    `LatentDiffusion` explains the arguments that are not explained here.

    Args:
        text: size of a small text encoder to train, or a frozen pretrained one to use; null for models without text.
    """

    def __init__(
        self,
        denoiser: DenoiserConfig,
        optimizer: OptimizerCallable,
        text: SmallTextConfig | PretrainedTextConfig | None = None,
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
        if (text.width if text else None) != denoiser.text_width:
            raise ValueError(
                f"denoiser.text_width is {denoiser.text_width}, text.width {text.width if text else None}; they must be the same"
            )
        self.text = SmallTextEncoder(text) if isinstance(text, SmallTextConfig) else None
        self.pretrained_text = text if isinstance(text, PretrainedTextConfig) else None

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.text is not None:
            load_trained_vocabulary(self.text, self.trainer, fits=stage == "fit")
        if self.pretrained_text is not None:
            self.use_pretrained_text(self.pretrained_text, stage)

    @property
    def text_encoder(self) -> TextEncoder | None:
        return self.text if self.text is not None else super().text_encoder

    def components(self) -> Mapping[str, nn.Module]:
        return {"denoiser": self.denoiser, **({"text": self.text} if self.text is not None else {})}

    def sampling_config(self) -> dict[str, Any]:
        text = self.cached_text
        return {**super().sampling_config(), **(encoder_section(text.config, text.sha256) if text is not None else {})}

    def extra_files(self) -> dict[str, bytes]:
        if self.text is None:
            return {}
        return {VOCABULARY: self.text.vocabulary, **({WORDS: self.text.words} if self.text.words else {})}
