"""The paper's models and Qwen3-VL at their real width, by their published configs, with two layers and random weights.

``vision_config`` and ``text_config`` are those of the named checkpoints but for the number of layers. Vocabularies are real too
(fetch.py), and each embedding has the published number of rows; of PaliGemma 2, whose vocabulary is Gemma 2's, Gemma 3's takes the
place. MiniCPM-o, the seventh model of the paper's table 2, has no class in transformers and is not trained in process.
"""

from collections.abc import Callable
from typing import Any

import tiny_models as tiny
import torch
import transformers as hf

from visrl.core.chat_format import VICUNA, template

LAYERS = 2
LLAMA2 = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "num_hidden_layers": LAYERS,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
}
CLIP_L = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
PINS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
RATIOS = [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]]
Parts = tuple[Any, Any]


def _marked(tok: Any) -> dict[str, Any]:
    return {"pad_token_id": tok.pad_token_id, "bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id}


def _clip(shape: dict[str, Any]) -> Any:
    return hf.CLIPVisionConfig(**shape, num_hidden_layers=LAYERS + 1)  # features of the last layer but one


def _llava(processor_class: Any, eyes: Any, layout: Any, **more: Any) -> Parts:
    tok = tiny.tokenizer(["<image>"], "<pad>", "<s>", "</s>")
    processor = processor_class(
        eyes,
        tok,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(layout),
        **more,
    )
    return processor, tok


def llava() -> Parts:
    """llava-hf/llava-1.5-7b-hf"""
    eyes = hf.CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336})
    processor, tok = _llava(hf.LlavaProcessor, eyes, tiny._layout("llava"))
    text = hf.LlamaConfig(**LLAMA2, vocab_size=32064, **_marked(tok))
    return processor, hf.LlavaConfig(
        vision_config=_clip(CLIP_L), text_config=text, image_token_id=tok.convert_tokens_to_ids("<image>"), vision_feature_layer=-2, image_seq_length=576
    )  # fmt: skip


def llava_next() -> Parts:
    """llava-hf/llava-v1.6-vicuna-7b-hf"""
    eyes = hf.LlavaNextImageProcessor(
        size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}, image_grid_pinpoints=PINS
    )
    processor, tok = _llava(hf.LlavaNextProcessor, eyes, VICUNA)
    text = hf.LlamaConfig(**LLAMA2, vocab_size=32064, **_marked(tok))
    return processor, hf.LlavaNextConfig(
        vision_config=_clip(CLIP_L), text_config=text, image_token_id=tok.convert_tokens_to_ids("<image>"), image_grid_pinpoints=PINS, image_seq_length=576
    )  # fmt: skip


def yi_vl() -> Parts:
    """01-ai/Yi-VL-6B: CLIP-H at 448, 64,000 words (Llama 2's here)"""
    from visrl.policies.families.yi_vl import YiVLConfig

    shape = {**CLIP_L, "hidden_size": 1280, "intermediate_size": 5120, "image_size": 448, "projection_dim": 1024}
    eyes = hf.CLIPImageProcessor(size={"shortest_edge": 448}, crop_size={"height": 448, "width": 448})
    processor, tok = _llava(hf.LlavaProcessor, eyes, tiny._layout("yi_vl"))
    text = hf.LlamaConfig(**{**LLAMA2, "num_key_value_heads": 4}, vocab_size=64000, **_marked(tok))
    return processor, YiVLConfig(
        vision_config=_clip(shape), text_config=text, image_token_id=tok.convert_tokens_to_ids("<image>"), vision_feature_layer=-2, image_seq_length=1024
    )  # fmt: skip


def mllama() -> Parts:
    """meta-llama/Llama-3.2-11B-Vision-Instruct: one layer of two looks at the pictures"""
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    marks = ["<|image|>", "<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>"]
    tok = tiny.tokenizer(marks, "<|finetune_right_pad_id|>", "<|begin_of_text|>", "<|eot_id|>")
    eyes = hf.MllamaImageProcessor(size={"height": 560, "width": 560}, max_image_tiles=4)
    processor = hf.MllamaProcessor(eyes, tok, chat_template=template(tiny._layout("mllama")))
    vision = MllamaVisionConfig(
        hidden_size=1280, intermediate_size=5120, attention_heads=16, num_hidden_layers=5, num_global_layers=1, vision_output_dim=7680,
        image_size=560, patch_size=14, max_num_tiles=4, intermediate_layers_indices=[0, 1, 2, 3, 4], supported_aspect_ratios=RATIOS,
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    text = MllamaTextConfig(
        hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8, num_hidden_layers=LAYERS,
        cross_attention_layers=[1], vocab_size=128256, rope_parameters=rope, max_position_embeddings=131072, **_marked(tok),
    )  # fmt: skip
    image = tok.convert_tokens_to_ids("<|image|>")
    return processor, hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=image)


