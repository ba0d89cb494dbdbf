"""Stage one: the autoencoder, on videos and images in the same step (SPEC section 2)."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from stages.optimisation import GROUPS, Decay, check_groups, clip_gradients, group_sizes, learning_rate, parameter_groups
from walt_pl.data.batch import JointBatch
from walt_pl.diffusion.chance import Chance
from walt_pl.losses import (
    Balance,
    LeCam,
    PerceptualName,
    discriminator_accuracy,
    discriminator_loss,
    generator_loss,
    perceptual_term,
    pick_frames,
    r1_penalty,
)
from walt_pl.metrics.frames import psnr
from walt_pl.models.discriminator import Discriminator, DiscriminatorConfig
from walt_pl.models.vae import VAE, Posterior, VAEConfig

ENCODED_AT_ONCE = 4
"""Clips whose latents are measured together: as many as a card holds in training."""


class VAEStage(L.LightningModule):
    """Trains the causal autoencoder: reconstruction, KL, perceptual and adversarial terms.

    Args:
        vae: size of the autoencoder.
        discriminator: size of the critic; its `size` is that of the clips trained on.
        optimizer: for the autoencoder, and again for the discriminator.
        warmup: steps of linear warm-up.
        decay: what follows the warm-up.
        reconstruction_weight: of the mean squared error.
        kl_weight: of the KL divergence to N(0, 1), summed over the latent and divided by the number of pixel values.
        perceptual: distance on frames: lpips, or none.
        perceptual_weights: local VGG16 file for lpips.
        perceptual_weight: of the perceptual term.
        perceptual_frames: frames of each clip that it looks at, drawn anew each step; null for all.
        adversarial_weight: of the generator's adversarial term; 0 trains without a discriminator.
        adversarial_start: step at which the discriminator starts to train and to count.
        adversarial_warmup: steps from there in which its weight grows to `adversarial_weight`.
        discriminator_pause: running accuracy above which the discriminator rests, since it wins outright; null for never.
        discriminator_resume: running accuracy below which it learns again.
        r1_weight: cost of the gradient penalty.
        r1_every: steps between gradient penalties, each weighted by that number.
        lecam_weight: of the LeCAM regulariser.
        lecam_decay: of its running means of the logits.
        clip: largest gradient norm; null for none.
        seed: of every random draw of the training.
        statistics_batches: training batches that the latent statistics are measured on at the end.
        compile: torch.compile encoder and decoder: slow at first, and it needs a C++ compiler.
    """

    kind = "vae"

    def __init__(
        self,
        vae: VAEConfig,
        optimizer: OptimizerCallable,
        discriminator: DiscriminatorConfig = DiscriminatorConfig(),
        warmup: int = 1000,
        decay: Decay = "cosine",
        reconstruction_weight: float = 5.0,
        kl_weight: float = 1e-6,
        perceptual: PerceptualName = "none",
        perceptual_weights: str | None = None,
        perceptual_weight: float = 0.1,
        perceptual_frames: int | None = None,
        adversarial_weight: float = 0.1,
        adversarial_start: int = 0,
        adversarial_warmup: int = 0,
        discriminator_pause: float | None = 0.97,
        discriminator_resume: float = 0.85,
        r1_weight: float = 10.0,
        r1_every: int = 16,
        lecam_weight: float = 0.001,
        lecam_decay: float = 0.999,
        clip: float | None = 1.0,
        seed: int = 0,
        statistics_batches: int = 64,
        compile: bool = False,
    ) -> None:
        super().__init__()
        # Two optimisers that take turns: the order of their steps is ours.
        self.automatic_optimization = False
        self.vae = VAE(vae)
        if compile:
            # In place: checkpoints and artifacts keep their keys. Not the discriminator, whose penalty is differentiated twice.
            self.vae.encoder.compile()
            self.vae.decoder.compile()
        self.discriminator = Discriminator(discriminator) if adversarial_weight else None
        self.lecam = LeCam(lecam_decay)
        self.balance = Balance(discriminator_pause, discriminator_resume)
        # Frozen, so kept out of the module's parameters and checkpoints.
        self._perceptual: list[nn.Module | None] = [None]
        self.perceptual, self.perceptual_weights = perceptual, perceptual_weights
        self.optimizer, self.warmup, self.decay, self.clip = optimizer, warmup, decay, clip
        self.reconstruction_weight, self.kl_weight, self.perceptual_weight = (
            reconstruction_weight,
            kl_weight,
            perceptual_weight,
        )
        self.perceptual_frames = perceptual_frames
        self.adversarial_weight, self.adversarial_start = adversarial_weight, adversarial_start
        self.adversarial_warmup = adversarial_warmup
        self.r1_weight, self.r1_every, self.lecam_weight = r1_weight, r1_every, lecam_weight
        self.seed, self.statistics_batches = seed, statistics_batches

    def setup(self, stage: str) -> None:
        # Not in the constructor: a plan is made without the weight file.
        self._perceptual = [perceptual_term(self.perceptual, self.perceptual_weights)]

    # ---- Training -------------------------------------------------------------------------------------------------

    def training_step(self, batch: JointBatch, batch_idx: int) -> None:
        step = self.global_step
        optimizers = self._optimizers()
        judged = self.discriminator is not None and step >= self.adversarial_start
        chance = Chance(self.seed, step, batch.slots)
        kinds = self._reconstruct(batch, chance)
        self.toggle_optimizer(optimizers[0])
        pulls: dict[str, list[Tensor]] = {"reconstruction": [], "adversarial": []}
        outputs = _watched([output for _, output, _ in kinds], pulls["reconstruction"])
        loss = self._autoencoder_loss([(x, y, posterior) for (x, _, posterior), y in zip(kinds, outputs, strict=True)], chance)
        if judged:
            fake = self._logits(_watched([output for _, output, _ in kinds], pulls["adversarial"]))
            adversarial = generator_loss(fake)
            loss = loss + self._adversarial_weight(step) * adversarial
            self.log("train/adversarial", adversarial)
        optimizers[0].zero_grad()
        self.manual_backward(loss)
        optimizers[0].step()
        self.untoggle_optimizer(optimizers[0])
        self.log("train/loss", loss, prog_bar=True)
        if judged:
            mine, other = (torch.stack(pulls[name]).sum().sqrt() for name in ("adversarial", "reconstruction"))
            self.log("train/gradient_ratio", mine / other)
            self._discriminator_step(optimizers[1], kinds, step)
        for scheduler in self._schedulers():
            scheduler.step()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        # Here, where callbacks have seen the gradients as they were.
        self.log("train/gradient_norm", clip_gradients(self.vae.parameters(), self.clip))

    def _adversarial_weight(self, step: int) -> float:
        """Grows from its start: a discriminator that knows nothing yet has no say."""
        since = step - self.adversarial_start + 1
        return self.adversarial_weight * min(1.0, since / max(1, self.adversarial_warmup))

    def _reconstruct(self, batch: JointBatch, chance: Chance) -> list[tuple[Tensor, Tensor, Posterior]]:
        """(input, output, posterior) of the videos and of the images.

        A sample that could not be read is zeros, and its output is made zeros too: no error, and no pass is missing on any rank.
        """
        kinds = []
        start = 0
        for x in (batch.videos, batch.images):
            rows = slice(start, start + len(x))
            start += len(x)
            if not len(x):
                continue
            posterior = self.vae.encode(x)
            noise = torch.stack(chance.rows(rows).normal([posterior.mean.shape[1:]] * len(x)))
            weight = batch.weight[rows].view(-1, 1, 1, 1, 1)
            posterior = Posterior(posterior.mean * weight, posterior.logvar * weight)
            kinds.append((x * weight, self.vae.decode(posterior.sample(noise)) * weight, posterior))
        return kinds

    def _autoencoder_loss(self, kinds: list[tuple[Tensor, Tensor, Posterior]], chance: Chance) -> Tensor:
        """Everything but the adversarial term; a frame of an image weighs as much as a frame of a video."""
        values = sum(x.numel() for x, _, _ in kinds)
        squared = [(x - y).square().sum() for x, y, _ in kinds]
        error = torch.stack(squared).sum() / values
        kl = torch.stack([posterior.kl().sum() for _, _, posterior in kinds]).sum() / values
        for (x, _, posterior), part in zip(kinds, squared, strict=True):
            self.log(f"train/error_{'video' if posterior.mean.shape[2] > 1 else 'image'}", part / x.numel())
        self.log_dict({"train/error": error, "train/kl": kl})
        loss = self.reconstruction_weight * error + self.kl_weight * kl
        if self._perceptual[0] is not None:
            distance = self._perceptual_distance(self._perceptual[0].to(self.device), kinds, chance)
            self.log("train/perceptual", distance)
            loss = loss + self.perceptual_weight * distance
        return loss

    def _perceptual_distance(self, metric: nn.Module, kinds: list[tuple[Tensor, Tensor, Posterior]], chance: Chance) -> Tensor:
        """Mean over frames, all or those drawn for this step."""
        distances, start = [], 0
        for x, y, _ in kinds:
            rows = chance.rows(slice(start, start + len(x)))
            start += len(x)
            chosen = None if self.perceptual_frames is None else rows.subset(x.shape[2], self.perceptual_frames)
            distances.append(metric(pick_frames(y, chosen), pick_frames(x, chosen)))
        return torch.cat(distances).mean()

    def _logits(self, clips: list[Tensor]) -> Tensor:
        assert self.discriminator is not None
        return torch.cat([self.discriminator(clip) for clip in clips])

    def _discriminator_step(self, optimizer: Any, kinds: list[tuple[Tensor, Tensor, Posterior]], step: int) -> None:
        assert self.discriminator is not None
        paused = bool(self.balance.paused)
        self.toggle_optimizer(optimizer)
        penalised = self.r1_weight > 0 and step % self.r1_every == 0 and not paused
        inputs = [x.detach().requires_grad_(penalised) for x, _, _ in kinds]
        with torch.set_grad_enabled(not paused):
            real = self._logits(inputs)
            fake = self._logits([y.detach() for _, y, _ in kinds])
        self._weigh(real, fake)
        if not paused:
            self._teach(optimizer, inputs, real, fake, penalised)
        self.untoggle_optimizer(optimizer)

    def _weigh(self, real: Tensor, fake: Tensor) -> None:
        """Who wins: over all ranks, so that all of them decide alike whether the discriminator learns from the next batch."""
        accuracy = self.trainer.strategy.reduce(discriminator_accuracy(real, fake), reduce_op="mean")
        self.balance.update(accuracy)
        logits = {"train/logit_real": real.mean(), "train/logit_fake": fake.mean(), "train/logit_gap": real.mean() - fake.mean()}
        self.log_dict({**logits, "train/discriminator_accuracy": accuracy, "train/discriminator_paused": self.balance.paused.float()})

    def _teach(self, optimizer: Any, inputs: list[Tensor], real: Tensor, fake: Tensor, penalised: bool) -> None:
        assert self.discriminator is not None
        loss = discriminator_loss(real, fake)
        if self.lecam_weight:
            loss = loss + self.lecam_weight * self.lecam(real, fake)
        if penalised:
            penalty = torch.cat([r1_penalty(x, self.discriminator(x)) for x in inputs]).mean()
            loss = loss + self.r1_weight * self.r1_every * penalty
            self.log("train/r1", penalty)
        optimizer.zero_grad()
        self.manual_backward(loss)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning does it for the optimiser that counts steps
            callback.on_before_optimizer_step(self.trainer, self, optimizer.optimizer)
        norm = clip_gradients(self.discriminator.parameters(), self.clip)
        self.log_dict({"train/discriminator": loss, "train/discriminator_gradient_norm": norm})
        if 0 < norm < math.inf:  # on one rank as on all: gradients are averaged; 0 where the guard has let them go
            # Of all ranks: each has the same means, and a checkpoint of rank zero's is everybody's.
            self.lecam.update(*(self.trainer.strategy.reduce(logits.detach().mean(), reduce_op="mean") for logits in (real, fake)))
            # Past Lightning's wrapper: its step counts, and one batch is to be one step.
            optimizer.optimizer.step()

    def configure_optimizers(self) -> Any:
        check_groups(self.trainer.ckpt_path, self._networks)
        optimizers = [self.optimizer(parameter_groups(network)) for network in self._networks]
        total = int(self.trainer.max_steps)
        return optimizers, [learning_rate(optimizer, self.warmup, total, self.decay) for optimizer in optimizers]

    @property
    def _networks(self) -> list[nn.Module]:
        """What each optimiser trains."""
        return [self.vae] if self.discriminator is None else [self.vae, self.discriminator]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[GROUPS] = group_sizes(self._networks)

    def _optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers if isinstance(optimizers, list) else [optimizers]

    def _schedulers(self) -> list[Any]:
        schedulers = self.lr_schedulers()
        return schedulers if isinstance(schedulers, list) else [schedulers]

    # ---- Validation, previews, artifact -----------------------------------------------------------------------------

    def validation_step(self, batch: JointBatch, batch_idx: int) -> None:
        cut = len(batch.videos)
        for name, x, weight in (("video", batch.videos, batch.weight[:cut]), ("image", batch.images, batch.weight[cut:])):
            if not len(x):
                continue
            x = x[weight > 0]
            # Also of clips that are all lost, here: all ranks add up the same values in the same order.
            found = psnr(self.vae.decode(self.vae.encode(x).mean).clamp(-1, 1), x).mean() if len(x) else 0.0
            self.log(f"val/psnr_{name}", found, batch_size=len(x), sync_dist=True, prog_bar=name == "video")

    def previews(self, batch: JointBatch) -> Mapping[str, tuple[Tensor, list[str], int]]:
        """Rows of clips for the eye: each original beside its reconstruction."""
        x = batch.videos[:4]
        y = self.vae.decode(self.vae.encode(x).mean).clamp(-1, 1)
        captions = batch.captions[: len(x)]
        rows = torch.stack([x, y], dim=1).flatten(0, 1)
        return {"reconstruction": (rows, [c for caption in captions for c in (caption, "reconstruction")], 2)}

    def sections(self) -> Mapping[str, nn.Module]:
        """The models of the artifact by section name."""
        return {"vae": self.vae}

    def settings(self) -> dict[str, Any]:
        """Further plain sections of model.yaml."""
        return {}

    def files(self) -> dict[str, bytes]:
        """Further files of the artifact."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What the card says beside provenance: mean and standard deviation of each latent channel on the training data of all ranks."""
        sums = latent_sums(self._training_latents(), self.vae.config.latent_channels)
        return {"latents": latent_statistics(self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu())}

    def _training_latents(self) -> Iterator[Tensor]:
        loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        return training_latents(self.vae, loader, self.statistics_batches, self.device)


