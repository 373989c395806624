"""Damaged files, read by every command that reads them: documented exit codes only, never an exception, and nothing touched."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from error_table import ROWS, text
from fuzz_campaign import campaign, groups, table
from fuzz_made import TASK, call, make, run_words
from fuzz_mutations import mutated


def test_damaged_files_end_in_an_error_and_a_hint(tmp_path):
    tally = campaign(tmp_path, 200, seed=23)
    assert not tally.faults, "\n".join([*table(tally), *map(str, groups(tally.faults))])
    assert sum(tally.codes.values()) == 200
    assert sum(n for (_, code), n in tally.codes.items() if code == 2) > 70  # most of the damage is seen


def test_the_page_of_errors_is_what_is_said(tmp_path):
    assert (Path(__file__).parents[2] / "docs" / "errors.md").read_text() == text(tmp_path)
    assert len(ROWS) >= 40


def test_the_same_seed_damages_alike():
    data = b'{"a": [1, 2, {"b": null}], "c": "text"}'

    def made(seed):
        dice = random.Random(seed)
        return [mutated(data, "json", dice) for _ in range(50)]

    assert made(1) == made(1) != made(2)


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    return make(tmp_path_factory.mktemp("valid"))


@pytest.fixture
def folder(valid, tmp_path):
    """A copy of the valid run; its data stay where they are."""
    import shutil

    for name in ("run", "other"):
        shutil.copytree(valid / name, tmp_path / name)
    (tmp_path / "data").symlink_to(valid / "data")
    return tmp_path


def words(folder, output, valid, box="[0.1, 0.1, 0.6, 0.6]"):
    return run_words(valid, folder / output, box)


def test_outputs_without_their_run_json_take_no_other_models(folder, valid):
    (folder / "run" / "run.json").unlink()
    before = (folder / "run" / "episodes.jsonl").read_bytes()
    code, said = call("visrl-eval", *words(folder, "run", valid, "[0.3, 0.3, 0.9, 0.9]"))
    assert code == 2 and "no run.json" in said and "hint: " in said
    assert (folder / "run" / "episodes.jsonl").read_bytes() == before and not (folder / "run" / "run.json").exists()


@pytest.mark.parametrize("lost", ["deleted", "emptied"])
def test_scores_are_not_emptied_when_the_outputs_are_gone(folder, lost):
    episodes, scores = folder / "run" / "episodes.jsonl", folder / "run" / "scores.jsonl"
    before = scores.read_bytes()
    episodes.unlink()
    if lost == "emptied":
        episodes.touch()
    code, said = call("visrl-eval", "score", str(folder / "run"))
    assert code == 2 and "nothing to score" in said
    assert scores.read_bytes() == before and before.count(b"\n") == 8  # --limit 8


def test_runs_over_other_documents_are_not_compared(folder):
    path = folder / "other" / "run.json"
    text = path.read_text()
    digest = text.split('"det_vsr', 1)[-1] if "det_vsr" in text else text
    first = next(word for word in digest.split('"') if len(word) == 64)
    path.write_text(text.replace(first, "0" * 64))
    code, said = call("visrl-eval", "compare", str(folder / "run"), str(folder / "other"))
    assert code == 2 and f"different documents of {TASK}" in said
    page = folder / "page.html"
    assert call("visrl-eval", "view", str(folder / "run"), str(folder / "other"), "-o", str(page))[0] == 0
    assert "saw different documents" in page.read_text()


@pytest.mark.parametrize("path", ["run/run.json", "run/episodes.jsonl", "run/scores.jsonl", f"run/records/{TASK}.json"])
@pytest.mark.parametrize("command", ["show", "score", "view", "compare", "accept", "run"])
def test_a_directory_in_place_of_a_file(folder, valid, path, command):
    (folder / path).unlink()
    (folder / path).mkdir()
    more = {"compare": [str(folder / "other")], "accept": ["--baseline", str(folder / "b" / "b.yaml")]}.get(command, [])
    asked = words(folder, "run", valid) if command == "run" else (command, str(folder / "run"), *more)
    code, said = call("visrl-eval", *asked)
    assert code in (0, 2), said  # 0 where the command does not read it
    assert code == 0 or ("error: " in said and "hint: " in said)


def test_records_that_are_a_file(folder):
    import shutil

    shutil.rmtree(folder / "run" / "records")
    (folder / "run" / "records").write_text("x")
    before = (folder / "run" / "scores.jsonl").read_bytes()
    code, said = call("visrl-eval", "score", str(folder / "run"))
    assert code == 2 and "records" in said and "Traceback" not in said
    assert (folder / "run" / "scores.jsonl").read_bytes() == before


SLOW = """
import signal  # a job in the background, and one under nohup, ignore some of them
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
import sys, time
from pathlib import Path
from visrl.cli import evaluate
from visrl.policies import registry
from visrl.policies.protocol import Output, Policy
import visrl.policies.blind
real = registry.load_policy
def slow(*args, **more):
    policy = real(*args, **more)
    generate = policy.generate
    def waiting(requests, sampling):
        {body}
        return generate(requests, sampling)
    policy.generate = waiting
    return policy
