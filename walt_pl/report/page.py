"""Write the report of a run: one HTML file without scripts and without references to other files, of limited size."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from walt_pl import __version__
from walt_pl.files import write_whole
from walt_pl.report.blocks import Block, Group, Page, Plot, Plots, Section, Text, pictures_of, shorten
from walt_pl.report.budget import base64_bytes, encode_pictures
from walt_pl.report.run_contents import RunContents, read_run
from walt_pl.report.sections import (
    chain_section,
    changes_section,
    data_section,
    environment_section,
    incidents_section,
    metrics_section,
    samples_section,
)
from walt_pl.report.training_section import training_section

MOST_BYTES = 10_000_000
"""Bytes of the page."""
PLOT_BYTES = 4_000_000
"""Bytes of the base64 text of all plots; further ones are left out."""
RESERVE = 100_000
"""Bytes that are kept free for the sentences about pictures that are left out."""
MOST_PROBLEMS = 100
"""Problems that are listed."""
_MIME = {"svg": "image/svg+xml", "webp": "image/webp"}


@dataclass(frozen=True)
class WrittenReport:
    """A report that was written."""

    path: Path
    bytes: int
    left_out: int
    """Plots and pictures that were left out."""
    problems: int
    """Files that could not be read whole."""


def write_report(folder: Path, out: Path, stages: Sequence[str] = ()) -> WrittenReport:
    """Write the report of a run, whole or not at all.

    Args:
        folder: folder of the run, which may be unfinished.
        out: the HTML file.
        stages: stages of its experiment, which may not have begun.

    Raises:
        ManifestError: there is no run in the folder.
        ValueError: `out` is no HTML file.
        OSError: the file cannot be written.
    """
    if out.suffix != ".html":
        raise ValueError(f"report: --out must end in .html, got {out}")
    page = describe_run(read_run(folder, stages))
    html, left_out = fit_page(page)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_whole(out, html)
    return WrittenReport(out, len(html), left_out, len(page.problems))


def describe_run(run: RunContents) -> Page:
    """Return the page of a run, with its moving pictures not yet encoded."""
    sections = [
        chain_section(run),
        training_section(run),
        samples_section(run),
        metrics_section(run),
        data_section(run),
        incidents_section(run),
        changes_section(run),
        environment_section(run),
    ]
    done = sum(row.state == "done" for row in run.rows)
    incidents = sum(logs.incident_count for logs in run.trainings.values())
    summary = [
        f"{done} of {len(run.rows)} stages are done.",
        f"{incidents:,} incidents.",
        f"Written {datetime.now(UTC):%Y-%m-%d %H:%M} UTC by walt {__version__}.",
    ]
    return Page(shorten(run.folder.resolve().name), summary, sections, [shorten(problem) for problem in run.problems])


def fit_page(page: Page, most: int = MOST_BYTES) -> tuple[bytes, int]:
    """Return the page as HTML of at most `most` bytes, and the number of plots and pictures that were left out.

    Text comes first, then plots, and moving pictures take the room that is left.

    Raises:
        ValueError: the text alone is larger.
    """
    sections, lost = _limit_plots(page.sections, min(PLOT_BYTES, most // 2))
    page = replace(page, sections=sections)
    pictures = [picture for section in sections for picture in pictures_of(section.blocks)]
    text = len(render_page(page))
    page.problems.extend(encode_pictures(pictures, max(0, most - text - RESERVE)))
    html = render_page(page)
    if len(html) > most:
        raise ValueError(f"report: the page has {len(html):,} bytes without all that can be left out, at most {most:,} wanted")
    return html, lost + sum(bool(picture.left_out) for picture in pictures)


def render_page(page: Page) -> bytes:
    """Return the page as HTML. The template escapes every text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = _data_uri
    css = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
    template = environment.get_template("page.html.j2")
    # A lone surrogate of a file's name has no UTF-8 form.
    return template.render(page=page, css=css, most_problems=MOST_PROBLEMS).encode("utf-8", errors="replace")


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{_MIME[kind]};base64,{base64.b64encode(content).decode()}"


def _limit_plots(sections: Sequence[Section], room: int) -> tuple[list[Section], int]:
    """Return the sections with the plots that fit into a number of bytes, in their order, and the number of the others."""
    left = [room, 0]
    return [replace(section, blocks=_keep_plots(section.blocks, left)) for section in sections], left[1]


def _keep_plots(blocks: Sequence[Block], left: list[int]) -> list[Block]:
    kept: list[Block] = []
    for block in blocks:
        if isinstance(block, Group):
            kept.append(replace(block, blocks=_keep_plots(block.blocks, left)))
        elif isinstance(block, Plots):
            plots = list(_fitting(block.plots, left))
            lost = len(block.plots) - len(plots)
            left[1] += lost
            kept += [Plots(plots)] if plots else []
            kept += [Text(f"{lost} plots are left out to keep the page small.")] if lost else []
        else:
            kept.append(block)
    return kept


def _fitting(plots: Sequence[Plot], left: list[int]) -> Iterator[Plot]:
    for plot in plots:
        size = base64_bytes(len(plot.svg))
        if size <= left[0]:
            left[0] -= size
            yield plot
