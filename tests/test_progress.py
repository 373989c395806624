"""What a run says while it goes: the running score and its error, lines elsewhere than on a terminal, silence on demand."""

import io
import math
import os
import pty
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from visrl.core.boxes import Box
from visrl.core.types import CoTSample, Episode, Unparsed
from visrl.evals import stats
from visrl.evaluation.live_score import live_scorer
from visrl.runs import progress as module
from visrl.runs.progress import Running, duration, progress


def sample(i, cluster=""):
    return CoTSample(str(i), "refcoco_val", "rec", "x", size=(100, 100), box=Box(0, 0, 10, 10), cluster=cluster)


def episode(i, right=True):
    return Episode(str(i), "refcoco_val", box=Box(0, 0, 10, 10) if right else Box(50, 50, 60, 60))


def test_running_error_is_the_reported_one():
    values, clusters = [1.0, 0.0, 1.0, 1.0, 0.0], ["a", "a", "b", "c", "c"]
    running = Running()
    for value, cluster in zip(values, clusters, strict=True):
        running.add(value, cluster)
    # by hand: mean .6; per picture s_g - n_g x̄ = 1 - 1.2, 1 - .6, 1 - 1.2 = -.2, .4, -.2; over n 5: squares sum to .24 / 25
    assert running.mean == pytest.approx(0.6)
    assert running.se == pytest.approx(math.sqrt(3 / 2 * 0.24 / 25))
    assert running.se == pytest.approx(stats.mean(np.array(values), clusters).se)


def test_one_picture_has_no_error():
    running = Running()
    running.add(1.0, "a")
    assert running.se is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.9, "1:00"), (750, "12:30"), (11100, "3:05:00"), (math.inf, "?")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_line_at_the_end_and_every_so_often(monkeypatch):
    monkeypatch.setattr(module, "FIRST_LINE_S", 0.0)
    monkeypatch.setattr(module, "LINE_EVERY_S", 0.0)
    out = io.StringIO()
    with progress("refcoco_val", 4, scorer=live_scorer("refcoco_val", "exact"), out=out) as ticker:
        ticker.skip(1)
        ticker.add([sample(1, "p"), sample(2, "q")], [episode(1), episode(2, right=False)])
        ticker.add([sample(3, "r")], [Episode("3", "refcoco_val", box=Unparsed("no box"))])
    lines = out.getvalue().splitlines()
    assert len(lines) == 2  # one per batch; the second says all there is, and is not said again
    # one of three right: mean 1/3; per picture 2/3, -1/3, -1/3 over 3; se² = 3/2 · (6/9)/9 = 1/9
    assert "4/4 · acc@0.5 33.3 ± 33.3 %" in lines[-1]
    assert "boxes parsed 66.7 % · 0 failed" in lines[-1]
    assert "/s · 0 s left" in lines[-1]


def test_failures_are_counted_and_scored_as_nothing():
    out = io.StringIO()
    with progress("refcoco_val", 2, scorer=live_scorer("refcoco_val", "exact"), out=out) as ticker:
        ticker.add([sample(1), sample(2)], [episode(1), Episode("2", "refcoco_val", error="\x1b[2Jboom")])
    assert "acc@0.5 100.0 % · boxes parsed 100.0 % · 1 failed" in out.getvalue()
    assert "\x1b" not in out.getvalue()


def test_no_line_before_its_time():
    out = io.StringIO()
    with progress("refcoco_val", 2, out=out) as ticker:
        ticker.add([sample(1)], [episode(1)])
        assert out.getvalue() == ""


def test_the_first_line_comes_sooner_than_the_others(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with progress("refcoco_val", 9, out=out) as ticker:
        said, ticker._began = [], now[0]
        for at in (104.9, 105.0, 134.9, 135.0, 164.9, 165.0):  # 5 s after the start, then 30 s after the line before
            now[0] = at
            ticker.add([sample(1)], [episode(1)])
            said.append(len(out.getvalue().splitlines()))
    assert said == [0, 1, 1, 2, 2, 3]


def test_quiet_says_nothing():
    out = io.StringIO()
    with progress("refcoco_val", 1, quiet=True, out=out) as ticker:
        ticker.add([sample(1)], [episode(1)])
    assert out.getvalue() == ""


def test_a_model_is_no_live_judge():
    scorer = live_scorer("viscot_vsr", "openai:http://127.0.0.1:9#nobody")  # nobody listens there
    asked = CoTSample("1", "viscot_vsr", "qa", "x", answers=("yes",))
    assert scorer([asked], {"1": Episode("1", "viscot_vsr")})["1"]["answer"].value is None


def test_a_bar_on_a_terminal():
    """On a pseudo-terminal the bar redraws in place and log lines stand above it."""
    code = textwrap.dedent("""
        import logging, sys
        logging.basicConfig(stream=sys.stderr)
        from visrl.runs.progress import progress
        from visrl.core.types import CoTSample, Episode
        with progress("mme", 2) as ticker:
            ticker.add([], [Episode("1", "mme")])
            logging.warning("above")
            ticker.add([], [Episode("2", "mme")])
    """)
    leader, follower = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", code], stderr=follower, env=env, check=True)
    os.close(follower)
    seen = os.read(leader, 1 << 16).decode()
    assert done.returncode == 0
    assert "2/2" in seen and "0 failed" in seen
    assert "WARNING:root:above\r\n" in seen
    assert "\x1b[?25h" in seen.split("2/2")[-1]  # the cursor comes back


def test_ctrl_c_says_what_is_saved_and_how_to_go_on(tmp_path):
    """SIGINT after three samples: they are on disk, the exit code is 3, and the same command goes on."""
    code = textwrap.dedent("""
        import os, signal, sys
        from visrl.cli import evaluate as cli
        from visrl.policies import registry
        from visrl.policies.protocol import FunctionPolicy
        from visrl.core.box_formats import FORMATS
        asked = []
        def answer(request):
            asked.append(request)
            if len(asked) == 4:
                os.kill(os.getpid(), signal.SIGINT)
            return "[0, 0, 1, 1]"
        policy = FunctionPolicy("made", answer, FORMATS["padded_square_3dp"])
        registry.load_policy = lambda *_: policy
        sys.exit(cli.main(sys.argv[1:]))
    """)
    rec = tmp_path / "data" / "rec"
    rec.mkdir(parents=True)
    row = '{{"img_path": "{0}.jpg", "expression": "x", "bbox": [0, 0, 5, 5], "width": 9, "height": 9, "image_id": {0}, "sent_id": 1}}\n'
    (rec / "REC_refcoco_unc_val.jsonl").write_text("".join(row.format(i) for i in range(6)))
    out = tmp_path / "a run"
    args = ["--model", "constant:x", "--tasks", "refcoco_val", "--batch-size", "1"]
    command = [sys.executable, "-c", code, *args, "--data", str(tmp_path / "data"), "-o", str(out)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 3, done.stderr
    assert f"stopped: 3 finished samples are in {out}; the same command resumes from there:" in done.stderr
    assert (
        f"visrl-eval run --model constant:x --tasks refcoco_val --batch-size 1 --data {tmp_path}/data -o '{out}'"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert len((out / "episodes.jsonl").read_text().splitlines()) == 3
