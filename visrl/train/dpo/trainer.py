"""Step-level DPO, stages 1 and 2 (docs/method.md e), as one subclass of TRL's ``DPOTrainer``.

The trainer keeps TRL's losses, metrics, PEFT, checkpointing and distribution. Ours is what the method adds: a batch
has a part per term (box, answer), each with its own lambda and beta; the forward pass computes picture and question
once for chosen and rejected (visrl/train/common/prefix_sharing.py); the reference is the policy at the start of the
phase, computed once (reference_logprobs.py).

Departures from the official code (docs/method.md g): 1. crops are in the frame of the boxes. 2. every family, not
one. 3. rows are never cut at a length. 4. pictures are not shrunk to 512 x 512 first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from visrl.errors import UsageError
from visrl.train.common.logprobs import BranchScorer, TokenScores, compact
from visrl.train.common.models import TrainableModel, bare
from visrl.train.common.phase_folder import PhaseTrainer
from visrl.train.data.fingerprint import preferences_hash
from visrl.train.dpo.collator import PairCollator, has_term
from visrl.train.dpo.joint_rows import JointScorer, TermScorer
from visrl.train.dpo.losses import LN2, Term, TermName, log_preference, weighted_sum
from visrl.train.dpo.reference_logprobs import compute_reference, read_reference, write_reference

if TYPE_CHECKING:
    from torch import Tensor

Scorer = BranchScorer | TermScorer
SHARDED = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
"""Kinds of distribution in which every forward pass is one of all processes."""


class StepDPOTrainer(PhaseTrainer, DPOTrainer):
    """DPO over the terms of a stage. ``folder`` is where the phase keeps its reference.

    Raises UsageError where the first loss of a fresh phase is not ln 2 per term (policy and reference differ), and
    where a loss is not finite (naming the samples).
    """

    _metrics: dict[str, Any]

    def __init__(
        self,
        trainable: TrainableModel,
        collator: PairCollator,
        terms: Sequence[Term],
        args: DPOConfig,
        folder: Path,
        **more: Any,
    ) -> None:
        if args.ld_alpha is not None:
            raise UsageError(
                "trainer.ld_alpha is not supported", "leave it out: it needs per-token reference log-probabilities"
            )
        self.trainable, self.collator, self.terms, self.folder = trainable, collator, tuple(terms), folder
        args.precompute_ref_log_probs = True  # TRL then keeps no reference model; the numbers come from our table
        args.remove_unused_columns = False
        rows = Dataset.from_dict({"row": list(range(len(collator.pairs)))})
        super().__init__(
            model=trainable.model,
            args=args,
            data_collator=collator,
            train_dataset=rows,
            processing_class=trainable.processor,
            **more,
        )
        sharded = str(self.accelerator.distributed_type).rpartition(".")[2] in SHARDED
        collator.stand_in = sharded and any(not has_term(p, t.name) for p in collator.pairs for t in self.terms)
        if "ref" in getattr(self.model, "peft_config", {}):
            # TRL's copy of a continued adapter: memory, and a folder in every checkpoint
            self.model.delete_adapter("ref")

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # rows are numbers; the collator makes the tokens

    def _precompute_ref_logps(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset  # see begin(): at the first step the model is where it will be trained, sharded or not

    def begin(self) -> None:
        """The reference, before the first step: from disk if the phase goes on, else from the model as it is now.

        The first process looks, and tells the others: the folder may be on its machine alone.
        """
        data = preferences_hash(self.collator.pairs, self.collator.terms, self.collator.crop, self.collator.context)
        weights: str = self._precompute_model_hash
        fresh = self.state.global_step == 0
        main = self.accelerator.is_main_process
        found = [read_reference(self.folder, data, weights if fresh else None) if main else None]
        table = broadcast_object_list(found)[0]
        if table is None and not fresh:
            raise UsageError(
                f"{self.folder} has a checkpoint, but no reference log-probabilities of this data",
                "the data has changed: restore it, or delete the folder",
            )
        if table is None:
            table = self._compute_reference()
            if main:
                write_reference(self.folder, table, data, weights)
        self.collator.references = table

    def _compute_reference(self) -> dict[TermName, Tensor]:
        model, training = self.model_wrapped, self.model.training
        model.eval()

        @torch.no_grad()
        def score(rows: list[int]) -> dict[TermName, Tensor]:
            batch = self._prepare_inputs(self.collator([{"row": row} for row in rows]))
            with self.accelerator.autocast():
                scores = {name: scorer(detail=False) for name, scorer in self._scorers(model, batch).items()}
            found = {name: torch.stack(s.log_probs.sum(1).chunk(2), dim=1) for name, s in scores.items()}
            return {term.name: _in_place(found, batch, term.name, len(rows)) for term in self.terms}

        size = self.args.precompute_ref_batch_size or self.args.per_device_train_batch_size
        n = len(self.collator.pairs)
        tick = self.progress.reference(n)
        table = compute_reference(self.collator.terms, n, score, self.accelerator, batch_size=size, tick=tick)
        model.train(training)
        return table

    def _scorer(self, model: Any, part: dict[str, Any]) -> BranchScorer:
        return BranchScorer(model, bare(self.model), self.trainable.family, part, self.collator.store)

    def _scorers(self, model: Any, batch: dict[str, Any]) -> dict[TermName, Scorer]:
        """What scores each term of a batch: one forward pass for all of them where they stand in joint rows, else one each."""
        names = [term.name for term in self.terms if term.name in batch]
        if "joint" in batch:
            joint = JointScorer(self._scorer(model, batch["joint"]))
            return {name: joint.of(name) for name in names}
        return {name: self._scorer(model, batch[name]) for name in names}

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False) -> Any:
        """L of the stage: sum of lambda times TRL's loss of the term, metrics prefixed with the term's name."""
        mode = "train" if self.model.training else "eval"
        ours: dict[str, Any] = self._metrics
        losses: dict[TermName, Tensor] = {}
        scorers = self._scorers(model, inputs)
        for term in (term for term in self.terms if term.name in scorers):
            self.beta = term.beta
            self._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
            loss = self._term_loss(term, scorers[term.name], inputs)
            having = inputs[term.name].get("having")  # the mean over all pairs: those without the term add nothing
            losses[term.name] = loss if having is None else loss * (len(having) / len(inputs["index"]))
            theirs, self._metrics = self._metrics[mode], ours
            if having is not None and not len(having):
                continue  # another pair stood in
            ours[mode]["num_tokens"] = theirs.pop("num_tokens", [self._total_train_tokens])
            ours[mode][f"{term.name}/loss"].append(loss.item())
            for name, values in theirs.items():
                ours[mode][f"{term.name}/{name}"] += values
        parts = [inputs["joint"]] if "joint" in inputs else [inputs[name] for name in scorers]
        ours[mode]["tokens/trained"].append(self._everywhere(sum(map(_tokens, parts))))
        total = weighted_sum(self.terms, losses)
        return (total, None) if return_outputs else total

    def _everywhere(self, tokens: int) -> float:
        """Of a step of the optimiser, all processes' and all accumulated batches'."""
        mine = torch.tensor(float(tokens * self.args.gradient_accumulation_steps), device=self.accelerator.device)
        return float(self.accelerator.gather(mine).sum().item())

    def _term_loss(self, term: Term, asked: Scorer, inputs: dict[str, Any]) -> Tensor:
        part = inputs[term.name]
        scorer = _Recorded(asked)
        chosen, rejected = part["reference"].unbind(1)
        loss: Tensor = super()._compute_loss(
            scorer, compact(part) | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}, False
        )
        said = scorer.last.log_probs.detach().sum(1).chunk(2)
        index = inputs["index"][part["having"]] if len(part.get("having", ())) else inputs["index"]
        self._guard(term, loss, torch.stack(said, 1), part["reference"], index)
        return loss

    def _guard(self, term: Term, loss: Tensor, said: Tensor, reference: Tensor, index: Tensor) -> None:
        if not torch.isfinite(loss):
            bad = [
                row
                for row, values in zip(index.tolist(), said + reference, strict=True)
                if not torch.isfinite(values).all()
            ]
            names = ", ".join(self.collator.pairs[row].sample.id for row in bad or index.tolist())
            raise UsageError(
                f"{term.name} loss is {loss.item()}: samples {names}",
                "check these samples; the newest checkpoint is from before this step",
            )
        if self.state.global_step == 0 and not self._began:
            (chosen, rejected), (ref_chosen, ref_rejected) = said.unbind(1), reference.unbind(1)
            first = -log_preference(chosen, rejected, ref_chosen, ref_rejected, term.beta).mean().item()
            tolerance = 1e-3 if bare(self.model).dtype == torch.float32 else 2e-2
            if abs(first - LN2) > tolerance:
                hint = "reference and policy differ at the start; is a checkpoint of other weights in the way?"
                raise UsageError(f"the first {term.name} loss is {first:.4f}, not ln 2 = {LN2:.4f}", hint)
            self._began = term is self.terms[-1]


def _in_place(found: Mapping[TermName, Tensor], batch: Mapping[str, Any], term: TermName, n: int) -> Tensor:
    """[n, 2]: a term's log-probabilities at the places of the pairs that have it, 0 elsewhere."""
    if term not in found:
        return torch.zeros(n, 2, device=batch["index"].device)
    having = batch[term].get("having")
    if having is None:
        return found[term]
    placed = found[term].new_zeros(n, 2)
    placed[having] = found[term][: len(having)]
    return placed


def _tokens(part: dict[str, Any]) -> int:
    """Tokens that a forward pass of a term's rows runs over, without padding: what chosen and rejected share counts once."""
    return int(part["prompt_mask"].sum() + part["completion_mask"].sum())


class _Recorded:
    """A scorer that remembers what it said, so that guards need no second forward."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.last: TokenScores

    def __call__(self, **inputs: Any) -> TokenScores:
        self.last = self.scorer(**inputs)
        return self.last
