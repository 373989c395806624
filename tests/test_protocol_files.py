"""Protocols from a user's YAML file: read, refused with file and field, and run as they say."""

import hashlib

import pytest
from looks_made import GOLD, SIZE, call
from PIL import Image

from visrl.core.box_formats import FORMATS
from visrl.core.types import CoTSample, Picture
from visrl.errors import UsageError
from visrl.policies.protocol import FunctionPolicy
from visrl.rollout.config import check_names, rollout_config
from visrl.rollout.protocol_files import read_protocol
from visrl.rollout.rollout import look_then_answer

PICTURE = Picture("p.png", lambda: Image.new("RGB", SIZE))
SAMPLE = CoTSample("1", "t", "qa", "What is it?", PICTURE, SIZE, GOLD, ("a cat",), " Briefly.")
FILE = """\
name: observe
coordinates: named
unit: fraction
call: {opening: "<grounding>", closing: "</grounding>", tool: ""}
shown: {crop: tight, scale: 2}
limits: {looks: 3}
texts:
  system: "Zoom with <grounding>{\\"bbox_2d\\": [x0, y0, x1, y1], \\"source\\": \\"original_image\\"}</grounding>, {unit}."
  question: "{question}{instruction}"
  crop: "Observation {number}: {picture} Go on."
  faulty: "Error: {fault}."
  last: " The end."
"""


def written(tmp_path, text=FILE):
    path = tmp_path / "observe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_published_form_is_run_as_it_was(tmp_path):
    path = written(tmp_path)
    turns = [
        '<grounding>{"bbox_2d": [0.25, 0.25, 0.5, 0.75], "source": "original_image"}</grounding>',
        '<grounding>{"bbox_2d": [0.5, 0.5, 1, 1], "source": "observation_1"}</grounding>',
        '<grounding>{"bbox_2d": [0.5, 0.5, 1, 1], "source": "observation_7"}</grounding>',
        "<answer>a cat</answer>",
    ]
    asked = []

    def answer(request):
        asked.append(request)
        return turns[int(request.stream)]

    policy = FunctionPolicy("f", answer, FORMATS["json_pixel"], needs_pictures=True)
    (episode,) = look_then_answer(policy, [SAMPLE], rollout_config(policy, protocol=str(path)))
    # a quarter of 400 x 200 from (100, 50), then the lower right quarter of that
    assert [look.looked_at for look in episode.looks] == [(100, 50, 200, 150), (150, 100, 200, 150), None]
    assert [look.fault for look in episode.looks] == ["", "", "unknown_picture"] and episode.ended == "looks"
    texts = [(turn.role, turn.text()) for turn in asked[-1].turns]
    assert texts[0][1].endswith('"original_image"}</grounding>, fractions of the sides of the picture, from 0 to 1.')
    assert texts[1] == ("user", "<image>What is it? Briefly.")
    assert texts[3] == ("user", "Observation 1: <image> Go on.")
    assert texts[7] == ("user", "Error: it names a picture that was not shown. The end.")
    assert asked[-1].turns[3].pictures[0].open().size == (200, 200)  # shown twice as large


def test_the_hash_of_the_file_is_in_the_protocols_name(tmp_path):
    path = written(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    protocol = read_protocol(path)
    assert protocol.sha256 == digest and protocol.id == f"observe/v1@{digest[:12]}"
    assert read_protocol(written(tmp_path, FILE + "version: 2\n")).id.startswith("observe/v2@")


def test_what_is_left_out_is_as_in_zoom(tmp_path):
    text = 'name: mine\ntexts: {question: "{question}", crop: "{picture}"}\n'
    rules = read_protocol(written(tmp_path, text)).several
    assert (rules.ask, rules.coordinates, rules.unit, rules.call.tool) == (
        "tool_call",
        "original",
        "family",
        "image_zoom_in_tool",
    )
    assert (rules.limits.looks, rules.shown.crop) == (6, "tight")
    policy = FunctionPolicy(
        "f", lambda r: [call([1, 1, 9, 9]), "<answer>x</answer>"][int(r.stream)], FORMATS["json_pixel"]
    )
    (episode,) = look_then_answer(policy, [SAMPLE], rollout_config(policy, protocol=str(tmp_path / "observe.yaml")))
    assert episode.looks[0].looked_at == (1, 1, 9, 9)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("name: observe", "name: zoom", "zoom is a protocol of visrl's"),
        ("name: observe", "name: a/b", "name: String should match pattern"),
        ("unit: fraction", "unit: inch", "unit: Input should be"),
        ("unit: fraction", "units: fraction", "units: Extra inputs are not permitted"),
        ("looks: 3", "looks: -1", "limits.looks: Input should be greater than or equal to 0"),
        ("looks: 3", "looks: many", "limits.looks: Input should be a valid integer"),
        ("crop: tight", "crop: round", "shown.crop: Input should be"),
        ("Observation {number}: {picture}", "Observation {number}", "crop: it must hold {picture} once"),
        ("{question}{instruction}", "{instruction}", "question: it must hold {question}"),
        ("Error: {fault}", "Error: {reason}", "faulty: no {reason}; there are question"),
        ("coordinates: named", "ask: box_turn\ncoordinates: named", "ask: box_turn reads boxes as the model's family"),
        ("texts:", "text:", "texts: Field required"),
        ("name: observe", "name: !!python/name:os.system", ":1: not plain YAML"),
        ("name: observe", "name: [", "not plain YAML"),
    ],
)
def test_errors_name_the_file_and_the_field(tmp_path, old, new, said):
    path = written(tmp_path, FILE.replace(old, new))
    with pytest.raises(UsageError) as found:
        read_protocol(path)
    assert found.value.message.startswith(str(path)) and said in found.value.message
    assert "protocols-and-frames.md" in found.value.hint


def test_a_missing_file_is_said_before_a_model_is_loaded(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        check_names(protocol=str(tmp_path / "none.yaml"))
    with pytest.raises(UsageError, match="unknown 'zoon'") as found:
        check_names(protocol="zoon")
    assert "zoom" in found.value.hint
