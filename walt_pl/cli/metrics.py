"""Compare sets of clips by published metrics: ``walt metrics --real SOURCE --generated SOURCE --metric fvd``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from walt_pl.cli.console import print_table
from walt_pl.cli.function_command import call
from walt_pl.evaluation.card import MetricCard, read_cards, write_cards
from walt_pl.evaluation.draws import describe_pairs, draw_generated, draw_pairs, draw_real
from walt_pl.evaluation.measuring import measure
from walt_pl.evaluation.ranks import Ranks, local_device
from walt_pl.evaluation.results import render_cards
from walt_pl.evaluation.rows import MeasureOptions
from walt_pl.evaluation.run_source import open_samples
from walt_pl.evaluation.source import ClipSource, Drawn
from walt_pl.evaluation.sources import is_run, open_source
from walt_pl.metrics.catalog import choose_metrics
from walt_pl.metrics.extractors.choice import ExtractorOptions, choose_extractors
from walt_pl.metrics.protocol import PRESETS, EvaluationProtocol, Resize, resolve_protocol
from walt_pl.untrusted import UntrustedError


def metrics(
    real: str | None = None,
    generated: str | None = None,
    metric: str = "fvd",
    preset: str | None = None,
    extractor: str | dict[str, str] | None = None,
    extractor_kind: str | None = None,
    extractor_sha256: str | dict[str, str] | None = None,
    split: str | None = None,
    frames: int | None = None,
    stride: int | None = None,
    clips: int | None = None,
    folds: int | None = None,
    size: int | list[int] | None = None,
    resize: Resize | None = None,
    seed: int | None = None,
    batch: int = 16,
    device: str | None = None,
    cache: str = "data/metrics",
    out: str | None = None,
) -> None:
    """Compare generated clips with real ones. Stopped, the same command goes on. See also: walt metrics compare, walt metrics selftest.

    Args:
        real: real clips: folder of videos or images, data index (.parquet), or array (.npz, .npy). Metrics such as is and clip need none.
        generated: clips to measure, likewise; or the folder of a run, from which samples are made (walt evaluate has more options for it).
        metric: names between commas, such as fvd,kvd.
        preset: published protocol by name (docs/EVALUATION.md). The other options change it, and the card then names no preset.
        extractor: file of the network, or files by kind: '{"i3d": "i3d_torchscript.pt"}'. Its hash is compared before it is loaded.
        extractor_kind: kind of the network, where several give the rows: videomae in place of i3d.
        extractor_sha256: hash of a file that is not a published one, or hashes by kind.
        split: split of an index.
        frames: frames of a clip; 1 for images.
        stride: distance between frames of a real clip, in frames of the file.
        clips: clips of a fold, on both sides.
        folds: folds with clips of their own, over which the mean is taken.
        size: rows and columns that both sides are scaled to, e.g. 128 or '[128, 160]'.
        resize: resize from there to the input of the network: tf1, half_pixel, inside or short_side.
        seed: seed of the draws.
        batch: number of clips that are read and computed at a time.
        device: device to run on; a GPU if there is one when not given.
        cache: folder of computed rows, which later commands use again.
        out: file of the card, or of a list of cards. An existing one is replaced if it is a file of cards. Printed only when not given.
    """
    if generated is None:
        raise ValueError("metrics: name the clips to measure: --generated FOLDER")
    if batch < 1:
        raise ValueError(f"metrics: --batch must be at least 1, got {batch}")
    _check_out(out)
    changes = _changes(preset, clips, size, split=split, frames=frames, stride=stride, folds=folds, resize=resize, seed=seed)
    name, protocol = resolve_protocol(preset, **changes)
    chosen = choose_metrics(metric)
    missing = [one.name for one in chosen if one.real_side and real is None]
    if missing:
        raise ValueError(f"metrics: {missing[0]} compares with real clips: name them with --real")
    ranks = Ranks.from_environment()
    device = local_device(device)
    options = ExtractorOptions(extractor, extractor_kind, extractor_sha256)
    extractors = choose_extractors(chosen, options, protocol, protocol.frames == 1, device)
    name, protocol = _pair(name, protocol, any(one.of_pairs for one in extractors), real is not None and not is_run(generated))
    originals = open_source(real, protocol.split) if real is not None else None
    real_draws, made, generated_draws = _open_generated(generated, originals, protocol, device)
    places = MeasureOptions(Path(cache), Path(cache), batch, ranks, device)
    cards = measure(chosen, originals, made, real_draws, generated_draws, protocol, name, extractors, places)
    if ranks.is_first:
        if out is not None:
            write_cards(Path(out), cards)
        print_table(render_cards(cards))
        for line in dict.fromkeys(line for card in cards for line in _describe_left_out(card)):
            print_table(line)


def compare(a: str, b: str, force: bool = False) -> None:
    """Print the difference of two cards of `walt metrics --out`, or refuse and list the fields that differ.

    Args:
        a: file of cards.
        b: file of cards.
        force: print figures that must not be compared, and the fields in which they differ beside them.
    """
    from walt_pl.evaluation.compare import compare as compare_files

    print_table(compare_files(Path(a), Path(b), force))


def selftest(
    extractor: str | dict[str, str] | None = None,
    extractor_kind: str | None = None,
    extractor_sha256: str | dict[str, str] | None = None,
    resize: Resize = "inside",
    clips: int | None = None,
    batch: int = 8,
    device: str | None = None,
) -> None:
    """Check an extractor of videos: equal sets, halves, noise, blur, frozen and shuffled frames, few clips, and known figures of its file.

    Args:
        extractor: file of the network, or files by kind.
        extractor_kind: kind of the network: videomae in place of i3d.
        extractor_sha256: hash of a file that is not a published one.
        resize: resize to the input of the network; known figures hold for inside.
        clips: number of clean clips.
        batch: number of clips that are computed at a time.
        device: device to run on; a GPU if there is one when not given.
    """
    from walt_pl.evaluation import selftest as checks
    from walt_pl.metrics.extractors.known_files import GOLDEN_NUMBERS

    chosen = choose_metrics("fvd")
    options = ExtractorOptions(extractor, extractor_kind, extractor_sha256)
    _, protocol = resolve_protocol(None, resize=resize)
    network = choose_extractors(chosen, options, protocol, False, local_device(device))[0]
    known = GOLDEN_NUMBERS.get(network.identity().get("sha256", ""), tuple)()
    done = checks.selftest(network, chosen[0], known, clips or checks.CLIPS, batch)
    print_table(checks.render_checks(done))
    if checks.has_failed(done):
        raise ValueError("selftest: a check failed; the figures of this extractor cannot be trusted")


def _pair(name: str | None, protocol: EvaluationProtocol, of_pairs: bool, of_files: bool) -> tuple[str | None, EvaluationProtocol]:
    """Return preset and protocol with the values that count where clips are compared in pairs. A changed value takes the preset away.

    Args:
        name: the preset.
        protocol: its values.
        of_pairs: whether an extractor compares pairs.
        of_files: whether both clips of a pair are in files.
    """
    paired = replace(protocol, paired=protocol.paired or of_pairs)
    if paired.paired and of_files:
        paired = describe_pairs(paired)
    return name if paired == protocol else None, paired


def _open_generated(
    text: str, real: ClipSource | None, protocol: EvaluationProtocol, device: str
) -> tuple[Drawn | None, ClipSource, Drawn]:
    """Open the generated clips, and draw those of both sides.

    Returns:
        Draws of the real clips, the generated clips and their draws.
    """
    if is_run(text):
        drawn = None if real is None else draw_real(real, protocol)
        samples = open_samples(text, real, drawn, protocol, device)
        return drawn, samples, draw_generated(samples, protocol)
    generated = open_source(text, protocol.split)
    if real is None:
        return None, generated, draw_generated(generated, protocol)
    if protocol.paired:
        real_draws, draws = draw_pairs(real, generated, protocol)
        return real_draws, generated, draws
    return draw_real(real, protocol), generated, draw_generated(generated, protocol)


def _changes(preset: str | None, clips: int | None, size: int | list[int] | None, **given: Any) -> dict[str, Any]:
    """Return the values of the protocol that were typed.

    Raises:
        ValueError: the size is neither one number nor two.
    """
    changes = {name: value for name, value in given.items() if value is not None}
    if clips is not None:
        changes["clips"] = clips
        if preset not in PRESETS or PRESETS[preset].real_clips is not None:  # that one takes every real clip
            changes["real_clips"] = clips
    if size is not None:
        sides = [size, size] if isinstance(size, int) else size
        if len(sides) != 2:
            raise ValueError(f"metrics: --size {size}: wanted one number, or rows and columns as '[128, 160]'")
        changes["size"] = tuple(sides)
    return changes


def _check_out(out: str | None) -> None:
    """Check before hours of work that the cards can be written.

    Raises:
        ValueError: the path is a folder, or a file that is none of cards.
    """
    if out is None:
        return
    try:
        read_cards(Path(out))
    except FileNotFoundError:
        return
    except UntrustedError as error:
        raise ValueError(f"metrics: --out {out} exists and is no file of cards ({error}): move it away, or name another file") from None


def _describe_left_out(card: MetricCard) -> list[str]:
    """Return a line for each side that has clips which were left out."""
    lines = []
    for name, side in (("real", card.real), ("generated", card.generated)):
        left_out = (side or {}).get("left_out", {})
        if side and left_out:
            named = f" ({'; '.join(side['unreadable'])})" if side.get("unreadable") else ""
            lines.append(f"left out of the {name} side: {', '.join(f'{count:,} {reason}' for reason, count in left_out.items())}{named}")
    return lines


# Usage and errors name the words that are typed.
compare.__name__ = "metrics compare"
selftest.__name__ = "metrics selftest"


def run(words: Sequence[str]) -> None:
    """Run the command line of `walt metrics`."""
    others: dict[str, Callable[..., None]] = {"compare": compare, "selftest": selftest}
    if words[:1] and words[0] in others:
        call(others[words[0]], words[1:])
    else:
        call(metrics, words)
