"""How the time of reading an output grows with its length: ``python tests/perf/growth.py [NAME]``.

Every reader of model text, on texts of 1 kB to 1 MB of each hostile shape; per reader the worst slope of log time over log
length (1 is linear), and the longest time that a megabyte took. A reader that is added to READERS is measured with the others.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

from visrl.core.box_formats import FORMATS
from visrl.core.final_answer import final_answer
from visrl.evals.equal_words import anls, contains, exact
from visrl.evals.judge import read_reply
from visrl.evals.scorers import mme, pope
from visrl.evals.scorers.letters import letter
from visrl.evals.scorers.plain_text import plain
from visrl.evals.scorers.yes_no import yes_or_no

OPTIONS = {"A": "a bird", "B": "a dog", "C": "a cat", "D": "a horse"}
STANDARD = "the quick brown fox " * 400  # 8,000 characters
READERS: dict[str, Callable[[str], Any]] = {
    "final_answer": final_answer,
    "plain": plain,
    "letter": lambda text: letter(text, OPTIONS),
    "yes_or_no": yes_or_no,
    "pope": pope.says,
    "mme": mme.says,
    "exact": lambda text: exact(STANDARD, text),
    "contains": lambda text: contains(STANDARD, text),
    "anls": lambda text: anls(STANDARD, text),
    "read_reply": read_reply,
    **{
        f"box {fmt.name} {fmt.mode}": lambda text, fmt=fmt: fmt.parse(text, (640, 480))
        for lenient in FORMATS.values()
        for fmt in (lenient, lenient.with_mode("strict"))
    },
}
SHAPES: dict[str, Callable[[int], str]] = {
    **{
        repr(piece): lambda n, piece=piece: (piece * (n // len(piece) + 1))[:n]
        for piece in (
            *(
                " ",
                "\n",
                "(",
                "[",
                "{",
                "<",
                "\\",
                "9",
                "9.",
                "1,",
                "[1,",
                "A",
                "A, ",
                "(A) ",
                "B or ",
                "*",
                "$",
                "-",
                "$5 ",
                "'",
            ),
            *(
                "<think>",
                "</think>",
                "<answer>",
                "<answer ",
                "<|begin_of_box|>",
                "answer is ",
                "option ",
                "not B but ",
                "no ",
                "not ",
            ),
            *(
                "the answer is B. ",
                "if ",
                "A. a bird ",
                "a dog ",
                "the quick brown fox ",
                "score: 1 ",
                "\\boxed{",
                "ﷺ",
                "<box>1 2 ",
            ),
            *("(1,2)", "(1,2),(3,", "<loc0001>", '{"bbox_2d": [', "是", "答案", "\ud800"),
        )
    },
    **{
        f"{start!r} and blanks": lambda n, start=start: start + " " * n
        for start in ("answer is", "option", "(1,2)", "[1,2,3", "<answer>", "I choose", "<think", "Answer:", "no")
    },
}
SIZES = (1_000, 10_000, 100_000, 1_000_000)


def seconds(read: Callable[[str], Any], text: str) -> float:
    """Processor time of one reading; the best of three where that is quick."""
    best = math.inf
    for _ in range(3):
        start = time.process_time()
        read(text)
        best = min(best, time.process_time() - start)
        if best > 0.05:
            break
    return best


def slope(times: dict[int, float]) -> float:
    """From the largest size back to the first that takes a millisecond: below, a clock's grain is measured."""
    sizes = [size for size in SIZES if times[size] >= 1e-3]
    if len(sizes) < 2:
        return 0.0
    low, high = sizes[-2:]
    return math.log(times[high] / times[low]) / math.log(high / low)


def main() -> int:
    wanted = sys.argv[1:]
    print(f"{'reader':<34} {'slope':>6} {'1 MB':>8}  worst shape")
    for name, read in READERS.items():
        if wanted and not any(part in name for part in wanted):
            continue
        found = {shape: {size: seconds(read, make(size)) for size in SIZES} for shape, make in SHAPES.items()}
        steepest = max(found, key=lambda shape: slope(found[shape]))
        longest = max(found, key=lambda shape: found[shape][SIZES[-1]])
        print(f"{name:<34} {slope(found[steepest]):>6.2f} {found[longest][SIZES[-1]]:>6.3f} s  {steepest}, {longest}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
