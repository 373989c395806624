"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: resized pictures, rotary positions with three axes.

Boxes: Qwen2-VL 0..1000 as point pairs; Qwen2.5-VL pixels of the picture *as resized by its processor*; Qwen3-VL 0..1000 as
JSON. The resized size follows from the processor's pixel limits, so a Qwen2.5-VL box means nothing without them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from visrl.core.box_formats import FORMATS, BoxFormat, resized_format
from visrl.core.boxes import Size, smart_resized
from visrl.core.chat_format import CHATML
from visrl.policies.families.base import Chat, EncodedImage, Family, Features, flattened, padded

_MARK = "<|vision_start|><|image_pad|><|vision_end|>"


class Qwen2VL(Family):
    """Qwen2-VL, the model of the official VisRL code."""

    name: ClassVar[str] = "qwen2_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    pixel_limits: ClassVar[Mapping[str, str]] = {"min_pixels": "size.shortest_edge", "max_pixels": "size.longest_edge"}
    layout = replace(CHATML, picture=_MARK, opening="<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")

    @property
    def native(self) -> BoxFormat:
        return FORMATS["point_pairs_1000"]

    def seen_size(self, encoded: EncodedImage) -> Size:
        """Rows and columns of patches, in pixels."""
        _, rows, columns = (int(v) for v in encoded.pixels["image_grid_thw"][0])
        patch = int(self.processor.image_processor.patch_size)
        return columns * patch, rows * patch

    def resized_to(self, size: Size) -> Size:
        eyes = self.processor.image_processor
        limits = eyes.size["shortest_edge"], eyes.size["longest_edge"]
        return smart_resized(size, eyes.patch_size * eyes.merge_size, *limits)

    def positions(self, chat: Chat) -> Tensor:
        """[3, T]: text counts on all axes alike; a picture's tokens count its rows and columns (get_rope_index)."""
        merge = self.config.vision_config.spatial_merge_size
        axes = torch.empty(3, len(chat.ids), dtype=torch.long)
        done, position = 0, 0
        for seen, start in zip(chat.pictures, chat.starts, strict=True):
            axes[:, done:start] = torch.arange(position, position + start - done)
            position += start - done
            _, rows, columns = (int(v) for v in seen.pixels["image_grid_thw"][0])
            rows, columns = rows // merge, columns // merge
            tokens = rows * columns
            grid = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).T
            axes[0, start : start + tokens] = position
            axes[1:, start : start + tokens] = position + grid
            position += max(rows, columns)
            done = start + tokens
        axes[:, done:] = torch.arange(position, position + len(chat.ids) - done)
        return axes

    def token_kwargs(self, chats: Sequence[Chat], width: int, side: str) -> dict[str, Tensor]:
        kinds = [torch.tensor([int(i == self.image_token_id) for i in chat.ids]) for chat in chats]
        return {"mm_token_type_ids": padded(kinds, width, 0, side)}


class Qwen25VL(Qwen2VL):
    """Qwen2.5-VL."""

    name: ClassVar[str] = "qwen2_5_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)

    @property
    def native(self) -> BoxFormat:
        eyes = self.processor.image_processor
        return resized_format(eyes.patch_size * eyes.merge_size, eyes.size["shortest_edge"], eyes.size["longest_edge"])


class Qwen3VL(Qwen2VL):
    """Qwen3-VL: features of several vision layers enter several text layers (deepstack)."""

    name: ClassVar[str] = "qwen3_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    layout = replace(CHATML, picture=_MARK)

    @property
    def native(self) -> BoxFormat:
        return FORMATS["json_1000"]

    def encode(self, model: Any, pictures: Sequence[EncodedImage]) -> list[Features]:
        """{"pooled": [t, hidden], "deep0": [t, hidden], …} per picture."""
        output = model.model.get_image_features(**self._vision_inputs(model, pictures), return_dict=True)
        counts = [sum(i == self.image_token_id for i in p.ids) for p in pictures]
        named = {"pooled": output.pooler_output, **{f"deep{i}": f for i, f in enumerate(output.deepstack_features)}}
        split = {name: flattened(value).split(counts) for name, value in named.items()}
        return [{name: parts[i] for name, parts in split.items()} for i in range(len(pictures))]

    def vision_kwargs(self, features: Sequence[Sequence[Features]]) -> dict[str, Any]:
        flat = [f for row in features for f in row]
        kwargs = super().vision_kwargs(features)
        if flat:
            from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

            deep = [[f[f"deep{i}"] for f in flat] for i in range(len(flat[0]) - 1)]
            kwargs["mm_encoder_outputs"]["image"] = BaseModelOutputWithDeepstackFeatures(
                pooler_output=[f["pooled"] for f in flat], deepstack_features=deep
            )
        return kwargs
