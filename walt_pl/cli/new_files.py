"""Text of the files that `walt new` writes: the YAML of an experiment, with a comment beside each key that one will want to change."""

import json
from dataclasses import dataclass

from walt_pl.cli.new_choices import Choices

STEPS = {"vae": 20_000, "base": 40_000, "sr": 30_000}
"""Steps of a set that is not small."""
BATCH = {"vae": 8, "base": 32, "sr": 16}
"""Clips, or stacks of images, of a step."""
EPOCHS = 2000
"""Passes over a small set, which has fewer steps: those of UCF-101's autoencoder in the paper."""
LEAST_STEPS = 2000
ADAMW = "{class_path: torch.optim.AdamW, init_args: {lr: 3.0e-4, weight_decay: 0.01}}"

DATA = """\
# Data of {name}: {counts} to train on.
# Written by walt new, from {source}.
# No stage of its own; laid under the stages of this folder by their key `extends`.
# Type the command of the index again after adding files: {index_command}
data:
  index: {index}
  frames: {frames}{frames_note}
{fps}  aspect: {aspect}  # columns per row, at every size; {picture}
  val_videos: {val_videos}  # clips of split val that are validated on; 0 for none
  num_workers: 2  # processes that read ahead, on each GPU: up to its share of the processors
"""

VAE = """\
# Autoencoder of {name}: {factors}, windows of {crop} px cut from clips of {sizes_shown} rows. One autoencoder serves all sizes.
# {train}. Not yet run. {plan}
# The losses are pixels and KL alone, which blurs detail. docs/ADVERSARIAL.md adds LPIPS and a discriminator.
extends: [data.yaml]
model:
  class_path: stages.vae.VAEStage
  init_args:
    vae:
      width: 32  # channels at full resolution; 64 is experiments/common/vae_light.yaml, 128 the paper's. More detail, for 4 times the FLOPs
      channel_multipliers: {multipliers}
      strides: {strides}  # time, rows, columns: {factors} in all; the sizes of base and sr follow from them
      num_res_blocks: {blocks}
      num_middle_blocks: 2
      time_kernel: {time_kernel}
    optimizer: {optimizer}
    warmup_steps: {warmup}
    reconstruction_weight: 20.0  # pixels in 0..1: 5 of pixels in -1..1
    adversarial_weight: 0.0  # 0: no discriminator
data:
  size: {size}
  sizes: {sizes}  # further sizes that the windows are cut from: those of the super-resolution stages
  crop: {crop}
  {batch}
trainer: {{max_steps: {steps}, val_check_interval: {interval}}}  # more steps for a large set: 1,000,000 of 256 clips in the paper
ema: {{decay: 0.999, warmup: 10}}
"""

BASE = """\
# Base model of {name}: {clip}, {condition}.
# {train}, after the autoencoder. Not yet run. {plan}
# Latents are cached for {views}: {disk}, {bytes:,} bytes each.
extends: [data.yaml]
model:
  class_path: stages.base.BaseStage
  init_args:
    denoiser:
      width: 512  # channels, a multiple of num_heads; the paper's L has 1024, its text-to-video model 1792
      depth: 12  # layers; L has 24, the text-to-video model 52
      num_heads: 8  # L has 16
      size: {latents}  # 1 + (frames - 1) / 4 latent frames, then rows and columns of data.size by the strides of the autoencoder
      patch_size: 1
      window_size: {window}  # tokens of a window: divides size / patch_size{window_note}
{task_keys}      activation_checkpointing: true  # false is about a quarter faster and takes several times the memory
{text}    optimizer: {optimizer}
    warmup_steps: {warmup}
{guidance}data:
  size: {size}  # rows of the frames
  views: {view_count}{view_note}
  {batch}
trainer: {{max_steps: {steps}, val_check_interval: {interval}}}  # 60,000 to 550,000 in the paper
ema: {{decay: 0.999, warmup: 10}}
"""

