"""Text made visible, the figures' arithmetic, which pictures a page carries, and the server of the rest."""

import http.client
import io
import json
import threading

import pytest
from PIL import Image

from visrl.core.boxes import Box
from visrl.core.types import CoTSample, Episode, Picture, Step
from visrl.errors import PictureError
from visrl.evals.benchmarks import TASKS, UNITS
from visrl.evaluation.live_score import live_scorer
from visrl.report import pictures
from visrl.report.figures import CELLS, HEIGHT, HeatMap, RunFigures, TaskFigures
from visrl.report.pictures import Album, choose, side_for
from visrl.report.rows import judged
from visrl.report.serve import PageServer
from visrl.report.text import clip, json_block, line, visible
from visrl.runs.progress import SHOWN

LETTERED = ("mmbench", "choice", "hrbench")


@pytest.mark.parametrize("benchmark", UNITS)
def test_of_every_benchmark_a_sample_is_right_or_wrong_on_the_page_and_has_a_running_score(benchmark):
    """One sample, answered as it should be: a box for those that want one, "yes" or a letter for the others."""
    spec = next(spec for spec in TASKS.values() if spec.benchmark == benchmark)
    kind, said = ("rec", None) if spec.box_is_the_answer else ("qa", "A" if benchmark in LETTERED else "yes")
    meta = {"options": {"A": "yes", "B": "no"}, "rotations": 1}
    box = Box(0, 0, 10, 10)
    sample = CoTSample("1", spec.name, kind, "Is it?", size=(50, 50), box=box, answers=(said or "",), group="existence", meta=meta)  # fmt: skip
    episode = Episode("1", spec.name, box=box if said is None else None, answer_step=Step("", said or ""))
    scores = live_scorer(spec.name, "exact")([sample], {"1": episode})
    shown = {metric: score.value for metric, score in scores["1"].items()}
    assert judged(sample, episode, {"scores": shown}).right is True
    assert set(shown) & set(SHOWN)


@pytest.mark.parametrize("hidden", ["\u202e", "\x1b", "\x00", "\u200b", "\u2066", "\ud800", "\x9b", "\ufeff"])
def test_what_would_act_is_shown(hidden):
    assert visible(f"a{hidden}b") == f"a⟨U+{ord(hidden):04X}⟩b"


def test_what_people_write_stays():
    text = "naïve\tلغة 日本 👩‍🚀\nline"  # a joiner inside the emoji
    assert visible(text) == text


def test_clip_and_line():
    assert clip("abc", 3) == "abc"
    assert clip("abcdef", 3) == "abc … [3 more characters, in full in episodes.jsonl]"
    assert line(" a\n b ", 10) == "a b"
    assert line("abcdef", 4) == "abc…"


