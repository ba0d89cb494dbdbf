"""Stage one: the autoencoder, on videos and images in the same step (docs/METHOD.md, section 2)."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn

from stages.latent_statistics import latent_statistics, latent_sums, training_latents
from stages.optimisation import (
    GROUPS,
    LRSchedule,
    check_groups,
    clip_gradients,
    fuse_on_gpu,
    gradient_norm,
    group_sizes,
    learning_rate,
    parameter_groups,
)
from walt_pl.blocks.transfer import HostCopy, to_device
from walt_pl.data.batch import JointBatch, first_videos
from walt_pl.diffusion.rng import PerSampleRNG
from walt_pl.metrics.frames import psnr
from walt_pl.models.discriminator import Discriminator, DiscriminatorConfig
from walt_pl.models.losses import (
    DiscriminatorPause,
    LeCam,
    PerceptualName,
    discriminator_accuracy,
    discriminator_loss,
    generator_loss,
    perceptual_term,
    r1_penalty,
    select_frames,
    squared_error,
)
from walt_pl.models.vae import VAE, Posterior, VAEConfig
from walt_pl.training.compiled_blocks import CompileChoice
from walt_pl.training.skipped_step import take_step
from walt_pl.training.strategies.ignored_network import average_gradients, broadcast_weights, ignore_in_ddp


@dataclass(frozen=True)
class Reconstruction:
    """Clips of one kind, videos or images, and their reconstructions by the autoencoder."""

    x: Tensor
    """Pixels [b 3 t h w] in -1..1."""
    y: Tensor
    """Reconstructed pixels [b 3 t h w]."""
    posterior: Posterior
    """Distribution of their latents [b c 1+t h w]."""


class VAEStage(L.LightningModule):
    """Train the causal autoencoder with reconstruction, KL, perceptual and adversarial terms.

    Every term is a mean over the readable frames of the global batch. Frames of images and of videos have equal weight.

    Args:
        vae: size of the autoencoder.
        discriminator: size of the discriminator; its `size` is that of the training clips.
        optimizer: optimiser of the autoencoder.
        discriminator_optimizer: optimiser of the discriminator; null for the same kind as the autoencoder's.
        warmup_steps: optimiser steps of linear warm-up.
        lr_schedule: learning rate after the warm-up.
        reconstruction_weight: weight of the mean squared error, of pixels in 0..1.
        kl_weight: weight of the KL divergence to N(0, 1), summed over the latent and divided by the number of pixel values.
        perceptual: distance on frames: lpips, or none.
        perceptual_weights: local VGG16 file for lpips.
        perceptual_weight: weight of the perceptual term.
        perceptual_frames: frames of each clip in the perceptual term, drawn anew each step; null for all.
        adversarial_weight: weight of the generator's adversarial term; 0 trains without a discriminator.
        adversarial_start: step at which the discriminator starts to train and its term enters the loss.
        adversarial_warmup: steps from adversarial_start in which the term's weight grows to `adversarial_weight`.
        discriminator_pause: running accuracy above which the discriminator's training pauses; null for never, as in the paper.
        discriminator_resume: running accuracy below which it trains again.
        r1_weight: weight of the gradient penalty on real clips, in units of pixels in 0..1 and summed over a clip. One value therefore
            restrains small clips more than large ones.
        r1_every: steps between gradient penalties; each penalty is multiplied by this number.
        discriminator_gradient_clip_val: largest gradient norm of the discriminator; null for none. The penalty is rare and large, so a
            limit makes it almost ineffective.
        lecam_weight: weight of the LeCAM regulariser.
        lecam_decay: decay of its running means of the logits.
        gradient_clip_val: largest gradient norm of the autoencoder; null for none.
        seed: seed of every random draw of the training.
        statistics_batches: training batches that the latent statistics are measured on at the end.
        compile: true for torch.compile of encoder and decoder as a whole, which takes minutes for each size of clips. auto, as false,
            does not compile: the layers have fused functions of their own.
    """

    kind = "vae"

    def __init__(
        self,
        vae: VAEConfig,
        optimizer: OptimizerCallable,
        discriminator: DiscriminatorConfig = DiscriminatorConfig(),
        discriminator_optimizer: OptimizerCallable | None = None,
        warmup_steps: int = 1000,
        lr_schedule: LRSchedule = "cosine",
        reconstruction_weight: float = 5.0,
        kl_weight: float = 1e-6,
        perceptual: PerceptualName = "none",
        perceptual_weights: str | None = None,
        perceptual_weight: float = 0.1,
        perceptual_frames: int | None = None,
        adversarial_weight: float = 0.1,
        adversarial_start: int = 0,
        adversarial_warmup: int = 0,
        discriminator_pause: float | None = None,
        discriminator_resume: float = 0.85,
        r1_weight: float = 10.0,
        r1_every: int = 16,
        discriminator_gradient_clip_val: float | None = None,
        lecam_weight: float = 0.001,
        lecam_decay: float = 0.999,
        gradient_clip_val: float | None = 1.0,
        seed: int = 0,
        statistics_batches: int = 64,
        compile: CompileChoice = "auto",
    ) -> None:
        super().__init__()
        # Two optimisers alternate, so this module orders their steps itself.
        self.automatic_optimization = False
        self.vae = VAE(vae)
        if compile is True:
            # In place, so that checkpoints keep their keys. The discriminator is not compiled: its penalty is differentiated twice.
            self.vae.encoder.compile()
            self.vae.decoder.compile()
        self.discriminator = Discriminator(discriminator) if adversarial_weight else None
        self.lecam = LeCam(lecam_decay)
        self.discriminator_pause = DiscriminatorPause(discriminator_pause, discriminator_resume)
        # In a list, since it is frozen and must stay out of the module's parameters and checkpoints.
        self._perceptual: list[nn.Module | None] = [None]
        self.perceptual = perceptual
        self.perceptual_weights = perceptual_weights
        self.perceptual_weight = perceptual_weight
        self.perceptual_frames = perceptual_frames
        self.optimizer = optimizer
        self.discriminator_optimizer = discriminator_optimizer or optimizer
        self.warmup_steps = warmup_steps
        self.lr_schedule = lr_schedule
        self.gradient_clip_val = gradient_clip_val
        self.discriminator_gradient_clip_val = discriminator_gradient_clip_val
        self.reconstruction_weight = reconstruction_weight
        self.kl_weight = kl_weight
        self.adversarial_weight = adversarial_weight
        self.adversarial_start = adversarial_start
        self.adversarial_warmup = adversarial_warmup
        self.r1_weight = r1_weight
        self.r1_every = r1_every
        self.lecam_weight = lecam_weight
        self.seed = seed
        self.statistics_batches = statistics_batches

    def setup(self, stage: str) -> None:
        # Not in the constructor, since a plan must not need the weight file.
        self._perceptual = [perceptual_term(self.perceptual, self.perceptual_weights)]
        if self.discriminator is not None:
            # It has no gradients in the autoencoder's backward pass, and the autoencoder none in its own.
            ignore_in_ddp(self, "discriminator")

    def on_fit_start(self) -> None:
        if self.discriminator is not None:
            broadcast_weights(self.trainer.strategy, self.discriminator)

    # ---- Training -------------------------------------------------------------------------------------------------

    def training_step(self, batch: JointBatch, batch_idx: int) -> None:
        step = self.global_step
        optimizers = self._optimizers()
        use_discriminator = self.discriminator is not None and step >= self.adversarial_start
        # Read once the device has the autoencoder's step to do.
        paused = None if self.discriminator_pause.pause is None else HostCopy(self.discriminator_pause.paused)
        rng = PerSampleRNG(self.seed, step, batch.global_batch_index, batch.weight.device)
        weight = self._frame_weight(batch)
        reconstructions = self._reconstruct(batch, rng)
        self.toggle_optimizer(optimizers[0])
        gradients: dict[str, list[Tensor]] = {"reconstruction": [], "adversarial": []}
        outputs = _record_gradients([part.y for part in reconstructions], gradients["reconstruction"])
        watched = [Reconstruction(part.x, y, part.posterior) for part, y in zip(reconstructions, outputs, strict=True)]
        loss = self._autoencoder_loss(watched, weight, rng)
        if use_discriminator:
            fake = self._logits(_record_gradients([part.y for part in reconstructions], gradients["adversarial"]))
            adversarial = (generator_loss(fake) * weight).sum()
            loss = loss + self._adversarial_weight(step) * adversarial
            self.log("train/adversarial", adversarial)
        optimizers[0].zero_grad()
        self.manual_backward(loss)
        optimizers[0].step()
        self.untoggle_optimizer(optimizers[0])
        self.log("train/loss", loss, sync_dist=True)  # of the global batch; with prog_bar Lightning would read it in every step
        if use_discriminator:
            norms = [torch.stack(gradients[name]).sum().sqrt() for name in ("adversarial", "reconstruction")]
            self.log("train/gradient_ratio", norms[0] / norms[1])
            self._discriminator_step(optimizers[1], reconstructions, weight, step, paused is not None and bool(paused.read()))
        for scheduler in self._schedulers():
            scheduler.step()

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        # Clip here, after the callbacks have seen the unclipped gradients.
        self.log("train/gradient_norm", clip_gradients(self.vae.parameters(), self.gradient_clip_val))

    def _adversarial_weight(self, step: int) -> float:
        """Return the weight of the adversarial term at a step. It grows linearly, since an untrained discriminator is not yet useful."""
        since = step - self.adversarial_start + 1
        return self.adversarial_weight * min(1.0, since / max(1, self.adversarial_warmup))

    def _frame_weight(self, batch: JointBatch) -> Tensor:
        """Return each sample's share of the frames of the global batch, times the number of ranks, [s]; 0 for unreadable samples.

        The sum of values times weights is this rank's part of their mean over frames; the mean of all ranks' parts is that mean.
        """
        counts = [x.shape[2] for x in (batch.videos, batch.images) for _ in x]
        frames = to_device(torch.tensor(counts), batch.weight.device) * batch.weight
        total = self.trainer.strategy.reduce(frames.sum(), reduce_op="mean")
        return frames / total.clamp(min=1 / self.trainer.world_size)

    def _reconstruct(self, batch: JointBatch, rng: PerSampleRNG) -> list[Reconstruction]:
        """Encode, sample and decode the videos, then the images.

        Unreadable samples are included, so that all ranks make equal passes.
        """
        parts, start = [], 0
        for x in (batch.videos, batch.images):
            rows = slice(start, start + len(x))
            start += len(x)
            if not len(x):
                continue
            posterior = self.vae.encode(x)
            noise = torch.stack(rng.select(rows).randn([posterior.mean.shape[1:]] * len(x)))
            parts.append(Reconstruction(x, self.vae.decode(posterior.sample(noise)), posterior))
        return parts

    def _autoencoder_loss(self, reconstructions: list[Reconstruction], weight: Tensor, rng: PerSampleRNG) -> Tensor:
        """Return the loss without the adversarial term, and log its terms. `weight` [s] is that of `_frame_weight`."""
        errors = [squared_error(part.x, part.y) / part.x[0].numel() for part in reconstructions]
        kl = torch.cat([part.posterior.kl().flatten(1).sum(dim=1) / part.x[0].numel() for part in reconstructions])
        for part, error, share in zip(reconstructions, errors, weight.split([len(error) for error in errors]), strict=True):
            name = "video" if part.x.shape[2] > 1 else "image"
            self.log(f"train/mse_{name}", (error.detach() * share).sum() / share.sum().clamp(min=1e-12))
        terms = {"train/mse": (torch.cat(errors) * weight).sum(), "train/kl": (kl * weight).sum()}
        loss = self.reconstruction_weight * terms["train/mse"] + self.kl_weight * terms["train/kl"]
        if self._perceptual[0] is not None:
            distance = self._perceptual_distance(self._perceptual[0].to(self.device), reconstructions, rng)
            terms["train/perceptual"] = (distance * weight).sum()
            loss = loss + self.perceptual_weight * terms["train/perceptual"]
        self.log_dict(terms)
        return loss

    def _perceptual_distance(self, metric: nn.Module, reconstructions: list[Reconstruction], rng: PerSampleRNG) -> Tensor:
        """Return the mean perceptual distance of each sample, [s], over all of its frames or those drawn for this step."""
        distances, start = [], 0
        for part in reconstructions:
            rows = rng.select(slice(start, start + len(part.x)))
            start += len(part.x)
            chosen = None if self.perceptual_frames is None else rows.randperm(part.x.shape[2], self.perceptual_frames)
            distance: Tensor = metric(select_frames(part.y, chosen), select_frames(part.x, chosen))
            distances.append(distance.unflatten(0, (len(part.x), -1)).mean(dim=1))
        return torch.cat(distances)

    def _logits(self, clips: list[Tensor]) -> Tensor:
        assert self.discriminator is not None
        return torch.cat([self.discriminator(clip) for clip in clips])

    def _discriminator_step(self, optimizer: Any, reconstructions: list[Reconstruction], weight: Tensor, step: int, paused: bool) -> None:
        self.toggle_optimizer(optimizer)
        with torch.set_grad_enabled(not paused):
            real = self._logits([part.x for part in reconstructions])
            fake = self._logits([part.y.detach() for part in reconstructions])
        self._update_accuracy(real.detach(), fake.detach(), weight)
        if not paused:
            penalised = [part.x for part in reconstructions] if self.r1_weight > 0 and step % self.r1_every == 0 else []
            self._update_discriminator(optimizer, real, fake, weight, penalised)
        self.untoggle_optimizer(optimizer)

    def _update_accuracy(self, real: Tensor, fake: Tensor, weight: Tensor) -> None:
        """Log the discriminator's accuracy and update its pause.

        The accuracy is over all ranks, so that they all decide alike whether the discriminator trains on the next batch.
        """
        accuracy = self._global_mean(discriminator_accuracy(real, fake), weight)
        self.discriminator_pause.update(accuracy)
        means = [(logits * weight).sum() for logits in (real, fake)]
        self.log_dict({"train/logit_real": means[0], "train/logit_fake": means[1], "train/logit_gap": means[0] - means[1]})
        self.log_dict({"train/discriminator_accuracy": accuracy, "train/discriminator_paused": self.discriminator_pause.paused.float()})

    def _global_mean(self, values: Tensor, weight: Tensor) -> Tensor:
        """Return the mean of the samples' values [s] over the frames of the global batch."""
        mean: Tensor = self.trainer.strategy.reduce((values * weight).sum(), reduce_op="mean")
        return mean

    def _update_discriminator(self, optimizer: Any, real: Tensor, fake: Tensor, weight: Tensor, penalised: list[Tensor]) -> None:
        """Take one optimiser step of the discriminator.

        The penalty's gradients are added to those of this step, so learning rate and betas need no correction. StyleGAN2 corrects both by
        16/17, since its penalty has optimiser steps of its own. The penalty has a separate backward pass, so that its share of the norm
        can be logged.

        Args:
            optimizer: of the discriminator.
            real: logits of the clips, [s].
            fake: logits of the reconstructions, [s].
            weight: of each sample, [s].
            penalised: clips of the R1 penalty; empty for a step without it.
        """
        assert self.discriminator is not None
        loss = (discriminator_loss(real, fake) * weight).sum()
        if self.lecam_weight:
            loss = loss + self.lecam_weight * (self.lecam(real, fake) * weight).sum()
        self.log("train/discriminator_loss", loss)
        optimizer.zero_grad()
        with average_gradients(self.trainer.strategy, self.discriminator):
            self.manual_backward(loss)
        self.log("train/discriminator_gradient_norm", gradient_norm(self.discriminator.parameters()))
        if penalised:
            self._penalise(penalised, weight)
            self.log("train/discriminator_gradient_norm_with_r1", gradient_norm(self.discriminator.parameters()))
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # Lightning calls it only for the optimiser that counts steps
            callback.on_before_optimizer_step(self.trainer, self, optimizer.optimizer)
        norm = clip_gradients(self.discriminator.parameters(), self.discriminator_gradient_clip_val)
        # Not by Lightning's wrapper, which would count a second step. Ranks agree: gradients are averaged; 0 where the guard dropped them.
        taken = take_step(optimizer.optimizer, (norm > 0) & norm.isfinite())
        self.lecam.update(self._global_mean(real.detach(), weight), self._global_mean(fake.detach(), weight), taken)

    def _penalise(self, clips: list[Tensor], weight: Tensor) -> None:
        """Add the gradients of the lazy R1 penalty (StyleGAN2, arXiv 1912.04958, appendix B).

        It applies every `r1_every` steps, with its weight times `r1_every`.
        """
        assert self.discriminator is not None
        inputs = [x.detach().requires_grad_() for x in clips]
        penalty = (torch.cat([r1_penalty(x, self.discriminator(x)) for x in inputs]) * weight).sum()
        # The gradients of the loss are equal on all ranks by now: a second average leaves them as they are.
        with average_gradients(self.trainer.strategy, self.discriminator):
            self.manual_backward(self.r1_weight * self.r1_every * penalty)
        self.log("train/r1", penalty)

    def configure_optimizers(self) -> Any:
        check_groups(self.trainer.ckpt_path, self._networks)
        kinds = (self.optimizer, self.discriminator_optimizer)
        optimizers = [fuse_on_gpu(kind(parameter_groups(network))) for kind, network in zip(kinds, self._networks, strict=False)]
        total = int(self.trainer.max_steps)
        return optimizers, [learning_rate(optimizer, self.warmup_steps, total, self.lr_schedule) for optimizer in optimizers]

    @property
    def _networks(self) -> list[nn.Module]:
        """Networks in the order of their optimisers."""
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
            # Log also where no clip of this rank is readable, since all ranks must reduce the logged values in one order.
            found = psnr(self.vae.decode(self.vae.encode(x).mean).clamp(-1, 1), x).mean() if len(x) else 0.0
            self.log(f"val/psnr_{name}", found, batch_size=len(x), sync_dist=True, prog_bar=name == "video")

    def previews(self, batch: JointBatch) -> Mapping[str, tuple[Tensor, list[str], int]]:
        """Return clips for visual inspection: each original beside its reconstruction."""
        batch = first_videos(batch, 4)
        rows = torch.stack([batch.videos, self.measured_clips(batch)], dim=1).flatten(0, 1)
        return {"reconstruction": (rows, [c for caption in batch.captions for c in (caption, "reconstruction")], 2)}

    def measured_clips(self, batch: JointBatch) -> Tensor:
        """Return the reconstruction of each video of a batch, pixels [b 3 t h w] in -1..1."""
        return self.vae.decode(self.vae.encode(batch.videos).mean).clamp(-1, 1)

    def measured_config(self) -> dict[str, Any]:
        """Return the settings of `measured_clips`, for the artifact's card."""
        return {"clips": "reconstructions"}

    def components(self) -> Mapping[str, nn.Module]:
        """Return the models of the artifact by section name."""
        return {"vae": self.vae}

    def sampling_config(self) -> dict[str, Any]:
        """Return further plain sections of model.yaml."""
        return {}

    def extra_files(self) -> dict[str, bytes]:
        """Return further files of the artifact by name."""
        return {}

    def card_entries(self) -> dict[str, Any]:
        """Return the card's entries beside provenance: mean and standard deviation of each latent channel, on all ranks' training data."""
        sums = latent_sums(self._training_latents(), self.vae.latent_channels)
        return {"latents": latent_statistics(self.trainer.strategy.reduce(sums.to(self.device), reduce_op="sum").cpu())}

    def _training_latents(self) -> Iterator[Tensor]:
        loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
        return training_latents(self.vae, loader, self.statistics_batches, self.device)


def _record_gradients(clips: list[Tensor], squares: list[Tensor]) -> list[Tensor]:
    """Return views of clips for one term of the loss, and record the gradients of that term.

    Args:
        clips: inputs of the term.
        squares: the backward pass appends the squared norm of the gradient at each clip.
    """
    seen = [clip.view_as(clip) for clip in clips]
    for clip in seen:
        clip.register_hook(lambda gradient: squares.append(gradient.float().square().sum()))
    return seen