@torch.no_grad()
def training_latents(vae: VAE, loader: Iterable[JointBatch], batches: int, device: torch.device) -> Iterator[Tensor]:
    """Posterior means of the first training batches, images as one-frame clips beside the videos, a few clips at a time."""
    for _, batch in zip(range(batches), loader, strict=False):
        cut = len(batch.videos)
        for x in (batch.videos[batch.weight[:cut] > 0], batch.images[batch.weight[cut:] > 0]):
            if len(x):
                yield from (vae.encode(few.to(device)).mean for few in x.split(ENCODED_AT_ONCE))


def latent_sums(latents: Iterable[Tensor], channels: int) -> Tensor:
    """Sum, sum of squares and count of each channel of clips [b c t h w], float64 [3 c]; those of several ranks add up."""
    total = torch.zeros(3, channels, dtype=torch.float64)
    for z in latents:
        flat = z.movedim(1, 0).flatten(1).double().cpu()
        total += torch.stack([flat.sum(dim=1), flat.square().sum(dim=1), torch.full((len(flat),), float(flat.shape[1])).double()])
    return total


def latent_statistics(sums: Tensor) -> dict[str, list[float]]:
    """Mean and standard deviation of each channel, from `latent_sums`.

    Raises:
        ValueError: they are of no clip at all.
    """
    if not bool(sums[2].all()):
        raise ValueError("model.statistics_batches: the training data has no clip that can be read to measure the latents on")
    mean = sums[0] / sums[2]
    std = (sums[1] / sums[2] - mean.square()).clamp(min=1e-12).sqrt()
    return {"mean": mean.tolist(), "std": std.tolist()}


def _watched(clips: list[Tensor], squares: list[Tensor]) -> list[Tensor]:
    """The same clips for one of the losses; the backward pass leaves the squared norm of what that loss makes of each in the list."""
    seen = [clip.view_as(clip) for clip in clips]
    for clip in seen:
        clip.register_hook(lambda gradient: squares.append(gradient.float().square().sum()))
    return seen
