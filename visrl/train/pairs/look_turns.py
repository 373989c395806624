"""How the turns of a chain are asked for and read, under the paper's protocols and under those of several looks.

Under the paper's a box turn says a box, and an answer turn follows one look. Under the others any turn looks or answers, until
the protocol's limit; a call that cannot be carried out ends nothing there, but there is nothing in it to prefer: it is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from visrl.core.box_formats import BoxFormat
from visrl.core.boxes import Box
from visrl.core.crops import CropName
from visrl.core.final_answer import final_answer
from visrl.core.looking.calls import Fault
from visrl.core.types import Unparsed
from visrl.policies.protocol import Output, Policy, Request, Sampling
from visrl.rollout.dialogue import NEVER_LOOKED
from visrl.rollout.retry import ask
from visrl.rollout.several_looks import place, read_turn, until_read, written
from visrl.rollout.steps import ask_where, parse_box
from visrl.train.common.conversations import Opened, dialogue_after, prompt_after
from visrl.train.data.candidates import Candidate, CandidateLook
from visrl.train.pairs.diversity import BoxProposal

if TYPE_CHECKING:
    from visrl.core.crops import Region
    from visrl.core.looking.rules import Rules


@dataclass(frozen=True, slots=True)
class Answered:
    """A turn that answers."""

    text: str


@dataclass(frozen=True, slots=True)
class LookTurns:
    """The turns of a policy under a protocol. rules: of several looks; None: one."""

    policy: Policy
    rules: Rules | None
    crop: CropName

    @property
    def box_format(self) -> BoxFormat:
        return self.policy.box_format

    @property
    def most(self) -> int:
        """How many looks a chain may have."""
        return 1 if self.rules is None else self.rules.limits.looks

    def request(self, item: Opened, looks: Sequence[CandidateLook], *, last: bool) -> Request:
        """The next turn after these looks. last: it has to answer."""
        turns, sample = prompt_after(item, looks, self.crop, self.box_format), item.sample
        if self.rules is not None:
            return Request(sample.id, "look", turns, item.size, path_of(looks), keep_cache=True)
        return Request(sample.id, "answer" if last else "box", turns, item.size, path_of(looks))

    def ask_looks(self, policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Output]:
        """Turns that may look."""
        if self.rules is None:
            return ask_where(policy, requests, sampling)
        return ask(policy, requests, until_read(self.box_format, self.rules, sampling))

    def ask_answers(self, policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Output]:
        """Turns that have to answer."""
        return ask(
            policy, requests, sampling if self.rules is None else until_read(self.box_format, self.rules, sampling)
        )

    def read(self, item: Opened, looks: Sequence[CandidateLook], text: str) -> BoxProposal | Unparsed | Answered:
        """What a turn after these looks says."""
        if self.rules is None:
            box = parse_box(self.box_format, text, item.size)
            return BoxProposal(box, text) if isinstance(box, Box) else box
        call = read_turn(self.box_format, text, self.rules)
        if call is None:
            return Answered(text) if looks else Unparsed(NEVER_LOOKED)
        dialogue = dialogue_after(item, looks, self.box_format)
        found = call if isinstance(call, Fault) else place(self.box_format, dialogue, call)
        return BoxProposal(found, text) if isinstance(found, Box) else Unparsed(found.text)

    def area(self, item: Opened, looks: Sequence[CandidateLook]) -> Region:
        """Where a random box may be drawn: in the picture that the numbers of the next look lie in."""
        if self.rules is not None and self.rules.coordinates == "last":
            return dialogue_after(item, looks, self.box_format).views[-1].region
        return (0, 0, *item.size)

    def sayable(self, item: Opened, looks: Sequence[CandidateLook], proposal: BoxProposal) -> Box | None:
        """A proposal's box; of one that nobody said, as it will be read where it is written. None: it cannot be said."""
        if self.rules is None or proposal.text is not None:
            return proposal.box
        text = written(self.box_format, dialogue_after(item, looks, self.box_format), proposal.box)
        found = self.read(item, looks, text)
        return found.box if isinstance(found, BoxProposal) else None

    def chain(self, looks: Sequence[CandidateLook], proposal: BoxProposal, at: tuple[int, int]) -> Candidate:
        """A chain that goes on with another look. at: (attempt, role) of it."""
        if self.rules is None:
            return Candidate(proposal.box, proposal.text, attempt=at[0], role=at[1], source=proposal.source)
        last = CandidateLook(proposal.box, proposal.text, source=proposal.source, place=at)
        first = looks[0] if looks else last
        attempt, role = first.place
        return Candidate(attempt=attempt, role=role, source=first.source, looks=(*looks, last))

    def answer(self, candidate: Candidate, text: str) -> None:
        """Note what a chain said last."""
        if self.rules is None:
            candidate.answer = text
            return
        found = final_answer(text)
        candidate.answer, candidate.answer_text = text if isinstance(found, Unparsed) else found, text

    def open(self, candidate: Candidate) -> bool:
        """Whether a chain may look again."""
        return self.rules is not None and candidate.answer_text is None and candidate.depth < self.most


def path_of(looks: Sequence[CandidateLook]) -> str:
    """A request's stream: "" for the first look, then which looks lead to it."""
    return ":" + "/".join(f"{attempt}.{role}" for attempt, role in (look.place for look in looks)) if looks else ""
