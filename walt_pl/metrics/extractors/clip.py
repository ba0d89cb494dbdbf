"""CLIP similarity of captions and clips (CLIPSIM, arXiv 2104.14806), with any tower of open_clip from a local file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from walt_pl.data.transforms import to_size
from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ConfiguredExtractor, ExtractorSettings, check_finite, exact_arithmetic
from walt_pl.metrics.extractors.weight_file import WeightFile, find_weight_file, read_state_dict, read_weight_file
from walt_pl.text.pretrained_encoder import check_open_clip_name

WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
"""Names of the weights in a folder of open_clip; the first one that exists is read."""
FRAMES_AT_ONCE = 64
"""Frames that are encoded at once."""


class CLIPSimilarity(ConfiguredExtractor):
    """Cosine of a caption's features and of each frame's, averaged over the frames.

    The frames are scaled and centrally cropped to the tower's size (bicubic with antialias), as open_clip does. Long captions are cut off.

    Raises:
        ValueError: the tower is unknown, or its file is missing, has another hash, or does not hold its weights.
    """

    kind = "clip"
    gives = ("clip_similarity",)
    takes_file = True

    def __init__(self, settings: ExtractorSettings) -> None:
        super().__init__(settings)
        name, _, typed = (settings.file or "").partition("@")
        if settings.file is not None and not typed:
            raise ValueError(f"--extractor: clip wants MODEL@FILE, such as ViT-B-32@/weights/model.safetensors, got {settings.file}")
        place = find_weight_file(self.kind, typed or None)
        check_open_clip_name(name, "--extractor")
        import open_clip

        placed = ExtractorSettings(settings.protocol, str(_weights_of(place)), settings.sha256, settings.device)
        file = read_weight_file(self.kind, placed, is_code=False)
        self.network = _build(name, file).to(self.device)
        self.tokenizer = open_clip.get_tokenizer(name)
        preprocessing = open_clip.get_model_preprocess_cfg(self.network)
        size = preprocessing["size"]
        self.rows: int = size if isinstance(size, int) else size[0]
        self.columns: int = size if isinstance(size, int) else size[1]
        self.mean = list(preprocessing["mean"])
        self.std = list(preprocessing["std"])
        self._file = {"model": name, **file.identity()}

    def identity(self) -> dict[str, Any]:
        size = [self.rows, self.columns]
        return {"kind": self.kind, **self._file, "resize": "bicubic, central crop", "size": size, "mean": self.mean, "std": self.std}

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        if len(batch.captions) != len(batch) or not all(caption.strip() for caption in batch.captions):
            empty = next((i for i, caption in enumerate(batch.captions) if not caption.strip()), len(batch.captions))
            raise ValueError(f"clip compares clips with captions, and clip {empty} of the batch has none; give an index with captions")
        with exact_arithmetic(self.device):
            captions = self.network.encode_text(self.tokenizer(list(batch.captions)).to(self.device), normalize=True)
            rows = [self._similarity(clip, caption) for clip, caption in zip(batch.clips, captions, strict=True)]
        return {"clip_similarity": check_finite(torch.stack(rows), self.kind)}

    def _similarity(self, clip: Tensor, caption: Tensor) -> Tensor:
        frames = rearrange(to_size(clip.numpy(), self.rows, self.columns), "c t h w -> t c h w")
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (self.mean, self.std))
        frames = ((frames + 1) / 2 - mean) / std
        features = [self.network.encode_image(part.to(self.device), normalize=True) for part in frames.split(FRAMES_AT_ONCE)]
        return (torch.cat(features) @ caption).mean().float().cpu().reshape(1)


def _weights_of(place: Path) -> Path:
    """Return the weight file of a folder; a file is returned unchanged.

    Raises:
        ValueError: the folder has none.
    """
    if not place.is_dir():
        return place
    found = next((place / name for name in WEIGHTS if (place / name).is_file()), None)
    if found is None:
        raise ValueError(f"--extractor: {place} has none of {', '.join(WEIGHTS)}; name the weight file itself: MODEL@FILE")
    return found


def _build(name: str, file: WeightFile) -> Any:
    """Return an open_clip model with the weights of a file.

    Raises:
        ValueError: they are not its weights.
    """
    import open_clip
    from open_clip.convert import convert_state_dict

    with torch.random.fork_rng(devices=[]):  # the initial weights are drawn before they are replaced
        model: nn.Module = open_clip.create_model(name, load_weights=False)
    state = {key.removeprefix("module."): value for key, value in read_state_dict(file).items()}
    try:
        model.load_state_dict(convert_state_dict(model, state))
    except (RuntimeError, KeyError, AttributeError) as error:
        raise ValueError(f"--extractor: {file.path} does not hold the weights of {name} ({' '.join(str(error).split())[:200]})") from error
    return model.eval().requires_grad_(False)
