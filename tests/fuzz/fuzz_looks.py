"""Files of several looks: a protocol of one's own, recorded conversations, a run of them; and the commands that read them."""

import json

PROTOCOL = """name: observe
version: 1
ask: tool_call
coordinates: named
unit: fraction
resize: {factor: 28, min_pixels: 3136, max_pixels: 12845056}
call: {opening: <look>, closing: </look>, tool: '', box: bbox_2d, label: label, source: source}
shown: {crop: tight, scale: 1.0, min_side: 0, max_ratio: 100.0}
limits: {looks: 2, new_tokens: 512, pictures: 0}
texts:
  system: Look before you answer.
  how_to_call: '{tool} takes {unit} of {size}.'
  without: Answer.
  question: '{question}{instruction}'
  crop: 'Observation {number}: {picture}'
  faulty: 'Error: {fault}.'
  more: ' Looks left: {left}.'
  last: ' Answer now.'
  tool: A part of the picture.
"""
CALL = '<look>{"bbox_2d": [0.1, 0.2, 0.5, 0.6], "source": "original_image"}</look>'


def make(folder):
    """A protocol, and conversations under it and under `zoom`, of the drawn VisCoT rows."""
    (folder / "protocol.yaml").write_text(PROTOCOL)
    text = [{"type": "text", "text": "What?"}]
    function = {"name": "image_zoom_in_tool", "arguments": json.dumps({"bbox_2d": [10, 20, 90, 80], "label": "it"})}
    calls = [{"id": "0", "type": "function", "function": function}]
    for name, call in (
        ("observed", {"content": CALL}),
        ("zoomed", {"content": "I look closer.", "tool_calls": calls}),
    ):
        rows = [
            {"id": str(1000 + i), "task": "viscot_vsr", "size": [320, 200], "messages": [
                {"role": "system", "content": "Look."}, {"role": "user", "content": text}, {"role": "assistant", **call},
                {"role": "tool", "tool_call_id": "0", "content": "here"}, {"role": "assistant", "content": "<answer>red</answer>"}]}
            for i in range(12)
        ]  # fmt: skip
        (folder / "predictions" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def targets(folder, output):
    """(name, path, kind, commands) of each file."""
    protocol, data = str(folder / "protocol.yaml"), str(folder / "data")

    def run(model, *more):
        words = ("--tasks", "viscot_vsr", "--data", data, "--limit", "12", *more, "-o", str(folder / output), "-q")
        return ("visrl-eval", "run", "--model", model, *words)

    def replay(name, *more):
        return run(f"replay:{folder / 'predictions' / name}.jsonl", "--fail-on-error", "1000", *more)

    asked = run(f"constant:{CALL}", "--protocol", protocol, "--limit", "2")
    own = replay("observed", "--protocol", protocol)
    yield "protocol", "protocol.yaml", "yaml", (own, asked)
    yield "conversations", "predictions/observed.jsonl", "jsonl", (own,)
    yield "conversations", "predictions/zoomed.jsonl", "jsonl", (replay("zoomed"),)
