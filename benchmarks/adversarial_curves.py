"""Draw how a discriminator fared in a training: accuracy, gap of the logits, R1 and the ratio of gradients, from TensorBoard's files.

python -m benchmarks.adversarial_curves runs/shapes/training/vae_gan --out docs/vae_gan_shapes.png
"""

import argparse
from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CURVES = {
    "train/discriminator_accuracy": "accuracy",
    "train/logit_gap": "gap of the logits, real minus reconstructed",
    "train/r1": "R1, squared slope at real clips",
    "train/gradient_ratio": "gradient at the pixels, adversarial / reconstruction",
}


def read_curve(folder: Path, tag: str) -> tuple[list[int], list[float]]:
    """Steps and values of a tag, over all starts of a training."""
    points: dict[int, float] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        if tag in events.Tags()["scalars"]:
            points |= {event.step: event.value for event in events.Scalars(tag)}
    if not points:
        raise SystemExit(f"{folder}: no values of {tag}; name the training folder of an autoencoder with a discriminator")
    return sorted(points), [points[step] for step in sorted(points)]


def main() -> None:
    """Parse the arguments and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="training folder, e.g. runs/shapes/training/vae_gan")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    arguments = parser.parse_args()
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 6), layout="constrained")
    for axis, (tag, title) in zip(axes.flat, CURVES.items(), strict=True):
        axis.plot(*read_curve(arguments.folder, tag), marker=".")
        axis.set(title=title, xlabel="step")
        axis.set_yscale("log" if tag in ("train/r1", "train/gradient_ratio") else "linear")
    figure.savefig(arguments.out, dpi=90)
    print(f"look at {arguments.out}")


if __name__ == "__main__":
    main()
