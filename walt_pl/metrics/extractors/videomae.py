"""VideoMAE features for the content-debiased FVD (arXiv 2404.12391): I3D's FVD hardly sees temporal damage, this one does."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from walt_pl.blocks.cudnn_attention import disable_cudnn_attention
from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ConfiguredExtractor, ExtractorSettings, check_finite, compute_by_shape, exact_arithmetic
from walt_pl.metrics.extractors.weight_file import MAX_WEIGHT_FILE_BYTES, WeightFile, check_hash, find_weight_file, read_state_dict
from walt_pl.metrics.protocol import Resize
from walt_pl.metrics.resize import prepare_video
from walt_pl.untrusted import MAX_JSON_BYTES, parse_json, read_bytes

SIZES = {
    "image_size": 1024,
    "patch_size": 64,
    "num_frames": 64,
    "tubelet_size": 64,
    "hidden_size": 8192,
    "num_hidden_layers": 128,
    "num_attention_heads": 128,
    "intermediate_size": 65_536,
}
"""Keys of config.json that size the encoder, and the largest value of each."""
OTHERS: dict[str, type | tuple[type, ...]] = {"layer_norm_eps": float, "qkv_bias": bool, "qv_bias": bool, "use_mean_pooling": bool}
"""Keys of config.json that are read beside the sizes, with their types. No other key reaches transformers: some name code or files."""
MAX_POSITION_VALUES = 1 << 24
"""Values of the table of positions, which transformers computes one by one. VideoMAE-H has 2 million."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VideoMAE(ConfiguredExtractor):
    """Last hidden states of VideoMAE's encoder, averaged over all patches.

    The folder has `config.json` and safetensors, as `save_pretrained` of VideoMAEModel, VideoMAEForPreTraining or
    VideoMAEForVideoClassification writes them.

    Raises:
        ValueError: the folder is missing, has another hash, or is no VideoMAE.
    """

    kind = "videomae"
    gives = ("video_features",)
    takes_file = True
    of_images = False
    is_default = False

    def __init__(self, settings: ExtractorSettings) -> None:
        super().__init__(settings)
        folder = find_weight_file(self.kind, settings.file)
        config, weights, found = _read_folder(folder)
        check_hash(self.kind, folder, found, settings.sha256, is_code=False)
        sizes = _check_config(config, folder)
        self.frames: int = sizes["num_frames"]
        self.side: int = sizes["image_size"]
        self.network = _build(sizes, weights, folder).to(self.device)
        self._file = {"file": folder.name, "sha256": found}

    @property
    def resize(self) -> Resize:
        """Resize to the encoder's input: that of the protocol, half_pixel where the extractor itself is to resize."""
        resize = self.settings.protocol.resize
        return "half_pixel" if resize == "inside" else resize

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, **self._file, "resize": self.resize, "side": self.side}

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        for clip in batch.clips:
            if len(clip) != self.frames:
                raise ValueError(f"this videomae takes clips of exactly {self.frames} frames, got {len(clip)}; set --frames {self.frames}")
        rows = compute_by_shape([prepare_video(clip, self.resize, self.side) for clip in batch.clips], self._compute)
        return {"video_features": check_finite(rows, self.kind)}

    def _compute(self, videos: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (MEAN, STD))
        videos = rearrange(((videos + 1) / 2 - mean) / std, "b c t h w -> b t c h w").to(self.device)
        disable_cudnn_attention()
        with exact_arithmetic(self.device):
            rows: Tensor = self.network(videos).last_hidden_state.mean(dim=1)
        return rows


def _read_folder(folder: Path) -> tuple[bytes, list[WeightFile], str]:
    """Return config.json, the weight files, and the hash of their names, sizes and bytes.

    Raises:
        ValueError: a file is missing or cannot be read.
    """
    paths = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not paths or not (folder / "config.json").is_file():
        raise ValueError(f"--extractor: {folder} is no folder of VideoMAE; config.json and *.safetensors are wanted (save_pretrained)")
    config = read_bytes((folder / "config.json").resolve(), MAX_JSON_BYTES)  # snapshots of the hub are links
    weights, left = [], MAX_WEIGHT_FILE_BYTES
    for path in paths:
        data = read_bytes(path.resolve(), min(path.stat().st_size, left))
        weights.append(WeightFile(path, data, hashlib.sha256(data).hexdigest()))
        left -= len(data)
    named = [("config.json", len(config), hashlib.sha256(config).hexdigest()), *((w.path.name, len(w.data), w.sha256) for w in weights)]
    lines = "\n".join(f"{name} {size} {sha256}" for name, size, sha256 in named)
    return config, weights, hashlib.sha256(lines.encode()).hexdigest()


def _check_config(config: bytes, folder: Path) -> dict[str, Any]:
    """Return the known keys of config.json, and its defaults where it has none.

    Raises:
        ValueError: it is no configuration of VideoMAE, or a value is out of range.
    """
    from transformers import VideoMAEConfig

    place = folder / "config.json"
    found = parse_json(config, str(place))
    if not isinstance(found, dict) or found.get("model_type") != "videomae":
        raise ValueError(f"--extractor: {place} is no configuration of VideoMAE (model_type videomae)")
    defaults = VideoMAEConfig()
    values: dict[str, Any] = {key: found.get(key, getattr(defaults, key)) for key in SIZES}
    for key, most in SIZES.items():
        if type(values[key]) is not int or not 1 <= values[key] <= most:
            raise ValueError(f"--extractor: {place} has {key} {str(values[key])[:40]}, wanted a whole number from 1 to {most}")
    patches = (values["image_size"] // values["patch_size"]) ** 2 * (values["num_frames"] // values["tubelet_size"])
    positions = patches * values["hidden_size"]
    if not 0 < positions <= MAX_POSITION_VALUES or values["hidden_size"] % values["num_attention_heads"]:
        raise ValueError(f"--extractor: the sizes in {place} give {positions:,} values of positions; is it a configuration of VideoMAE?")
    for key, kind in OTHERS.items():
        if key in found:
            if not isinstance(found[key], kind):
                raise ValueError(f"--extractor: {place} has {key} {str(found[key])[:40]}, wanted another type")
            values[key] = found[key]
    return values


def _build(values: dict[str, Any], files: list[WeightFile], folder: Path) -> nn.Module:
    """Return the encoder with the weights of files.

    Raises:
        ValueError: a weight is missing or has another shape.
    """
    from transformers import VideoMAEConfig, VideoMAEModel

    # Older files have the names of transformers 4 (transformers/conversion_mapping.py).
    state = {
        key.removeprefix("videomae.").replace(".q_bias", ".query.bias").replace(".v_bias", ".value.bias"): value
        for file in files
        for key, value in read_state_dict(file).items()
    }
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # no memory is taken before the shapes were compared
        model = VideoMAEModel(VideoMAEConfig(**values))
    wanted = model.state_dict()
    wrong = [key for key, tensor in wanted.items() if key not in state or state[key].shape != tensor.shape]
    if wrong:
        raise ValueError(f"--extractor: the weights in {folder} are not those of its config.json: {wrong[0]} is missing or differs")
    model.load_state_dict({key: state[key].float() for key in wanted}, assign=True)
    return model.eval().requires_grad_(False)
