"""The paper's claims as comparisons of a loop's records, decided by one rule: p over seeds, corrected for their number.

A claim is two numbers per seed, before and after, and the direction it should go. Numbers come from records alone
(train/loop/scoring.py writes them); a claim whose runs are not among the records has no seeds in common and says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from scipy.optimize import brentq
from scipy.stats import nct, norm
from scipy.stats import t as student

from visrl.core.records import TaskResult
from visrl.evals import stats
from visrl.evals.benchmarks import GROUPS
from visrl.tables.ablation_tables import FULL
from visrl.tables.phase_tables import METRICS, longest, of_loops, order, percent, phase_ends, phase_of, runs, series

BEYOND = 2.0
"""Standard errors: where a difference is more than chance, taken alone."""
LEVEL = 0.05
"""Of p, corrected for the number of claims on the page."""
RECIPES = ("recipes/world-ablations.yaml", "recipes/world-iterations.yaml")
"""Which runs claims are of: the ablations with their full method, and the iterations."""
POWER = 0.8
"""With which a test is asked to find a difference (:attr:`Claim.detectable`)."""
SEEDS = 3
"""Of fewer seeds, an error over seeds decides nothing."""
HEADER = (
    "| claim | difference | from → to | p | p, corrected | verdict |",
    "| --- | ---: | ---: | ---: | ---: | --- |",
)
"""Of a table of claims, as Markdown; :meth:`Claim.row` makes its rows."""
BySeed = dict[str, float]
"""seed -> percent."""
_SAME_READING = (
    "The critic here reads the crop, and this warm-up does not change how well the model reads: given true crops only,"
    " M_org answers {base} and M_SFT {sft} right (their model cards). With warm-ups that do degrade reading"
    " (docs/pairs.md), such a critic gives fewer pairs, as in the poster, where 30k become 3k, down to none; but the remaining"
    " ones are right more often, not less, because a likelihood that is rarely high is high for the clearest crops."
    " Fewer right winners would require a critic in words, which a model of this size cannot be."
)
_KEPT_OUT_TWICE = (
    "A pair of two right boxes is rejected by two rules: by the controller, and by a critic that can read the losing crop,"
    " too, and scores it high. The effect of the controller alone, without box critics, is in docs/pairs.md (`without both`)."
)
WHY = {
    "M_org is the better critic than M_SFT": _SAME_READING,
    "With M_org as critic more winning boxes are right than with M_SFT": _SAME_READING,
    "The diversity controller helps": _KEPT_OUT_TWICE,
    "With the diversity controller fewer pairs have two right boxes": _KEPT_OUT_TWICE,
    "Crops in the frame of the boxes help": (
        "The official crop is misplaced only on pictures that are not square, half of them here, and by less than on"
        " VisCoT's sets (docs/pairs.md)."
    ),
}
"""Claim -> what is known of its failing here, each tested where it says."""
# claim, phase after, phase before, metric
_STEPS = (
    ("SFT answers better than the base", "SFT", "base", "answers"),
    ("SFT predicts better boxes than the base", "SFT", "base", "box"),
    ("RL1 predicts better boxes than SFT", "SFT+RL1", "SFT", "box"),
    ("RL1 answers better than SFT", "SFT+RL1", "SFT", "answers"),
    ("RL2 predicts better boxes than RL1", "SFT+RL1+RL2", "SFT+RL1", "box"),
    ("RL2 answers better than RL1", "SFT+RL1+RL2", "SFT+RL1", "answers"),
    ("RL2 predicts better boxes than SFT", "SFT+RL1+RL2", "SFT", "box"),
    ("RL2 answers better than SFT", "SFT+RL1+RL2", "SFT", "answers"),
)
# claim, variant that should be worse than `full`, metric
_ABLATIONS = (
    ("Box critics help", "no-box-critic", "box"),
    ("The diversity controller helps", "no-diversity", "box"),
    ("M_org is the better critic than M_SFT", "sft-as-critic", "box"),
    ("Stage 1 before stage 2 helps", "stage-2-only", "box"),
    ("Preferences over boxes help, not only over answers", "answer-only", "box"),
    ("The winning box's crop is the better context for the losing answer", "own-crop", "answers"),
    ("Crops in the frame of the boxes help", "compat-crop", "box"),
    ("The losing chain helps beyond fine-tuning on the winning one", "winners-only", "box"),
    ("Reinforcement beats as many further examples of the labelled pictures", "more-sft", "box"),
    ("Reinforcement beats continued SFT with the same compute", "more-sft-compute", "box"),
)
# claim, variant that should be worse than another variant, that one, metric
_BESIDE = (("Without box critics, the diversity controller helps", "no-both", "no-box-critic", "box"),)
_OTHER_SFT = ("short-sft", "more-sft", "more-sft-compute")
"""Variants that end in an SFT checkpoint other than the one reinforcement starts from."""
RIGHT = ("wp_lp", "wp_ln")
"""Kinds of pairs whose winning box is right."""
# claim, variant, kinds of pairs, 1: the method should have more of them; -1: fewer
_PAIRS = (
    ("With box critics more winning boxes are right", "no-box-critic", RIGHT, 1),
    ("With the diversity controller fewer pairs have two right boxes", "no-diversity", ("wp_lp",), -1),
    ("With M_org as critic more winning boxes are right than with M_SFT", "sft-as-critic", RIGHT, 1),
)


@dataclass(frozen=True, slots=True)
class Claim:
    """``after`` should be above ``before`` (sign 1) or below it (-1), seed by seed.

    se_by_picture: the standard error of the difference where there is one seed only, by picture within it. recipe: what makes
    the runs anew. runs: those that the numbers are of.
    """

    text: str
    before: BySeed
    after: BySeed
    sign: int = 1
    se_by_picture: float | None = None
    recipe: str = RECIPES[0]
    runs: tuple[str, ...] = ()

    @property
    def change(self) -> stats.Estimate:
        """The difference, paired by seed; its value None where no seed has both."""
        seeds = self.seeds
        found = stats.paired_difference([self.before[s] for s in seeds], [self.after[s] for s in seeds], seeds)
        return replace(found, se=self.se_by_picture) if found.n == 1 else found

    @property
    def seeds(self) -> list[str]:
        return [seed for seed in self.before if seed in self.after]

    @property
    def run_seeds(self) -> set[tuple[str, int]]:
        """The runs that the numbers are of, by name and seed."""
        return {(run, int(seed)) for run in self.runs for seed in self.seeds}

    @property
    def p(self) -> float | None:
        """Two-sided, of no difference: Student's t over seeds, normal where the error is by picture within one seed. None where
        there is no error, and of fewer than three seeds but one.
        """
        change = self.change
        if change.value is None or not change.se or (1 < change.n < SEEDS):
            return None
        t = abs(change.value) / change.se
        return 2 * float(norm.sf(t) if change.n == 1 else student.sf(t, change.n - 1))

    @property
    def detectable(self) -> float | None:
        """The difference, in percentage points, that a test of so many seeds and this error finds with a chance of ``POWER``: of
        the t-test at ``LEVEL``, taken alone (noncentral t). None where there is no such test.
        """
        change = self.change
        if self.p is None or change.n == 1 or not change.se:
            return None
        freedom = change.n - 1
        least = student.isf(LEVEL / 2, freedom)

        def short(effect: float) -> float:
            """Of the power, by the tail on the effect's side: the other one's share is below 1e-4 from one error on."""
            return float(nct.sf(least, freedom, effect)) - POWER

        return change.se * float(brentq(short, 1.0, 20.0))

    def verdict(self, corrected: float | None) -> str:
        """``reproduced``, ``contradicted`` or ``undecided``; empty where no seed has both. corrected: p, by :func:`holm`."""
        change = self.change
        if change.value is None:
            return ""
        if self.p is None or corrected is None:
            return "undecided"
        if corrected < LEVEL:
            return "reproduced" if self.sign * change.value > 0 else "contradicted"
        beyond = abs(change.value) > BEYOND * (change.se or 0.0)
        return "undecided" + (", beyond two errors alone" if beyond else "")

    def row(self, corrected: float | None, cost: str = "") -> str:
        """A row of the table, over the seeds that both have; empty where they share none. cost: a last cell, if any."""
        seeds, change = self.seeds, self.change
        if change.value is None:
            return ""
        error = "" if change.se is None else f" ± {change.se:.1f}"
        a, b = (sum(values[s] for s in seeds) / len(seeds) for values in (self.before, self.after))
        how = f"{self.verdict(corrected)}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
        chances = f"{_chance(self.p)} | {_chance(corrected)}"
        return f"| {self.text} | {change.value:+.1f}{error} | {a:.1f} → {b:.1f} | {chances} | {how} |" + (
            f" {cost} |" if cost else ""
        )


def _chance(p: float | None) -> str:
    return "—" if p is None else "< .001" if p < 0.001 else f"{min(p, 0.999):.3f}".removeprefix("0")


def holm(found: Sequence[float | None]) -> list[float | None]:
    """p-values corrected for their number: the smallest times m, the next times m - 1, …, none below one before it, 1 at most.

    Holm 1979: keeps the chance of any false claim below the level, whatever the claims' dependence. None stays None.
    """
    order_ = sorted((p, i) for i, p in enumerate(found) if p is not None)
    corrected: list[float | None] = [None] * len(found)
    so_far = 0.0
    for rank, (p, i) in enumerate(order_):
        so_far = max(so_far, min(1.0, p * (len(order_) - rank)))
        corrected[i] = so_far
    return corrected


def claims(results: Sequence[TaskResult]) -> Iterator[Claim]:
    """All of them, with what the records of loops say to each."""
    found = of_loops(results)
    main = main_run(runs(found))
    for text, after, before, metric in _STEPS:
        yield Claim(text, by_seed(found, main, before, metric), by_seed(found, main, after, metric), runs=(main,))
    end = by_seed(found, main, "SFT+RL1+RL2", "box")
    best = "RL2 predicts better boxes than the best of the SFT checkpoints"
    yield Claim(best, _best_sft(found, main), end, runs=(main, *_OTHER_SFT))
    full = last_by_seed(found, FULL)
    for text, variant, metric in _ABLATIONS:
        worse = last_by_seed(found, variant).get(metric, {})
        yield Claim(text, worse, full.get(metric, {}), runs=(FULL, variant))
    for text, variant, other, metric in _BESIDE:
        worse, better = (last_by_seed(found, name).get(metric, {}) for name in (variant, other))
        yield Claim(text, worse, better, runs=(other, variant))
    for text, variant, kinds, sign in _PAIRS:
        less, more = (pairs_by_seed(results, name, kinds) for name in (variant, FULL))
        yield Claim(text, less, more, sign, runs=(FULL, variant))
    yield from _iterations(found)


def _iterations(found: Sequence[TaskResult]) -> Iterator[Claim]:
    """The last iteration of the longest run against SFT and against the first iteration. Of one seed the error is by picture,
    both phases taken as independent, which makes it too large rather than too small.
    """
    run = longest(found)
    ends = {int(number): label for label, number in phase_ends(found, run).items()}
    last = max(ends, default=0)
    for metric, points in series(found, run).items() if last > 1 else ():
        errors = {int(number): point.se for number, point in points}
        for number, name in ((0, "SFT"), (1, "the first iteration")):
            if number not in errors:  # a loop without a warm-up
                continue
            before, after = errors[number], errors[last]
            yield Claim(
                f"Iteration {last}: better {metric} than {name}",
                by_seed(found, run, ends[number], metric),
                by_seed(found, run, ends[last], metric),
                se_by_picture=None if before is None or after is None else math.hypot(before, after),
                recipe=RECIPES[1],
                runs=(run,),
            )


def main_run(names: Sequence[str]) -> str:
    """The run whose phases are compared: the ablations' full method, else the first."""
    return FULL if FULL in names else names[0]


