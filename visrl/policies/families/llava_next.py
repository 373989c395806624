"""LLaVA-NeXT (1.6): a picture in tiles of its own aspect ratio beside a small whole one, up to 2,880 tokens."""

from __future__ import annotations

from typing import Any, ClassVar

from visrl.core.chat_format import VICUNA, Layout
from visrl.policies.families.base import Family

MISTRAL = Layout(  # v1.6-mistral-7b; the system turn is never used by our protocols
    picture="<image>",
    user="[INST] ",
    user_end=" [/INST]",
    assistant=" ",
    assistant_end="</s> ",
    generation_prompt="",
    system="<<SYS>>\n",
    system_end="\n<</SYS>>\n\n",
)


class LlavaNext(Family):
    """LLaVA-NeXT on Vicuna or Mistral, told apart by the text model's type. The 34B model (ChatML on Yi) cannot be told from
    Vicuna by its config: set ``visrl_family`` to an adapter of your own for it.

    The processor squashes the whole picture and pads the tiles, so nothing is padded here; box numbers stay those of the
    padded square, as in the instruction data it shares with LLaVA-1.5.
    """

    name: ClassVar[str] = "llava_next"
    model_types: ClassVar[tuple[str, ...]] = ("llava_next",)
    adds_bos: ClassVar[bool] = True

    def __init__(self, config: Any, processor: Any) -> None:
        super().__init__(config, processor)
        self.layout = MISTRAL if config.text_config.model_type == "mistral" else VICUNA
