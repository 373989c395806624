"""Tiny random models of every native family, built from config without a hub: for tests, perf scripts and smoke runs.

Two layers, width 32, 0.1 M parameters, a byte-level BPE trained on three sentences, the family's real processor and the
chat template of its layout (visrl/core/chat_format.py). They answer nonsense, but they are the real classes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from visrl.core.chat_format import Layout, template
from visrl.policies.families import family_class

_LINES = (
    "what letter is on the red circle ? Please provide the bounding box coordinate of the region that can help you answer",
    "USER: ASSISTANT: Human Assistant user system [0.123, 0.456, 0.789, 1.000] 0 1 2 3 4 5 6 7 8 9 ### [INST] [/INST]",
    "The answer is blue green yellow purple square triangle diamond A B C D E. Answer the question using a single word yes no",
) * 4
_H = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_QWEN = ("<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
REAL = {
    "</s>": "llama2",
    "<|eot_id|>": "llama3_1",
    "<end_of_utterance>": "llama3_1",
    "<|im_end|>": "qwen3",
    "<eos>": "gemma3",
}
"""What ends a text -> whose vocabulary that is."""
Built = tuple[Any, Any]


def tokenizer(
    specials: Sequence[str], pad: str, bos: str | None, eos: str, *, plain: Sequence[str] = (), **named: str
) -> Any:
    """A byte-level BPE of about 400 entries. ``plain``: atomic tokens that are not special (locations).

    With VISRL_TOKENIZERS the real vocabulary of the family's kind instead, from that folder (tests/shapes/fetch.py).
    """
    marks = [pad, *([bos] if bos else []), eos, *specials, *named.values()]
    real = os.environ.get("VISRL_TOKENIZERS")
    inner = Tokenizer.from_file(str(Path(real) / REAL[eos] / "tokenizer.json")) if real else _small(marks)
    out = hf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=pad, bos_token=bos, eos_token=eos, extra_special_tokens=dict(named)
    )
    rest = [mark for mark in specials if mark not in (pad, bos, eos)]
    if rest:
        out.add_special_tokens({"additional_special_tokens": rest}, replace_extra_special_tokens=False)
    out.add_tokens(list(plain))
    return out


def _small(marks: Sequence[str]) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400 + len(marks), special_tokens=list(dict.fromkeys(marks)), initial_alphabet=alphabet, show_progress=False
    )  # fmt: skip
    inner.train_from_iterator(_LINES, trainer)
    return inner


def _text(tok: Any, **more: Any) -> dict[str, Any]:
    return {
        **_H,
        "vocab_size": len(tok),
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": tok.pad_token_id,
        "bos_token_id": tok.bos_token_id,
        "eos_token_id": tok.eos_token_id,
        **more,
    }


def _clip(size: int = 32, patch: int = 8) -> hf.CLIPVisionConfig:
    return hf.CLIPVisionConfig(image_size=size, patch_size=patch, projection_dim=32, **_H)


def _square(edge: int) -> dict[str, int]:
    return {"height": edge, "width": edge}


def _llava_parts(layout: Layout, config: Any) -> tuple[Any, Any]:
    tok = tokenizer(["<image>"], "<pad>", "<s>", "</s>")
    eyes = hf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=_square(32))
    processor = hf.LlavaProcessor(
        eyes,
        tok,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(layout),
    )
    return processor, config(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_text(tok)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2,
        image_seq_length=16,
    )


def llava() -> Built:
    processor, config = _llava_parts(_layout("llava"), hf.LlavaConfig)
    return hf.LlavaForConditionalGeneration(config), processor


def yi_vl() -> Built:
    from visrl.policies.families.yi_vl import YiVLConfig, YiVLForConditionalGeneration

    processor, config = _llava_parts(_layout("yi_vl"), YiVLConfig)
    return YiVLForConditionalGeneration(config), processor


def llava_next() -> Built:
    from visrl.core.chat_format import VICUNA

    tok = tokenizer(["<image>"], "<pad>", "<s>", "</s>")
    pins = [[32, 64], [64, 32], [64, 64]]
    eyes = hf.LlavaNextImageProcessor(size={"shortest_edge": 32}, crop_size=_square(32), image_grid_pinpoints=pins)
    processor = hf.LlavaNextProcessor(
        eyes,
        tok,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template(VICUNA),
    )
    config = hf.LlavaNextConfig(
        vision_config=_clip(),
        text_config=hf.LlamaConfig(**_text(tok)),
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        image_grid_pinpoints=pins,
        image_seq_length=16,
    )
    return hf.LlavaNextForConditionalGeneration(config), processor


def mllama() -> Built:
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    tok = tokenizer(
        ["<|image|>", "<|python_tag|>", "<|start_header_id|>", "<|end_header_id|>"],
        "<|pad|>",
        "<|begin_of_text|>",
        "<|eot_id|>",
    )
    eyes = hf.MllamaImageProcessor(size=_square(32), max_image_tiles=4)
    processor = hf.MllamaProcessor(eyes, tok, chat_template=template(_layout("mllama")))
    vision = MllamaVisionConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_global_layers=1,
        attention_heads=2,
        intermediate_size=32,
        vision_output_dim=48,
        image_size=32,
        patch_size=8,
        max_num_tiles=4,
        intermediate_layers_indices=[0, 1],
        supported_aspect_ratios=[[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = MllamaTextConfig(**_text(tok, num_hidden_layers=3, cross_attention_layers=[1], rope_parameters=rope))
    image_id = tok.convert_tokens_to_ids("<|image|>")
    model = hf.MllamaForConditionalGeneration(
        hf.MllamaConfig(vision_config=vision, text_config=text, image_token_index=image_id)
    )
    for name, parameter in model.named_parameters():  # gates start at 0: pictures would not matter
        if "gate" in name and parameter.numel() == 1:
            torch.nn.init.constant_(parameter, 0.5)
    return model, processor


def paligemma2() -> Built:
    tok = tokenizer(["<image>"], "<pad>", "<bos>", "<eos>", plain=[f"<loc{i:04d}>" for i in range(1024)])
    eyes = hf.SiglipImageProcessor(size=_square(32))
    eyes.image_seq_length = 16
    processor = hf.PaliGemmaProcessor(eyes, tok, chat_template=template(_layout("paligemma")))
    vision = hf.SiglipVisionConfig(image_size=32, patch_size=8, projection_dim=32, vision_use_head=False, **_H)
    text = hf.Gemma2Config(**_text(tok, head_dim=8, sliding_window=1024))
    config = hf.PaliGemmaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tok.convert_tokens_to_ids("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    return hf.PaliGemmaForConditionalGeneration(config), processor


def _qwen(kind: str, vision: dict[str, Any], text: dict[str, Any], eyes: Any, edge: int) -> Built:
    names = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}
    videos = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2VL", "qwen3_vl": "Qwen3VL"}
    tok = tokenizer(_QWEN, "<|endoftext|>", None, "<|im_end|>")
    video = getattr(hf, videos[kind] + "VideoProcessor")()
    processor = getattr(hf, names[kind] + "Processor")(eyes, tok, video, chat_template=template(_layout(kind)))
    marks = dict(zip(("vision_start", "vision_end", "image", "video"), _QWEN[1:], strict=True))
    shape = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": 32}
    config = getattr(hf, names[kind] + "Config")(
        vision_config={**shape, **vision},
        text_config=_text(tok, **text),
        **{f"{name}_token_id": tok.convert_tokens_to_ids(mark) for name, mark in marks.items()},
    )
    return getattr(hf, names[kind] + "ForConditionalGeneration")(config), processor


def qwen2_vl() -> Built:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    eyes = hf.Qwen2VLImageProcessor(patch_size=14, min_pixels=28 * 28, max_pixels=84 * 84)
    return _qwen("qwen2_vl", {"embed_dim": 32, "hidden_size": 32}, {"rope_parameters": rope}, eyes, 28)


def qwen2_5_vl() -> Built:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6}
    eyes = hf.Qwen2VLImageProcessor(patch_size=14, min_pixels=28 * 28, max_pixels=84 * 84)
    vision = {"fullatt_block_indexes": [1], "window_size": 56}
    return _qwen("qwen2_5_vl", vision, {"rope_parameters": rope}, eyes, 28)


def qwen3_vl() -> Built:
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "mrope_interleaved": True, "rope_theta": 1e6}
    eyes = hf.Qwen2VLImageProcessor(patch_size=16, min_pixels=32 * 32, max_pixels=96 * 96)
    vision = {"deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    return _qwen("qwen3_vl", vision, {"rope_parameters": rope, "head_dim": 8}, eyes, 32)


def _idefics(smol: bool) -> Built:
    name, opening = ("SmolVLM", "<|im_start|>") if smol else ("Idefics3", "<|begin_of_text|>")
    specials = ["<image>", "<fake_token_around_image>", "<global-img>"]
    specials += [f"<row_{i}_col_{j}>" for i in range(1, 7) for j in range(1, 7)]
    named = {}
    if smol:
        named = {
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        }
    tok = tokenizer(specials, "<pad>", opening, "<end_of_utterance>", **named)
    eyes = getattr(hf, name + "ImageProcessor")(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    video = [hf.SmolVLMVideoProcessor()] if smol else []
    layout = _layout("smolvlm" if smol else "idefics3")
    processor = getattr(hf, name + "Processor")(eyes, tok, *video, image_seq_len=4, chat_template=template(layout))
    config = getattr(hf, name + "Config")(
        vision_config={"image_size": 32, "patch_size": 8, **_H},
        text_config={"model_type": "llama", **_text(tok)},
        image_token_id=tok.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=tok.pad_token_id,
    )
    return getattr(hf, name + "ForConditionalGeneration")(config), processor


def idefics3() -> Built:
    return _idefics(smol=False)


def smolvlm() -> Built:
    return _idefics(smol=True)


def internvl() -> Built:
    from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

    named = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    tok = tokenizer(["<|im_start|>", "<box>", "</box>"], "<|endoftext|>", None, "<|im_end|>", **named)
    eyes = hf.GotOcr2ImageProcessor(size=_square(32), crop_to_patches=True, min_patches=1, max_patches=3)
    processor = hf.InternVLProcessor(
        eyes, tok, hf.InternVLVideoProcessor(), image_seq_length=4, chat_template=template(_layout("internvl"))
    )
    config = hf.InternVLConfig(
        vision_config=InternVLVisionConfig(image_size=[32, 32], patch_size=[8, 8], **_H),
        text_config=hf.Qwen2Config(**_text(tok)),
        image_token_id=tok.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        downsample_ratio=0.5,
    )
    return hf.InternVLForConditionalGeneration(config), processor


def _layout(model_type: str) -> Layout:
    return family_class(type("Config", (), {"model_type": model_type})).layout


TINY: dict[str, Callable[[], Built]] = {
    build.__name__: build
    for build in (
        llava,
        llava_next,
        mllama,
        paligemma2,
        yi_vl,
        qwen2_vl,
        qwen2_5_vl,
        qwen3_vl,
        internvl,
        idefics3,
        smolvlm,
    )
}


def build(name: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> Built:
    """(model in eval mode, processor) of a family. ``float64`` makes outputs independent of batching to the last bit that
    decides a token. Raises KeyError for an unknown name, ImportError where SmolVLM's num2words is missing."""
    torch.manual_seed(seed)
    model, processor = TINY[name]()
    model.to(dtype).eval()
    with torch.no_grad():
        for (
            parameter
        ) in model.parameters():  # logits far apart: a random model at 0.02 answers one token whatever it sees
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    return model, processor


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny model as a checkpoint folder that ``--model hf:FOLDER`` loads."""
    model, processor = build(name, seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
