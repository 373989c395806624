"""Layouts: the bytes of each family's prompts, held against templates that others ship."""

import json
from importlib.resources import files

import pytest
from jinja2 import Environment, nodes
from jinja2.ext import Extension
from tinies import FAMILIES

from visrl.core.chat_format import VICUNA, render, template
from visrl.core.types import Picture, Turn
from visrl.policies.families import family_class

A, B = Picture("a", lambda: None), Picture("b", lambda: None)
ASK = (Turn("user", (A, "\nWhere is the cat?")),)
TWO_TURNS = (*ASK, Turn("assistant", ("[0.1, 0.2]",)), Turn("user", (B, "\nWhat colour?")))
TWO_IN_ONE = (Turn("user", (A, "\nWhat colour?\n", B)),)


class Generation(Extension):
    """``{% generation %}``, which transformers knows and plain Jinja does not: leaves marks in the text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_mark"), [], [], body).set_lineno(line)

    def _mark(self, caller):
        return "\x01" + caller() + "\x02"


def jinja(source, turns, add_generation_prompt=True):
    environment = Environment(extensions=[Generation, "jinja2.ext.loopcontrols"], trim_blocks=True, lstrip_blocks=True)
    messages = [
        {
            "role": turn.role,
            "content": [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image"} for p in turn.parts],
        }
        for turn in turns
    ]
    return environment.from_string(source).render(messages=messages, add_generation_prompt=add_generation_prompt)


def layout_of(model_type):
    return family_class(type("Config", (), {"model_type": model_type})).layout


def test_vicuna_is_the_text_visual_cot_was_trained_on():
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions."
    )
    assert render(VICUNA, ASK).text == system + " USER: <image>\nWhere is the cat? ASSISTANT:"
    assert render(VICUNA, TWO_TURNS).text == (
        system + " USER: <image>\nWhere is the cat? ASSISTANT: [0.1, 0.2]</s>USER: <image>\nWhat colour? ASSISTANT:"
    )


def test_yi_vl_is_the_text_of_its_own_conversation_class():
    layout = layout_of("yi_vl")
    # 01-ai/Yi conversation.py: system + "\n\n" + "### " then role + ": " + message + "\n" + "### " per message
    assert render(layout, TWO_TURNS).text == (
        layout.opening.removesuffix("###")
        + "### Human: <image>\nWhere is the cat?\n### Assistant: [0.1, 0.2]\n### Human: <image>\nWhat colour?\n### Assistant:"
    )


def test_mllama_puts_all_pictures_side_by_side_where_the_first_stands():
    text = render(layout_of("mllama"), TWO_TURNS).text
    assert text.startswith("<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|><|image|>\nWhere")
    assert text.count("<|image|>") == 2


def test_paligemma_puts_pictures_then_bos_then_one_prefix():
    rendered = render(layout_of("paligemma"), TWO_IN_ONE)
    assert rendered.text == "<image><image><bos>\nWhat colour?\n\n"
    assert [p.ref for p in rendered.pictures] == ["a", "b"]


@pytest.mark.parametrize(
    ("model_type", "file"),
    [("qwen2_5_vl", "qwen2_5_vl"), ("qwen2_vl", "qwen2_5_vl"), ("idefics3", "idefics3"), ("smolvlm", "smolvlm")],
)
def test_the_same_bytes_as_the_published_template(model_type, file):
    """TRL ships copies of the published chat templates: an independent source for what the models were tuned on."""
    published = files("trl").joinpath("chat_templates", f"{file}.jinja").read_text()
    for turns in (ASK, TWO_TURNS, TWO_IN_ONE):
        assert render(layout_of(model_type), turns).text == jinja(published, turns)


def test_llava_next_on_mistral_differs_from_the_published_template_only_by_its_own_newlines():
    """The published template puts pictures first and a newline of its own behind each; our texts bring the newline."""
    from visrl.policies.families.llava_next import MISTRAL

    published = files("trl").joinpath("chat_templates", "llava_next.jinja").read_text()
    assert render(MISTRAL, TWO_TURNS).text == jinja(published, TWO_TURNS).replace("<image>\n\n", "<image>\n")


@pytest.mark.parametrize("name", FAMILIES)
def test_the_jinja_template_is_the_layout(name):
    layout = layout_of({"paligemma2": "paligemma"}.get(name, name)) if name != "llava_next" else VICUNA
    for turns in (ASK, TWO_TURNS, TWO_IN_ONE, (Turn("system", ("Be brief.",)), *ASK)):
        rendered = render(layout, turns)
        text = jinja(template(layout), turns)
        assert text.replace("\x01", "").replace("\x02", "") == rendered.text
        marked = [text.split("\x01")[i + 1].split("\x02")[0] for i in range(text.count("\x01"))]
        assert marked == [rendered.text[a:b] for a, b in rendered.replies], json.dumps(marked)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_box_turn_is_a_prefix_of_the_answer_turn(name):
    """What lets the second turn go on from the first one's cache: identical bytes up to where the conversations part."""
    layout = layout_of({"paligemma2": "paligemma"}.get(name, name)) if name != "llava_next" else VICUNA
    first, second = render(layout, ASK).text, render(layout, TWO_TURNS).text
    if layout.place == "first":  # the second picture is written before the question
        assert not second.startswith(first)
    else:
        assert second.startswith(first)