SR1 = """\
# Super-resolution of {name}: {low_res} to {high_res}.
# {train}, after the base. Not yet run. {plan}
# Latents are cached for {views}: {disk}, {bytes:,} bytes each; the small ones are those of the base, while both have as many views.
extends: [data.yaml]
model:
  class_path: stages.super_resolution.SuperResolutionStage
  init_args:
    denoiser:
      width: 384  # channels, a multiple of num_heads; the paper's has 1408
      depth: 12  # layers; the paper's has 40
      num_heads: 6
      size: {latents}  # twice the rows and columns of the stage below
      patch_size: {patch}  # twice that of the stage below: as many tokens
      window_size: {window}
{task_keys}      super_resolution: true
      activation_checkpointing: true
    optimizer: {optimizer}
    warmup_steps: {warmup}
data:
  size: {size}
  low_res_size: {low_res_size}  # size of the stage below
  views: {view_count}  # as in base.yaml
  {batch}
trainer: {{max_steps: {steps}, val_check_interval: {interval}}}
ema: {{decay: 0.999, warmup: 10}}
"""

SR_ABOVE = """\
# Super-resolution of {name}: {low_res} to {high_res}.
# {train}, after the base. Not yet run. {plan}
# Latents are cached for {views}: {disk}, {bytes:,} bytes each.
extends: [sr1.yaml]
model: {{init_args: {{denoiser: {{size: {latents}, patch_size: {patch}}}}}}}  # the other keys are those of sr1.yaml
data: {{size: {size}, low_res_size: {low_res_size}}}
"""


@dataclass(frozen=True)
class Experiment:
    """The experiment that the files describe."""

    name: str
    source: str
    """The words of the command after NAME, as typed."""
    index: str
    index_command: str
    has_make: bool
    """The stages are trained with make, as in a checkout."""

    def train(self, stage: str) -> str:
        """Return the command that trains a stage."""
        if self.has_make:
            return f"make train-{'sr' if stage.startswith('sr') else stage} EXP={self.name}"
        return f"walt fit --config experiments/{self.name}/{stage}.yaml"

    def plan(self, stage: str) -> str:
        """Return the command that says the cost of a stage."""
        return f"make plan EXP={self.name} STAGE={stage}" if self.has_make else f"walt plan --config experiments/{self.name}/{stage}.yaml"


def stage_files(experiment: Experiment, choices: Choices) -> dict[str, str]:
    """Return the text of each file of an experiment by its name: data.yaml, and a file for each stage in the order of training."""
    files = {"data.yaml": _data(experiment, choices), "vae.yaml": _vae(experiment, choices), "base.yaml": _base(experiment, choices)}
    for number in range(1, choices.scale.doublings + 1):
        files[f"sr{number}.yaml"] = _sr(experiment, choices, number)
    return files


def _data(experiment: Experiment, choices: Choices) -> str:
    rate = f"  fps: {choices.fps:g}  # frames read per second of every video, whatever its own rate\n" if choices.fps else ""
    counts = [f"{count:,} {kind}s" for kind, count in (("video", choices.videos), ("image", choices.images)) if count]
    note = "  # 1 + a multiple of 4; size and window_size of the denoisers follow from it" if choices.frames > 1 else ""
    return DATA.format(
        name=experiment.name,
        counts=" and ".join(counts),
        source=_in_a_comment(experiment.source),
        index_command=_in_a_comment(experiment.index_command),
        index=experiment.index,
        frames=choices.frames,
        frames_note=note,
        fps=rate,
        aspect=choices.aspect,
        picture=choices.picture.name,
        val_videos=choices.val_videos,
    )


def _in_a_comment(text: str) -> str:
    """Return a text for a comment of YAML. A folder may have any name, with line ends in it, too."""
    return text if text.isprintable() else json.dumps(text)


def _vae(experiment: Experiment, choices: Choices) -> str:
    (rows, columns), factor = choices.pixels(0), choices.scale.factor
    levels = 3 if factor == 8 else 2
    sizes = [choices.pixels(number)[0] for number in range(choices.scale.doublings + 1)]
    halvings = {1: [0, 0, 0], 2: [1, 1], 3: [0, 1, 1]}[levels]
    strides = [[2 if time and choices.frames > 1 else 1, 2, 2] for time in halvings]
    return VAE.format(
        factors=f"{factor} x {factor} x 4" if choices.frames > 1 else f"{factor} x {factor}",
        crop=min(rows, columns),
        sizes_shown=", ".join(map(str, sizes)),
        multipliers=[1, 2, 3, 6] if levels == 3 else [1, 2, 4],
        strides=strides,
        blocks=[2, 2, 3, 3] if levels == 3 else [2, 2, 3],
        time_kernel=3 if choices.frames > 1 else 1,
        size=rows,
        sizes=sizes[1:],
        **_common(experiment, choices, "vae"),
    )


