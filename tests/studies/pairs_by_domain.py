"""Which questions give pairs: per domain of the small world, of a finished ``pairs`` phase: questions with a right and a wrong answer,
boxes whose score decides (at least .8 or at most .2) among those scored, pairs, and right winning boxes.

python tests/studies/pairs_by_domain.py runs/world-iterations/iter1/pairs [MORE]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from visrl.train.config.recipe import load_recipe
from visrl.train.data.questions import load_questions
from visrl.train.pairs.run import finished
from visrl.train.pairs.sampling import QuestionState
from visrl.train.pairs.statistics import funnel, outcomes, table


def main() -> None:
    print(
        "| pairs of | domain | questions | right and wrong answers | boxes that decide | pairs | winning boxes right |"
    )
    print("|---|---|---:|---:|---:|---:|---:|")
    for folder in map(Path, sys.argv[1:]):
        recipe: Any = load_recipe(folder / "recipe.yaml").recipe
        samples = load_questions(recipe.data)
        done = finished(folder / "chains.jsonl", {sample.id: sample for sample in samples})
        domains: dict[str, list[QuestionState]] = {}
        for sample in samples:
            domains.setdefault(sample.id.split(":")[1], []).append(done[sample.id])  # rl:DOMAIN:picture:number
        for domain, works in domains.items():
            found = outcomes(works, recipe.select.rule())
            right = table(found)["wp"]
            share = "—" if right["percent"] is None else f"{right['percent']:.1f} ± {right['se'] or 0.0:.1f}"
            counts = funnel(works, recipe.select.rule())
            both, boxes = counts["questions"]["above_and_below_by_answer"], counts["box_scores"]
            decide = f"{boxes['above'] + boxes['below']} of {boxes['asked']}"
            print(f"| {folder.parent.name} | {domain} | {len(works)} | {both} | {decide} | {len(found)} | {share} |")


if __name__ == "__main__":
    main()
