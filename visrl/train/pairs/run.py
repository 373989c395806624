"""The pairs of a recipe: the loop that finishes what is missing, and what is derived from it at the end (command.py).

A question that fails is recorded with its reason, tried twice more at the end and again by the next run; it never stops the
others. Of several processes (visrl/runs/distributed.py) each makes its share.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visrl import __version__
from visrl.core.plugins import used
from visrl.core.records import dump_json, write_atomically, write_results
from visrl.core.types import CoTSample
from visrl.errors import UsageError
from visrl.policies.protocol import Policy
from visrl.policies.registry import load_policy
from visrl.rollout.config import rollout_config
from visrl.runs.distributed import init
from visrl.runs.job import Job, missing_batches
from visrl.runs.lines import read_lines
from visrl.runs.progress import Counts, progress
from visrl.runs.store import Run, now, request_hash
from visrl.train.config.protocols import check_crop, check_pictures, crop_under, most_looks, protocol_id, several
from visrl.train.critics.critics import uncalibrated
from visrl.train.data.rows import write_rows
from visrl.train.pairs.calibration import begun, calibrated
from visrl.train.pairs.chain_lines import checked
from visrl.train.pairs.recipe import PairsRecipe
from visrl.train.pairs.sampling import PairSampler, QuestionState, SamplingPlan, from_json, to_json
from visrl.train.pairs.selection import Rule
from visrl.train.pairs.statistics import cost, funnel, outcomes, pair_rows, pairs_of, preferred, results, table

PASSES = 3
"""How often a run goes over the questions that failed: servers come back."""


@dataclass(slots=True)
class PairCounts(Counts):
    """What a progress line says of questions: how many were paired so far."""

    rule: Rule = Rule()  # noqa: RUF009 - frozen
    answered: int = 0
    paired: int = 0

    def add(self, episodes: Sequence[Any]) -> None:
        self.done += len(episodes)
        self.know(episodes)

    def know(self, episodes: Sequence[Any]) -> None:
        """What became of questions, of this run or an earlier one."""
        self.failed += sum(state.error is not None for state in episodes)
        self.answered += sum(state.error is None for state in episodes)
        self.paired += sum(bool(pairs_of(state, self.rule)) for state in episodes)

    def __str__(self) -> str:
        share = f" ({self.paired / self.answered:.1%})" if self.answered else ""
        return f"{self.paired} paired{share} · {self.failed} failed"


def load_sampler(recipe: PairsRecipe, before: Mapping[str, Any] | None = None) -> PairSampler:
    """The recipe's models and plan; its critic calibrated, where the recipe says so. before: the request of the run that goes on,
    where another process has read it. Raises UsageError, and Incomplete where a question of the calibration failed.
    """
    sampler = _uncalibrated(recipe)
    section = recipe.critic.calibration
    if section is None:
        return sampler
    before = before if before is not None else begun(recipe.output)
    return calibrated(sampler, section, recipe.batch_size, describe(sampler, (), recipe), before)


def _uncalibrated(recipe: PairsRecipe) -> PairSampler:
    named, judge = recipe.policy, recipe.critic
    policy = load_policy(named.model, named.args)
    same = (judge.model, judge.args) == (named.model, named.args)
    other = policy if same else _called(_critic(recipe, policy), judge.name) if judge.model else None
    policy = _called(policy, named.name)
    models = (policy, *([other] if other is not None and other is not policy else []))
    return PairSampler(policy, uncalibrated(judge, other), plan_of(recipe, policy), models)


def _critic(recipe: PairsRecipe, policy: Policy) -> Policy:
    """The critic's model; of the policy's weights where the two differ in their adapter only, and one place can hold both."""
    named, judge = recipe.policy, recipe.critic
    model, args = str(judge.model), dict(judge.args)
    adapter = args.pop("adapter", "")
    rest = {key: value for key, value in named.args.items() if key != "adapter"}
    shared = policy.with_adapter(adapter) if (model, args) == (named.model, rest) else None
    return shared or load_policy(model, judge.args)


def _called(policy: Policy, name: str | None) -> Policy:
    if name is not None:
        policy.rename(name)
    return policy


def plan_of(recipe: PairsRecipe, policy: Policy) -> SamplingPlan:
    """The recipe's plan, with the policy's own protocol where none is named. Raises UsageError where that does not look."""
    name = recipe.protocol or policy.default_protocol
    protocol = rollout_config(policy, protocol=name, crop=recipe.crop).protocol
    if not protocol.looks:
        raise UsageError(
            f"{policy.name} has the protocol {protocol.name}, which asks for no box",
            "choose one that does, for example viscot_train",
        )
    if protocol.several is not None:
        _require_own_words(recipe, policy, name)
    drawn = recipe.sampling
    return SamplingPlan(
        protocol=name,
        crop=recipe.crop,
        attempts=drawn.attempts,
        extra_samples=drawn.extra_samples if recipe.diversity == "resample" else 0,
        controller=recipe.diversity,
        rule=recipe.select.rule(),
        temperature=drawn.temperature,
        top_p=drawn.top_p,
        top_k=drawn.top_k,
        max_tokens=drawn.max_tokens,
        seed=recipe.seed,
        exhaustive=recipe.exhaustive,
        later_attempts=drawn.later_attempts or 1,
    )


def _require_own_words(recipe: PairsRecipe, policy: Policy, name: str) -> None:
    """Raises UsageError where the policy would be asked otherwise than training on the pairs asks."""
    check_crop(name, recipe.crop, "crop" in recipe.model_fields_set)
    if most_looks(name) < 1:
        raise UsageError(f"protocol {name} does not look; there are no boxes to prefer", "a limit of one look or more")
    if policy.native_tools:
        raise UsageError(
            f"{policy.name} is told of tools in its own way, which training does not know", "leave tools=native out"
        )
    check_pictures(name, policy.max_pictures, policy.name)


Line = Mapping[str, Any]
Engine = Callable[[Sequence[Sequence[CoTSample]]], Iterable[Sequence[Line]]]
"""Batches -> for each, in any order, the lines (sampling.to_json) of its questions."""


def make_pairs(sampler: PairSampler, samples: Sequence[CoTSample], recipe: PairsRecipe) -> dict[str, Any]:
    """Run what is missing, then derive pairs and manifest. Returns the manifest; of several processes only the first has one."""

    def here(parts: Sequence[Sequence[CoTSample]]) -> Iterator[list[Line]]:
        return ([to_json(state) for state in sampler.batch(part)] for part in parts)

    return make_pairs_by(here, describe(sampler, samples, recipe), sampler.plan, samples, recipe)


def make_pairs_by(
    engine: Engine, request: Mapping[str, Any], plan: SamplingPlan, samples: Sequence[CoTSample], recipe: PairsRecipe
) -> dict[str, Any]:
    """:func:`make_pairs` by another engine. request: what :func:`describe` says of it."""
    known = {sample.id: sample for sample in samples}
    with Run(recipe.output, request, "chains.jsonl", init()) as run_:
        done = finished(run_.episodes_path, known)
        for number in range(PASSES):
            failed = [s for s in samples if s.id in done and done[s.id].error is not None]
            todo = samples if number == 0 else failed
            if number == 0 or failed:
                _one_pass(engine, todo, run_, done, recipe, plan.rule, again=number > 0)
                run_.gather()
                if run_.processes.world_size > 1:
                    done = finished(run_.episodes_path, known)
        if not run_.processes.is_main:
            return {}
        manifest = conclude(recipe.output, [done[sample.id] for sample in samples], request, plan)
        run_.write_meta(finished=now())
    return manifest


def finished(path: Path, known: Mapping[str, CoTSample]) -> dict[str, QuestionState]:
    """The questions with a line, the last one counting."""

    def read(value: Any) -> QuestionState:
        line = checked(value)
        if line["id"] not in known:
            raise ValueError(f"id {line['id']!r} is no question of this recipe")
        return from_json(line, known[line["id"]])

    return {state.sample.id: state for state in read_lines(path, read)}


def _one_pass(
    engine: Engine,
    samples: Sequence[CoTSample],
    run_: Run,
    done: dict[str, QuestionState],
    recipe: PairsRecipe,
    rule: Rule,
    *,
    again: bool,
) -> None:
    """This process's share of the batches with something left to do."""
    processes = run_.processes
    batches = missing_batches(
        samples, recipe.batch_size, lambda s: s.id, lambda i: again or i not in done or done[i].error is not None
    )
    mine = list(processes.share(batches))
    wanted = {sample.id: sample for batch in mine for sample in batch.items if sample.id in batch.missing}
    label, total = "failed ones again" if again else "pairs", len(samples)
    if processes.world_size > 1:
        label, total = f"{label}, {processes}", len(wanted)

    def results() -> Iterator[tuple[list[CoTSample], list[QuestionState]]]:
        for made in engine([batch.items for batch in mine]):
            # as a later run would read them: no decoded picture stays, and both runs derive the same from the same
            found = [from_json(line, wanted[line["id"]]) for line in made if line["id"] in wanted]
            done.update((work.sample.id, work) for work in found)
            yield [], found

    with progress(label, total, quiet=not processes.is_main) as ticker:
        ticker.counts = counts = PairCounts(rule=rule)
        ticker.skip(total - len(wanted))
        if not again:
            counts.know([state for state in done.values() if state.error is None])
        job: Job[CoTSample, QuestionState] = Job(run_, "questions", to_json, lambda state: state.error)
        job.finish(results(), len(wanted), ticker)


