"""Gates: what must hold before a change is merged. Pure functions; visrl/regression makes what they judge.

prompt  every task x protocol x family renders fixture documents to the texts on file. A changed text fails and shows its
        diff; so does a bumped task or protocol version until ``visrl-eval accept --prompts`` has put its texts on file.
replay  recorded outputs, scored again, give the recorded numbers, to 1e-12.
paired  a fresh run against an accepted one on the same samples. With d the mean difference and se its standard error,
        cluster-robust by picture: **fail** when d < -max(floor, z se); otherwise **inconclusive** when more samples than
        max_unscored lack a value in one of the runs, or when z se > floor, because a drop as large as the floor could not have
        been told from noise; else **pass**. It says the smallest drop it could have seen: max(floor, z se) + 0.84 se is failed
        with 80 % power. Where less is better, d is before - after; where neither is (benchmarks.py), -|d| stands for d.
paper   the verdict per cell of the paper's tables: information, it never fails.

Nothing passes because something was absent: no baseline, no value, samples missing, unscored or unparsed beyond their limit,
another protocol, judge, task version, parser, crop or data: each fails with its reason. What an error kept from being judged is
inconclusive.

Departures from "2 x standard error": 1. z is 2 for one or two gated cells, and for k cells the normal quantile of 1 - .05 / k
where that is more, so that a suite's alarm rate stays below 5 % however many cells it has. 2. se is never taken below
what a single picture's change would give: identical answers to five questions prove little.
"""

from __future__ import annotations

import difflib
import hashlib
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import Any, Literal

from visrl.core.arguments import LARGEST, within
from visrl.errors import EXIT_DONE, EXIT_GATE_FAILED, EXIT_INCOMPLETE, UsageError
from visrl.evals.benchmarks import Better
from visrl.evals.compare import Difference, loss

Status = Literal["pass", "fail", "inconclusive", "info"]
Gate = Literal["prompt", "replay", "paired", "paper", "suite"]
"""suite: what is said of a check as a whole, where it ended early."""
TOLERANCE = 1e-12
ALARMS = 0.05
POWER_Z = NormalDist().inv_cdf(0.80)
LEAST_FLOOR = 1e-6
"""Below it a floor says nothing: no metric is known to a millionth of its unit, and the samples it would take have no end."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check. detail: a diff or a list, for humans. facts: numbers, for machines (JSON values)."""

    gate: Gate
    name: str
    status: Status
    reason: str
    detail: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


def not_judged(gate: Gate, name: str, error: Exception) -> Finding:
    """An error kept a gate from its verdict: inconclusive, so that the rest is judged and all is published. detail: a traceback
    where the error is none that a user can mend.
    """
    if isinstance(error, UsageError):
        hint = f" ({error.hint})" if error.hint else ""
        return Finding(gate, name, "inconclusive", f"could not be judged: {error.message}{hint}")
    said = f"could not be judged: {type(error).__name__}: {error}"
    return Finding(gate, name, "inconclusive", said, "".join(traceback.format_exception(error)))


def exit_code(findings: Sequence[Finding]) -> int:
    """0 all pass, 1 something failed, 3 something was inconclusive. Raises UsageError for no findings: nothing was checked."""
    statuses = {finding.status for finding in findings}
    if not statuses - {"info"} and not any(finding.gate == "paper" for finding in findings):
        raise UsageError("nothing was checked", "a suite has at least one of prompts, exact, paired and paper")
    if "fail" in statuses:
        return EXIT_GATE_FAILED
    return EXIT_INCOMPLETE if "inconclusive" in statuses else EXIT_DONE


# --- prompt gate


def text_hash(text: str) -> str:
    """What stands on file for a text: 16 hex digits of its sha256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A rendered conversation: its task's version, its hash and its exact text, pictures as marks.

    text: None where only the hash is on file; the file holds the text of another task of that benchmark.
    """

    version: str
    hash: str
    text: str | None

    @classmethod
    def of(cls, version: str, text: str) -> Prompt:
        return cls(version, text_hash(text), text)


Prompts = Mapping[tuple[str, str, str], Prompt]
"""(task, protocol/version, family) -> Prompt. Family "turns" is the conversation before any layout."""
_NOTHING = Prompt("", "", "")


