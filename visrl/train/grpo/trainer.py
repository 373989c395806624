"""Policy gradients on groups of chains (GRPO and its kin), as one subclass of TRL's ``GRPOTrainer``.

The trainer keeps TRL's losses (``trainer.loss_type``), clipping, KL, entropy bonus, PEFT, checkpointing and distribution. Ours
is what the method adds: chains that look before they answer, drawn by the policy in training (rollouts.py); rewards that are
the metrics (rewards.py), for box and answer tokens apart or together (credit.py); and log-probabilities, of policy, old
policy and reference, of which prompt and picture are computed once per group (batches.py).

The reference of the KL term is the policy at the start of the phase: its trained weights are kept and put in place for the
reference's forward pass, so that LoRA, a continued adapter and all weights are one case. A checkpoint is only taken where new
chains are drawn next, so that a resumed run draws the chains that an undisturbed one draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from transformers import Trainer
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import RepeatSampler

from visrl.core.records import dump_json, write_atomically
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.policies.families.base import EncodedImage, Features
from visrl.policies.hf.loading import Loaded
from visrl.policies.hf.policy import HFPolicy
from visrl.rollout.retry import total
from visrl.train.common.logprobs import BranchScorer
from visrl.train.common.models import TrainableModel, bare
from visrl.train.common.phase_folder import PhaseTrainer
from visrl.train.common.vision_cache import evaluating
from visrl.train.grpo.advantages import advantages, without_spread
from visrl.train.grpo.batches import GroupEncoder, compact_inputs, of_chains, trained_tokens
from visrl.train.grpo.credit import RewardPlan, TurnValues, taken, turn_values
from visrl.train.grpo.engine import Engine, KeptWeights
from visrl.train.grpo.rewards import CountedCritic
from visrl.train.grpo.rollouts import Group, RolloutPlan, TurnName, draw_groups

if TYPE_CHECKING:
    from torch import Tensor

KEPT = "rollouts"


class EpochOrder(RepeatSampler):
    """TRL's order of questions, shuffled anew by seed and epoch alone. TRL's hangs on the epochs its process has seen, so that a
    run resumed in a later epoch would take other questions.
    """

    def __init__(self, epoch: Callable[[], int], **more: Any) -> None:
        super().__init__(**more)
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        if self.shuffle:
            self.generator.manual_seed(1000 * self.seed + self._epoch())
        yield from super().__iter__()


class GroupTrainer(PhaseTrainer, GRPOTrainer):
    """GRPO over questions. ``folder`` is where some chains of each logging step are kept (``keep`` groups of them). engine: what
    draws chains; None: the model in training.

    A batch is counted as TRL counts it, in chains: ``per_device_train_batch_size`` is a multiple of ``num_generations``.
    Raises UsageError where it is not, and where a loss is not finite (naming the samples).
    """

    _metrics: dict[str, Any]

    def __init__(
        self,
        trainable: TrainableModel,
        questions: Sequence[CoTSample],
        plans: tuple[GroupEncoder, RolloutPlan, RewardPlan],
        args: GRPOConfig,
        folder: Path,
        keep: int = 2,
        engine: Engine | None = None,
        **more: Any,
    ) -> None:
        self.trainable, self.questions, self.folder, self.keep = trainable, questions, folder, keep
        self.encoding, self.plan, self.rewards = plans
        self.engine = engine
        check_schedule(args, len(questions), 1 if engine is None else engine.every)
        self._drawn: list[dict[str, Any]] | None = None
        self._last: list[dict[str, Any]] = []
        self._scoring: Mapping[TurnName, Mapping[str, Any]] = {}
        beta, args.beta = (
            args.beta,
            0.0,
        )  # TRL would load a reference from disk: the weights from before the phase before
        super().__init__(
            model=trainable.model,
            reward_funcs=[_ours],  # TRL wants one; the rewards are ours
            args=args,
            train_dataset=Dataset.from_dict({"row": list(range(len(questions)))}),
            processing_class=trainable.processor,
            **more,
        )
        self.beta = args.beta = beta
        if (self.is_deepspeed_enabled and args.deepspeed_plugin.zero_stage == 3) or self.is_fsdp_enabled:
            raise UsageError(
                "chains are sampled by the model in this process, which does not work with sharded weights",
                "launch with recipes/accelerate/ddp.yaml or deepspeed-zero2.yaml",
            )
        self.reference = KeptWeights(trainable.model) if beta else None

    # --- drawing

    def _get_train_sampler(self, dataset: Any = None) -> EpochOrder:
        return EpochOrder(
            lambda: int(self.state.epoch or 0),
            data_source=self.train_dataset if dataset is None else dataset,
            mini_repeat_count=self.num_generations,
            batch_size=self.args.generation_batch_size // self.num_generations,
            repeat_count=self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """One micro-batch of the groups drawn last; new ones every ``steps_per_generation * num_iterations`` of them."""
        every = self.args.steps_per_generation * self.num_iterations
        if self._step % every == 0 or self._drawn is None:
            rows = [row["row"] for row in generation_batch[:: self.num_generations]]
            self._drawn = self._generation([self.questions[row] for row in rows])
        return self._drawn[self._step % self.args.steps_per_generation]

    def _generation(self, questions: Sequence[CoTSample]) -> list[dict[str, Any]]:
        """Groups of these questions, scored, in batches as the steps take them."""
        groups = self._rollouts(questions)
        values = self._rewarded(groups)
        credited = {turn: self._advantages(turn, groups, values) for turn in self.plan.turns}
        self._log_rewards(groups, values)
        self._last = [_kept(g, values, credited, i) for i, g in enumerate(groups[: self.keep])]
        per = len(groups) // self.args.steps_per_generation
        batches = [
            self._encoded(groups[i : i + per], {turn: a[i : i + per].flatten() for turn, a in credited.items()})
            for i in range(0, len(groups), per)
        ]
        tokens = torch.stack([batch["completion_mask"].sum() for batch in batches]).sum()
        everywhere = self.accelerator.gather(tokens).sum()
        for batch in batches:
            batch["num_items_in_batch"] = everywhere
        return batches

    def _rewarded(self, groups: Sequence[Group]) -> TurnValues:
        """Rewards of every turn; the tokens that a critic read for them are logged."""
        tools = self.rewards.tools
        counted = None if tools.critic is None else CountedCritic(tools.critic)
        tools = replace(tools, critic=counted)
        values = turn_values(groups, self.rewards, self.plan.turns, tools)
        self._log_drawn("tokens/critic", 0 if counted is None else counted.tokens)
        return values

    def _log_drawn(self, name: str, tokens: int | None) -> None:
        """Of a generation, per step of the optimiser; None, which one process may have alone, is logged as not known."""
        self._log_sum(name, math.nan if tokens is None else tokens * self._per_step())

    def _per_step(self) -> float:
        """Generations in a step of the optimiser."""
        return self.args.gradient_accumulation_steps / (self.args.steps_per_generation * self.num_iterations)

    def _rollouts(self, questions: Sequence[CoTSample]) -> list[Group]:
        """A policy of its own for every generation: what one keeps of a picture or a prompt is older weights' next time."""
        if self.engine is not None:
            policy = self.engine.at(self.trainable, self.state.global_step)
            return draw_groups(policy, questions, self.plan, f":{self.state.global_step}")
        trainable, store = self.trainable, self.encoding.store
        family, base = trainable.family, trainable.base

        def encode(pictures: Sequence[EncodedImage]) -> list[Features]:
            assert store is not None, "only given where there is one"
            found = store.features(family, base, pictures)
            return [found[picture.digest] for picture in pictures]

        loaded = Loaded(trainable.model, trainable.processor, family, {})
        ours = HFPolicy("policy", loaded, encode=None if store is None else encode)
        ours.box_format = trainable.encoder.box_format
        with evaluating(self.model), self.accelerator.autocast():
            return draw_groups(ours, questions, self.plan, f":{self.state.global_step}")

    def _advantages(self, turn: TurnName, groups: Sequence[Group], values: TurnValues) -> Tensor:
        """[G, k] of a turn's tokens; its figures are logged, over the chains and groups that had it."""
        there, rewards = taken(groups, turn), self.rewards.total(turn, values)
        if rewards is None:
            return torch.zeros(there.shape)
        found = advantages(rewards, self.rewards.baseline)
        figures = {
            f"{turn}/reward": rewards,
            f"{turn}/unscored": rewards.isnan().float(),
            f"{turn}/advantage": found.abs(),
        }
        figures = {name: number.masked_fill(~there, math.nan) for name, number in figures.items()}
        alike = without_spread(rewards).float().masked_fill(~there.any(-1), math.nan)
        self._log_means({**figures, f"{turn}/without_spread": alike})
        return found

    def _encoded(self, groups: Sequence[Group], credited: Mapping[TurnName, Tensor]) -> dict[str, Any]:
        turns = self.encoding.turns(groups, self.plan.turns)
        batch: dict[str, Any] = Trainer._prepare_inputs(self, {"turns": turns, **compact_inputs(turns, credited)})
        batch["ids"] = [group.sample.id for group in groups]
        self._log_sum("tokens/trained", trained_tokens(turns) * self.args.gradient_accumulation_steps)
        every = self.args.steps_per_generation * self.num_iterations
        with torch.no_grad(), evaluating(self.model), self.accelerator.autocast():
            if self.engine is not None and self.engine.sampled is not None and self.engine.every > 1:
                with self.engine.sampled.in_place():
                    batch["old_per_token_logps"] = self._log_probs(self.model, batch["turns"])
            elif self.args.gradient_accumulation_steps % every:
                batch["old_per_token_logps"] = self._log_probs(self.model, batch["turns"])
            if self.reference is not None:
                with self.reference.in_place():
                    batch["ref_per_token_logps"] = self._log_probs(self.model, batch["turns"])
        return batch

    # --- log-probabilities

    def _log_probs(self, model: Any, turns: Mapping[TurnName, Mapping[str, Any]]) -> Tensor:
        """[N, W]."""
        return torch.cat(
            [of_chains(self._scorer(model, turn)(detail=False).log_probs, turn) for turn in turns.values()], dim=1
        )

    def _scorer(self, model: Any, turn: Mapping[str, Any]) -> BranchScorer:
        return BranchScorer(
            model, bare(self.model), self.trainable.family, dict(turn), self.encoding.store, self.temperature
        )

    def _get_per_token_logps_and_entropies(self, model: Any, *_: Any, **__: Any) -> tuple[Tensor, Tensor, None]:
        """Of the chains of the batch being trained on, [N, W] each: TRL's own rows are the same tokens and are not read."""
        found: list[tuple[Tensor, Tensor]] = []
        for turn in self._scoring.values():
            with self.accelerator.autocast():
                scores = self._scorer(model, turn).with_entropy(gradient=self._entropy_bonus_enabled)
            assert scores.entropy is not None, "asked for"
            found.append((of_chains(scores.log_probs, turn), of_chains(scores.entropy, turn)))
        log_probs, entropies = zip(*found, strict=True)
        return torch.cat(log_probs, dim=1), torch.cat(entropies, dim=1), None

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        self._scoring = inputs["turns"]
        loss: Tensor = super()._compute_loss(model, inputs)
        if not torch.isfinite(loss):
            raise UsageError(
                f"the loss is {loss.item()}: among the samples {', '.join(inputs['ids'])}",
                "check these samples; the newest checkpoint is from before this step",
            )
        return loss

    # --- figures

    def _log_rewards(self, groups: Sequence[Group], values: TurnValues) -> None:
        lengths = torch.tensor([[float(chain.length) for chain in group.chains] for group in groups])
        unparsed = torch.tensor([[chain.unread for chain in group.chains] for group in groups])
        drawn = total(group.tokens for group in groups)
        self._log_drawn("tokens/generated", None if drawn is None else drawn.computed)
        self._log_means(
            {
                **{f"rewards/{name}": self.rewards.of_chain(name, values) for name in self.rewards.names},
                "completions/mean_length": lengths,
                "completions/unparsed": unparsed,
            }
        )

    def _log_means(self, figures: Mapping[str, Tensor]) -> None:
        """Means over all processes, of what is scored; where nothing is, there is none."""
        for name, values in figures.items():
            everywhere = self.accelerator.gather(values.to(self.accelerator.device))
            if not everywhere.isnan().all():
                self._metrics["train"][name].append(everywhere.nanmean().item())

    def _log_sum(self, name: str, count: float) -> None:
        """A sum over all processes."""
        mine = torch.tensor(float(count), device=self.accelerator.device)
        self._metrics["train"][name].append(self.accelerator.gather(mine).sum().item())

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs, start_time)
        if self._last and self.accelerator.is_main_process:
            place = self.folder / KEPT / f"step{self.state.global_step:06d}.json"
            write_atomically(place, dump_json({"step": self.state.global_step, "groups": self._last}))