def describe(sampler: PairSampler, samples: Sequence[CoTSample], recipe: PairsRecipe) -> dict[str, Any]:
    """Everything that decides the pairs, as JSON; its hash names the run."""
    policy, plan = sampler.policy, sampler.plan
    return {
        "policy": {
            "model": policy.name,
            "model_info": dict(policy.describe()),
            "box_format": policy.box_format.describe(),
        },
        "critic": dict(sampler.critic.describe()),
        "protocol": protocol_id(plan.protocol),
        "crop": crop_under(plan.protocol, plan.crop),
        "seed": plan.seed,
        "sampling": {
            "attempts": plan.attempts,
            "spares": plan.extra_samples,
            "temperature": plan.temperature,
            "top_p": plan.top_p,
            "top_k": plan.top_k,
            "max_tokens": plan.max_tokens,
            **({"later_attempts": plan.later_attempts} if several(plan.protocol) else {}),
        },
        "diversity": plan.controller,
        "select": recipe.select.model_dump(exclude_none=True),
        "exhaustive": plan.exhaustive,
        "data": {**recipe.data.model_dump(mode="json"), "n": len(samples), "sha256": questions_hash(samples)},
        **({"others_code": code} if (code := used()) else {}),
    }


def questions_hash(samples: Sequence[CoTSample]) -> str:
    """sha256 over what is asked, in order; pictures by name, true boxes left out: they decide nothing."""
    digest = hashlib.sha256()
    for s in samples:
        digest.update(repr((s.id, s.question, s.instruction, s.answers, s.picture and s.picture.ref, s.size)).encode())
    return digest.hexdigest()


