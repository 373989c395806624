"""The phases of a loop in order, and each one's recipe with what the phases before it left put in (docs/method.md d, e).

Policy of iteration k: the end of iteration k - 1 (of the warm-up for the first). Critic: always M_org. Reference: the model a
stage starts from, so that stage 2's is the end of stage 1. Questions: iteration k leaves out those of the iterations before.

Departures: 1. each phase loads what the phase before wrote, rather than going on in memory: a resumed loop and an uninterrupted
one then do the same. 2. one LoRA adapter goes through all phases; officially it is merged and a fresh one begins each time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from visrl.errors import UsageError
from visrl.train.config.recipe import OLD_KINDS, Recipe, Resolved, flat, read_yaml, resolve
from visrl.train.data.questions import QuestionSection
from visrl.train.grpo.recipe import GRPORecipe
from visrl.train.loop.looks import shared
from visrl.train.loop.recipe import Answering, LoopRecipe, PhaseSection, RLSection
from visrl.train.pairs.recipe import PairsRecipe
from visrl.world import CHECKPOINTS

What = Literal["ready", "warm-up", "continued_sft", "pairs", "rl", "policy_gradient"]
CONTINUED_SEED = 1000
"""How far the seed of continued SFT is from the warm-up's: beyond the seeds of any study."""
Overrides = dict[str, Any]
"""Dotted key -> what the loop puts there."""
WIRED = ("output", "seed", "step.stages", "policy.model", "policy.name", "model.path", "model.adapter", "start")
"""Keys whose own values do not count."""
ADDED_TO = {"data.skip"}
"""Put there by the loop, but from the value that is set."""


@dataclass(frozen=True, slots=True)
class Phase:
    """One folder of a loop. name: below the output; label: its row in tables; stage: of ``rl``; iteration: 0 before the first."""

    name: str
    label: str
    what: What
    iteration: int = 0
    stage: Literal[0, 1, 2] = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """A model on disk: a shipped name, a folder or a hub id, and an adapter's folder."""

    model: str
    adapter: str | None = None

    def after(self, final: Path) -> Weights:
        """What a phase left in ``final``: an adapter on the same model, or a model."""
        if (final / "adapter_config.json").is_file():
            return Weights(self.model, str(final))
        return Weights(str(final))

    def spec(self, answering: Answering) -> str:
        """As ``--model`` takes it."""
        return self.model if self.model in CHECKPOINTS else f"{answering}:{self.model}"

    def sha256(self) -> str:
        """:func:`visrl.train.common.models.weights_id`. Raises UsageError where there are none."""
        from visrl.train.common.models import weights_id

        return weights_id(self.model, self.adapter)


@dataclass(frozen=True, slots=True)
class State:
    """What the phases so far have left: M_org, M_SFT, the newest model and its phase's label, the newest pairs and where their
    pictures are.
    """

    base: Weights
    sft: Weights
    now: Weights
    label: str = "base"
    pairs: Path | None = None
    pictures: Path = Path()


def phases(recipe: LoopRecipe) -> Iterator[Phase]:
    """The loop's phases, in order; names as in the poster's table 2, later iterations counted on."""
    yield Phase("base", "base", "ready")
    so_far = []
    if recipe.sft is not None:
        so_far = ["SFT"]
        yield Phase("sft", "SFT", "ready" if recipe.sft.model is not None else "warm-up")
    if recipe.continued_sft is not None:
        so_far.append("more")
        yield Phase("more", "+".join(so_far), "continued_sft")
    method = "dpo" if recipe.rl is None else recipe.rl.method
    for k in range(1, recipe.iterations + 1):
        if method != "dpo":
            label = "+".join([*so_far, method.upper()]) if k == 1 else f"iteration {k}: {method.upper()}"
            yield Phase(f"iter{k}/rl", label, "policy_gradient", k)
            continue
        yield Phase(f"iter{k}/pairs", f"pairs {k}", "pairs", k)
        for stage in recipe.stages:
            so_far.append(f"RL{stage}")
            label = "+".join(so_far) if k == 1 else f"iteration {k}: RL{stage}"
            yield Phase(f"iter{k}/rl{stage}", label, "rl", k, stage)


def critic_of(recipe: LoopRecipe, state: State) -> Weights:
    """M_org, whatever the iteration; M_SFT in the ablation."""
    return state.sft if recipe.critic == "sft" else state.base


def phase_recipe(recipe: LoopRecipe, phase: Phase, state: State) -> tuple[Resolved, Overrides]:
    """The phase's own recipe, checked, and which of its values come from phases before. Raises UsageError."""
    section = _section(recipe, phase)
    kind = _kind(phase, section)
    own = _own(section)
    before: Overrides = dict(shared(recipe, own))
    if phase.what == "pairs":
        overrides = _pairs_overrides(recipe, phase, state, section, own)
    elif phase.what == "rl":
        data, overrides = _rl_overrides(phase, state)
        before |= data
    elif phase.what == "policy_gradient":
        overrides = _policy_gradient_overrides(recipe, phase, state, section, own)
    else:
        overrides = _start_overrides(kind, state)
    # with the warm-up's own seed, further training would see its very examples again, in the same order
    seed = recipe.seed + CONTINUED_SEED if phase.what == "continued_sft" else recipe.seed
    fixed = {"output": str(recipe.output / phase.name), "seed": seed}
    _refuse_overridden(phase, section, {*fixed, *overrides, *dict(flat(before))} - ADDED_TO)
    resolved = resolve(section.recipe, {**before, **section.set, **fixed, **overrides})
    if phase.what == "rl":
        overrides |= {"data.path": str(state.pairs)}
    return resolved, overrides


