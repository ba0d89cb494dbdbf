"""Decide for every key of a training how serious its change is where a training goes on: the one table.

A new key needs a rule here. A key without a rule is listed and warned about. docs/CHECKPOINTS.md has the table in words.
"""

from dataclasses import dataclass
from enum import Enum


class Effect(Enum):
    """Effect of a changed key on a training that goes on."""

    SILENT = "silent"
    """It cannot change the result, or the content behind a path is compared by its hash. It is not listed."""
    LISTED = "listed"
    """The training goes on with the new value, as it was asked for. It is listed."""
    WARNED = "warned"
    """The training is not the one that was interrupted: other samples, noise or rounding. It is listed, with a warning."""
    REFUSED = "refused"
    """The weights were trained for another task. `--allow_changed true` goes on all the same."""
    UNLOADABLE = "unloadable"
    """The weights or moments have other shapes and cannot be loaded. It is always refused."""


@dataclass(frozen=True)
class Rule:
    """The effect of some keys."""

    effect: Effect
    keys: tuple[str, ...]
    """Names of keys; `NAME.*` stands for all keys below NAME."""
    consequence: str
    """Consequence of a change, shown behind the two values; for silent keys the reason why there is none."""

    def holds_for(self, key: str) -> bool:
        """Return whether this rule is about a key."""
        return key in self.keys or any(name.endswith(".*") and key.startswith(name[:-1]) for name in self.keys)


UNKNOWN = Rule(Effect.WARNED, (), "this program does not know its effect")
"""Rule of keys that have none."""

_SILENT = (
    Rule(
        Effect.SILENT,
        (
            "run",
            "stage",
            "extends",
            "init",
            "rescue",
            "from_scratch",
            "allow_stale",
            "allow_changed",
            "ckpt_path",
            "weights_only",
        ),
        "says where training starts and where files lie",
    ),
    Rule(Effect.SILENT, ("seed_everything",), "data.seed and model.seed have its value"),
    Rule(Effect.SILENT, ("data.index", "data.vae", "data.cache_dir", "model.vae", "model.base"), "a path; the content is compared"),
    Rule(Effect.SILENT, ("data.num_classes",), "model.denoiser.num_classes is compared"),
    Rule(Effect.SILENT, ("model.text.path", "model.text_path"), "a path; the encoder's files are compared"),
    Rule(
        Effect.SILENT,
        ("data.num_workers", "data.timeout", "data.worker_patience"),
        "samples do not depend on the processes that read them",
    ),
    Rule(Effect.SILENT, ("model.preview_steps", "previews.every_n_validations", "throughput.*", "metrics.*"), "for inspection only"),
    Rule(Effect.SILENT, ("previews.prompts",), "a path; the content is compared"),
    Rule(Effect.SILENT, ("model.denoiser.activation_checkpointing", "ema.cpu"), "saves memory only"),
    Rule(
        Effect.SILENT,
        (
            *("checkpoint.dirpath", "checkpoint.every_n_minutes", "checkpoint.keep", "checkpoint.retry_minutes"),
            *("checkpoint.monitor", "checkpoint.mode"),
        ),
        "says which checkpoints there are",
    ),
    Rule(
        Effect.SILENT,
        (
            *("logger", "trainer.logger", "trainer.logger.*", "trainer.log_every_n_steps", "trainer.enable_checkpointing"),
            *("trainer.enable_progress_bar", "trainer.enable_model_summary", "trainer.profiler", "trainer.profiler.*"),
            *("trainer.default_root_dir", "trainer.enable_autolog_hparams", "trainer.model_registry", "trainer.detect_anomaly"),
            *("trainer.barebones", "trainer.fast_dev_run"),
        ),
        "says what is shown and kept",
    ),
    Rule(
        Effect.SILENT,
        (
            *("trainer.num_sanity_val_steps", "trainer.val_check_interval", "trainer.check_val_every_n_epoch"),
            *("trainer.limit_val_batches", "trainer.limit_test_batches", "trainer.limit_predict_batches", "trainer.inference_mode"),
        ),
        "a validation does not change the training",
    ),
    Rule(
        Effect.SILENT,
        ("trainer.max_epochs", "trainer.min_epochs", "trainer.min_steps", "trainer.max_time"),
        "says when training ends",
    ),
    Rule(Effect.SILENT, ("trainer.devices", "trainer.num_nodes"), "the number of ranks is compared"),
    Rule(Effect.SILENT, ("trainer.strategy.timeout",), "says how long a rank waits for another"),
    Rule(
        Effect.SILENT,
        ("trainer.gradient_clip_val", "trainer.gradient_clip_algorithm", "trainer.use_distributed_sampler"),
        "the program has its own: model.gradient_clip_val, and its sampler",
    ),
)

