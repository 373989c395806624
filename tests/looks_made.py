"""Turns of a protocol of several looks, made up: good calls, and faulty ones of every kind in many forms."""

import json
import random

from visrl.core.boxes import Box
from visrl.core.looking.calls import FAULTS

SIZE = (400, 200)
TOOL = "image_zoom_in_tool"


def call(box: object, name: object = TOOL, **more: object) -> str:
    arguments = {"bbox_2d": box, **more}
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def wrapped(value: object) -> str:
    return f"<tool_call>{value if isinstance(value, str) else json.dumps(value)}</tool_call>"


def good_box(rng: random.Random) -> list[int]:
    x, y = rng.randrange(0, 350), rng.randrange(0, 150)
    return [x, y, x + rng.randrange(5, 50), y + rng.randrange(5, 50)]


def _unclosed(rng: random.Random) -> str:
    return call(good_box(rng))[: -rng.randrange(1, len("</tool_call>"))]


def _not_json(rng: random.Random) -> str:
    whole = json.dumps({"name": TOOL, "arguments": {"bbox_2d": good_box(rng)}})
    return wrapped(
        rng.choice(
            [
                whole[: rng.randrange(1, len(whole))],
                whole + rng.choice("}]x,"),
                whole.replace('"', "'"),
                "".join(rng.choice('{}[]",:abc01 \n') for _ in range(rng.randrange(0, 30))) + "{",
                "[" * 100_000,
                "zoom(" + str(good_box(rng)) + ")",
                "",
            ]
        )
    )


def _not_an_object(rng: random.Random) -> str:
    odd = rng.choice([good_box(rng), "look", 7, None, True, [{"name": TOOL}]])
    return wrapped(
        rng.choice(
            [json.dumps(odd), {"name": TOOL}, {"name": TOOL, "arguments": odd}, {"arguments": {"bbox_2d": good_box(rng)}},
             {"name": rng.choice([3, None, [TOOL]]), "arguments": {"bbox_2d": good_box(rng)}}]
        )
    )  # fmt: skip


def _unknown_tool(rng: random.Random) -> str:
    return call(good_box(rng), name=rng.choice(["image_rotate_tool", "", TOOL.upper(), TOOL + " ", "crop", "🔍"]))


def _no_box(rng: random.Random) -> str:
    return wrapped(
        {"name": TOOL, "arguments": rng.choice([{}, {"bbox": good_box(rng)}, {"bbox_2d": None}, {"label": "x"}])}
    )


def _not_four_numbers(rng: random.Random) -> str:
    box: list[object] = list(good_box(rng))
    odd = rng.choice(["10", True, None, [1], {"x": 1}, float("nan"), float("inf"), 10**400])
    at = rng.randrange(4)
    return call(
        rng.choice(
            [box[: rng.randrange(0, 4)], [*box, 1], [*box[:at], odd, *box[at + 1 :]], "1,2,3,4", 5, {"x1": 1}, [box]]
        )
    )


def _degenerate(rng: random.Random) -> str:
    x1, y1, x2, y2 = good_box(rng)
    return call(
        rng.choice([[x2, y1, x1, y2], [x1, y2, x2, y1], [x1, y1, x1, y2], [x1, y1, x2, y1], [0, y1, 400, y1 + 0.5]])
    )


def _outside(rng: random.Random) -> str:
    far = rng.choice([1, 50, 1e6, 1e30])
    return call(
        rng.choice(
            [
                [400 + far, 0, 500 + 2 * far, 9],
                [0, 200 + far, 9, 300 + 2 * far],
                [-9 - 2 * far, 0, -far, 9],
                [0, -9 - 2 * far, 9, -far],
            ]
        )
    )


MAKERS = {
    "unclosed": _unclosed,
    "not_json": _not_json,
    "not_an_object": _not_an_object,
    "unknown_tool": _unknown_tool,
    "no_box": _no_box,
    "not_four_numbers": _not_four_numbers,
    "degenerate": _degenerate,
    "outside": _outside,
}
"""Of every kind but a picture that was not shown, which only protocols that name pictures have."""
assert {*MAKERS, "unknown_picture"} == set(FAULTS)


def faulty(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """(kind, turn) of ``n`` faulty calls, with a thought before some of them."""
    rng = random.Random(seed)
    made = []
    for _ in range(n):
        kind = rng.choice(list(MAKERS))
        before = rng.choice(
            ["", "<think>Where is it?</think>\n", "I look closer. ", "<think><tool_call>{}</tool_call></think>"]
        )
        made.append((kind, before + MAKERS[kind](rng)))
    return made


GOLD = Box(100, 50, 200, 150)