def _best_sft(found: Sequence[TaskResult], main: str) -> BySeed:
    """Per seed the best of SFT and of the variants that trained on the labelled pictures otherwise, by the very number reported:
    no choice made beforehand could do better. Empty unless all of them ran."""
    candidates = [by_seed(found, main, "SFT", "box"), *(last_by_seed(found, run).get("box", {}) for run in _OTHER_SFT)]
    seeds = set.intersection(*(set(values) for values in candidates))
    return {seed: max(values[seed] for values in candidates) for seed in sorted(seeds)}


def by_seed(found: Sequence[TaskResult], run: str, label: str, metric: str) -> BySeed:
    """A phase's metric; a group's mean where there is one, else the only task's."""
    values: dict[str, dict[str, float]] = {}
    for r in found:
        about = phase_of(r)
        if (about["run"], about["label"]) == (run, label) and METRICS[r.metric] == metric and r.value is not None:
            values.setdefault(str(about["seed"]), {})[r.task] = percent(r, r.value)
    means = {
        seed: [v for task, v in of_seed.items() if task in GROUPS or len(of_seed) == 1]
        for seed, of_seed in values.items()
    }
    return {seed: mean[0] for seed, mean in means.items() if mean}


def last_by_seed(found: Sequence[TaskResult], run: str) -> dict[str, BySeed]:
    """metric -> a run's last phase."""
    about = [phase_of(r) for r in found if phase_of(r)["run"] == run]
    if not about:
        return {}
    label = max(about, key=lambda phase: order(phase["phase"]))["label"]
    return {metric: by_seed(found, run, label, metric) for metric in dict.fromkeys(METRICS.values())}


def pairs_by_seed(results: Sequence[TaskResult], run: str, kinds: Sequence[str]) -> BySeed:
    """Percent of the first iteration's pairs that are of these kinds."""
    values: dict[str, BySeed] = {}
    for r in results:
        about = r.model_info.get("phase")
        if r.task == "datagen" and about and (about["run"], about["iteration"]) == (run, 1) and r.metric in kinds:
            # of equal seeds the last record counts
            values.setdefault(str(about["seed"]), {})[r.metric] = r.value or 0.0
    return {seed: sum(of_seed.values()) for seed, of_seed in values.items()}
