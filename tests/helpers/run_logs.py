"""Logs of a training as TensorBoard's own writer leaves them, and the page of a report as Python's own parser reads it."""

import io
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

VOID = ("meta", "img", "source", "br", "hr", "link", "input")


def write_events(
    folder: Path,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    pictures: Mapping[str, Sequence[tuple[int, bytes]]] | None = None,
) -> Path:
    """Write an event file and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.glob("events*"))
    with SummaryWriter(str(folder)) as writer:
        for tag, points in curves.items():
            for step, value in points:
                writer.add_scalar(tag, value, step)
        for tag, shown in (pictures or {}).items():
            for step, content in shown:
                image = Summary.Image(height=8, width=8, colorspace=3, encoded_image_string=content)
                writer._get_file_writer().add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)
    (new,) = set(folder.glob("events*")) - before
    return new


def noise_gif(frames: int = 4, side: int = 48, comment: str = "", seed: int = 0) -> bytes:
    """Return a GIF of noise, which no coder makes much smaller."""
    values = np.random.default_rng(seed).integers(0, 256, (frames, side, side, 3), np.uint8)
    first, *others = [Image.fromarray(frame) for frame in values]
    file = io.BytesIO()
    first.save(file, format="GIF", save_all=True, append_images=others, duration=100, loop=0, comment=comment.encode())
    return file.getvalue()


class ReadPage(HTMLParser):
    """The elements of a page. An element that is closed in the wrong order is an error."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.headings: list[tuple[int, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if len(tag) == 2 and tag[0] == "h" and tag[1].isdigit():
            self.headings.append((int(tag[1]), ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if self.open and len(self.open[-1]) == 2 and self.open[-1][0] == "h" and self.open[-1][1].isdigit():
            level, title = self.headings[-1]
            self.headings[-1] = (level, title + data)

    def all(self, tag: str) -> list[dict[str, str]]:
        """Return the attributes of all elements of a name."""
        return [attributes for name, attributes in self.elements if name == tag]
