"""A training of a few steps on images with several captions: the denoiser is given the drawn ones."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch

from datamodules.joint import JointData
from stages.base import BaseStage
from tests.helpers.known_network import CONFIG, sgd
from walt_pl.data.batch import SampleRef
from walt_pl.data.caption_draw import draw_caption
from walt_pl.data.index import Index, write_index
from walt_pl.media.writing import write_image
from walt_pl.models.denoiser import DenoiserConfig
from walt_pl.models.vae import VAE, VAEConfig
from walt_pl.runs.artifact_writing import save_artifact
from walt_pl.text.caption_words import unseen_words
from walt_pl.text.small_encoder import SmallTextConfig

SEED, STEPS = 3, 6


@pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning")
@pytest.mark.parametrize("latents", [False, True])
def test_training_step_gives_the_text_encoder_the_drawn_caption(latents: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[dict[str, object]] = []
    for number in range(2):
        write_image(tmp_path / f"{number}.png", np.full((8, 8, 3), 99 * number, np.uint8))
        size = {"kind": "image", "frames": 1, "fps": 0.0, "width": 8, "height": 8, "bytes": 1, "label": -1, "split": "train"}
        words = {"caption": f"a dog {number}", "more_captions": [f"a cat {number}", f"a zebra {number}"]}
        rows.append({"path": f"{number}.png", **size, **words})
    write_index(rows, tmp_path / "index.parquet")
    torch.manual_seed(0)
    vae = VAE(VAEConfig(8, (1, 1), ((2, 2, 2),), (0, 1), 0, latent_channels=2, norm="layer"))
    statistics = {"latents": {"mean": [0.0] * 2, "std": [1.0] * 2}}
    save_artifact(tmp_path / "vae", kind="vae", models={"vae": vae}, sampling_config={}, card=statistics, train_config="")
    sizes: dict[str, Any] = {"size": 8, "frames": 5, "videos_per_batch": 0, "image_stacks_per_batch": 1, "images_per_stack": 2}
    source = {"vae": str(tmp_path / "vae")} if latents else {}
    data = JointData(str(tmp_path / "index.parquet"), **sizes, **source, val_videos=0, num_workers=0, seed=SEED)
    text = SmallTextConfig(width=8, depth=1, num_heads=2, vocab_size=64, max_length=12)
    config = DenoiserConfig(**{**vars(CONFIG), "text_width": 8, "frame_prediction": 0.0})
    stage = BaseStage(config, sgd, vae=str(tmp_path / "vae"), text=text, warmup_steps=1)
    encoder = stage.text_encoder
    assert encoder is not None
    given: list[list[str]] = []
    encode = encoder.encode
    monkeypatch.setattr(encoder, "encode", lambda captions: (given.append(sorted(captions)), encode(captions))[1])
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = L.Trainer(accelerator="cpu", max_steps=STEPS, default_root_dir=tmp_path, use_distributed_sampler=False, **quiet)
    trainer.fit(stage, data)
    images = Index(tmp_path / "index.parquet", "train").images
    wanted = [[draw_caption(images[item], SampleRef("image", item, epoch, 0), SEED) for item in range(2)] for epoch in range(STEPS)]
    assert given == [sorted(captions) for captions in wanted]
    assert len({caption for captions in given for caption in captions}) > 2
    assert unseen_words((tmp_path / "words.txt").read_bytes(), ["a zebra, a cat, a bear"]) == ["bear"]