def test_json_cannot_leave_its_element():
    text = json_block({"</script><!--": "&<>\u2028"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"</script><!--": "&<>\u2028"}


def test_histogram_counts_strictly_above_a_half():
    task = TaskFigures("t")
    for overlap in (0.0, 0.5, 0.51, 1.0, None):
        task.add(overlap, None, unparsed=overlap == 0.0)
    assert (task.n_boxes, task.unparsed) == (4, 1)
    # 0.5 is wrong and lies in the same bin as 0.51: [0.50, 0.55)
    assert (task.wrong[0], task.wrong[10], task.right[10], task.right[19]) == (1, 1, 1, 1)
    tallest = [bar for bar in task.bars() if bar.label.startswith("IoU 0.50")]
    assert [bar.height for bar in tallest] == [HEIGHT / 2, HEIGHT / 2]  # two samples is the most, one each
    assert (tallest[1].y, tallest[0].y) == (0.0, HEIGHT / 2)  # right on top of wrong


def test_calibration_is_a_mean_with_its_error():
    task = TaskFigures("t")
    for quality in (1.0, 1.0, 0.0, 1.0):
        task.add(0.75, quality, unparsed=False)
    (dot,) = task.dots()
    # mean .75; s² = (3·.0625 + .5625) / 3 = .25; se = sqrt(.25 / 4) = .25
    assert dot.y == pytest.approx(HEIGHT * 0.25)
    assert (dot.low, dot.high) == (pytest.approx(HEIGHT * 0.5), pytest.approx(0.0))
    assert dot.label == "IoU 0.7–0.8: mean answer score 0.75 ± 0.25, n 4"


def test_a_heat_map_counts_the_cells_whose_centre_is_inside():
    heat = HeatMap("boxes")
    # 240 x 480: cells of 10 x 20 with centres at 5, 15, … and 10, 30, …; x from 0 to 20 covers two, y from 30 to 69 two
    heat.add((0.0, 30.0, 20.0, 69.0), (240, 480))
    heat.add((0.0, -50.0, 9.0, 31.0), (240, 480))  # outside is cut off: one column, centres 10 and 30
    assert heat.counts[0] == 1 and heat.counts[CELLS] == 2
    assert heat.cells() == [(0, 0, 0.5), (0, 1, 1.0), (1, 1, 0.5), (0, 2, 0.5), (1, 2, 0.5)]
    assert heat.most == 1.0
    heat.add((-30.0, 0.0, -20.0, 480.0), (240, 480))  # beside the picture: nothing covered, and counted
    assert (sum(heat.counts), heat.n) == (6, 3)


def test_figures_of_several_tasks_begin_with_their_sum():
    run = RunFigures()
    run.add("a", 0.9, 1.0, unparsed=False)
    assert [figures.task for figures in run.shown()] == ["a"]
    run.add("b", 0.2, None, unparsed=False)
    run.add("c", None, 1.0, unparsed=False)  # no boxes, no figure
    assert [(figures.task, figures.n_boxes) for figures in run.shown()] == [("", 2), ("a", 1), ("b", 1)]


def test_pictures_are_chosen_from_each_kind_in_turn():
    kinds = {"wrong": [1, 1, 2, 3], "right": [10, 11, 12, 13, 14, 15]}
    assert choose(kinds, most=4) == [1, 10, 2, 11]
    assert choose({"right": list(range(100))}, most=4) == [0, 25, 50, 75]
    assert choose({"a": [1, 2], "b": [2, 1]}) == [1, 2]


def test_few_pictures_are_shown_large():
    assert side_for(5) > side_for(200) > side_for(1000)


def noise(name, size=(300, 200)):
    return Picture(name, lambda: Image.effect_noise(size, 80).convert("RGB"))


def test_the_budget_holds(monkeypatch):
    monkeypatch.setattr(pictures, "BUDGET", 100_000)
    album, out = Album(), io.BytesIO()
    numbers = [album.number(noise(f"{i}.png")) for i in range(20)]
    written = album.write(numbers, out, 300)
    assert 0 < len(written) < 20
    assert len(out.getvalue()) <= 100_000


def test_a_picture_that_does_not_open_is_a_reason():
    def fail():
        raise PictureError("truncated")

    album = Album()
    numbers = [album.number(Picture("bad", fail)), album.number(noise("good")), album.number(Picture("bad", fail))]
    assert numbers == [0, 1, 0]
    assert album.write(numbers[:2], io.BytesIO(), 100) == [1]
    assert album.errors == {0: "truncated"}
    assert album.sizes == {1: (300, 200)}


@pytest.fixture
def server(tmp_path):
    page = tmp_path / "report.html"
    page.write_text("<p>page")
    (tmp_path / "secret").write_text("secret")
    album = Album()
    album.number(noise("0.png"))
    with PageServer(page, album) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def get(server, path, host=None):
    port = server.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    response = connection.getresponse()
    return response.status, response.getheader("Content-Type"), response.read()


def test_server_shows_page_and_pictures(server):
    assert get(server, "/") == (200, "text/html; charset=utf-8", b"<p>page")
    status, kind, body = get(server, "/picture/0")
    assert (status, kind, Image.open(io.BytesIO(body)).size) == (200, "image/webp", (300, 200))


@pytest.mark.parametrize(
    "path",
    ["/picture/1", "/picture/-1", "/picture/0/../../secret", "/secret", "/../secret", "/%2e%2e/secret", "//etc/passwd"],
)
def test_server_has_nothing_else(server, path):
    status, _, body = get(server, path)
    assert (status, body) == (404, b"not here\n")


def test_server_answers_to_this_machine_only(server):
    assert get(server, "/", host="evil.example")[0] == 403
    assert server.server_address[0] == "127.0.0.1"


def test_half_a_surrogate_pair_can_be_written():
    assert json.loads(json_block({"a": "\ud800é"}).encode()) == {"a": "\ud800é"}
