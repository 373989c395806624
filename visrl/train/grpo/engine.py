"""Chains drawn by an engine (vLLM) that is handed the trained adapter every so many steps, in place of the model in training.

Between two hand-overs the engine samples from older weights than those that are trained: its chains' old log-probabilities, which
TRL's importance ratios are made of, are then those of the weights that were handed over (:class:`KeptWeights`), computed by the
learner. What the engine's own arithmetic rounds differently is in no ratio.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visrl.errors import UsageError
from visrl.policies.protocol import Policy
from visrl.policies.registry import load_policy
from visrl.train.common.models import TrainableModel

if TYPE_CHECKING:
    from visrl.train.grpo.recipe import GRPORecipe

ADAPTER = "engine-adapter"
"""In the phase's folder: what was handed over last."""


class KeptWeights:
    """The trained parameters of a model as they are now, to be put in place for a forward pass later: those of a phase's
    beginning are the reference, whatever is trained.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._kept = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model as it was; afterwards as it is. Looked up by name: a resumed adapter has new parameters."""
        parameters = dict(self._model.named_parameters())
        now = {name: parameters[name].data for name in self._kept}
        try:
            for name, before in self._kept.items():
                parameters[name].data = before
            yield
        finally:
            for name, data in now.items():
                parameters[name].data = data


@dataclass(slots=True)
class Engine:
    """policy: exchanges adapters and reports the tokens it sampled. folder: for the adapter. every: optimiser steps between two
    hand-overs. sampled: the weights that it samples with.
    """

    policy: Policy
    folder: Path
    every: int = 1
    sampled: KeptWeights | None = None

    def at(self, trainable: TrainableModel, step: int) -> Policy:
        """The policy to draw with at an optimiser step, handed the newest adapter where that is due."""
        if self.sampled is None or step % self.every == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            trainable.model.save_pretrained(self.folder)
            self.policy.use_adapter(str(self.folder))
            self.sampled = KeptWeights(trainable.model)
        return self.policy


def load_engine(recipe: GRPORecipe) -> Engine | None:
    """The recipe's engine, started; None where chains are drawn by the model in training. Raises UsageError."""
    section = recipe.grpo.engine
    if section is None:
        return None
    spec, args = engine_policy(recipe)
    policy = load_policy(spec, args)
    if policy.native_tools:
        raise UsageError(
            f"{policy.name} is told of tools in its own way, which training does not know", "another engine"
        )
    return Engine(policy, recipe.output / ADAPTER, section.every)


def engine_policy(recipe: GRPORecipe) -> tuple[str, dict[str, str]]:
    """What ``--model`` and ``--model-args`` would be: the trained model and its way of writing boxes, and the section's own."""
    section, model = recipe.grpo.engine, recipe.model
    assert section is not None and recipe.lora is not None, "the recipe says so"
    ours = {"dtype": model.dtype, "max_lora_rank": str(recipe.lora.r), "box_format": model.box_format or "native"}
    more = {"revision": model.revision, "adapter": model.adapter}  # of an adapter that goes on, its rank
    ours |= {name: value for name, value in more.items() if value}
    if model.trust_remote_code:
        ours["trust_remote_code"] = "true"
    return section.model or f"vllm:{model.path}", {**ours, **section.args}
