"""Figures of frame prediction as `walt evaluate` writes them into `RUN/prediction.json`, and their cells in a table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from walt_pl.plain_records import build_record, shown
from walt_pl.untrusted import UntrustedError, read_json

PREDICTION_FILE, PREDICTION_PICTURE = "prediction.json", "prediction.png"
"""Names of the figures and of the picture in the folder of a run."""
MAX_PREDICTION_BYTES = 16 << 20
"""Bytes of prediction.json. It lists every window, in about 50 bytes."""
PREDICTION_COLUMNS = ("task", "pixels", "prediction", "PSNR in dB", "SSIM", "PSNR beyond the repeated frame", "videos", "windows")
UNDEFINED = "not defined: it needs two given frames"


@dataclass(frozen=True)
class VideoMean:
    """A mean over videos with its 95 % interval, which a single video has not."""

    value: float
    cases: int
    """Videos."""
    low: float | None
    high: float | None

    def show(self, form: str) -> str:
        """Return the mean and its interval in a number format such as ".2f"."""
        interval = "" if self.low is None or self.high is None else f" ({self.low:{form}} to {self.high:{form}})"
        return f"{self.value:{form}}{interval}"


@dataclass(frozen=True)
class PredictionFigures:
    """Figures of a prediction: that of the model, or a baseline. One that is not defined has none."""

    stage: str
    size: tuple[int, int]
    """Rows and columns in pixels."""
    given: int
    """Frames that are given."""
    task: str
    """Task in words."""
    prediction: str
    windows: int = 0
    psnr: VideoMean | None = None
    ssim: VideoMean | None = None
    psnr_gain: VideoMean | None = None
    """Difference of PSNR from the repeated frame, which has none itself."""

    def cells(self) -> list[str]:
        """Return the cells of `PREDICTION_COLUMNS`."""
        first = [self.task, "{} x {}".format(*self.size), self.prediction]
        if self.psnr is None or self.ssim is None:
            return [*first, UNDEFINED, "", "", "", ""]
        gain = self.psnr_gain.show("+.2f") if self.psnr_gain else ""
        return [*first, self.psnr.show(".2f"), self.ssim.show(".3f"), gain, str(self.psnr.cases), str(self.windows)]


def read_prediction(path: Path) -> tuple[list[PredictionFigures], dict[str, Any]]:
    """Read prediction.json, which a stranger may have written.

    Returns:
        The figures, and the protocol: every other entry of the file, with the number of the windows in place of their list.

    Raises:
        FileNotFoundError: there is no such file.
        UntrustedError: it is no plain file of limited size, or an entry has another type.
    """
    plain = read_json(path, MAX_PREDICTION_BYTES)
    if not isinstance(plain, dict) or not isinstance(plain.get("figures"), list):
        raise UntrustedError(f"{path} is {shown(plain)}, wanted figures of frame prediction")
    figures = [build_record(PredictionFigures, one, f"{path}: figures[{number}]") for number, one in enumerate(plain.pop("figures"))]
    windows = plain.get("windows")
    if isinstance(windows, dict) and isinstance(windows.get("windows"), list):
        plain["windows"] = {**windows, "windows": len(windows["windows"])}
    return figures, plain
