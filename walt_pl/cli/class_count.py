"""Tell the data module the number of classes of the stage's model."""

from typing import Any


def fill_classes(options: Any) -> None:
    """Set data.num_classes to the number of classes of the denoiser; null for stages without classes.

    Args:
        options: parsed arguments.

    Raises:
        ValueError: data.num_classes says otherwise.
    """
    denoiser = options.model.init_args.get("denoiser")
    classes = denoiser.num_classes or None if denoiser is not None else None
    given = options.data.num_classes
    if given not in (None, classes):
        raise ValueError(
            f"data.num_classes is {given}, model.denoiser.num_classes {classes}: they are one number; leave data.num_classes out"
        )
    options.data.num_classes = classes
