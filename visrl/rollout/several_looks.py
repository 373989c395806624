"""ask -> parse -> crop, again and again: the conversations of a batch under a protocol of several looks, in step.

Each round asks every conversation that is still open at once, so that a policy can batch them and carry its cache from look to
look. A look whose focus is a control (gold, random, centre, full) is made without asking: the conversation goes on as if the
model had called for that region, as the paper's controls do with one look.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

from visrl.core.box_formats import BoxFormat
from visrl.core.boxes import Box, Frame, Size
from visrl.core.crops import control_box
from visrl.core.final_answer import tagged_answer
from visrl.core.looking.calls import CALL, Asked, Fault, View, ends_turn, into, placed, read_call, viewed, write_call
from visrl.core.looking.rules import Rules
from visrl.core.types import CoTSample, Look, Picture, Step, Unparsed
from visrl.policies.protocol import Output, Policy, Request, Sampling
from visrl.rollout.config import RolloutConfig
from visrl.rollout.dialogue import CALLED_AGAIN, Dialogue
from visrl.rollout.retry import ask
from visrl.rollout.steps import parse_box, region_of

ANSWERED = "</answer>"


def dialogue_of(
    policy: Policy, sample: CoTSample, picture: Picture, size: Size | None, config: RolloutConfig
) -> Dialogue:
    """An opened sample's conversation, with its first turns."""
    rules = config.protocol.several
    assert rules is not None, "a protocol of several looks"
    planned = config.planned_looks(sample)
    most = rules.limits.looks if planned is None else min(rules.limits.looks, planned)
    dialogue = Dialogue(sample, picture, size, rules, most, native=_native(policy, rules))
    try:
        dialogue.family = None if size is None else policy.box_format.frame_for(size)
        dialogue.begin(config.sampling.max_tokens)
    except ValueError as error:  # a picture that cannot be resized as the family or the protocol does
        dialogue.error = str(error)
    return dialogue


def _native(policy: Policy, rules: Rules) -> bool:
    """Whether a server is told of the tool: its calls come back as a text in ``zoom``'s tags, which the rules must read."""
    return (
        policy.native_tools
        and rules.ask == "tool_call"
        and bool(rules.call.tool)
        and (rules.call.opening == CALL.opening)
    )


def hold(policy: Policy, dialogues: Sequence[Dialogue], config: RolloutConfig) -> None:
    """Hold the conversations to their ends."""
    while active := [dialogue for dialogue in dialogues if dialogue.open]:
        asking = [dialogue for dialogue in active if not _look_by_control(policy, dialogue, config)]
        for group in _alike(asking, config.sampling.max_tokens):
            _round(policy, group, config)


def _alike(dialogues: Sequence[Dialogue], tokens: int) -> Iterator[list[Dialogue]]:
    """Those that may write equally much, together: a call has one limit."""
    groups: dict[int, list[Dialogue]] = {}
    for dialogue in dialogues:
        groups.setdefault(dialogue.unused(tokens), []).append(dialogue)
    yield from groups.values()


def _round(policy: Policy, dialogues: Sequence[Dialogue], config: RolloutConfig) -> None:
    """The next turn of each."""
    tokens = config.sampling.max_tokens
    rules, each = dialogues[0].rules, replace(config.sampling, max_tokens=dialogues[0].unused(tokens))
    sampling = until_read(policy.box_format, rules, each)
    requests = [_request(dialogue) for dialogue in dialogues]
    for dialogue, output in zip(dialogues, ask(policy, requests, sampling), strict=True):
        if output.error is not None:
            dialogue.error = output.error
            continue
        step = _step(dialogue, output)
        dialogue.spent += sampling.max_tokens if output.output_tokens is None else output.output_tokens
        take(policy, dialogue, step, config)


def _request(dialogue: Dialogue) -> Request:
    turn = str(sum(look.step is not None for look in dialogue.looks))
    turns, tool = tuple(dialogue.turns), dialogue.tool()
    return Request(dialogue.sample.id, "look", turns, dialogue.size, turn, keep_cache=True, tool=tool)


def until_read(box_format: BoxFormat, rules: Rules, sampling: Sampling) -> Sampling:
    """A turn ends behind its first call, or its answer: what a model would add is not read."""
    if rules.ask == "tool_call":
        stops = (rules.call.closing, ANSWERED)
        return replace(sampling, stop=stops, accept_stop=lambda text: ends_turn(text, rules.call))
    stop = box_format.syntax.stop
    return replace(
        sampling,
        stop=(stop, ANSWERED) if stop else (ANSWERED,),
        accept_stop=lambda text: text.endswith(ANSWERED) or box_format.ends_with_box(text),
    )


