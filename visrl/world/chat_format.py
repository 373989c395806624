"""How the small models converse and write boxes: shared by their tokenizer, their family adapter and their pretext tasks."""

from __future__ import annotations

from visrl.core.box_formats import BoxFormat, LocTokens
from visrl.core.boxes import grid
from visrl.core.chat_format import Layout

BINS = 32
BOX_FORMAT = BoxFormat(f"loc{BINS}_square", LocTokens(bins=BINS, order="xyxy", width=2), grid(BINS, "square"))

LAYOUT = Layout(
    picture="<image>",
    before="<s>",
    user="<|user|>",
    user_end="",
    assistant="<|assistant|>",
    assistant_end="</s>",
    cue="<|assistant|>",
    place="last",  # words before pictures: only then can picture tokens attend to the question
)
