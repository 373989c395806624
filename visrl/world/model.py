"""The small model from random weights: LLaVA's own classes, a tokenizer of whole words, a processor for padded squares.

The protocols' fixed sentences are one token each, so that prompts are short; signs, colours and shapes are one token too.
"""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from visrl.core.chat_format import template
from visrl.core.looking.rules import BOX_TEXTS
from visrl.core.prompts import P_BOX, P_DETAIL, P_REC, P_RL
from visrl.world import IMAGE_SIZE
from visrl.world.chat_format import BINS, LAYOUT
from visrl.world.deep.documents import POSTER
from visrl.world.general_questions import vocabulary
from visrl.world.vision_tower import ConvStemConfig

PATCH = 8
PICTURE_TOKENS = (IMAGE_SIZE // PATCH) ** 2

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>", "<|user|>", "<|assistant|>")
YES_HERE, NOT_HERE, READ_HERE = "<here>", "<away>", "<blank>"  # targets on picture tokens, in pre-training only
INSTRUCTIONS = (
    "Answer the question using a single word or phrase.",
    "Please answer yes or no.",
    "Answer with the option's letter from the given choices directly.",
)
SENTENCES = (P_BOX.strip(), P_RL, P_DETAIL, *(part.strip(" .") for part in P_REC.split("{expression}")), *INSTRUCTIONS)

SEVERAL_LOOKS = {
    BOX_TEXTS.system: P_RL,
    BOX_TEXTS.more.strip(): P_RL,
    BOX_TEXTS.last.strip(): INSTRUCTIONS[0],
    POSTER: "shape",
}
"""What the deep world's model knows besides (:func:`extend`), each with the token whose embedding it starts from."""


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Words, signs, location tokens and whole protocol sentences; anything else is ``<unk>``."""
    locations = [f"<loc{i:02d}>" for i in range(BINS)]
    words = [*SPECIAL, *locations, YES_HERE, NOT_HERE, READ_HERE, *vocabulary()]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece(prefix="##")  # joins words by blanks, and takes the blank before "." away
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",  # noqa: S106
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
        additional_special_tokens=["<image>", "<|user|>", "<|assistant|>"],
        padding_side="left",
    )
    fast.add_tokens([AddedToken(text, normalized=False) for text in (*locations, YES_HERE, NOT_HERE, READ_HERE)])
    fast.add_tokens([AddedToken(text, normalized=False) for text in SENTENCES])
    return fast


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """LLaVA-1.5's processor: the picture on a square of the mean colour, resized (bilinear) to 64 pixels."""
    images = LlavaImageProcessorPil(
        do_pad=True,
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        resample=2,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.25, 0.25, 0.25],
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        chat_template=template(LAYOUT),
    )


def build_model(
    tokenizer: PreTrainedTokenizerFast, seed: int, layers: int = 4, width: int = 128
) -> LlavaForConditionalGeneration:
    """Random weights, reproducibly. Location embeddings start as Fourier features of their bin (ordinal from the start)."""
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=23 * width // 8,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.06,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = LlavaConfig(
        vision_config=ConvStemConfig(image_size=IMAGE_SIZE, patch_size=PATCH),
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=PICTURE_TOKENS,
        tie_word_embeddings=True,
    )
    config.visrl_family = "world"
    model = LlavaForConditionalGeneration(config)
    _order_locations(model, tokenizer)
    return model


def _order_locations(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    table = model.get_input_embeddings().weight
    half = table.shape[1] // 2
    omega = 1.0 / (64 ** (torch.arange(half) / half))
    angle = torch.arange(BINS).float()[:, None] * omega
    waves = torch.cat([angle.sin(), angle.cos()], dim=1)  # [BINS, width]
    first = tokenizer.convert_tokens_to_ids("<loc00>")
    scale = 1.5 * model.config.text_config.initializer_range * table.shape[1] ** 0.5
    with torch.no_grad():
        table[first : first + BINS] = waves / waves.norm(dim=1, keepdim=True) * scale


def extend(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
    """Give model and tokenizer what of :data:`SEVERAL_LOOKS` they lack, in place; then it looks by ``zoom_box``."""
    known = tokenizer.get_vocab()
    new = [text for text in SEVERAL_LOOKS if text not in known]
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in new])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    table = model.get_input_embeddings().weight
    with torch.no_grad():
        for text in new:
            table[tokenizer.convert_tokens_to_ids(text)] = table[tokenizer.convert_tokens_to_ids(SEVERAL_LOOKS[text])]
    model.config.visrl_protocol = "zoom_box"
