"""What training relies on in trl and transformers beyond what they document: members overridden, called or read by name.

pyproject.toml bounds both from above. With a new release this test says what moved; the bound goes up when it passes, and
when tests/train/test_train_exact.py, which holds losses and gradients against plain ones, passes too.
"""

import inspect
import re

import pytest
import torch
import transformers
import trl
from transformers import Trainer, trainer_utils
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
from trl.trainer.utils import RepeatSampler

from visrl.train.common.logprobs import TokenScores
from visrl.train.common.phase_folder import PhaseTrainer
from visrl.train.dpo.trainer import StepDPOTrainer
from visrl.train.grpo.trainer import GroupTrainer
from visrl.train.sft.sft import MaskedSFTTrainer

# (owner, member, the names of its parameters that we pass or are passed)
CALLABLES = [
    (DPOTrainer, "_compute_loss", ("model", "inputs", "return_outputs")),
    (DPOTrainer, "_precompute_ref_logps", ("dataset", "name", "batch_size")),
    (DPOTrainer, "_prepare_dataset", ("dataset", "processing_class", "args", "dataset_name")),
    (DPOTrainer, "__init__", ("model", "args", "data_collator", "train_dataset", "processing_class")),
    (SFTTrainer, "compute_loss", ("model", "inputs", "return_outputs", "num_items_in_batch")),
    (
        SFTTrainer,
        "_prepare_dataset",
        ("dataset", "processing_class", "args", "packing", "formatting_func", "dataset_name"),
    ),
    (SFTTrainer, "__init__", ("model", "args", "data_collator", "train_dataset", "processing_class")),
    (GRPOTrainer, "_compute_loss", ("model", "inputs")),
    (GRPOTrainer, "_prepare_inputs", ("generation_batch",)),
    (GRPOTrainer, "_get_per_token_logps_and_entropies", ("model", "input_ids", "attention_mask", "logits_to_keep")),
    (GRPOTrainer, "_get_train_sampler", ("dataset",)),
    (GRPOTrainer, "__init__", ("model", "reward_funcs", "args", "train_dataset", "processing_class")),
    (RepeatSampler, "__init__", ("data_source", "mini_repeat_count", "batch_size", "repeat_count", "shuffle", "seed")),
    (Trainer, "_get_output_dir", ("trial",)),
    (Trainer, "_load_from_checkpoint", ("resume_from_checkpoint", "model")),
    (Trainer, "_save_checkpoint", ("model", "trial")),
    (Trainer, "_prepare_inputs", ("inputs",)),
    (Trainer, "remove_callback", ("callback",)),
    (Trainer, "create_model_card", ()),
    (Trainer, "_run_epoch", ("epoch",)),
    (Trainer, "log", ("logs", "start_time")),
    (trainer_utils, "sort_checkpoints", ("output_dir",)),
    (trainer_utils, "rotate_checkpoints", ("output_dir", "save_total_limit", "use_mtime")),
]
# what our code, standing in the library's place, sets or reads: words of the library's source
READ = [
    (DPOTrainer, "_precompute_model_hash", "the hash of the weights a phase starts from"),
    (DPOTrainer, "_total_train_tokens", "the tokens seen so far"),
    (DPOTrainer, "self._metrics", "metrics by mode, put aside for each term"),
    (SFTTrainer, "self._total_train_tokens", "the tokens seen so far, restored on resume"),
    (SFTTrainer, "self._metrics[mode]", "metrics since the last line, restored on resume"),
    (Trainer, "self._tr_loss += tr_loss_step", "the losses since the last line, restored on resume"),
    (Trainer, "self._total_loss_scalar += tr_loss_scalar", "the losses of all logged steps, restored on resume"),
    (Trainer, "self._globalstep_last_logged = self.state.global_step", "the step of the last line, restored on resume"),
    (DPOTrainer, "self.beta", "set for each term"),
    (DPOTrainer, "self.precompute_ref_logps", "true: the reference's numbers come with the batch"),
    (DPOTrainer, 'inputs["ref_chosen_logps"]', "the reference's numbers"),
    (DPOTrainer, 'inputs["ref_rejected_logps"]', "the reference's numbers"),
    (DPOTrainer, 'inputs["completion_mask"]', "which tokens count"),
    (DPOTrainer, "outputs.log_probs", "what a model with the fused head returns, as BranchScorer does"),
    (DPOTrainer, "fused_lm_head=True", "asks for it"),
    (DPOTrainer, 'add_adapter("ref"', "the copy of a continued adapter, which is taken away again"),
    (GRPOTrainer, 'inputs["advantages"]', "of a chain's every token [N, W]"),
    (GRPOTrainer, "if advantages.dim() == 1:", "and left so where they are two-dimensional"),
    (GRPOTrainer, 'inputs.get("old_per_token_logps")', "the old policy's numbers"),
    (GRPOTrainer, 'inputs["ref_per_token_logps"]', "the reference's numbers"),
    (GRPOTrainer, 'inputs["num_items_in_batch"]', "tokens of all that is drawn at once"),
    (GRPOTrainer, "self._step % ", "which micro-batch this is"),
    (GRPOTrainer, "self._entropy_bonus_enabled", "whether the gradient flows through the entropy"),
    (GRPOTrainer, "self.beta != 0.0", "set behind its back, so that no reference is loaded from disk"),
    (RepeatSampler, "self.generator.manual_seed", "seeded anew every epoch"),
]
FIELDS = {
    DPOConfig: ("ld_alpha", "precompute_ref_log_probs", "precompute_ref_batch_size", "max_length", "truncation_mode"),
    GRPOConfig: (
        "num_generations",
        "steps_per_generation",
        "num_iterations",
        "generation_batch_size",
        "max_completion_length",
    ),
    SFTConfig: ("max_length", "packing", "padding_free", "completion_only_loss"),
}


