"""Which part of an output answers: read off by eye for every text."""

import time

import pytest

from visrl.core.final_answer import ENDLESS, NOTHING_AFTER, final_answer, tagged_answer
from visrl.core.types import Unparsed

READ = {
    "plain text\n": "plain text\n",
    "**Thinking**\nIt may be A.\n\n**Answer**\nB": "B",
    "## Reasoning\nA? No.\n## Final Answer\n\nB": "B",
    "Reasoning: a lamp is A.\nAnswer: B": "B",
    "**Thought:** A?\n**Answer:** C\n**Final answer:** B": "B",
    "Reasoning about it is hard.\nAnswer: B": "Reasoning about it is hard.\nAnswer: B",  # a sentence, no heading
    "**Answer**\nB": "**Answer**\nB",  # without a thought there is nothing to leave out
    "**Thinking**\nAll of it, without an end": "**Thinking**\nAll of it, without an end",
    "**Thinking**\nA\n**Answer**\n": "**Thinking**\nA\n**Answer**\n",
    "&lt;think&gt;A?&lt;/think&gt;\nB": "B",
    "x &lt; y": "x &lt; y",
    "": "",
    "<think>no</think><answer>Yes</answer>": "Yes",
    "<think>First I take C. Looking again, no.</think>\nB": "B",
    "no opening, it stood in the prompt</think>\n\nB": "B",
    "<THINK>a</THINK> <ANSWER>[1, 2, 3, 4]</ANSWER>": "[1, 2, 3, 4]",
    "< think >a</ think > <Answer type='letter'> B </answer >": "B",
    "<thinking>a</thinking>B": "B",
    "<reasoning>a</reasoning>B": "B",
    "<SUMMARY>s</SUMMARY><REASONING>A?</REASONING><CONCLUSION>B</CONCLUSION>": "B",
    "◁think▷is it A?◁/think▷B": "B",
    "[THINK]is it A?[/THINK]B": "B",
    "<seed:think>is it A?</seed:think>B": "B",
    "<|begin_of_thought|>A?<|end_of_thought|><|begin_of_solution|>B<|end_of_solution|>": "B",
    "<|START_THINKING|>A?<|END_THINKING|><|START_RESPONSE|>B<|END_RESPONSE|>": "B",
    "<|channel|>analysis<|message|>A?<|end|><|start|>assistant<|channel|>final<|message|>B<|return|>": "B",
    "<think>A?</think>The answer is <|begin_of_box|>B<|end_of_box|>": "B",
    "<think>A?</think><answer><|begin_of_box|>B<|end_of_box|></answer>": "B",
    "<answer>A</answer> no, wait: <answer>B</answer>": "B",
    "<answer>A</answer><answer>B": "B",  # the last one is cut off behind its text
    "<answer>B</answer><answer>": "B",  # ... before its text
    "<answer>B<answer>": "B",
    "<answer>B</answer": "B",
    "<answer></answer>": "",
    "<answer><answer>B</answer></answer>": "B",
    "B</answer>": "B",
    "<think>a</think>B</answer>": "B",
    "<think>The form is <answer>A</answer>.</think>B": "B",
    "<think>a <answer>B</answer></think>": "B",
    "<think>a <answer>B</answer>": "B",
    "<think></think>B<|im_end|>\n<|endoftext|>": "B",
    "<think/>B": "<think/>B",
    "<thinker>B": "<thinker>B",
    "B <|im_end|> <|im_end|>": "B",
    "  <|im_end|>": "",
    "  B  ": "  B  ",  # nothing to cut
    "<answer>A</answer>B</answer>": "A",  # an end without a beginning closes only what stands before any tag
    "A</answer>B</answer>": "A",
    "<think>x</think>A</answer> B": "A",
    "<answer/>B": "<answer/>B",
    "<|begin_of_box|>B": "B",
    "x <|begin_of_box|>A<|end_of_box|> y <|begin_of_box|>B<|end_of_box|>": "B",
    "<answer>A</answer> <answer>B": "B",
    "<think>x</think><answer>A</answer><answer></answer>": "",  # closed, and empty
    "x<answer>A<answer>B</answer>y": "B",
    "<think>a <answer>B</answer> </think>": "B",
    "<think>x<answer>B</answer>\n": "B",
    "<think>x **<answer>B</answer>**\n```": "B",  # the bold or the fence that it stands in closes behind it
    "<think>a</think>\n  B C \n": "B C",
    "<answer>A</answer></think><answer>B</answer></think>": "B",
    "</think></think>B": "B",
}
UNREAD = {
    "<think>At first [500, 250, 900, 750] comes to mind, but": ENDLESS,
    "<THINKING >A?": ENDLESS,
    "◁think▷A?": ENDLESS,
    "<think>a</think>B<think>or": ENDLESS,
    "<answer>A</answer><think>or": ENDLESS,
    "<think>The form is <answer>A</answer>. So I": ENDLESS,
    "<think>a</think>\n": NOTHING_AFTER,
    "<think>The form is <answer>A</answer>. So B.</think>": NOTHING_AFTER,
    "</think>": NOTHING_AFTER,
    "<think>a</answer>": ENDLESS,  # the answer never began
    "<think>a</answer></answer>": ENDLESS,
    "<think>a<answer><answer>": ENDLESS,
    "<answer>B</answer><think>": ENDLESS,
    "<answer>A</answer><think>b</think>": NOTHING_AFTER,
    "<think>a</answer></think>": NOTHING_AFTER,
}


@pytest.mark.parametrize("text", READ)
def test_the_answer_is_what_a_reader_takes_for_it(text: str) -> None:
    assert final_answer(text) == READ[text]


@pytest.mark.parametrize("text", UNREAD)
def test_a_thought_is_no_answer(text: str) -> None:
    assert final_answer(text) == Unparsed(UNREAD[text])
    assert tagged_answer(text) == Unparsed(UNREAD[text])


def test_tags_can_be_demanded() -> None:
    assert tagged_answer("B") is None
    assert tagged_answer("<think>a</think>B") is None
    assert tagged_answer("<think>a</think><answer>B</answer>") == "B"
    assert tagged_answer("<|begin_of_box|>B<|end_of_box|>") is None
    assert tagged_answer("<think>a <answer>B</answer></think>") == "B"


@pytest.mark.parametrize(
    "piece", ["<", "<think>", "<answer>", "<answer ", "</", "<|", "< ", "◁", "[", "</think>", " ", "a:", "<|im_end|>"]
)
def test_a_megabyte_of_anything_takes_no_time(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    start = time.process_time()
    final_answer(text)
    assert time.process_time() - start < 5.0  # about half a second; a quadratic search takes hours