def check_prompts(on_file: Prompts, rendered: Prompts) -> list[Finding]:
    """A finding per task whose texts are all as on file, and one per text that is not."""
    findings: list[Finding] = []
    changed: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    for key in {**rendered, **on_file}:
        old, new = on_file.get(key, _NOTHING), rendered.get(key, _NOTHING)
        if trouble := _prompt_trouble(old, new):
            changed.setdefault((trouble, old.hash, new.hash), []).append(key)
    bad = {key[0] for keys in changed.values() for key in keys}
    for task in dict.fromkeys(key[0] for key in rendered):
        if task not in bad:
            n = sum(key[0] == task for key in rendered)
            findings.append(Finding("prompt", task, "pass", f"{n} texts as on file", facts={"n": n}))
    for (trouble, old_hash, new_hash), keys in changed.items():
        kept = [key for key in keys if on_file.get(key, _NOTHING).text is not None] or keys
        more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
        diff = _diff(on_file.get(kept[0], _NOTHING), rendered.get(kept[0], _NOTHING))
        facts = {"cells": [" · ".join(key) for key in keys], "hash": new_hash, "on_file": old_hash}
        findings.append(Finding("prompt", " · ".join(kept[0]) + more, "fail", trouble, diff, facts))
    return findings


def _prompt_trouble(old: Prompt, new: Prompt) -> str:
    if new is _NOTHING:
        return "on file, but no longer rendered: visrl-eval accept --prompts"
    if old is _NOTHING:
        return "not on file: visrl-eval accept --prompts"
    if old.version != new.version:
        return f"task version {old.version} is on file, not {new.version}: visrl-eval accept --prompts"
    if old.hash != new.hash:
        return f"the text changed, the task's version ({new.version}) and the protocol's did not"
    return ""


def _diff(old: Prompt, new: Prompt) -> str:
    if old.text is None:
        return f"only its hash is on file; now\n{new.text}"
    return text_diff(old.text, new.text or "")


def unbumped(on_file: Prompts, rendered: Prompts) -> list[Finding]:
    """The changes that must not be accepted: a text that changed while all versions stayed."""
    same = {k: p for k, p in rendered.items() if k in on_file and on_file[k].version == p.version}
    return [f for f in check_prompts({k: on_file[k] for k in same}, same) if f.status == "fail"]


def text_diff(old: str, new: str) -> str:
    """A unified diff of two texts; each line's end and blanks are visible, because each byte counts."""
    lines = difflib.unified_diff(_visible(old), _visible(new), "on file", "rendered", lineterm="", n=1)
    return "\n".join(lines)


def _visible(text: str) -> list[str]:
    return [ascii(line)[1:-1] for line in text.splitlines(keepends=True)]


# --- replay gate


def differences(recorded: Any, fresh: Any, where: str = "") -> Iterator[str]:
    """Where two JSON values differ: numbers by more than 1e-12, anything else at all."""
    if isinstance(recorded, Mapping) and isinstance(fresh, Mapping):
        for name in {**recorded, **fresh}:
            if name not in recorded or name not in fresh:
                yield f"{where}/{name}: {'not recorded' if name not in recorded else 'gone'}"
            else:
                yield from differences(recorded[name], fresh[name], f"{where}/{name}")
    elif isinstance(recorded, list) and isinstance(fresh, list):
        if len(recorded) != len(fresh):
            yield f"{where}: {len(recorded)} recorded, {len(fresh)} now"
        for number, (a, b) in enumerate(zip(recorded, fresh, strict=False)):
            yield from differences(a, b, f"{where}/{number}")
    elif not _equal(recorded, fresh):
        yield f"{where}: recorded {recorded!r}, now {fresh!r}"


def _equal(a: Any, b: Any) -> bool:
    if type(a) in (int, float) and type(b) in (int, float):
        return bool(abs(a - b) <= TOLERANCE)  # NaN is equal to nothing
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def check_exact(name: str, recorded: Mapping[str, Any], fresh: Mapping[str, Any]) -> Finding:
    """One replay: what was recorded against what scoring gives now. An empty recording fails."""
    if not recorded:
        return Finding("replay", name, "fail", "nothing is recorded for it: visrl-eval accept --exact")
    found = list(differences(recorded, fresh))
    if found:
        reason = f"{len(found)} numbers differ; the first: {found[0]}"
        return Finding("replay", name, "fail", reason, "\n".join(found[:40]), {"n_different": len(found)})
    n = _leaves(recorded)
    return Finding("replay", name, "pass", f"{n} recorded values reproduced", facts={"n": n})