def moved_callables():
    for owner, member, names in CALLABLES:
        found = getattr(owner, member, None)
        where = f"{owner.__name__}.{member}"
        if found is None:
            yield f"{where} is gone"
        elif missing := [name for name in names if name not in inspect.signature(found).parameters]:
            yield f"{where} takes no {', '.join(missing)}: {inspect.signature(found)}"


def moved_words():
    sources = {owner: inspect.getsource(inspect.getmodule(owner)) for owner, _, _ in READ}
    yield from (f"{owner.__name__} has no {word} ({why})" for owner, word, why in READ if word not in sources[owner])


def moved_fields():
    for config, names in FIELDS.items():
        yield from (f"{config.__name__} has no {name}" for name in names if name not in config.__dataclass_fields__)


def test_the_libraries_are_as_training_expects():
    moved = [*moved_callables(), *moved_words(), *moved_fields()]
    versions = f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
    assert not moved, "\n".join([f"moved in {versions}:", *moved])


@pytest.mark.parametrize("ours", [StepDPOTrainer, MaskedSFTTrainer, GroupTrainer, PhaseTrainer])
def test_every_private_method_we_define_over_theirs_is_in_the_list(ours):
    """An override that nobody lists would be noticed by nobody when the library drops what it overrides."""
    theirs = [base for base in ours.__mro__[1:] if not base.__module__.startswith("visrl")]
    overridden = {n for n in vars(ours) if not n.startswith("__") and any(n in vars(base) for base in theirs)}
    listed = {member for _, member, _ in CALLABLES}
    assert {n for n in overridden if n.startswith("_") and callable(vars(ours)[n])} <= listed


def test_a_member_that_is_gone_is_named(monkeypatch):
    monkeypatch.delattr(DPOTrainer, "_precompute_ref_logps")
    monkeypatch.setattr(SFTTrainer, "compute_loss", lambda self, model, inputs: None)
    assert list(moved_callables()) == [
        "DPOTrainer._precompute_ref_logps is gone",
        "SFTTrainer.compute_loss takes no return_outputs, num_items_in_batch: (self, model, inputs)",
    ]


def test_what_pair_scorer_returns_has_every_field_trl_reads():
    """``outputs.x`` in the source of the trainer's own loss."""
    source = inspect.getsource(DPOTrainer._compute_loss)
    read = set(re.findall(r"(?<!ref_)\boutputs\.(\w+)", source))
    assert "log_probs" in read and read <= set(TokenScores.__dataclass_fields__)