_LISTED = (
    Rule(Effect.LISTED, ("trainer.max_steps",), "the cosine ends there"),
    Rule(Effect.LISTED, ("model.warmup_steps", "model.lr_schedule"), "another learning rate from here on"),
    Rule(Effect.LISTED, ("model.optimizer.*", "model.discriminator_optimizer.*"), "from here on, with the moments of before"),
    Rule(
        Effect.LISTED,
        ("model.gradient_clip_val", "model.discriminator_gradient_clip_val"),
        "another limit of the gradients from here on",
    ),
    Rule(
        Effect.LISTED,
        (
            *("model.reconstruction_weight", "model.kl_weight", "model.perceptual", "model.perceptual_weights"),
            *("model.perceptual_weight", "model.perceptual_frames", "model.adversarial_weight", "model.adversarial_start"),
            *("model.adversarial_warmup", "model.discriminator_pause", "model.discriminator_resume"),
            *("model.r1_weight", "model.r1_every", "model.lecam_weight", "model.lecam_decay"),
        ),
        "another loss from here on",
    ),
    Rule(Effect.LISTED, ("model.statistics_batches",), "the artifact's latent statistics"),
    Rule(Effect.LISTED, ("model.diffusion.noise_aug_level", "model.diffusion.guidance.*"), "sampling and previews"),
    Rule(Effect.LISTED, ("previews.prompts_sha256",), "previews show other prompts"),
    Rule(Effect.LISTED, ("data.val_videos",), "figures of validations do not compare"),
    Rule(Effect.LISTED, ("checkpoint.every_n_train_steps",), "the spike guard rolls back to these"),
    Rule(
        Effect.LISTED,
        ("trainer.ranks", "trainer.strategy", "trainer.strategy.*"),
        "the same samples and noise; sums are rounded in another order",
    ),
    Rule(Effect.LISTED, ("trainer.callbacks", "trainer.callbacks.*"), "callbacks of your own"),
)

