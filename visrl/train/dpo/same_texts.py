"""Pairs whose winning and losing chain say the same: log-probabilities of one text differ by nothing, whatever is learned."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from visrl.core.box_formats import BoxFormat
from visrl.errors import UsageError
from visrl.runs.distributed import rank
from visrl.train.common.conversations import box_text
from visrl.train.config.protocols import several
from visrl.train.data.candidates import Preference
from visrl.train.dpo.collator import has_term
from visrl.train.dpo.losses import Term, TermName, look_of


def check_differ(
    pairs: Sequence[Preference], terms: Sequence[Term], box_format: BoxFormat | None, *, own_crop: bool = False
) -> None:
    """Says on stderr how many pairs have one text for both chains, by term; they stay, and add nothing to its gradient.

    box_format: how the model writes boxes; None where it is not known yet, and boxes themselves are compared. own_crop: answers
    follow different crops, so that one text may be preferred to itself.

    Raises UsageError where no pair has two texts in any term.
    """
    counts: dict[TermName, tuple[int, int]] = {}
    for term in (term for term in terms if term.weight and not (own_crop and term.name == "answer")):
        having = [pair for pair in pairs if has_term(pair, term.name)]
        counts[term.name] = sum(_is_same(pair, term.name, box_format) for pair in having), len(having)
    said = "; ".join(f"{name} of {same:,} of {n:,} pairs" for name, (same, n) in counts.items() if same)
    if said and all(same == n for same, n in counts.values()) and not (own_crop and len(terms) > len(counts)):
        raise UsageError(
            f"win and lose say the same ({said}): there is nothing to prefer",
            "boxes are pixels of the original picture, and what wins must differ from what loses once it is written",
        )
    if said and box_format is not None and rank() == 0:
        print(f"win and lose say the same, which teaches nothing: {said}", file=sys.stderr)


def _is_same(pair: Preference, term: TermName, box_format: BoxFormat | None) -> bool:
    """Whether a term's two completions are one. Boxes of several looks, whose frame may be a crop, are compared as they are."""
    look = look_of(term)
    if look is None:
        return (pair.chosen.answer, pair.chosen.answer_text) == (pair.rejected.answer, pair.rejected.answer_text)
    chosen, rejected = (chain.all_looks[look] for chain in (pair.chosen, pair.rejected))
    size = pair.sample.size
    if box_format is None or size is None or several(pair.protocol):
        return (chosen.box, chosen.text) == (rejected.box, rejected.text)
    first, second = (box_text(box_format, one, size, pair.sample.id) for one in (chosen, rejected))
    return first == second
