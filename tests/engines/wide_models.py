"""The tiny families of tests/tiny_models.py with a text model of width 128 and two heads: vLLM's attention on CPUs needs heads of 32
and more. Processors, chat templates and vision towers stay; what projects pictures into the text follows its width.
"""

from pathlib import Path

import tiny_models as tiny
import torch
from safetensors.torch import load_file, save_file

WIDTH, HEADS = 128, 2
BOTH = ("llava", "llava_next", "idefics3", "smolvlm", "internvl", "qwen2_vl", "qwen3_vl", "qwen2_5_vl")
"""Families of ``hf:`` that vLLM 0.32 has too. It dropped mllama in 0.10.2, never had Yi-VL, and computes PaliGemma otherwise
(Family.engines_differ)."""


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
    return config


def save(name: str, folder: Path, seed: int = 3, *, letters: bool = False) -> Path:
    """A checkpoint folder that ``hf:`` and ``vllm:`` load. letters: it writes letters and digits only, so that no text holds half of a
    UTF-8 character or a token that structures a chat: servers do with these what they like."""
    small, processor = tiny.TINY[name]()
    torch.manual_seed(seed)
    model = type(small)(_widened(small.config)).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # logits far apart, as tiny_models.build does
                parameter.mul_(4)
        if letters:
            words = processor.tokenizer.convert_ids_to_tokens(range(len(processor.tokenizer)))
            plain = [word.replace("Ġ", "") for word in words]
            model.lm_head.weight[[not (w.isalnum() and w.isascii()) for w in plain]] = (
                0  # the best of 300 logits is above 0
            )
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    if vision_type(model) == "clip_vision_model":
        named_as_published(folder / "model.safetensors")
    return folder


def vision_type(model) -> str:
    return model.config.vision_config.model_type


def named_as_published(file: Path) -> None:
    """Vision towers of CLIP have `vision_model` in the names of all published files, which vLLM expects. transformers 5 loads these,
    and writes them so again; what was built from a config it writes without."""
    tensors = load_file(file)
    save_file(
        {
            name.replace("vision_tower.", "vision_tower.vision_model.", 1)
            if name.startswith("vision_tower.")
            else name: t
            for name, t in tensors.items()
        },
        file,
        {"format": "pt"},
    )


SAYS = ("[0.1, 0.1, 0.4, 0.5]", "[0.5, 0.5, 0.9, 0.9]", "[0.2, 0.6, 0.5, 0.9]", "[0.6, 0.1, 0.9, 0.4]", "red", "blue")


def save_talker(name: str, folder: Path, seed: int = 3) -> Path:
    """A checkpoint whose every word is a box or an answer: a random model that may make pairs. Its vocabulary has each of ``SAYS`` as
    one token. Channel 0 is the same positive number behind every text token (no layer writes to it), and the output layer reads it for
    these and for what ends a reply alone: their logits are at least 20 above all others', and as random among themselves as a
    random model's.
    """
    small, processor = tiny.TINY[name]()
    known = len(processor.tokenizer)
    processor.tokenizer.add_tokens(list(SAYS))
    config = _widened(small.config)
    config.text_config.vocab_size = known + len(SAYS)
    torch.manual_seed(seed)
    model = type(small)(config).float().eval()
    line = processor.tokenizer("\n", add_special_tokens=False)["input_ids"]
    spoken = [*range(known, known + len(SAYS)), processor.tokenizer.eos_token_id, *line]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # as in save
                parameter.mul_(4)
        model.get_input_embeddings().weight[:, 0] = 0.3
        for layer in model.model.language_model.layers:
            layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0
        heard = model.lm_head.weight[spoken]
        model.lm_head.weight.zero_()
        model.lm_head.weight[spoken] = heard / heard.norm(
            dim=1, keepdim=True
        )  # what they multiply has a mean square of 1
        model.lm_head.weight[spoken, 0] = 200
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
