"""The small models that ship inside: LLaVA classes, boxes as four of 32 location tokens over the padded square."""

from __future__ import annotations

from typing import Any, ClassVar

import visrl.world.vision_tower  # noqa: F401 - registers the vision tower, without which the config cannot be read
from visrl.core.box_formats import BoxFormat
from visrl.core.crops import CropName
from visrl.policies.families.base import Family
from visrl.world.chat_format import BOX_FORMAT, LAYOUT


class World(Family):
    """``config.visrl_family = "world"``. The processor itself pads pictures to a square of grey.

    ``config.visrl_protocol``: what a checkpoint was trained with, where that is not the default.
    """

    name: ClassVar[str] = "world"
    model_types: ClassVar[tuple[str, ...]] = ("world",)
    default_crop: ClassVar[CropName] = "tight"
    layout = LAYOUT

    def __init__(self, config: Any, processor: Any) -> None:
        super().__init__(config, processor)
        self.default_protocol = vars(config).get("visrl_protocol", self.default_protocol)

    @property
    def native(self) -> BoxFormat:
        return BOX_FORMAT
