"""Check arguments of the data module, with the keys that a person types in the messages."""

from collections.abc import Mapping, Sized

from walt_pl.data.batch import Kind


def check_counts(**counts: int) -> None:
    """Check numbers that may be 0.

    Raises:
        ValueError: one of them is negative.
    """
    for name, value in counts.items():
        if value < 0:
            raise ValueError(f"data.{name} must be at least 0, got {value}")


def check_seconds(**seconds: float) -> None:
    """Check times in seconds.

    Raises:
        ValueError: one of them is not above 0.
    """
    for name, value in seconds.items():
        if not value > 0:
            raise ValueError(f"data.{name} is in seconds and must be above 0, got {value:g}")


def check_shard_kinds(shards: Mapping[Kind, str], videos: int, image_stacks: int, has_buckets: bool) -> None:
    """Check that there are shards of each kind of a batch.

    Args:
        shards: pattern of the shards by kind.
        videos: videos of a batch.
        image_stacks: stacks of images of a batch.
        has_buckets: whether batches have sizes of their own.

    Raises:
        ValueError: a kind is missing or not in the batch, or there are buckets.
    """
    wanted = {"video": videos, "image": image_stacks}
    if has_buckets or set(shards) != {kind for kind, per_batch in wanted.items() if per_batch}:
        raise ValueError(
            "data.shards names the shards of each kind that the batch has, and data.buckets needs an index: "
            f"got {', '.join(shards) or 'no kind'} for {videos} videos and {image_stacks} stacks of images"
        )


def check_kinds(index: str, split: str, listed: Mapping[Kind, Sized], videos: int, images: int) -> None:
    """Check that there are entries of each kind of a batch.

    Args:
        index: path of the index.
        split: name of the split.
        listed: entries of each kind of a batch.
        videos: videos of a batch.
        images: images of a batch.

    Raises:
        ValueError: a kind has no entry.
    """
    keys: dict[Kind, tuple[str, int]] = {"video": ("videos_per_batch", videos), "image": ("image_stacks_per_batch", images)}
    for kind, (key, per_batch) in keys.items():
        if kind in listed and not len(listed[kind]):
            raise ValueError(
                f'{index}: split "{split}" has no {kind}s, but the batch wants {per_batch}; set data.{key} to 0, or add {kind}s to the '
                "source and type the index command again"
            )
