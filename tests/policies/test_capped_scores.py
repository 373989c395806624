"""Gemma2 caps the scores of its attention; sdpa of older transformers leaves that out and says nothing."""

import tiny_models as tiny
import torch

from visrl.policies.hf.loading import CheckpointArguments, load_checkpoint


def test_capped_scores_are_computed_by_an_attention_that_caps(tmp_path):
    """However it is loaded: the logits are those of eager attention, whose score is 50 tanh(score / 50)."""
    tiny.save("paligemma2", tmp_path)
    model = load_checkpoint(str(tmp_path), CheckpointArguments(dtype="float32")).model
    ids = torch.tensor([[5, 6, 7, 8, 9, 5, 6, 7]])
    text = model.config.get_text_config()
    with torch.inference_mode():
        seen = model(input_ids=ids).logits
        text._attn_implementation = "eager"
        assert text.attn_logit_softcapping == 50 and torch.equal(seen, model(input_ids=ids).logits)