def paligemma2() -> Parts:
    """google/paligemma2-10b-mix-448"""
    tok = tiny.tokenizer(["<image>"], "<pad>", "<bos>", "<eos>", plain=[f"<loc{i:04d}>" for i in range(1024)])
    eyes = hf.SiglipImageProcessor(size={"height": 448, "width": 448})
    eyes.image_seq_length = 1024
    processor = hf.PaliGemmaProcessor(eyes, tok, chat_template=template(tiny._layout("paligemma")))
    vision = hf.SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_attention_heads=16, num_hidden_layers=LAYERS, image_size=448, patch_size=14,
        projection_dim=3584, vision_use_head=False,
    )  # fmt: skip
    text = hf.Gemma2Config(
        hidden_size=3584, intermediate_size=14336, num_attention_heads=16, num_key_value_heads=8, head_dim=256, num_hidden_layers=LAYERS,
        vocab_size=len(tok), query_pre_attn_scalar=256, sliding_window=4096, **_marked(tok),
    )  # fmt: skip
    image = tok.convert_tokens_to_ids("<image>")
    return processor, hf.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=image, projection_dim=3584, hidden_size=3584
    )


def _qwen(kind: str, vision: dict[str, Any], text: dict[str, Any], patch: int) -> Parts:
    names, videos = (
        {"qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"},
        {"qwen2_5_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL"},
    )
    tok = tiny.tokenizer(tiny._QWEN, "<|endoftext|>", None, "<|im_end|>")
    eyes = hf.Qwen2VLImageProcessor(patch_size=patch, min_pixels=4 * patch * patch, max_pixels=16384 * patch * patch)
    video = getattr(hf, videos[kind] + "VideoProcessor")()
    processor = getattr(hf, names[kind] + "Processor")(eyes, tok, video, chat_template=template(tiny._layout(kind)))
    marks = dict(zip(("vision_start", "vision_end", "image", "video"), tiny._QWEN[1:], strict=True))
    return processor, getattr(hf, names[kind] + "Config")(
        vision_config={"depth": LAYERS, "num_heads": 16, "patch_size": patch, **vision},
        text_config={"num_hidden_layers": LAYERS, "max_position_embeddings": 32768, **text, **_marked(tok)},
        **{f"{name}_token_id": tok.convert_tokens_to_ids(mark) for name, mark in marks.items()},
    )


def qwen2_5_vl() -> Parts:
    """Qwen/Qwen2.5-VL-7B-Instruct"""
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584, "window_size": 112, "fullatt_block_indexes": [1]}  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6}
    text = {
        "hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
        "rope_parameters": rope,
    }  # fmt: skip
    return _qwen("qwen2_5_vl", vision, text, 14)


def qwen3_vl() -> Parts:
    """Qwen/Qwen3-VL-8B-Instruct"""
    vision = {
        "hidden_size": 1152, "intermediate_size": 4304, "out_hidden_size": 4096, "deepstack_visual_indexes": [0], "num_position_embeddings": 2304,
    }  # fmt: skip
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "mrope_interleaved": True, "rope_theta": 5e6}
    text = {
        "hidden_size": 4096, "intermediate_size": 12288, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
        "vocab_size": 151936, "rope_parameters": rope,
    }  # fmt: skip
    return _qwen("qwen3_vl", vision, text, 16)


SHAPES: dict[str, Callable[[], Parts]] = {
    build.__name__: build for build in (llava, llava_next, mllama, paligemma2, yi_vl, qwen2_5_vl, qwen3_vl)
}


def save(name: str, folder: Any) -> None:
    """A checkpoint folder in bfloat16; weights are small normal numbers."""
    processor, config = SHAPES[name]()
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = hf.AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
