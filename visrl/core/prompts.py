"""The turns as text. The paper's four named protocols as data; every byte of a prompt is a constant here, with its version.

Sources: docs/method.md a2 and a3, read from the official code. Prompts decide scores (one model: 15 % with one REC prompt,
84 % with another), so a record names protocol and version, and changing a byte here needs a new version.

Departures from the official code, which has no instruction for yes/no and multiple-choice benchmarks inside its two turns:
1. a sample's ``instruction`` ("Answer with …") is asked in the answer turn only, never when a box is asked for.
2. ``viscot_eval`` lower-cases the question of the box turn and keeps the resulting "?. Please", as the official run did.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from visrl.core.looking.rules import ZOOM, ZOOM_BOX, Rules
from visrl.core.plugins import Registry
from visrl.core.types import CoTSample, Picture, Turn

P_BOX = " Please provide the bounding box coordinate of the region that can help you answer the question better."  # leading space
P_RL = (
    "Please first provide the bounding box coordinate of the region, then refer to the corresponding sub-image"
    " to answer the question better."
)
P_DETAIL = "Please answer the question based on the original image and local detail image."
P_REC = "Locate the region this sentence describes: {expression}. Please provide the bounding box coordinates."

ProtocolName = str
"""A key of :data:`PROTOCOLS`; in training also a file, with a limit of looks (train/config/protocols.py)."""
AskBox = Callable[[CoTSample, Picture], tuple[Turn, ...]]
AskAnswer = Callable[[CoTSample, Picture, Picture | None, str], tuple[Turn, ...]]
DEFAULT_PROTOCOL: ProtocolName = "visrl_train"
"""What is trained, sampled and scored where nobody says otherwise."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """Which turns a question becomes. ``looks`` False asks once, without a box (the paper's "w/o CoT").

    ask_box, ask_answer: the wording of a third party's protocol, of every kind of sample, with the arguments of
    :func:`box_turns` and :func:`answer_turns`; the four of ours are worded below.

    several: the rules of a protocol of several looks; None for the paper's, which look once: a box turn in the original picture,
    its crop, and an answer. sha256: of the file that a user's protocol was read from.
    """

    name: str
    version: int
    looks: bool = True
    ask_box: AskBox | None = None
    ask_answer: AskAnswer | None = None
    several: Rules | None = None
    sha256: str = ""

    @property
    def id(self) -> str:
        """name/version, as records have it; of a user's file with the beginning of its hash."""
        return f"{self.name}/v{self.version}" + (f"@{self.sha256[:12]}" if self.sha256 else "")


def _third_party(name: str, found: Any) -> Protocol:
    if not isinstance(found, Protocol):
        raise ValueError(f"not a visrl.core.prompts.Protocol but a {type(found).__name__}")
    if found.name != name:
        raise ValueError(f"its name is {found.name!r}")
    if found.ask_answer is None or (found.looks and found.ask_box is None):
        raise ValueError("it must word its turns: ask_answer, and ask_box where it looks")
    return found


PROTOCOLS: Registry[Protocol] = Registry(
    "protocol",
    {
        "viscot_train": Protocol("viscot_train", 1),
        "viscot_eval": Protocol("viscot_eval", 1),
        "visrl_train": Protocol("visrl_train", 1),
        "direct": Protocol("direct", 1, looks=False),
    },
    _third_party,
    lambda: list(SEVERAL),
)


SEVERAL: dict[str, Protocol] = {
    "zoom": Protocol("zoom", 1, several=ZOOM),
    "zoom_box": Protocol("zoom_box", 1, several=ZOOM_BOX),
}
"""Shipped protocols of several looks."""


def box_turns(protocol: Protocol, sample: CoTSample, picture: Picture) -> tuple[Turn, ...]:
    """The conversation that asks for a box. REC asks alike in every protocol (model_refcoco_loader.py).

    Raises ValueError for a question under ``direct``, which never asks for a box.
    """
    if protocol.ask_box is not None:
        return protocol.ask_box(sample, picture)
    if sample.kind == "rec":
        text = "\n" + P_REC.format(expression=sample.question.lower())
    elif protocol.name == "viscot_eval":  # model_cot_det_loader.py
        text = f"\n{sample.question.lower()}. {P_BOX.strip()}"
    elif protocol.name == "viscot_train":
        text = f"\n{sample.question}{P_BOX}"
    elif protocol.name == "visrl_train":
        text = f"\n{sample.question} {P_RL}"
    else:
        raise ValueError(f"protocol {protocol.name} does not ask for boxes")
    return (Turn("user", (picture, text)),)


def answer_turns(
    protocol: Protocol, sample: CoTSample, picture: Picture, crop: Picture | None, box_text: str
) -> tuple[Turn, ...]:
    """The conversation that asks for the answer: ``picture``, and under a looking protocol ``crop`` and its ``box_text``."""
    if protocol.ask_answer is not None:
        return protocol.ask_answer(sample, picture, crop, box_text)
    ask = sample.instruction
    if not protocol.looks or crop is None:
        return (Turn("user", (picture, f"\n{sample.question}{ask}")),)
    if protocol.name == "viscot_train":
        follow_up = (crop, f"\n{ask.strip()}") if ask else (crop,)
        return (*box_turns(protocol, sample, picture), Turn("assistant", (box_text,)), Turn("user", follow_up))
    if protocol.name == "viscot_eval":  # model_cot_loader.py: no blank between the sentence and the question
        return (
            Turn("user", (picture, f"\n{sample.question}")),
            Turn("assistant", (box_text,)),
            Turn("user", (crop, f"\n{P_DETAIL}{sample.question}{ask}")),
        )
    # visrl_train: a new conversation of one turn; the box text is not in it (generate.py)
    parts = (picture, f"\n{sample.question} {P_RL}\n", crop)
    return (Turn("user", (*parts, f"\n{ask.strip()}") if ask else parts),)
