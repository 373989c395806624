"""The page as bytes: what is in it, what is not, how big it is, and how much memory it takes to make."""

import base64
import hashlib
import html.parser
import json
import re
import tracemalloc

import pytest
import runs_made as made

from visrl.cli.evaluate import main
from visrl.core.boxes import Box
from visrl.errors import UsageError
from visrl.report import write_report
from visrl.report.rows import Lines, RunView, flip


def data_blocks(text):
    """id -> JSON of the page's data blocks."""
    found = re.findall(r'<script type="application/json" id="(\w+)">(.*?)</script>', text, re.S)
    return {name: json.loads(body) for name, body in found}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return made.drawn(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def folder(data, tmp_path_factory):
    """12 samples: 3 unparsed; of the others even ids have the true box, odd ones a corner; ids from 1008 on answer wrong."""
    truth = made.truth(data)

    def box(i):
        if int(i) % 4 == 3:
            return "I see nothing."
        return truth[i][0] if int(i) % 2 == 0 else "[0.0, 0.2, 0.01, 0.21]"

    policy = made.scripted("model-a", box, lambda i: truth[i][1] if int(i) < 1008 else "pink", weights_sha256="ab" * 32)
    return made.run(policy, data, tmp_path_factory.mktemp("runs") / "a")


@pytest.fixture(scope="session")
def other(data, tmp_path_factory):
    """Always the true box; right but for 1000 and 1001."""
    truth = made.truth(data)
    policy = made.scripted("model-b", lambda i: truth[i][0], lambda i: truth[i][1] if int(i) > 1001 else "pink")
    return made.run(policy, data, tmp_path_factory.mktemp("runs") / "b")


@pytest.fixture(scope="session")
def page(folder, tmp_path_factory):
    return write_report([folder], tmp_path_factory.mktemp("page") / "report.html").read_text()


def test_index_holds_what_happened(page):
    index = data_blocks(page)["index"]
    assert index["n"] == 12
    run = index["runs"][0]
    ids = index["shared"]["id"]
    assert ids == [str(i) for i in range(1000, 1012)]
    assert run["unparsed"] == ["", "", "", "no list of four numbers"] * 3
    # even ids carry the true box rounded to three decimals: right; odd ones a corner or nothing
    assert run["boxRight"] == [1, 0, 1, 0] * 3
    assert run["answerRight"] == [1] * 8 + [0] * 4
    assert run["right"] == run["answerRight"]
    assert [run["iou"][i] for i in (1, 3)] == [0, 0]
    assert index["shared"]["size"][0] == [320, 200]


def test_details_hold_both_turns(page):
    detail = data_blocks(page)["d0"][3]
    assert detail["runs"][0]["look"]["output"] == "I see nothing."
    assert "Please first provide the bounding box" in detail["runs"][0]["look"]["prompt"]
    assert detail["runs"][0]["reply"]["output"] == "orange"
    assert detail["runs"][0]["look"]["seen"] is None  # this model does not say at what size it sees
    assert detail["answers"] == ["orange"]


def test_each_picture_once(page):
    numbers = re.findall(r'<script type="text/plain" id="p(\d+)">data:image/webp;base64,', page)
    assert sorted(map(int, numbers)) == list(range(6))  # two questions to a picture
    index = data_blocks(page)["index"]
    assert index["shared"]["picture"] == [i // 2 for i in range(12)]
    assert index["sizes"]["0"] == [320, 200]


def test_numbers_of_the_head(page):
    assert "model-a" in page and "visrl_train/v1" in page and "abababab" in page
    assert "visrl-eval --model model-a --tasks viscot_vsr" in page
    # 8 of 12 answers, one standard error clustered by 6 pictures; 6 of 12 boxes; unparsed 3
    assert re.search(r"answers right 66\.7 ± \d+\.\d %, 12 questions · boxes right 50\.0 %", page)
    assert "12 boxes, 6 right, 3 unparsed" in page


def test_policy_allows_our_script_and_style_only(page):
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1).replace("&#39;", "'")
    script = re.search(r"<script>(.*?)</script>", page, re.S).group(1)
    style = re.search(r"<style>(.*?)</style>", page, re.S).group(1)
    for kind, text in (("script", script), ("style", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert page.count("<script>") == 1
    assert not re.search(r'(?:src|href)="(?:https?:)?//', page)


class Elements(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))


def test_hostile_text_opens_no_element(tmp_path):
    text = write_report([made.hostile(tmp_path)], tmp_path / "page.html").read_text()
    elements = Elements(text).found
    assert [a for tag, a in elements if tag == "script" and "type" not in a] == [{}]
    assert not [tag for tag, a in elements if tag == "textarea" or any(name.startswith("on") for name in a)]
    assert "\u202e" not in text and "\x1b" not in text
    shown = made.EVIL.replace("\u202e", "⟨U+202E⟩").replace("\x1b", "⟨U+001B⟩")
    first, second, third = data_blocks(text)["d0"]
    assert first["question"] == f"{shown} 0"
    assert first["runs"][0]["look"]["output"].endswith("more characters, in full in episodes.jsonl]")
    assert second["runs"][0]["look"]["output"] == shown
    assert shown in third["runs"][0]["error"]


def test_a_run_without_a_finished_sample_has_a_page(data, tmp_path):
    """An empty file, as one that was stopped at once leaves it, and a torn first line."""
    run = made.run(made.scripted("none", lambda i: "x", lambda i: "y"), data, tmp_path / "run", limit=1)
    for left in ("", '{"sample_id'):
        (run / "episodes.jsonl").write_text(left)
        page = write_report([run], tmp_path / "page.html").read_text()
        assert data_blocks(page)["index"]["n"] == 0


def test_endless_text_is_cut_with_a_note(data, tmp_path):
    run = made.run(made.scripted("long", lambda i: "x" * 1_000_000, lambda i: "y"), data, tmp_path / "run", limit=1)
    page = write_report([run], tmp_path / "page.html")
    assert "[996,000 more characters, in full in episodes.jsonl]" in page.read_text()
    assert page.stat().st_size < 200_000


def test_memory_does_not_grow_with_outputs(data, tmp_path):
    """12 samples of 1 MB output each: less than 8 MB at once."""
    run = made.run(made.scripted("long", lambda i: "x" * 1_000_000, lambda i: "y"), data, tmp_path / "run")
    write_report([run], tmp_path / "page.html")  # imports and caches
    tracemalloc.start()
    write_report([run], tmp_path / "page.html")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8_000_000


def test_without_pictures_boxes_stand_on_a_canvas(data, tmp_path):
    rows = [made.row(1, "cot/vsr/gone.png", (320, 200), (1, 1, 50, 50), "What?", "red")]
    place = made.write_data(tmp_path / "data", rows)
    policy = made.scripted("m", lambda i: "[0, 0, 1, 1]", lambda i: "red", pictures=False)
    run = made.run(policy, place, tmp_path / "run")
    text = write_report([run], tmp_path / "page.html").read_text()
    assert "no pictures, boxes stand on an empty canvas" in text
    index = data_blocks(text)["index"]
    assert index["shared"]["picture"] == [None] and index["shared"]["box"] == [[1, 1, 50, 50]]


def test_data_that_moved_leaves_outputs_and_a_notice(tmp_path):
    place = made.drawn(tmp_path / "data", n=2)
    run = made.run(made.scripted("m", lambda i: "[0, 0, 1, 1]", lambda i: "red"), place, tmp_path / "run")
    place.rename(tmp_path / "elsewhere")
    text = write_report([run], tmp_path / "page.html").read_text()
    assert "documents could not be loaded" in text
    assert data_blocks(text)["d0"][0]["runs"][0]["reply"]["output"] == "red"


def test_an_interrupted_run_is_shown_as_far_as_it_is(data, folder, tmp_path):
    place = tmp_path / "run"
    place.mkdir()
    for name in ("run.json", "episodes.jsonl"):
        (place / name).write_bytes((folder / name).read_bytes())
    lines = (folder / "episodes.jsonl").read_bytes().splitlines(keepends=True)
    (place / "episodes.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])  # killed while writing the sixth
    text = write_report([place], tmp_path / "page.html").read_text()
    assert "5 samples have no scores yet" in text
    assert data_blocks(text)["index"]["runs"][0]["status"] == [1] * 5


def test_two_runs_flips_and_paired_test(folder, other, tmp_path):
    text = write_report([folder, other], tmp_path / "page.html").read_text()
    index = data_blocks(text)["index"]
    a, b = (run["right"] for run in index["runs"])
    assert [x for x, y in zip(a, b, strict=True) if x and not y] == [1, 1]  # 1000 and 1001 broken
    # answers: 8 of 12 before, 10 of 12 after: 66.7 → 83.3 % (+16.7), 4 fixed, 2 broken, 12 pairs, none unpaired
    assert "A → B: 66.7 → 83.3 % (+16.7 ±" in text
    row = r'data-task="viscot_vsr">viscot_<wbr>vsr</span></th><td>answer</td><td class="change">66.7 → 83.3 (.*?)</tr>'
    cells = re.findall(row, text, re.S)[0]
    assert re.findall(r'<td class="num more">([^<]*)</td>', cells)[1:] == ["4", "2", "12", "0"]


def test_flip():
    def outcome(right):
        from visrl.core.types import Episode
        from visrl.report.rows import Outcome

        return Outcome(Episode("1", "t"), {}, quality=right)

    assert flip(outcome(0.0), outcome(1.0)) == "fixed"
    assert flip(outcome(1.0), outcome(0.0)) == "broken"
    assert flip(outcome(1.0), outcome(0.6)) == "same"
    assert flip(outcome(None), outcome(1.0)) == "" == flip(None, outcome(1.0))


def test_a_failed_sample_is_unscored_with_its_reason(data, tmp_path):
    def box(i):
        if i == "1001":
            raise RuntimeError("out of memory")
        return "[0, 0, 1, 1]"

    run = made.run(made.scripted("m", box, lambda i: "red"), data, tmp_path / "run", limit=2)
    view = RunView(run)
    found = {sample.id: view.outcome(sample) for sample in view.samples()}
    assert found["1001"].right is None and "out of memory" in found["1001"].reason
    assert found["1000"].overlap == pytest.approx(_iou_with_whole(found["1000"], data))


def _iou_with_whole(outcome, data):
    # the whole padded square is (0, -60) to (320, 260) in pixels: the 50 x 40 box lies inside, so 2000 / 102400
    assert outcome.episode.box == Box(0, -60, 320, 260)
    return 2000 / 102_400


def test_lines_keep_the_last_of_a_sample_and_name_a_damaged_one(tmp_path):
    path = tmp_path / "x.jsonl"
    row = '{"task": "t", "sample_id": "1", "v": %d}\n'
    path.write_text(row % 1 + row % 2)
    assert Lines(path).read(("t", "1"))["v"] == 2
    path.write_text(row % 1 + "{oops}\n" + row % 2)
    with pytest.raises(UsageError, match=r"x\.jsonl:2"):
        Lines(path)


def test_command_writes_into_the_run_and_says_where(folder, other, capsys):
    assert main(["view", str(folder)]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(folder / "report.html")
    assert said.err.strip() == (folder / "report.html").as_uri()
    assert main(["view", str(folder), str(other)]) == 0
    assert capsys.readouterr().out.strip() == str(other / "report-vs-a.html")


def test_open_hands_the_page_to_the_browser(folder, monkeypatch, capsys):
    import webbrowser

    opened = []
    monkeypatch.setattr(webbrowser, "open", lambda address: opened.append(address) or len(opened) == 1)
    assert main(["view", str(folder), "--open"]) == 0
    assert "no browser" not in capsys.readouterr().err
    assert main(["view", str(folder), "--open"]) == 0
    assert "no browser found" in capsys.readouterr().err
    assert opened == 2 * [(folder / "report.html").as_uri()]


def test_the_size_at_which_the_shipped_models_see(tmp_path):
    """64 x 64 for the picture, and for the crop of the second turn: two marks in its prompt."""
    assert main(["--model", "tiny", "--tasks", "world_viscot_doc", "--limit", "1", "-o", str(tmp_path), "-q"]) == 0
    detail = data_blocks(write_report([tmp_path]).read_text())["d0"][0]["runs"][0]
    assert detail["look"]["seen"] == [[64, 64]] and detail["reply"]["seen"] == [[64, 64], [64, 64]]


def test_groups_stand_before_their_members(tmp_path):
    assert main(["--model", "constant:no", "--tasks", "world", "--limit", "1", "-o", str(tmp_path), "-q"]) == 0
    text = write_report([tmp_path]).read_text()
    strip = re.search(r'<table class="bars">(.*?)</table>', text, re.S).group(1)
    names = re.findall(r'data-task="(\w+)"', strip)
    assert names[0] == "world_viscot" and names[6:8] == ["world_pope", "world_pope_random"]
    assert names[10:] == ["world_rec", "world_mme"]  # as `visrl-eval ls` has them
    groups = data_blocks(text)["index"]["groups"]
    assert groups["world_pope"] == [f"world_pope_{name}" for name in ("random", "popular", "adversarial")]


def test_no_run_is_wrong_use(tmp_path, capsys):
    assert main(["view", str(tmp_path)]) == 2
    assert "not a run folder" in capsys.readouterr().err
