"""InceptionV3 of FID, KID and the Inception Score of images: torch-fidelity's port of the TensorFlow network of 2015."""

from __future__ import annotations

import io
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from walt_pl.metrics.extractor import ClipBatch
from walt_pl.metrics.extractors.configured import ConfiguredExtractor, ExtractorSettings, check_finite, compute_by_shape, exact_arithmetic
from walt_pl.metrics.extractors.weight_file import WeightFile, read_state_dict, read_weight_file


class InceptionV3(ConfiguredExtractor):
    """Pooled features (2,048) and logits without bias (1,008) of images. It resizes to 299 x 299 as TensorFlow 1 does.

    Raises:
        ValueError: the file is missing, has another hash, or is not its state dict.
    """

    kind = "inception"
    gives = ("image_features", "class_logits")
    takes_file = True
    of_images = True

    def __init__(self, settings: ExtractorSettings) -> None:
        super().__init__(settings)
        file = read_weight_file(self.kind, settings, is_code=False)
        self.network = _build(file).to(self.device)
        self._file = file.identity()

    def identity(self) -> dict[str, Any]:
        return {"kind": self.kind, **self._file, "resize": "tf1 to 299x299"}

    def __call__(self, batch: ClipBatch) -> dict[str, Tensor]:
        for clip in batch.clips:
            if len(clip) != 1:
                raise ValueError(f"{self.kind} is for images, got a clip of {len(clip)} frames; set --frames 1")
        images = [rearrange(clip[0], "h w c -> c h w").contiguous() for clip in batch.clips]
        rows = check_finite(compute_by_shape(images, self._compute), self.kind)
        return {"image_features": rows[:, :2048].contiguous(), "class_logits": rows[:, 2048:].contiguous()}

    def _compute(self, images: Tensor) -> Tensor:
        with exact_arithmetic(self.device):
            return torch.cat(self.network(images.to(self.device)), dim=1)


def _build(file: WeightFile) -> nn.Module:
    """Return torch-fidelity's network with the weights of a file.

    Raises:
        ValueError: the file is not its state dict.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # torch-fidelity unpickles everything that its file holds. So it gets a new one, of the tensors that were read from the checked bytes.
    tensors = io.BytesIO()
    torch.save(read_state_dict(file), tensors)
    tensors.seek(0)
    try:
        network: nn.Module = FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"], feature_extractor_weights_path=tensors)
    except RuntimeError as error:
        message = " ".join(str(error).split())[:200]
        raise ValueError(f"--extractor: {file.path} is not the state dict of torch-fidelity's InceptionV3 ({message})") from error
    return network
