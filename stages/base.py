"""Stage two: the base model, which samples latents of the smallest size from text or a class (docs/METHOD.md, section 3)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import OptimizerCallable
from torch import nn

from stages.latent_diffusion import LatentDiffusion
from stages.optimisation import LRSchedule
from walt_pl.diffusion.config import DiffusionConfig
from walt_pl.files import write_whole
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.text.caption_words import WORDS, caption_words
from walt_pl.text.features import encoder_section
from walt_pl.text.small_encoder import VOCABULARY, PretrainedTextConfig, SmallTextConfig, SmallTextEncoder, TextEncoder, train_vocabulary


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
        compile: bool = False,
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
            self.text.load_vocabulary(*self._vocabulary(self.text))
        if self.pretrained_text is not None:
            self.use_pretrained_text(self.pretrained_text, stage)

    def _vocabulary(self, text: SmallTextEncoder) -> tuple[bytes, bytes]:
        """Write the run's sentencepiece model and the words of its captions on rank 0, and return both files' bytes on all ranks.

        A resumed run keeps its files. Otherwise the model is that of the initial weights (--init), or learnt from the training captions.
        The words are those of the captions and of the initial weights, and none where those of the initial weights are not known.
        """
        folder = Path(self.trainer.default_root_dir)
        vocabulary, words = folder / VOCABULARY, folder / WORDS
        if self.trainer.is_global_zero:
            captions = self.trainer.datamodule.captions  # type: ignore[attr-defined]
            folder.mkdir(parents=True, exist_ok=True)
            begins = self.trainer.ckpt_path is None
            if begins or not vocabulary.exists():
                write_whole(vocabulary, text.vocabulary or train_vocabulary(captions(), text.config.vocab_size))
            if begins or not words.exists():  # a run of an older version has none
                unknown = text.vocabulary and not text.words  # the initial weights have seen words that nobody recorded
                write_whole(words, b"" if unknown else caption_words(captions(), text.words))
        self.trainer.strategy.barrier("vocabulary")
        return vocabulary.read_bytes(), words.read_bytes()

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