def _base(experiment: Experiment, choices: Choices) -> str:
    rows, columns = choices.pixels(0)
    length = f"{choices.frames} frames of " if choices.frames > 1 else ""
    text = choices.text
    encoder = (
        f"    text:  # a small encoder that is trained here; a pretrained T5 or CLIP: docs/TEXT_ENCODERS.md\n"
        f"      {{width: 256, depth: 4, num_heads: 4, vocab_size: {text.vocab_size}, max_length: {text.max_length}}}\n"
        if text
        else ""
    )
    guidance = "    diffusion: {guidance: {scale: 2.0}}  # of previews and samples; larger follows the condition more closely\n"
    note = "  # windows of each clip; an epoch reads one. More take more disk"
    return BASE.format(
        clip=f"{length}{rows} rows x {columns} columns",
        condition={"text": "from a caption", "class": "from a class", "unconditional": "without text or class"}[choices.task],
        text=encoder,
        guidance=guidance if choices.task != "unconditional" else "",
        window_note="; one frame makes all layers spatial" if choices.latent_frames == 1 else "",
        view_note=note,
        size=rows,
        **_latents(choices, 0),
        **_common(experiment, choices, "base"),
    )


def _sr(experiment: Experiment, choices: Choices, number: int) -> str:
    (low_rows, low_columns), (rows, columns) = choices.pixels(number - 1), choices.pixels(number)
    return (SR1 if number == 1 else SR_ABOVE).format(
        low_res=f"{low_rows} rows x {low_columns} columns",
        high_res=f"{rows} x {columns}",
        patch=1 << number,
        size=rows,
        low_res_size=low_rows,
        **_latents(choices, number),
        **_common(experiment, choices, f"sr{number}"),
    )


def _latents(choices: Choices, doublings: int) -> dict[str, object]:
    """Return what a diffusion stage says about its latents."""
    (rows, columns), frames = choices.tokens(), choices.latent_frames
    latents = [frames, rows << doublings, columns << doublings]
    window = [side // choices.scale.divisor for side in choices.picture.window] if frames > 1 else [rows, columns]
    clips, size = choices.videos, 2 * 8 * latents[0] * latents[1] * latents[2] + 4
    pictures = choices.images * (size // frames)
    condition = {"text": "      text_width: 256  # text.width of base.yaml\n", "class": f"      num_classes: {choices.num_classes}\n"}
    return {
        "latents": latents,
        "window": [frames, *window],
        "task_keys": condition.get(choices.task, ""),
        "view_count": choices.views,
        "views": f"{choices.views} view{'s' * (choices.views > 1)} of {clips + choices.images:,} clips"
        if clips
        else f"{choices.images:,} images",
        "disk": f"{(clips * size + pictures) * choices.views / 1e9:.2g} GB",
        "bytes": size,
    }


def _common(experiment: Experiment, choices: Choices, stage: str) -> dict[str, object]:
    """Return the keys that all stages have."""
    kind = stage[:2] if stage.startswith("sr") else stage
    batch = BATCH[kind]
    trained = choices.videos or choices.images
    steps = min(STEPS[kind], max(LEAST_STEPS, EPOCHS * trained // batch // 100 * 100))
    if not choices.videos:
        batches = f"videos_per_batch: 0\n  image_stacks_per_batch: {batch * 4}  # of one image\n  images_per_stack: 1"
    elif choices.images:
        videos, stacks = batch * 3 // 4, batch // 4
        batches = (
            f"videos_per_batch: {videos}  # lower it if the memory of the GPU does not suffice\n"
            f"  image_stacks_per_batch: {stacks}  # of images_per_stack images each: as many as a video has latent frames\n"
            f"  images_per_stack: {choices.latent_frames}"
        )
    else:
        batches = f"videos_per_batch: {batch}  # lower it if the memory of the GPU does not suffice\n  image_stacks_per_batch: 0"
    return {
        "name": experiment.name,
        "train": experiment.train(stage),
        "plan": f"{experiment.plan(stage)} says what it costs.",
        "optimizer": ADAMW,
        "warmup": min(1000, steps // 10),
        "batch": batches,
        "steps": steps,
        "interval": max(1, steps // 10),
    }
