"""What a comparison of methods on equal compute says, in sentences: from the paths of its table (tables/cost_tables.py).

Two methods are told apart where their difference, paired by seed, exceeds two standard errors, of three seeds or more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from visrl.evals import stats
from visrl.tables.ablation_tables import FULL, plus_minus
from visrl.tables.claims import BEYOND, SEEDS
from visrl.tables.cost_tables import Progress

Found = Mapping[str, Mapping[int, Progress]]
ONE_BY_ONE = (
    ("grpo_critic", "grpo_answer", "Box critics under GRPO"),
    ("grpo_oracle", "grpo_critic", "True boxes in the place of critics"),
)


def verdicts(found: Found, names: Sequence[str]) -> list[str]:
    """Bullets of Markdown; of methods that are not there, none."""
    if FULL not in found:
        return []
    lines = [_against_full(found, run, names) for run in found if run != FULL]
    for one, other, title in ONE_BY_ONE:
        if one in found and other in found:
            gaps = "; ".join(_said(name, _gap(found, one, other, name)) for name in names)
            lines.append(f"- {title}: `{one}` against `{other}`, at the tokens of the one that took fewer: {gaps}.")
    if "grpo_answer" in found:
        lines.append(f"- The answer's reward alone: {_gains(found['grpo_answer'], names)} since the warm-up.")
    return lines


def _against_full(found: Found, run: str, names: Sequence[str]) -> str:
    gaps = "; ".join(_said(name, _gap(found, run, FULL, name)) for name in names)
    return f"- `{run}` against `{FULL}`, at the tokens of the one that took fewer: {gaps}."


def _gap(found: Found, one: str, other: str, name: str) -> stats.Estimate:
    """``one`` less ``other``, paired by seed, where both have spent what the cheaper of them spent in all."""
    before, after, seeds = [], [], []
    for seed in sorted(found[one].keys() & found[other].keys()):
        a, b = found[one][seed], found[other][seed]
        budget = min(a.tokens[-1], b.tokens[-1])
        pair = b.at("tokens", budget, name), a.at("tokens", budget, name)
        if np.isfinite(pair).all():
            before.append(pair[0])
            after.append(pair[1])
            seeds.append(str(seed))
    return stats.paired_difference(before, after, seeds)


def _said(name: str, gap: stats.Estimate) -> str:
    """``box -9.3 ± 1.4, lower``."""
    if gap.value is None:
        return f"{name} not measured"
    enough = gap.n >= SEEDS and gap.se is not None
    apart = enough and abs(gap.value) > BEYOND * (gap.se or 0.0)
    verdict = ("higher" if gap.value > 0 else "lower") if apart else "not told apart" if enough else "too few seeds"
    return f"{name} {plus_minus(gap.value, gap.se, '+')}, {verdict}"


def _gains(by_seed: Mapping[int, Progress], names: Sequence[str]) -> str:
    said = []
    for name in names:
        scores = {seed: path.scores[name] for seed, path in by_seed.items()}
        pairs = {str(seed): (s[0], s[-1]) for seed, s in scores.items() if np.isfinite((s[0], s[-1])).all()}
        gap = stats.paired_difference([a for a, _ in pairs.values()], [b for _, b in pairs.values()], list(pairs))
        said.append(_said(name, gap))
    return "; ".join(said)
