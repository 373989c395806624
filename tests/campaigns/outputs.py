"""Hostile outputs through every box format in both modes, every extractor, judge and scorer, and every crop of what was read.

    python tests/campaigns/outputs.py --count 5000000 --seed 1

An output is pieces of what models and attackers write, put together at random. A reader must return what it says it returns:
a box inside numbers, Unparsed, a letter, a score of 0 to 1; it must not raise, and must not take long. Prints a row per reader.
"""

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "perf"))
sys.path.insert(0, str(Path(__file__).parents[1] / "evals"))
from growth import OPTIONS, READERS
from made import said, sample, score

from visrl.core.box_formats import FORMATS, format_named
from visrl.core.boxes import Box, iou
from visrl.core.crops import CROPS
from visrl.core.types import Unparsed
from visrl.evals.equal_words import anls, contains, exact
from visrl.evals.judge import make_judge
from visrl.evals.scorers.letters import letter

SLOW_S = 0.5
SIZES = ((640, 480), (1, 1), (1, 100_000), (500, 333), (4000, 30))
WORDS = (
    "<think>|</think>|<answer>|</answer>|</answer|answer is |Answer: |The answer is |option |not | but |A|B|C|D|E|a|I|(|)|\\boxed{|{|}|$|-|"
    "+|#|%|5|.|,|;|:|\n|\t| |        |\ud800|\udfff|\ue000|\u202e|\u2028|\0|ﷺ|是|不|否|答案|é|🙂|no|yes|No.|Yes,|score: 1|score: |1/0|"
    "not B|neither|both|all|none|**|*|_|`|```json\n|```|a dog|a bird|if|I choose |<|>|/|\\|\"|'|&|=|0|1|2|999|1000|0.5|-1|.5|1.|1e308|-1e308|"
    "1e309|1e-320|nan|inf|NaN|Infinity|[|]|[[|]]|[0.1, 0.2, 0.3, 0.4]|[1,2,3,4]|(1,2),(3,4)|(1,2)|<box>|</box>|<box>1 2 3 4</box>|"
    "<loc0001>|<loc0000><loc0001><loc1023><loc1023>|<loc9999>|<|box_start|>|<|box_end|>|{\"bbox_2d\": [|\"label\": \"x\"}|box_2d|bbox|"
    "<|begin_of_box|>|<|end_of_box|>|<s>|</s>|<pad>|[INST]|0x1F|١٢٣|½|²|1_000|1,000|+1|--1|1-2|e5|1e5|[1e5,|[.1|,]|[,|x1=|xmin: "
)  # fmt: skip
LONG = ("|", "9" * 400, "[" * 300, "<think>" * 20, " " * 2000, "1," * 500)
PIECES = [*(piece for piece in WORDS.split("|") if piece), *LONG]
ALPHABETS = ("[](){}0123456789.,eE+-<>/ ", "ABCDabcd.,()* \n:", "yesnoYESNO .,!?", "".join(map(chr, range(256))))


def hostile(dice):
    """One output; most are short, as most outputs are."""
    how = dice.random()
    if how < 0.75:
        return "".join(dice.choices(PIECES, k=min(60, int(dice.expovariate(0.2)) + 1)))
    if how < 0.95:
        return "".join(dice.choices(dice.choice(ALPHABETS), k=dice.randrange(1, 80)))
    return "".join(chr(dice.randrange(0x110000)) for _ in range(dice.randrange(1, 30)))


def _box(box_format):
    """A reader of boxes: what is a box has an IoU and a crop of every kind that is not empty."""

    def read(text, number):
        size = SIZES[number % len(SIZES)]
        box = box_format.parse(text, size, TRUTH)
        if isinstance(box, Unparsed):
            return True
        fine = 0.0 <= iou(box, TRUTH) <= 1.0
        for crop in CROPS.values():
            x1, y1, x2, y2 = crop(box, size)
            fine = fine and 0 <= x1 < x2 <= size[0] and 0 <= y1 < y2 <= size[1]
        return fine

    return read


TRUTH = Box(10.0, 10.0, 300.0, 200.0)
RESULTS = {
    "letter": lambda found: isinstance(found, Unparsed) or found in OPTIONS,
    "yes_or_no": lambda found: isinstance(found, Unparsed) or found in ("yes", "no"),
    "pope": lambda found: found in ("yes", "no"),
    "mme": lambda found: found in ("yes", "no", "other"),
    "final_answer": lambda found: isinstance(found, str | Unparsed),
    "plain": lambda found: isinstance(found, str | Unparsed),
    "read_reply": lambda found: found.value is None or 0.0 <= found.value <= 1.0,
}


def _checked(name, read):
    fits = RESULTS.get(name, lambda found: 0.0 <= float(found) <= 1.0)
    return lambda text, _: fits(read(text))


def _odd_options(text, number):
    """The output among the options themselves: what a standard answer may hold, too."""
    found = letter(text, {"A": text, "B": "", "C": text[::-1]})
    return isinstance(found, Unparsed) or found in "ABC"


STANDARDS = ("red", "5", "a dog", "the quick brown fox", "$5.00", "", "答案", "\ud800", "yes; no")
JUDGES = ("exact", "contains", "anls")