def _step(dialogue: Dialogue, output: Output) -> Step:
    tokens = output.prompt_tokens, output.output_tokens
    return Step(output.prompt or dialogue.heard(), output.texts[0], *tokens, output.finish_reason, output.seen_sizes)


def take(policy: Policy, dialogue: Dialogue, step: Step, config: RolloutConfig) -> None:
    """Go on with one turn of the model: an answer, a look, or a call that cannot be carried out."""
    call = read_turn(policy.box_format, step.output, dialogue.rules)
    tokens = config.sampling.max_tokens
    limit = dialogue.limit
    if limit is not None or call is None:
        dialogue.answer = step
        dialogue.ended = "answer" if limit is None else "call" if call is not None else limit
        if dialogue.sample.kind == "rec":
            called = dialogue.ended == "call"
            dialogue.box = (
                Unparsed(CALLED_AGAIN)
                if called
                else parse_box(policy.box_format, step.output, dialogue.size, dialogue.sample)
            )
        return
    dialogue.reply(step.output)
    if isinstance(call, Fault):
        dialogue.refuse(step, call, tokens)
    elif dialogue.size is None:
        dialogue.show(Look(step), tokens)
    else:
        found = place(policy.box_format, dialogue, call)
        if isinstance(found, Fault):
            dialogue.refuse(step, found, tokens)
        else:
            dialogue.show(Look(step, found, region_of(found, dialogue.size, config.crop)), tokens)


def read_turn(box_format: BoxFormat, text: str, rules: Rules) -> Asked | Fault | None:
    """A turn's call, why it cannot be carried out, or None for a turn that answers."""
    if rules.ask == "tool_call":
        return read_call(text, rules.call)
    if isinstance(tagged_answer(text), str):
        return None
    found = box_format.numbers(text)
    if isinstance(found, Unparsed):
        return None
    x1, y1, x2, y2 = found[0]
    return Asked((x1, y1, x2, y2))


def place(box_format: BoxFormat, dialogue: Dialogue, call: Asked) -> Box | Fault:
    """A call's region as a box in pixels of the original."""
    view = viewed(call, dialogue.rules, dialogue.views)
    if isinstance(view, Fault):
        return view
    frame = _frame(box_format, dialogue.rules, view)
    return frame if isinstance(frame, Fault) else placed(call.numbers, frame, view, dialogue.rules.shown.max_ratio)


def _frame(box_format: BoxFormat, rules: Rules, view: View) -> Frame | Fault:
    try:
        family = box_format.frame_for(view.size) if rules.unit == "family" else None
        return rules.frame(view.size, family)
    except ValueError:  # a crop that the family's processor would not take
        return Fault("degenerate")


def _look_by_control(policy: Policy, dialogue: Dialogue, config: RolloutConfig) -> bool:
    """Whether the next look was a control's, and is made. A sample without the box that it needs fails."""
    number = len(dialogue.looks)
    focus = config.focus_of(number)
    if focus == "predicted" or dialogue.limit is not None:
        return False
    sample, size, tokens = dialogue.sample, dialogue.size, config.sampling.max_tokens
    if size is None:  # recorded text without pictures: nothing to cut
        dialogue.error = "a control needs the picture"
        return True
    gold = sample.boxes or ((sample.box,) if sample.box is not None else ())
    rng = random.Random(f"{config.seed}:{sample.task}:{sample.id}" + (f":{number}" if number else ""))
    try:
        box = control_box(focus, gold[min(number, len(gold) - 1)] if gold else None, size, rng)
    except ValueError as error:
        dialogue.error = str(error)
        return True
    dialogue.reply(written(policy.box_format, dialogue, box), own=False)
    dialogue.show(Look(None, box, region_of(box, size, config.crop)), tokens)
    return True


def written(box_format: BoxFormat, dialogue: Dialogue, box: Box) -> str:
    """The call for a box (pixels of the original) as the model would write it next; of what lies outside the picture that it is
    written in, the part inside. "" where that picture cannot be resized as the protocol says.
    """
    rules = dialogue.rules
    number = len(dialogue.views) - 1 if rules.coordinates == "last" else 0
    view = dialogue.views[number]
    if rules.ask == "box_turn":
        return box_format.write(into(box, view).clipped(view.size), view.size)
    frame = _frame(box_format, rules, view)
    return "" if isinstance(frame, Fault) else write_call(box, frame, view, rules, number)
