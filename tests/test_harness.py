"""Look-then-answer as a model of lmms-eval. One process of its own runs everything; the tests read what it saw.

The upstream task is lmms-eval's own ``mme``, on a local folder named like its data set: 6 red pictures, "Red?" and "Blue?".
"""

import json
from pathlib import Path

import pytest
from upstream_made import run_apart

_SCRIPT = """
import datasets, json
from PIL import Image

def rows():
    for number in range(6):
        for question, answer in (("Red?", "Yes"), ("Blue?", "No")):
            yield {"question_id": f"color/{number}.png", "question": question + " Please answer yes or no.", "answer": answer,
                   "category": "color", "image": Image.new("RGB", (64, 48), "red")}

datasets.Dataset.from_list(list(rows())).to_parquet("lmms-lab-encoder/MME/test-00000.parquet")

from visrl.errors import UsageError
from visrl.evaluation.evaluate import Options, config_of
from visrl.lmms.loading import _files_naming
from visrl.lmms.model import LookThenAnswer, _answer, _decoding, run_upstream
from visrl.lmms.samples import read_messages
from visrl.core.box_formats import FORMATS
from visrl.policies.protocol import FunctionPolicy
from visrl.core.types import Episode, Step

saw = []
def policy(answer, **options):
    return FunctionPolicy("function", answer, FORMATS["padded_square_3dp"], **options)

def model(request):
    saw.append((request.step, [t.text() for t in request.turns], [p.open().size for t in request.turns for p in t.pictures]))
    if request.key == "3":
        raise RuntimeError("out of memory")
    return "[0.1, 0.2, 0.5, 0.6]" if request.step == "box" else "Yes"

def refused(*names, answer=lambda request: "Yes"):
    try:
        run_upstream(names, policy(answer), look)
    except UsageError as error:
        return [error.message, error.hint]

looker = policy(model, needs_pictures=True, default_protocol="viscot_train")
look = config_of(looker, Options(crop="tight"))
facts = {"mme": run_upstream(["mme"], looker, look, batch_size=4), "saw": saw}
facts["mme"].pop("samples")
facts["limited"] = run_upstream(["mme"], policy(lambda r: "Yes"), config_of(policy(None), Options()), limit=2)["n-samples"]
facts["unknown"] = refused("mmee")
facts["tiny"] = LookThenAnswer("tiny").config.crop
facts["files"] = [file.name for file in _files_naming(["mme"])]

def kind(messages):
    text, picture = read_messages(messages, "t/0")
    try:
        return [text, picture.open().size]
    except Exception as error:
        return [text, str(error)]

image = {"type": "image", "url": Image.new("L", (5, 4))}
text = {"type": "text", "text": "<image>\\nWhy?"}
facts["messages"] = {
    "plain": kind([{"role": "user", "content": [image, text]}]),
    "system": kind([{"role": "system", "content": "Be brief."}, {"role": "user", "content": [image, text]}]),
    "two": kind([{"role": "user", "content": [image, image, text]}]),
    "none": kind([{"role": "user", "content": [text]}]),
    "video": kind([{"role": "user", "content": [{"type": "video", "url": "v.mp4"}, text]}]),
    "few-shot": kind([{"role": "user", "content": [text]}, {"role": "assistant", "content": [text]}]),
    "path": kind([{"role": "user", "content": [{"type": "image", "url": "gone.png"}, text]}]),
}
facts["cut"] = [_answer(Episode("1", "t", answer_step=Step("", "yes\\n\\nbecause")), {"until": until}) for until in (["\\n\\n"], [], None, "b")]
facts["failed"] = _answer(Episode("1", "t", error="gone"), {})
long = _decoding(look, {"max_new_tokens": 1024, "temperature": 0.7, "do_sample": True}).sampling
short = _decoding(look, {"max_new_tokens": 16, "temperature": 0.7, "do_sample": False}).sampling
facts["decoding"] = [long.max_tokens, long.temperature, short.max_tokens, short.temperature]
wrapped = LookThenAnswer("constant:yes", batch_size="3", protocol="visrl_train", focus="full")
wrapped.clean()
facts["wrapped"] = [wrapped.config.protocol.name, wrapped.config.box_source, wrapped.batch_size, wrapped.policy.name, wrapped.is_simple]
with open("facts.json", "w") as file:
    json.dump(facts, file)
"""


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp("harness")
    run_apart(folder, _SCRIPT)
    return json.loads((folder / "facts.json").read_text())


def test_an_upstream_task_is_looked_at_then_answered(facts):
    """The box [.1, .2, .5, .6] of the 64 px square is x 6.4..32, y 12.8 - 8 .. 38.4 - 8 = 4.8..30.4: tight crop 26 x 27."""
    box = facts["saw"][0]
    answer = next(step for step in facts["saw"] if step[0] == "answer")
    assert box[0] == "box" and box[1][0].startswith("<image>\nRed? Please provide the bounding box")
    assert answer[1][1] == "[0.1, 0.2, 0.5, 0.6]"
    assert answer[1][2] == "<image>\nAnswer the question using a single word or phrase.", (
        "the post_prompt is the instruction"
    )
    assert answer[2] == [[64, 48], [26, 27]]


def test_upstream_scores_are_upstreams_and_failures_are_kept(facts):
    """Always "Yes": 6 of 12 right, no pair: 100 * .5 + 0 = 50. Document 3 ("Blue?") fails, is "" there, wrong as before."""
    assert facts["mme"]["results"]["mme"]["mme_perception_score,none"] == 50.0
    assert facts["mme"]["failures"] == {"mme": {"3": "RuntimeError: out of memory"}}
    assert facts["mme"]["n-samples"]["mme"] == {"original": 12, "effective": 12}
    assert facts["limited"]["mme"]["effective"] == 2


def test_an_unknown_task_is_an_error_with_the_nearest_name(facts):
    message, hint = facts["unknown"]
    assert message == "lmms-eval has no task 'mmee'" and "mme" in hint


def test_only_the_files_that_define_a_task_are_read(facts):
    assert "mme.yaml" in facts["files"] and len(facts["files"]) < 20


def test_documents_that_cannot_be_looked_at_say_why(facts):
    seen = facts["messages"]
    assert seen["plain"] == ["Why?", [5, 4]]
    assert seen["system"] == ["Be brief.\nWhy?", [5, 4]]
    assert seen["two"][1] == "2 pictures: look, then answer takes one"
    assert seen["none"][1] == "0 pictures: look, then answer takes one"
    assert seen["video"][1] == "video is not supported"
    assert "few-shot" in seen["few-shot"][1]
    assert seen["path"][1].startswith("gone.png cannot be read")


def test_answers_end_where_the_task_says(facts):
    assert facts["cut"] == ["yes", "yes\n\nbecause", "yes\n\nbecause", "yes\n\n"]
    assert facts["failed"] == ""


def test_decoding_follows_the_task_but_leaves_room_for_a_box(facts):
    assert facts["decoding"] == [1024, 0.7, 128, 0.0]


def test_model_args_say_policy_and_how_to_look(facts):
    assert facts["wrapped"] == ["visrl_train", "full", 3, "constant:yes", False]


def test_the_model_decides_where_nobody_names_a_crop(facts):
    """Plain ``lmms-eval --model visrl --model_args policy=tiny`` crops as ``visrl-eval --model tiny`` does."""
    assert facts["tiny"] == "tight"
