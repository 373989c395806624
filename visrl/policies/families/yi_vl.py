"""Yi-VL: LLaVA with layer norms in the projector, its own ViT-H/448 and its own chat layout.

transformers has no class for it. The projector here is ``mlp2x_gelu_Norm`` of 01-ai/Yi, VL/llava/model/
multimodal_projector/builder.py (read at 42dd1d3): Linear, LayerNorm, GELU, Linear, LayerNorm. Layout: VL/llava/
conversation.py there, ``mm_default``; pad colour 122, 116, 104. The published checkpoint is in the format of LLaVA's own
code, not of transformers: its tensors must be renamed into this class (docs/families.md); that was not tested on the real
weights.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from visrl.core.chat_format import Layout
from visrl.policies.families.llava import Llava


class YiVLConfig(LlavaConfig):
    """LLaVA's config under the type ``yi_vl``."""

    model_type = "yi_vl"


class YiVLProjector(nn.Module):
    """[..., vision hidden] -> [..., text hidden]: Linear, LayerNorm, GELU, Linear, LayerNorm."""

    def __init__(self, config: YiVLConfig) -> None:
        super().__init__()
        inner, outer = config.vision_config.hidden_size, config.text_config.hidden_size
        self.linear_1 = nn.Linear(inner, outer)
        self.norm_1 = nn.LayerNorm(outer)
        self.act = nn.GELU()
        self.linear_2 = nn.Linear(outer, outer)
        self.norm_2 = nn.LayerNorm(outer)

    def forward(self, features: Tensor) -> Tensor:
        hidden: Tensor = self.act(self.norm_1(self.linear_1(features)))
        return self.norm_2(self.linear_2(hidden))  # type: ignore[no-any-return]


class YiVLForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA with Yi-VL's projector."""

    config_class = YiVLConfig

    def __init__(self, config: YiVLConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = YiVLProjector(config)
        self.post_init()


AutoConfig.register(YiVLConfig.model_type, YiVLConfig)
AutoModelForImageTextToText.register(YiVLConfig, YiVLForConditionalGeneration)
AutoProcessor.register(YiVLConfig, LlavaProcessor)


class YiVL(Llava):
    """Yi-VL."""

    name: ClassVar[str] = "yi_vl"
    model_types: ClassVar[tuple[str, ...]] = ("yi_vl",)
    adds_bos: ClassVar[bool] = False  # the published tokenizer adds none
    end_texts: ClassVar[tuple[str, ...]] = ("###",)
    layout = Layout(
        picture="<image>",
        opening=(
            "This is a chat between an inquisitive human and an AI assistant. Assume the role of the AI assistant. Read all"
            " the images carefully, and respond to the human's questions with informative, helpful, detailed and polite"
            " answers. 这是一个好奇的人类和一个人工智能助手之间的对话。假设你扮演这个AI助手的角色。"
            "仔细阅读所有的图像，并对人类的问题做出信息丰富、有帮助、详细的和礼貌的回答。\n\n###"
        ),
        user=" Human: ",
        user_end="\n###",
        assistant=" Assistant: ",
        assistant_end="\n###",
        generation_prompt=" Assistant:",
    )
