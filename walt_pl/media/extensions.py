"""Distinguish videos and images by the extension of a file's name."""

VIDEOS = frozenset(["mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "m2v", "ts", "m2ts", "wmv", "flv", "ogv", "3gp"])
IMAGES = frozenset(["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"])


def kind_of(name: str) -> str | None:
    """Return "video" or "image" by the ending of a file's name, None for others."""
    ending = name.rpartition(".")[2].lower()
    return "video" if ending in VIDEOS else "image" if ending in IMAGES else None