def check_schedule(args: GRPOConfig, questions: int, handed_over: int = 1) -> None:
    """What must divide what. Raises UsageError.

    ``save_steps`` is rounded up to where new chains are drawn next, by weights that an engine gets then. handed_over: optimiser
    steps between two hand-overs.
    """
    k, per = args.num_generations, args.per_device_train_batch_size
    if per % k:
        raise UsageError(
            f"trainer.per_device_train_batch_size {per} is not a multiple of num_generations {k}",
            "it counts chains, as TRL does, and a group is trained on by one process",
        )
    every, accumulated = args.steps_per_generation * args.num_iterations, args.gradient_accumulation_steps
    if every % accumulated and accumulated % every:
        raise UsageError(
            f"steps_per_generation x num_iterations = {every} and gradient_accumulation_steps = {accumulated}",
            "one must divide the other, so that chains are drawn at the start of a step",
        )
    needed = args.generation_batch_size // k
    if questions < needed:
        raise UsageError(
            f"{questions} questions are fewer than the {needed} that are sampled at once",
            "lower steps_per_generation, gradient_accumulation_steps or per_device_train_batch_size",
        )
    steps = max(1, every // accumulated)
    if handed_over > 1 and handed_over % steps:
        raise UsageError(
            f"grpo.engine.every {handed_over} is not a multiple of the {steps} steps that chains are drawn for at once",
            f"{-(-handed_over // steps) * steps}, for example",
        )
    whole = max(steps, handed_over)
    args.save_steps = -(-int(args.save_steps) // whole) * whole


def _ours(*_: Any, **__: Any) -> list[float]:
    raise AssertionError("chains are drawn and scored in _generation()")


def _kept(group: Group, values: TurnValues, credited: Mapping[TurnName, Tensor], i: int) -> dict[str, Any]:
    """A group as the page shows it; of several looks with the last one's box, and the words of all."""
    scored = {
        (name if turn in ("box", "answer") else f"{turn} {name}"): found
        for turn, by_name in values.items()
        for name, found in by_name.items()
    }

    def number(found: Tensor, j: int) -> float | None:
        value = found[i, j].item()
        return None if value != value else round(value, 4)

    return {
        "id": group.sample.id,
        "question": group.sample.question,
        "picture": group.item.picture.ref,
        "answers": list(group.sample.answers),
        "chains": [
            {
                "box": None if box is None else list(box.xyxy),
                "box_text": " → ".join(one.candidate.box_text or "" for one in (chain.looks or [chain])) or None,
                "unparsed": "; ".join(one.unparsed for one in (*chain.looks, chain) if one.unparsed),
                "answer": chain.candidate.answer,
                "rewards": {name: number(found, j) for name, found in scored.items()},
                "advantages": {turn: number(found, j) for turn, found in credited.items() if turn in chain.replies},
            }
            for j, chain in enumerate(group.chains)
            for box in [next((c.candidate.box for c in (chain, *reversed(chain.looks)) if c.candidate.box), None)]
        ],
    }