def own_recipe(recipe: LoopRecipe, phase: Phase) -> Resolved | None:
    """A phase's recipe with the loop's protocol and crop, before anything else is put in. None where there is none."""
    if phase.what == "ready":
        return None
    section = _section(recipe, phase)
    own = _own(section)
    return resolve(section.recipe, {**_settings(section), **shared(recipe, own)})


def _own(section: PhaseSection) -> Resolved:
    return resolve(section.recipe, _settings(section))


def _settings(section: PhaseSection) -> Overrides:
    """What is set of a phase, without what the loop puts there itself, which is refused elsewhere."""
    return {key: value for key, value in section.set.items() if key not in WIRED}


def _refuse_overridden(phase: Phase, section: PhaseSection, overridden: set[str]) -> None:
    """What the loop puts somewhere is not to be set there: it would be overwritten unseen."""
    for key in section.set:
        if key in overridden:
            hint = "the loop puts it there; `pairs.set: {critic.model: …}` alone may name another model"
            raise UsageError(f"{phase.name}: set names {key}", hint)


def _section(recipe: LoopRecipe, phase: Phase) -> PhaseSection:
    section = {
        "warm-up": recipe.sft and recipe.sft.recipe and recipe.sft.phase,
        "continued_sft": recipe.continued_sft,
        "pairs": recipe.pairs,
        "rl": recipe.rl,
        "policy_gradient": recipe.rl,
    }[phase.what]
    assert isinstance(section, PhaseSection), "phases() gives only what the recipe has"
    return section


def _kind(phase: Phase, section: PhaseSection) -> str:
    """The kind of the phase's recipe. Raises UsageError for one that cannot be this phase."""
    kind = str(read_yaml(section.recipe).get("kind"))
    kind = OLD_KINDS.get(kind, kind)
    wanted = {"pairs": ("pairs",), "rl": ("dpo",), "policy_gradient": ("grpo",)}.get(phase.what, ("sft", "small_model"))
    if kind not in wanted:
        raise UsageError(
            f"{phase.name}: {section.recipe} is a recipe of kind {kind}", f"this phase takes kind {' or '.join(wanted)}"
        )
    return kind


def _model(weights: Weights) -> Overrides:
    return {"model.path": weights.model, "model.adapter": weights.adapter, "model.revision": None}


def _start_overrides(kind: str, state: State) -> Overrides:
    from visrl.train.common.models import shipped

    return {"start": shipped(state.now.model)} if kind == "small_model" else _model(state.now)


def _rl_overrides(phase: Phase, state: State) -> tuple[Overrides, Overrides]:
    """What replaces the recipe's own data, of which ``set`` may still change the ``limit``; and what else the loop puts there."""
    data = {"path": str(state.pairs), "pictures": str(state.pictures)}
    return {"data": data}, {**_model(state.now), "step.stages": [phase.stage]}


def _pairs_overrides(
    recipe: LoopRecipe, phase: Phase, state: State, section: PhaseSection, resolved: Resolved
) -> Overrides:
    overrides = _asked("policy", state.now, state.label, recipe.policy)
    own = resolved.recipe
    assert isinstance(own, PairsRecipe), "of kind pairs, as _kind() checks"
    if own.critic.kind != "oracle" and "critic.model" not in section.set:
        overrides |= _asked(
            "critic", critic_of(recipe, state), "M_SFT" if recipe.critic == "sft" else "M_org", recipe.policy
        )
    return overrides | _fresh_questions(phase, own.data)


def _policy_gradient_overrides(
    recipe: LoopRecipe, phase: Phase, state: State, section: PhaseSection, resolved: Resolved
) -> Overrides:
    """The newest model, M_org as critic where one is asked, fresh questions, and the baseline that the method names."""
    overrides = _model(state.now)
    own = resolved.recipe
    assert isinstance(own, GRPORecipe), "of kind grpo, as _kind() checks"
    if own.critic is not None and own.critic.kind != "oracle" and "critic.model" not in section.set:
        overrides |= _asked(
            "critic", critic_of(recipe, state), "M_SFT" if recipe.critic == "sft" else "M_org", recipe.policy
        )
    if isinstance(section, RLSection) and section.method == "rloo":
        overrides["grpo.baseline"] = "leave_one_out"
    return overrides | _fresh_questions(phase, own.data)


def _fresh_questions(phase: Phase, data: QuestionSection) -> Overrides:
    """Those of the iterations before are left out. Raises UsageError where no ``limit`` says how many each took."""
    if phase.iteration > 1 and data.limit is None:
        raise UsageError(
            f"several iterations need data.limit in the recipe of {'pairs' if phase.what == 'pairs' else 'rl'}",
            "it sets the number of new questions per iteration",
        )
    return {"data.skip": data.skip + (phase.iteration - 1) * (data.limit or 0)}


def _asked(who: str, weights: Weights, name: str, answering: Answering) -> Overrides:
    overrides: Overrides = {f"{who}.model": weights.spec(answering), f"{who}.name": name}
    return overrides | ({f"{who}.args.adapter": weights.adapter} if weights.adapter is not None else {})


def final_of(phase: Phase, folder: Path, found: Recipe) -> Path:
    """Where a training phase leaves its weights."""
    if found.kind == "small_model":
        return folder
    return folder / f"stage{phase.stage}" / "final" if found.kind == "dpo" else folder / "final"
