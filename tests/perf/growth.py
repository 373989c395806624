"""How the time of reading an output grows with its length: ``python tests/perf/growth.py [NAME]``.

Every reader of model text, on texts of 1 kB to 1 MB of each hostile shape; per reader the worst slope of log time over log
length (1 is linear; see slope()), and the longest time that a megabyte took. Exit code 1 where one is steeper than 1.1 or slower than
a second. A reader that is added to READERS is measured with the others.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from visrl.core.box_formats import FORMATS
from visrl.core.final_answer import final_answer
from visrl.evals.equal_words import anls, contains, exact
from visrl.evals.judge import read_reply
from visrl.evals.scorers import mme, pope
from visrl.evals.scorers.letters import letter
from visrl.evals.scorers.plain_text import plain
from visrl.evals.scorers.yes_no import yes_or_no
from visrl.world.chat_format import BOX_FORMAT

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
        for lenient in (*FORMATS.values(), BOX_FORMAT)
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
SIZES = (1_000, 10_000, 32_000, 100_000, 320_000, 1_000_000)
SHORTEST_S = 1e-3
"""Below a millisecond the start of a reading and the grain of the clock are measured, not its growth."""
LIMIT = 1.1


def seconds(read: Callable[[str], Any], text: str, repeats: int) -> float:
    """The least processor time of several readings: whatever else the machine does only adds to it."""
    best = math.inf
    for _ in range(repeats):
        start = time.process_time()
        read(text)
        best = min(best, time.process_time() - start)
    return best


def slope(times: Mapping[int, float]) -> float:
    """Least squares of log time over log length, over the sizes that take a millisecond; 0 where fewer than three do."""
    points = [(math.log(size), math.log(spent)) for size, spent in times.items() if spent >= SHORTEST_S]
    if len(points) < 3:
        return 0.0
    x, y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def growth(read: Callable[[str], Any], make: Callable[[int], str]) -> dict[int, float]:
    """Seconds by size. What looks steeper than linear is measured again, with more repeats: noise goes away, growth stays."""
    times = {size: seconds(read, make(size), 2) for size in SIZES}
    for repeats in (5, 15):
        if slope(times) <= LIMIT:
            break
        again = {size: seconds(read, make(size), repeats) for size in SIZES}
        times = {size: min(times[size], again[size]) for size in SIZES}
    return times


def main() -> int:
    wanted = sys.argv[1:]
    print(f"{'reader':<34} {'slope':>6} {'1 MB':>8}  worst shape")
    found_bad = False
    for name, read in READERS.items():
        if wanted and not any(part in name for part in wanted):
            continue
        found = {shape: growth(read, make) for shape, make in SHAPES.items()}
        steepest = max(found, key=lambda shape: slope(found[shape]))
        longest = max(found, key=lambda shape: found[shape][SIZES[-1]])
        steep, long = slope(found[steepest]), found[longest][SIZES[-1]]
        print(f"{name:<34} {steep:>6.2f} {long:>6.3f} s  {steepest}, {longest}", flush=True)
        found_bad = found_bad or steep > LIMIT or long > 1.0
    return int(found_bad)


if __name__ == "__main__":
    sys.exit(main())