_WARNED = (
    Rule(Effect.WARNED, ("data.index_sha256",), "other clips, captions or labels"),
    Rule(Effect.WARNED, ("data.quarantine_sha256",), "other files are left out; the order continues"),
    Rule(Effect.WARNED, ("data.selection_sha256", "data.cache_clips"), "other clips and images are used"),
    Rule(Effect.SILENT, ("data.allow_schemes",), "it says from where files may be read"),
    Rule(Effect.WARNED, ("data.max_pixels",), "larger files are left out"),
    Rule(Effect.WARNED, ("data.background", "data.deinterlace"), "other pixels of the files that they concern"),
    Rule(Effect.WARNED, ("data.shards",), "other clips, in another order"),
    Rule(
        Effect.WARNED,
        ("data.videos_per_batch", "data.image_stacks_per_batch", "data.images_per_stack"),
        "the order continues, in other batches",
    ),
    Rule(
        Effect.WARNED,
        (
            *("data.size", "data.frames", "data.aspect", "data.buckets", "data.low_res_size", "data.fps", "data.stride"),
            *("data.flip", "data.crop", "data.sizes", "data.views"),
        ),
        "other frames or crops of the clips",
    ),
    Rule(Effect.WARNED, ("data.seed",), "not the order and crops of before"),
    Rule(Effect.WARNED, ("model.seed",), "not the noise of before"),
    Rule(
        Effect.WARNED,
        ("model.condition_dropout", "model.denoiser.self_conditioning", "model.denoiser.frame_prediction"),
        "other draws in every step",
    ),
    Rule(Effect.WARNED, ("model.diffusion.noise_aug_max", "model.diffusion.context_frames"), "other noise or context in every step"),
    Rule(
        Effect.WARNED,
        (
            *("trainer.precision", "trainer.accelerator", "trainer.deterministic", "trainer.benchmark", "trainer.sync_batchnorm"),
            *("trainer.plugins", "trainer.plugins.*", "model.compile", "model.denoiser.attention", "model.text.dtype"),
            "float32_matmul_precision",
        ),
        "numbers are rounded otherwise",
    ),
    Rule(Effect.WARNED, ("trainer.accumulate_grad_batches",), "a step has another number of batches"),
    Rule(
        Effect.WARNED,
        ("trainer.limit_train_batches", "trainer.overfit_batches", "trainer.reload_dataloaders_every_n_epochs"),
        "other batches in an epoch",
    ),
    Rule(Effect.WARNED, ("ema.decay", "ema.warmup"), "another average; 0 is none, and after none it begins with the weights of this step"),
    Rule(Effect.WARNED, ("spike_guard.*",), "other steps may be skipped"),
)

_REFUSED = (
    Rule(Effect.REFUSED, ("model",), "the weights are those of another kind of stage"),
    Rule(Effect.REFUSED, ("model.diffusion.normalize_latents",), "the latents that the weights know have another scale"),
    Rule(Effect.REFUSED, ("model.diffusion.objective",), "the network was trained to predict something else"),
    Rule(Effect.REFUSED, ("model.diffusion.zero_terminal_snr",), "the weights know other noise levels"),
    Rule(
        Effect.REFUSED,
        ("model.text", "model.text.kind", "model.text.max_length", "model.text.num_heads"),
        "the denoiser was trained with other text tokens",
    ),
    Rule(
        Effect.REFUSED,
        ("tokenizer.model",),
        "edited in the run's folder; the weights know the checkpoint's",
    ),
    Rule(Effect.REFUSED, ("data.classes_sha256",), "labels mean other classes"),
    Rule(Effect.REFUSED, ("parents.*",), "the weights were trained with another parent"),
    Rule(
        Effect.REFUSED,
        ("model.denoiser.num_heads", "model.denoiser.qk_norm", "model.denoiser.stw_cross_attention", "model.vae.norm", "model.vae.strides"),
        "the weights would compute something else",
    ),
    Rule(Effect.REFUSED, ("model.optimizer", "model.discriminator_optimizer"), "the moments are those of another optimiser"),
)

_UNLOADABLE = (
    Rule(
        Effect.UNLOADABLE,
        (
            *("model.vae.width", "model.vae.channel_multipliers", "model.vae.num_res_blocks", "model.vae.num_middle_blocks"),
            *("model.vae.latent_channels", "model.vae.time_kernel", "model.discriminator", "model.discriminator.*"),
            *("model.denoiser.width", "model.denoiser.depth", "model.denoiser.mlp_width", "model.denoiser.latent_channels"),
            *("model.denoiser.size", "model.denoiser.patch_size", "model.denoiser.window_size", "model.denoiser.lora_rank"),
            *("model.denoiser.num_classes", "model.denoiser.text_width", "model.denoiser.super_resolution"),
            *("model.text.width", "model.text.depth", "model.text.vocab_size"),
        ),
        "the weights have other shapes",
    ),
)

RULES = (*_SILENT, *_LISTED, *_WARNED, *_REFUSED, *_UNLOADABLE)


def rule_of(key: str) -> Rule:
    """Return the rule of a key; `UNKNOWN` if it has none."""
    return next((rule for rule in RULES if rule.holds_for(key)), UNKNOWN)
