"""Groups of chains for the GRPO tests, written by hand: two that looked alike, one that looked elsewhere, one unreadable box."""

from train_made import sample

from visrl.core.boxes import Box
from visrl.core.crops import whole
from visrl.core.prompts import PROTOCOLS, answer_turns
from visrl.rollout.steps import crop_picture, region_of
from visrl.train.common.conversations import box_prompt, box_text, opened
from visrl.train.data.candidates import Candidate
from visrl.train.grpo.rollouts import Chain, Group, Reply

BOXES = (Box(2.0, 3.0, 20.0, 25.0), Box(2.0, 3.0, 20.0, 25.0), Box(5.0, 1.0, 28.0, 9.0), None)
ANSWERS = ("A B", "yes", "green square C", "blue")


def group(i, trainable, protocol="visrl_train", kind="qa"):
    """Question ``i`` with four chains, their replies as tokens with the end of turn."""
    from dataclasses import replace

    item = opened(replace(sample(i), kind=kind), protocol)
    chains = [chain(item, trainable.encoder, j) for j in range(4)]
    return Group(item, chains)


def chain(item, encoder, j):
    protocol, box, answer = PROTOCOLS[item.protocol], BOXES[j], ANSWERS[j]
    made = Chain(Candidate(box, attempt=j), unparsed="" if box else "no box")
    if protocol.looks or item.sample.kind == "rec":
        made.candidate.box_text = (
            "blue ?" if box is None else box_text(encoder.box_format, made.candidate, item.size, "s")
        )
        made.replies["box"] = said(encoder, box_prompt(item), made.candidate.box_text)
        if protocol.looks:
            made.crop = crop_picture(item.picture, region_of(box or whole(item.size), item.size, "tight"))
    if item.sample.kind == "qa":
        made.candidate.answer = answer
        turns = answer_turns(protocol, item.sample, item.picture, made.crop, made.candidate.box_text or "")
        made.replies["answer"] = said(encoder, turns, answer)
    return made


def said(encoder, turns, text):
    return Reply(turns, tuple(encoder.reply(turns, encoder.chat(turns, sample="s"), text).tolist()))
