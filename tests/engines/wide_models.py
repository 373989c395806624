"""The tiny families of tests/tiny_models.py with a text model of width 128 and two heads: vLLM's attention on CPUs needs heads of 32
and more. Processors, chat templates and vision towers stay; what projects pictures into the text follows its width.
"""

from pathlib import Path

import tiny_models as tiny
import torch

WIDTH, HEADS = 128, 2
BOTH = ("llava", "llava_next", "paligemma2", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "idefics3", "smolvlm")
"""Families of ``hf:`` that vLLM 0.32 has too. It dropped mllama in 0.10.2 and never had Yi-VL."""


def _widened(config):
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size = WIDTH, 2 * WIDTH
    text.num_attention_heads = text.num_key_value_heads = HEADS
    text.head_dim = WIDTH // HEADS
    if "mrope_section" in (text.rope_parameters or {}):  # of half a head's 64 channels
        text.rope_parameters = {**text.rope_parameters, "mrope_section": [8, 12, 12]}
    if config.model_type in ("qwen2_5_vl", "qwen3_vl"):
        vision.out_hidden_size = WIDTH
    if config.model_type == "qwen2_vl":  # its vision tower calls the text's width hidden_size
        vision.hidden_size = WIDTH
    if config.model_type == "paligemma":
        vision.projection_dim = config.projection_dim = config.hidden_size = WIDTH
        text.query_pre_attn_scalar = text.head_dim
    return config


def save(name: str, folder: Path, seed: int = 3) -> Path:
    """A checkpoint folder that ``hf:`` and ``vllm:`` load."""
    small, processor = tiny.TINY[name]()
    torch.manual_seed(seed)
    model = type(small)(_widened(small.config)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # logits far apart, as tiny_models.build does
                parameter.mul_(4)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