def conclude(
    folder: Path, states: Sequence[QuestionState], request: Mapping[str, Any], plan: SamplingPlan
) -> dict[str, Any]:
    """Write pairs.jsonl, manifest.json and records/ from finished chains. Returns the manifest."""
    rows = pair_rows(states, plan.rule, plan.protocol)
    write_rows(folder / "pairs.jsonl", rows)
    found = outcomes(states, plan.rule)
    manifest = {
        "request": dict(request),
        "request_hash": request_hash(request),
        "versions": versions(),
        "funnel": funnel(states, plan.rule),
        "tokens": cost(states, len(rows)),
        "boxes": table(found) if found else None,
        **_by_look(states, plan),
        "pairs_sha256": hashlib.sha256((folder / "pairs.jsonl").read_bytes()).hexdigest(),
    }
    write_atomically(folder / "manifest.json", dump_json(manifest))
    records = results(found, record_context(request))
    if records:
        write_results(folder / "records" / "datagen.json", records)
    return manifest


def _by_look(states: Sequence[QuestionState], plan: SamplingPlan) -> dict[str, Any]:
    """Of several looks: what became of each."""
    if not several(plan.protocol):
        return {}
    looks = range(1, most_looks(plan.protocol) + 1)
    found = {k: outcomes(states, plan.rule, k) for k in looks}
    rejected = {f"look{k}": n for k in looks if (n := preferred(states, plan.rule, k))}
    return {"looks": {"preferences": rejected, "boxes": {f"look{k}": table(found[k]) for k in looks if found[k]}}}


def record_context(request: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a TaskResult that are the run's."""
    policy, critic, select = request["policy"], request["critic"], request["select"]
    how = f"critic {critic['kind']}:{critic.get('model', '')}" if select["box_critic"] else "no box critic"
    by = f" · difference {select['min_difference']:g}" if "min_difference" in select else ""
    return {
        "protocol": request["protocol"],
        "crop": request["crop"],
        "model": f"{policy['model']} · {how} · diversity {request['diversity']} · {select['mode']}{by}",
        "model_info": policy["model_info"],
        "box_format": policy["box_format"],
        "sampling": request["sampling"],
        "seed": request["seed"],
        "limit": request["data"]["limit"],
        "data": {
            "questions": request["data"]["sha256"],
            "n": request["data"]["n"],
            **({"calibration": critic["calibration"]} if "calibration" in critic else {}),
        },
        "versions": versions(),
        "small_world": request["data"]["format"] == "world",
    }


def versions() -> dict[str, str]:
    """visrl and what touches the chains."""
    names = ("torch", "transformers", "pillow", "numpy")
    return {
        "visrl": __version__,
        "python": platform.python_version(),
        **{n: importlib.metadata.version(n) for n in names},
    }