def _leaves(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_leaves(item) for item in value.values())
    return sum(_leaves(item) for item in value) if isinstance(value, list) else 1


# --- paired gate


_SAID: dict[Better, tuple[str, str]] = {
    "more": ("drop", "dropped"),
    "less": ("rise", "rose"),
    "neither": ("change", "changed"),
}


def z_for(cells: int) -> float:
    """Standard errors a drop must exceed when ``cells`` are gated together: 2, or more from three cells on. A cell of which a
    change in either direction fails counts as two.
    """
    return max(2.0, NormalDist().inv_cdf(1.0 - ALARMS / max(cells, 1)))


def check_difference(
    found: Difference, floor: float, z: float = 2.0, *, better: Better = "more", max_unpaired: float = 1.0
) -> Finding:
    """The verdict on one paired difference. floor: the smallest loss that matters, in the metric's unit; z: standard errors.

    better: a loss is a drop where more is better, a rise where less is, any change where neither is. max_unpaired: the share
    (0..1) of samples without a value in one of the runs, beyond which nothing passes. Raises UsageError for a floor below
    ``LEAST_FLOOR``, and for a floor or z that is not finite.
    """
    for what, value, least in (("floor", floor, LEAST_FLOOR), ("z", z, 0.0)):
        if not within(value, least, LARGEST):
            said = f"a {what} of {value} is not between {least:g} and {LARGEST:g}"
            raise UsageError(said, "a floor is the smallest drop that matters, in the metric's unit")
    name = f"{found.task} {found.metric}"
    if found.delta is None or found.before is None or found.after is None:
        return Finding("paired", name, "fail", f"no difference: {found.n} samples have a value in both runs")
    if found.se is None or found.least_se is None:
        reason = f"no standard error from {found.n_clusters} pictures: more are needed"
        return Finding("paired", name, "inconclusive", reason, facts=_facts(found, floor, z, None, better))
    if not all(within(value, -LARGEST, LARGEST) for value in (found.delta, found.se, found.least_se)):
        return Finding("paired", name, "fail", f"a difference of {found.delta:.3g} is of no scores: is a file damaged?")
    se = max(found.se, found.least_se)
    limit = max(floor, z * se)
    facts = _facts(found, floor, z, limit + POWER_Z * se, better)
    noun, verb = _SAID[better]
    seen = f"smallest {noun} it could have seen: {limit + POWER_Z * se:.3g}"
    if loss(found.delta, better) > limit:
        return Finding("paired", name, "fail", f"{verb} by more than {limit:.3g}; {seen}", _worst(found), facts)
    if found.unpaired > max_unpaired * (found.n + found.unpaired):
        return Finding("paired", name, "inconclusive", _unpaired(found, max_unpaired, noun), facts=facts)
    if z * se > floor:
        needed = round(found.n * (z * se / floor) ** 2)
        reason = f"n {found.n} is too small for a floor of {floor:g}: about {needed} samples are needed; {seen}"
        return Finding("paired", name, "inconclusive", reason, facts={**facts, "n_needed": needed})
    return Finding("paired", name, "pass", f"no {noun} beyond {limit:.3g}; {seen}", facts=facts)


def _unpaired(found: Difference, most: float, noun: str) -> str:
    """``200 of 400 samples have no value in one of the runs, 0.0% allowed: …``."""
    total = found.n + found.unpaired
    return (
        f"{found.unpaired} of {total} samples have no value in one of the runs, {most:.1%} allowed: "
        f"a {noun} among these cannot be seen"
    )


def _facts(found: Difference, floor: float, z: float, visible: float | None, better: Better) -> dict[str, Any]:
    names = ("before", "after", "delta", "se", "ci", "p", "n", "n_clusters", "fixed", "broken", "unpaired", "unit")
    numbers = {name: getattr(found, name) for name in names}
    return {**numbers, "floor": floor, "z": z, "smallest_visible": visible, "better": better}


def _worst(found: Difference) -> str:
    return "\n".join(f"{flip.sample_id}: {flip.before:g} → {flip.after:g}" for flip in found.worst)


def invalid(name: str, reasons: Iterable[str]) -> Finding | None:
    """A failed finding with all ``reasons``, or None when there are none."""
    reasons = list(reasons)
    return Finding("paired", name, "fail", "; ".join(reasons)) if reasons else None
