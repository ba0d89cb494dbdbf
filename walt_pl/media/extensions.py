"""Distinguish videos and images by the extension of a file's name."""

from walt_pl.media.ffmpeg_filters import OVER_WHITE

VIDEOS = frozenset(["mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "m2v", "ts", "m2ts", "wmv", "flv", "ogv", "3gp"])
IMAGES = frozenset(["jpg", "jpeg", "png", "webp", "bmp", "tif", "tiff"])

NOT_READ = {
    "gif": f"ffmpeg -i a.gif {OVER_WHITE} a.mp4",
    "apng": f"ffmpeg -i a.apng {OVER_WHITE} a.mp4",
    **{ending: f"magick a.{ending} a.png" for ending in ("avif", "heic", "heif", "jxl", "jp2")},
    "psd": "magick 'a.psd[0]' a.png",
    "eps": "magick -density 150 a.eps a.png",
}
"""Endings of pictures that are not read, with a command that converts one."""


def ending_of(name: str) -> str:
    """Return the ending of a file's name in small letters, without its dot."""
    return name.rpartition(".")[2].lower()


def kind_of(name: str) -> str | None:
    """Return "video" or "image" by the ending of a file's name, None for others."""
    ending = ending_of(name)
    return "video" if ending in VIDEOS else "image" if ending in IMAGES else None