registry.load_policy = slow
import visrl.evaluation.on_ray as on_ray
on_ray.load_policy = slow
sys.exit(evaluate.main(sys.argv[1:]))
"""


def started(folder, valid, output, body):
    script = folder / "slow.py"
    script.write_text(SLOW.format(body=body))
    asked = [*words(folder, output, valid), "--batch-size", "2"]
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen([sys.executable, str(script), *asked], stderr=subprocess.PIPE, text=True, env=env)
    episodes = folder / output / "episodes.jsonl"
    give_up = time.monotonic() + 60
    while not (episodes.exists() and episodes.read_bytes().count(b"\n") >= 2) and time.monotonic() < give_up:
        time.sleep(0.02)
    time.sleep(0.1)  # into the next batch
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_keeps_what_is_finished_and_says_how_to_go_on(folder, valid, number):
    process = started(folder, valid, "new", "time.sleep(1.5)")
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 3, said
    assert "finished samples are in" in said and "the same command resumes" in said and "Traceback" not in said
    assert call("visrl-eval", *words(folder, "new", valid))[0] == 0
    assert (folder / "new" / "scores.jsonl").read_bytes() == (folder / "run" / "scores.jsonl").read_bytes()


def test_a_second_signal_ends_it_at_once(folder, valid):
    stubborn = "\n            ".join(["try: time.sleep(0.4)", "except KeyboardInterrupt: time.sleep(60)"]).replace(
        "\n            ", "\n        "
    )
    process = started(folder, valid, "new", stubborn)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=30)[1]
    assert process.returncode == 3 and time.monotonic() - began < 10
    assert "at once" in said and "Traceback" not in said


@pytest.mark.parametrize("how", ["moved", "deleted", "replaced"])
def test_a_folder_that_goes_away_during_a_run_is_not_claimed_done(folder, valid, how):
    process = started(folder, valid, "new", "time.sleep(1.5)")
    import shutil

    if how == "deleted":
        shutil.rmtree(folder / "new")
    else:
        (folder / "new").rename(folder / "elsewhere")
    if how == "replaced":
        shutil.copytree(folder / "elsewhere", folder / "new")
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 2 and "was moved, deleted or replaced" in said and "run: " not in said, said


def test_a_full_disk_at_closing_keeps_the_good_error(folder, valid):
    """/dev/full takes no byte: the run says so, whatever closing the file adds to it."""
    (folder / "new").mkdir()
    (folder / "new" / "episodes.rank0.jsonl").touch()
    code, said = call("visrl-eval", *words(folder, "new", valid))
    assert code == 0, said  # an empty part file is nothing
    from visrl.core.types import Episode
    from visrl.errors import UsageError
    from visrl.runs.store import Run

    with pytest.raises(UsageError, match="No space left on device") as caught, Run(folder / "full", {"a": 1}) as run:
        run._file.close()
        run._file = Path("/dev/full").open("wb")  # noqa: SIM115 - the run closes it
        run.append([Episode("1", TASK, error="x" * 10)])
    assert "finished samples are kept" in caught.value.hint


def test_text_that_no_locale_can_print(folder):
    script = "import sys; from visrl.cli import evaluate; sys.exit(evaluate.main(sys.argv[1:]))"
    path = folder / "run" / "run.json"
    path.write_text(path.read_text().replace('"focus": "predicted"', '"focus": "\\ud800é"', 1))
    env = {**os.environ, "PYTHONIOENCODING": "ascii:strict", "LC_ALL": "C", "PYTHONUTF8": "0"}
    asked = [sys.executable, "-c", script, "show", str(folder / "run")]
    done = subprocess.run(asked, capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert Path(path).exists()
