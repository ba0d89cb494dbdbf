"""Compute latents and text features of a stage without training it: ``python -m walt_pl cache --config FILE``.

Training does this at its start. Done before, it needs only one GPU, and no other GPU waits. An interrupted command resumes where it
stopped. It also reads every existing byte and recomputes damaged data.
"""

from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LightningArgumentParser

from stages.base import BaseStage
from stages.latent_diffusion import LatentDiffusion
from stages.super_resolution import SuperResolutionStage
from walt_pl.cli.fit import WaltCLI


class CacheCLI(WaltCLI):
    """LightningCLI that computes the latents and text features of the configured stage."""

    command = "cache"

    def __init__(self, words: Sequence[str]) -> None:
        super().__init__(words, run=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"trainer.logger": False})

    def before_instantiate_classes(self) -> None:
        trainer = self.options.trainer
        # Only one process computes the caches.
        trainer.devices = 1
        trainer.num_nodes = 1
        trainer.strategy = "auto"
        self._name()
        self._check_parents()
        super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        with torch.device("meta"):  # the stage only describes its inputs and does not compute
            self.config_init = self.parser.instantiate(self.config)
        self.model = self.config_init.model
        self.datamodule = self.config_init.data
        self.trainer = self.instantiate_trainer()

    def build(self) -> None:
        """Compute missing and damaged latents and text features.

        Raises:
            ValueError: the stage trains on pixels.
        """
        model, data, trainer = self.model, self.datamodule, self.trainer
        if not isinstance(model, LatentDiffusion):
            raise ValueError(f'cache: stage "{self.stage}" trains on pixels, there is nothing to compute before')
        model.trainer = data.trainer = trainer
        trainer.datamodule = data  # type: ignore[attr-defined]  # stages read it from the trainer
        data.setup("fit")
        data.build_caches(verify=True)
        # A small text encoder is trained with the base, so its features cannot be computed before.
        if isinstance(model, SuperResolutionStage) or (isinstance(model, BaseStage) and model.pretrained_text is not None):
            model.setup("fit")
        print(f"{data.cache_dir}: whole")


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt cache`."""
    CacheCLI(words).build()