def _rule(rule):
    """An offline judge, with one standard answer after the other, or the output itself as that."""

    def read(text, number):
        which = number % (len(STANDARDS) + 1)
        return 0.0 <= rule(STANDARDS[which] if which < len(STANDARDS) else text[::-1], text) <= 1.0

    return read


EXTRACTORS = {
    **{
        name: _checked(name, read)
        for name, read in READERS.items()
        if not name.startswith("box ") and name not in JUDGES
    },
    **{rule.__name__: _rule(rule) for rule in (exact, contains, anls)},
    "letter, odd options": _odd_options,
}
BOXES = {
    f"{fmt.name} {fmt.mode}": _box(fmt)
    for one in (*FORMATS.values(), format_named("json_resized", max_pixels="1003520"))
    for fmt in (one, one.with_mode("strict"))
}
ASKED = {
    "refcoco_val": ("acc@0.5", {}, None),
    "pope_coco_popular": ("accuracy", {"answers": "yes"}, None),
    "mme": ("correct", {"answers": "yes"}, None),
    "mmbench": ("accuracy", {"answers": "A"}, None),
    "viscot_cub": ("answer", {"answers": "red"}, "exact"),
    "viscot_docvqa": ("answer", {"answers": "red"}, "anls"),
}


def scored(task, texts):
    """Every output as the answer of one sample of a task, by the task's scorer. Yields (whether its score is one, text)."""
    metric, about, judge = ASKED[task]
    pairs = []
    for number, text in enumerate(texts):
        name = f"s{number}"
        if task == "refcoco_val":
            box = FORMATS["json_pixel"].parse(text, (640, 480))
            pairs.append((sample(name, kind="rec", box=TRUTH), said(name, None, box=box)))
            continue
        more = {"options": OPTIONS} if task == "mmbench" else {}
        question = {
            "answer": about["answers"],
            "group": "OCR" if task == "mme" else name,
            "cluster": f"p{number // 2}",
            **more,
        }
        pairs.append((sample(name, **question), said(name, text)))
    found = score(task, pairs, make_judge(judge)) if judge else score(task, pairs)
    for number, text in enumerate(texts):
        value = found.samples[f"s{number}"][metric].value
        yield value is not None and 0.0 <= value <= 1.0, text


class Tally:
    """Per reader: how often it read, how often it raised, answered what it must not, or was slow."""

    def __init__(self):
        self.read, self.bad, self.examples, self.slowest = Counter(), Counter(), {}, Counter()

    def note(self, name, what, text):
        self.bad[name, what] += 1
        self.examples.setdefault((name, what), text[:300])

    def one(self, name, read, text, number):
        self.read[name] += 1
        began = time.process_time()
        try:
            if not read(text, number):
                self.note(name, "a wrong kind of answer", text)
        except Exception:  # noqa: BLE001 - whatever comes out is the finding
            self.note(name, traceback.format_exc().strip().splitlines()[-1], text)
        spent = time.process_time() - began
        if spent > self.slowest[name]:
            self.slowest[name] = spent
        if spent > SLOW_S:
            self.note(name, f"over {SLOW_S} s", text)

    def several(self, task, texts):
        name = f"scorer {task}"
        self.read[name] += len(texts)
        began = time.process_time()
        try:
            for fine, text in scored(task, texts):
                if not fine:
                    self.note(name, "unscored, or no score", text)
        except Exception:  # noqa: BLE001 - whatever comes out is the finding
            self.note(name, traceback.format_exc().strip().splitlines()[-1], texts[0])
        self.slowest[name] = max(self.slowest[name], (time.process_time() - began) / len(texts))


def campaign(count, seed, each, batch=1000):
    """``count`` outputs: each through ``each`` of the extractors and as many of the box formats, in turn, and one of the scorers."""
    dice, tally, texts = random.Random(seed), Tally(), []
    for number in range(count):
        text = hostile(dice)
        for readers in (EXTRACTORS, BOXES):
            names = list(readers)
            for k in range(min(each, len(names))):
                name = names[(number * each + k) % len(names)]
                tally.one(name, readers[name], text, number)
        texts.append(text)
        if len(texts) == batch or number == count - 1:
            tally.several(list(ASKED)[(number // batch) % len(ASKED)], texts)
            texts = []
    return tally


def table(tally):
    yield f"{'reader':<34} {'outputs':>9} {'faults':>7} {'slowest':>10}"
    for name, count in tally.read.items():
        faults = sum(n for (who, _), n in tally.bad.items() if who == name)
        yield f"{name:<34} {count:>9} {faults:>7} {tally.slowest[name] * 1e3:>7.1f} ms"
    for (name, what), n in tally.bad.most_common(40):
        yield f"{n:>9} {name}: {what}: {tally.examples[name, what]!r:.200}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--each", type=int, default=len(BOXES), help="extractors and box formats per output, in turn; default: all"
    )
    args = parser.parse_args()
    began = time.monotonic()
    tally = campaign(args.count, args.seed, args.each)
    print("\n".join(table(tally)))
    print(
        f"{args.count} outputs, {sum(tally.read.values())} readings, {sum(tally.bad.values())} faults, {time.monotonic() - began:.0f} s"
    )
    return bool(tally.bad)


if __name__ == "__main__":
    sys.exit(main())
