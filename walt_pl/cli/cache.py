"""What a stage reads in place of pixels and captions, computed without training it: ``python -m walt_pl cache --config FILE``.

Training does the same at its start. Done before, it needs one GPU only, and nobody waits. Interrupted, the same command goes on where
it stopped; and it reads every byte that is there and computes again what is damaged.
"""

import torch
from lightning.pytorch.cli import LightningArgumentParser

from stages.base import BaseStage
from stages.latent_diffusion import LatentDiffusion
from stages.super_resolution import SuperResolutionStage
from walt_pl.cli.fit import WaltCLI


class CacheCLI(WaltCLI):
    """The latents and text features of the stage that a command line describes."""

    def __init__(self) -> None:
        super().__init__(run=False)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.set_defaults({"trainer.logger": False})

    def before_instantiate_classes(self) -> None:
        trainer = self.options.trainer
        trainer.devices, trainer.num_nodes, trainer.strategy = 1, 1, "auto"  # nobody else has anything to do
        self._name()
        self._check_parents()
        super().before_instantiate_classes()

    def instantiate_classes(self) -> None:
        with torch.device("meta"):  # the stage says what it reads, and does not compute
            self.config_init = self.parser.instantiate(self.config)
        self.model, self.datamodule = self.config_init.model, self.config_init.data
        self.trainer = self.instantiate_trainer()

    def build(self) -> None:
        """Computes what is missing or damaged.

        Raises:
            ValueError: the stage trains on pixels.
        """
        model, data, trainer = self.model, self.datamodule, self.trainer
        if not isinstance(model, LatentDiffusion):
            raise ValueError(f'cache: stage "{self.stage}" trains on pixels, there is nothing to compute before')
        model.trainer = data.trainer = trainer
        trainer.datamodule = data  # type: ignore[attr-defined]  # where stages look for it
        data.setup("fit")
        data.build_caches(verify=True)
        # A small text encoder is trained with the base and has nothing to compute before.
        if isinstance(model, SuperResolutionStage) or (isinstance(model, BaseStage) and model.pretrained_text is not None):
            model.setup("fit")
        print(f"{data.cache_dir}: whole")
