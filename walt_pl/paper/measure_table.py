"""Measures by the names that rows give them."""

from __future__ import annotations

from collections.abc import Mapping

from walt_pl.paper.measured import Measure
from walt_pl.paper.measures.aspect import measure_aspect_finetuned, measure_aspect_scratch
from walt_pl.paper.measures.class_images import measure_class_images
from walt_pl.paper.measures.class_video import measure_class_video
from walt_pl.paper.measures.frame_prediction import measure_frame_prediction
from walt_pl.paper.measures.guidance import measure_guidance
from walt_pl.paper.measures.image_to_video import measure_image_to_video
from walt_pl.paper.measures.long_video import measure_long_video
from walt_pl.paper.measures.prompts import measure_prompts
from walt_pl.paper.measures.super_resolution import measure_super_resolution
from walt_pl.paper.measures.text_use import measure_text_use

MEASURES: Mapping[str, Measure] = {
    "class_video": measure_class_video,
    "class_images": measure_class_images,
    "frame_prediction": measure_frame_prediction,
    "image_to_video": measure_image_to_video,
    "long_video": measure_long_video,
    "guidance": measure_guidance,
    "super_resolution": measure_super_resolution,
    "aspect_finetuned": measure_aspect_finetuned,
    "aspect_scratch": measure_aspect_scratch,
    "prompts": measure_prompts,
    "text_use": measure_text_use,
}
