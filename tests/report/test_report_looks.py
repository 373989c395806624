"""A sample of several looks on the page: its path, look by look."""

import json
import re

from visrl.core.box_formats import FORMATS
from visrl.evaluation.evaluate import Options, evaluate
from visrl.policies.protocol import FunctionPolicy
from visrl.report import write_report

GOOD = '<tool_call>{"name":"image_zoom_in_tool","arguments":{"bbox_2d":[100, 100, 300, 300]}}</tool_call>'
INSIDE = '<tool_call>{"name":"image_zoom_in_tool","arguments":{"bbox_2d":[150, 150, 200, 200]}}</tool_call>'


def details(folder):
    page = write_report([folder]).read_text()
    (block,) = re.findall(r'<script type="application/json" id="d0">(.*?)</script>', page, re.S)
    return page, json.loads(block)


def run(tmp_path, outputs, **options):
    policy = FunctionPolicy("f", lambda r: outputs[int(r.stream or 0)], FORMATS["json_pixel"], needs_pictures=True)
    evaluate(policy, ["world_viscot_doc"], Options(limit=2, quiet=True, output=tmp_path / "run", **options))
    return details(tmp_path / "run")


def test_the_path_is_there_with_its_faults(tmp_path):
    page, rows = run(tmp_path, [GOOD, "<tool_call>x</tool_call>", INSIDE, "<answer>no</answer>"], protocol="zoom")
    found = rows[0]["runs"][0]
    assert [look["region"] for look in found["looks"]] == [[100, 100, 300, 300], None, [150, 150, 200, 200]]
    assert [look["fault"] for look in found["looks"]] == ["", "the call is not JSON", ""]
    assert found["looks"][0]["box"] == [100.0, 100.0, 300.0, 300.0] and found["looks"][1]["box"] is None
    assert found["looks"][1]["step"]["prompt"].startswith("user: <tool_response>") and found["ended"] == "answer"
    assert found["reply"]["output"] == "<answer>no</answer>" and found["look"] is None
    assert "faulty call: ${look.fault}" in page  # the script that draws the path


def test_a_controls_look_has_no_turn_and_one_look_has_no_path(tmp_path):
    _, rows = run(tmp_path, ["<answer>no</answer>"], protocol="zoom", focus="gold")
    found = rows[0]["runs"][0]
    assert [look["step"] for look in found["looks"]] == [None] and found["ended"] == "looks"
    _, rows = run(tmp_path / "one", ["no"], protocol="direct")
    assert "looks" not in rows[0]["runs"][0]
