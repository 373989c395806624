"""The commands as a user types them, on real published predictions where they exist."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from visrl.cli.evaluate import main

QWEN = [  # file, task, parser, accuracy its authors publish
    ("baseline__refcoco_val", "refcoco_val", "lenient", 89.75),
    ("baseline__refcocop_val", "refcoco+_val", "lenient", 85.00),
    ("baseline__refcocog_val", "refcocog_val", "lenient", 86.60),
    ("checkpoint-100__refcoco_val", "refcoco_val", "vlm_r1", 88.40),
    ("checkpoint-100__refcocop_val", "refcoco+_val", "vlm_r1", 83.20),
    ("checkpoint-100__refcocog_val", "refcocog_val", "vlm_r1", 83.75),
]


@pytest.fixture
def results(shared, tmp_path, capsys):
    def run(*args):
        code = main([*map(str, args), "--data", str(shared), "--json", "--quiet", "--output", str(tmp_path / "run")])
        out = capsys.readouterr()
        assert code == 0, out.err
        return {r["metric"]: r for r in json.loads(out.out)}

    return run


@pytest.mark.parametrize(("file", "task", "parser", "accuracy"), QWEN)
def test_published_rec_accuracies(results, shared, file, task, parser, accuracy):
    model = f"replay:{shared}/predictions/rec/{file}.json.gz"
    found = results("--model", model, "--tasks", task, "--model-args", f"parser={parser}")["acc@0.5"]
    assert (found["value"], found["n"], found["n_missing"]) == (accuracy, 2000, found["n_expected"] - 2000)


def test_published_pope(results, shared):
    folder = shared / "predictions/pope"
    found = results(
        "--model", f"replay:{folder}/answers_llava-v1.5-13b_popular.jsonl.gz",
        "--model-args", f"questions={folder}/llava_pope_popular_questions.jsonl.gz",
        "--tasks", "pope_coco_popular",
    )  # fmt: skip
    assert found["accuracy"]["value"] == pytest.approx(87.4333, abs=5e-5)
    assert found["f1"]["value"] == pytest.approx(86.2459, abs=5e-5)


def test_published_mme(results, shared):
    found = results("--model", f"replay:{shared}/predictions/mme/LaVIN", "--tasks", "mme")
    assert found["perception"]["value"] == pytest.approx(963.6114, abs=5e-5)
    assert found["cognition"]["value"] == pytest.approx(249.6429, abs=5e-5)


def test_constant_no_on_cub(results):
    found = results("--model", "constant:no", "--tasks", "viscot_cub", "--judge", "exact")["answer"]
    assert found["value"] == pytest.approx(285 / 492)  # 285 of the 492 answers are "no": .579
    assert found["judge"] == "exact"


def test_replaying_our_own_run_gives_the_same_numbers(shared, tmp_path, capsys):
    def run(model, output, *more):
        args = [
            "--model",
            model,
            "--tasks",
            "refcocog_val",
            "--data",
            str(shared),
            "--json",
            "--quiet",
            "-o",
            str(output),
            *more,
        ]
        assert main(args) == 0
        return [
            {k: v for k, v in r.items() if k not in ("model", "model_info")}
            for r in json.loads(capsys.readouterr().out)
        ]

    first = run(f"replay:{shared}/predictions/rec/baseline__refcocog_val.json.gz", tmp_path / "a")
    assert run(f"replay:{tmp_path / 'a'}", tmp_path / "b") == first


def test_score_again_and_show(results, shared, tmp_path, capsys):
    results("--model", "constant:no", "--tasks", "viscot_cub")
    run = tmp_path / "run"
    before = {p.name: p.read_bytes() for p in (run / "records").iterdir()}
    assert main(["score", str(run), "--json"]) == 0
    assert {p.name: p.read_bytes() for p in (run / "records").iterdir()} == before
    capsys.readouterr()
    assert main(["score", str(run), "--judge", "contains", "--json"]) == 0
    assert {r["judge"] for r in json.loads(capsys.readouterr().out)} == {"contains"}
    assert main(["show", str(run)]) == 0
    assert "viscot_cub" in capsys.readouterr().out


@pytest.fixture
def world_run(tmp_path, capsys):
    """10 world_viscot_doc questions, all answered "no", scored by ``exact``."""
    run = tmp_path / "run"
    assert main(["--model", "constant:no", "--tasks", "world_viscot_doc", "--limit", "10", "-q", "-o", str(run)]) == 0
    capsys.readouterr()
    return run


def contents(run):
    return {str(p): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


NOBODY = "openai:http://localhost:9/v1#m"


def test_a_judge_that_cannot_be_reached_takes_no_scores_away(world_run, capsys):
    before = contents(world_run)
    assert main(["score", str(world_run), "--judge", NOBODY]) == 2
    assert "could not be reached: nothing was scored" in capsys.readouterr().err
    assert contents(world_run) == before


def test_a_judge_without_its_key_is_refused_before_a_model_is_loaded_or_a_score_rewritten(
    world_run, capsys, monkeypatch
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    paid = "openai:https://api.openai.com/v1#gpt-3.5-turbo-1106"
    before = contents(world_run)
    assert main(["score", str(world_run), "--judge", paid]) == 2
    assert "needs a key" in capsys.readouterr().err and contents(world_run) == before
    monkeypatch.setattr("visrl.evaluation.on_ray.policy_and_engine", lambda *_: pytest.fail("the model was loaded"))
    for wrong in (["--judge", paid], ["--focus", "gld"], ["--protocol", "nosuch"], ["--data", "/nowhere"]):
        assert main(["--model", "constant:no", "--tasks", "world_viscot_doc", *wrong]) == 2


def test_answers_that_a_judge_left_out_make_a_run_incomplete(tmp_path, capsys):
    """Of a first scoring what can be had is kept: the boxes; the exit code says that the rest is missing."""
    run = tmp_path / "run"
    args = ["--model", "constant:no", "--tasks", "world_viscot_doc", "--limit", "2", "-q", "-o", str(run)]
    assert main([*args, "--judge", NOBODY]) == 3
    assert "2 answers are unscored: the judge could not be reached" in capsys.readouterr().err
    assert main(["score", str(run), "--judge", "exact"]) == 0
    assert json.loads((run / "run.json").read_text())["judge"] == "exact"  # whose scores these are, for the run's page


def test_a_name_is_what_records_call_the_model(tmp_path, capsys):
    args = ["--model", "constant:no", "--tasks", "world_viscot_doc", "--limit", "2", "-q", "--json"]
    assert main([*args, "--name", "RL 1", "-o", str(tmp_path / "run")]) == 0
    assert {(r["model"], r["model_info"]["text"]) for r in json.loads(capsys.readouterr().out)} == {("RL 1", "no")}
    assert json.loads((tmp_path / "run/run.json").read_text())["model_spec"] == "constant:no"


def test_same_output_other_request(results, shared, tmp_path, capsys):
    results("--model", "constant:no", "--tasks", "viscot_cub")
    code = main(
        ["--model", "constant:yes", "--tasks", "viscot_cub", "--data", str(shared), "-o", str(tmp_path / "run")]
    )
    assert code == 2
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message", "hint"),
    [
        (["--model", "constant:x", "--tasks", "refcoc_val"], "unknown task 'refcoc_val'", "refcoco_val"),
        (["--model", "constantt:x", "--tasks", "mme"], "unknown model", "constant:"),
        (["--model", "constant:x", "--tasks", "mme", "--protocol", "viscot"], "unknown 'viscot'", "viscot_"),
        (["--model", "constant:x", "--tasks", "mme", "--focus", "golden"], "unknown 'golden'", "gold"),
        (["--model", "constant:x", "--tasks", "mme", "--judge", "exakt", "--data", "."], "", ""),
        (["--model", "constant:x", "--tasks", "mme", "--data", "/nowhere"], "/nowhere", ""),
        (["--model", "constant:x", "--tasks", "mme", "--limit", "0"], "--limit", "visrl-eval run --help"),
        (["--model", "constant:x", "--tasks", "mme", "--batch-size", "many"], "neither a number nor auto", ""),
        (["--model", "constant:x"], "--tasks", "visrl-eval run --help"),
        (["score", "/nowhere"], "/nowhere: no such folder", "visrl-eval --model tiny --tasks world"),
        (["view", "nowhere"], "nowhere: no such folder", ""),
        (["view", "nowhere", "--serve"], "nowhere: no such folder", ""),
        (["compare", "nowhere", "elsewhere"], "nowhere: no such folder", ""),
        (["check", "--suite", "smoke", "--run", "nowhere"], "nowhere: no such folder", ""),
        (["veiw", "x"], "veiw", "hint: visrl-eval view --help"),
        (["tables", "--paper", "rec", "--mine"], "no run is given", "RUN --mine"),
        ([], "no command", "visrl-eval --help"),
        (["tables", "--paper", "rec", "/nowhere"], "/nowhere: no such file or folder", "a run folder"),
        (["nonsense"], "nonsense", ""),
        (["ls", "taks"], "unknown 'taks'", "tasks"),
        (["reproduction-page"], "results/records: no such folder", "--results"),
    ],
)
def test_wrong_use_is_exit_2_with_a_hint(args, message, hint, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "\n\nhint: " in err and "Traceback" not in err
    assert message in err and hint in err
    assert not list(tmp_path.iterdir())  # looking for a folder does not make it


def test_help_is_not_cut_at_eighty_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert not re.search(r"\w\.\.\.", said) and max(map(len, said.splitlines())) <= 80
    assert "view               Write an HTML page of a run, or of two compared." in said


def test_lists_fit_eighty_columns(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["ls"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert max(map(len, listed)) <= 80
    assert listed[1].split()[:2] == ["refcoco", "21,586"]  # groups first: 10,834 + 5,657 + 5,095
    assert "group of 3 tasks" in listed[1]


def test_a_wrong_judge_is_refused_before_anything_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--model", "constant:no", "--tasks", "mme", "--judge", "exakt"]) == 2
    assert "exakt" in capsys.readouterr().err and not (tmp_path / "runs").exists()


def test_leftover_predictions_are_exit_3_and_nothing_is_lost(shared, tmp_path, capsys):
    rows = [json.loads(line) for line in _lines(shared / "rec/REC_refcocog_umd_val.jsonl.gz", 3)]
    file = tmp_path / "p.json"
    results = [
        {"image": r["img_path"], "question": r["expression"], "ground_truth": r["bbox"], "model_output": str(r["bbox"])}
        for r in rows
    ]
    results.append({**results[0], "question": "something else"})
    file.write_text(json.dumps({"accuracy": 0, "results": results}))
    args = [
        "--model",
        f"replay:{file}",
        "--tasks",
        "refcocog_val",
        "--data",
        str(shared),
        "-o",
        str(tmp_path / "run"),
        "--json",
    ]
    assert main(args) == 3
    out = capsys.readouterr()
    assert "1 predictions without a document" in out.err and f"{file}:4" in out.err
    assert json.loads(out.out)[0]["value"] == 100.0  # three true boxes, three right: scored and recorded all the same
    assert main([*args, "--fail-on-error", "1"]) == 0


def _lines(path, n):
    import gzip
    from itertools import islice

    with gzip.open(path, "rt") as file:
        return list(islice(file, n))


def test_kill_9_and_again_gives_the_same_bytes(shared, tmp_path):
    """Killed at some sample in the middle, run again: records equal those of a run nobody disturbed."""
    model = f"replay:{shared}/predictions/rec/baseline__refcoco_val.json.gz"

    def start(output, slow):
        # a policy that takes a moment per batch, so that the kill lands in the middle
        code = (
            "import sys, time; from visrl.policies.recorded.replay import ReplayPolicy; from visrl.cli.evaluate import main; g = ReplayPolicy.generate\n"
            f"def slow(self, *a): time.sleep({slow}); return g(self, *a)\n"
            "ReplayPolicy.generate = slow; sys.exit(main(sys.argv[1:]))"
        )
        args = [
            "--model",
            model,
            "--tasks",
            "refcoco_val",
            "--data",
            str(shared),
            "--quiet",
            "--batch-size",
            "16",
            "-o",
            str(output),
        ]
        return subprocess.Popen(
            [sys.executable, "-c", code, *args], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    assert start(tmp_path / "whole", 0).wait() == 0
    killed = start(tmp_path / "killed", 0.02)
    path = tmp_path / "killed/episodes.jsonl"
    while not path.exists() or path.stat().st_size < 100_000:
        assert killed.poll() is None
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    n = path.read_bytes().count(b"\n")
    assert 0 < n < 2000 and not (tmp_path / "killed/records").exists()
    assert start(tmp_path / "killed", 0).wait() == 0

    def files(folder):
        return {
            p.name: p.read_bytes()
            for p in [*(folder / "records").iterdir(), folder / "scores.jsonl", folder / "episodes.jsonl"]
        }

    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_no_write_permission(tmp_path, capsys):
    locked = Path("/proc/visrl-run")
    assert main(["--model", "constant:no", "--tasks", "mme", "--data", str(tmp_path), "-o", str(locked)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_second_protocol_beside_the_first(tmp_path, capsys):
    """Constant "yes" looks the same with or without a crop: the questions are asked twice, and nothing changes."""
    argv = ["run", "--model", "constant:yes", "--tasks", "world_rec,world_pope_random", "--limit", "4", "-q"]
    assert main([*argv, "--beside", "direct", "-o", str(tmp_path / "r")]) == 0
    said = capsys.readouterr()
    head, *_ = said.out.splitlines()
    # yes to 2 of 4: precision 1/2, recall 1, F1 = 2 · 1/2 · 1 / (1 1/2) = 2/3
    assert head == "looking: world_pope_random f1 66.7 → 66.7 % (+0.0), 4 questions"
    (rec,) = [line.split() for line in said.out.splitlines() if line.startswith("world_rec")]
    assert rec == ["world_rec", "acc@0.5", "0.0¹", "%", "4/1,000"]  # nothing beside it: it has no answer
    assert "¹ 4 unparsed, counted as wrong" in said.out  # "yes" holds no box
    assert f"visrl-eval view {tmp_path / 'r' / 'direct'} {tmp_path / 'r'}" in said.err
    assert main(["show", str(tmp_path / "r")]) == 0  # the same again
    assert capsys.readouterr().out == said.out
    assert main(["show", str(tmp_path / "r"), "--all"]) == 0
    changed = capsys.readouterr().out.split("direct → looked")[1]
    assert "50.0 → 50.0 (+0.0)" in changed and "world_rec" not in changed
    assert (tmp_path / "r" / "direct" / "episodes.jsonl").read_text().count("\n") == 4


def test_what_looking_changed(tmp_path, capsys, monkeypatch):
    """A model that is right where it looks and silent where it does not: the second protocol is another, and stands on the left."""
    from visrl.core.box_formats import FORMATS
    from visrl.core.types import Picture
    from visrl.policies.protocol import FunctionPolicy
    from visrl.tasks import load

    truth = {s.id: s.answers[0] for s in load("world_viscot_doc", None, with_pictures=False, limit=4)}

    def answer(request):
        shown = sum(isinstance(part, Picture) for turn in request.turns for part in turn.parts)
        return truth[request.key] if shown == 2 else "nothing"

    policy = FunctionPolicy("looker", answer, FORMATS["padded_square_3dp"], default_protocol="visrl_train")
    monkeypatch.setattr("visrl.evaluation.on_ray.load_policy", lambda *_: policy)
    argv = ["run", "--model", "looker", "--tasks", "world_viscot_doc", "--limit", "4", "-q", "--beside", "direct"]
    assert main([*argv, "-o", str(tmp_path / "r")]) == 0
    head = capsys.readouterr().out.splitlines()[0]
    assert head.startswith("looking: 0.0 → 100.0 % (+100.0")  # none of four, then four of four


def test_nothing_to_set_beside(tmp_path, capsys):
    argv = ["run", "--model", "constant:yes", "--tasks", "world_rec", "--limit", "2", "-q", "--beside", "direct"]
    assert main([*argv, "-o", str(tmp_path / "r")]) == 2
    assert "no task of world_rec asks for an answer" in capsys.readouterr().err


def test_training_folders_are_shown_by_phase(tmp_path, capsys):
    """A folder of pairs has its funnel and its boxes, one of a loop the line of each scored phase, in the loop's order."""
    pairs = tmp_path / "loop" / "iter1" / "pairs"
    pairs.mkdir(parents=True)
    (pairs / "run.json").write_text(json.dumps({"request": {"policy": {}}, "request_hash": "x"}))
    boxes = {"wp_ln": {"percent": 64.64, "se": 1.5}}
    (pairs / "manifest.json").write_text(
        json.dumps({"funnel": {"questions": {"asked": 40, "pairs": 9}}, "boxes": boxes})
    )
    for name in ("sft", "base"):
        (tmp_path / "loop" / name).mkdir()
        (tmp_path / "loop" / name / "metrics.json").write_text(json.dumps({"line": f"answers of {name}"}))
    funnel = "asked 40 · pairs 9"
    assert main(["show", str(pairs)]) == 0
    assert capsys.readouterr().out.splitlines() == [f"pairs: {funnel}", "pairs: WP-LN 64.6 ± 1.5 %"]
    assert main(["show", str(tmp_path / "loop")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:3] == ["base: answers of base", "sft: answers of sft", f"iter1/pairs: {funnel}"]


def test_a_training_folder_is_shown_by_what_its_page_draws(tmp_path, capsys):
    """The last row that has any of it: TRL's own last row sums up a phase. Stages are in the order of the funnel, in words."""
    rl = tmp_path / "rl"
    rl.mkdir()
    logged = [{"loss": 0.25, "step": 8, "tokens/trained": 99.0}, {"step": 8, "train_loss": 0.5, "total_flos": 0.0}]
    (rl / "history.json").write_text(json.dumps(logged))
    stages = {"above_and_below_by_answer": 3, "asked": 9, "paired": 2, "scored": 9}
    (rl / "manifest.json").write_text(json.dumps({"funnel": {"questions": stages}}))
    assert main(["show", str(rl)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "rl: asked 9 · scored 9 · has a good and a bad answer 3 · paired 2",
        "rl: step 8 · loss 0.25",
    ]


def test_a_first_run_is_not_called_resumed(world_run):
    meta = json.loads((world_run / "run.json").read_text())
    assert "started" in meta and "resumed" not in meta
    args = ["--model", "constant:no", "--tasks", "world_viscot_doc", "--limit", "10", "-q", "-o", str(world_run)]
    assert main(args) == 0
    assert len(json.loads((world_run / "run.json").read_text())["resumed"]) == 1


def test_a_run_is_named_as_its_tasks_were_asked_for_and_found_under_its_older_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["--model", "constant:no", "--limit", "2", "-q", "--tasks"]
    assert main([*args, "world_pope"]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("constant-no-world_pope-")
    digest = folder.name[-8:]
    older = folder.rename(folder.with_name(f"constant-no-world_pope_random+world_pope_popular+worl-{digest}"))
    assert main([*args, "world_pope"]) == 0
    assert main([*args, "world_pope_random,world_pope_popular,world_pope_adversarial"]) == 0
    assert list((tmp_path / "runs").iterdir()) == [older]


def test_a_direct_run_says_nothing_of_where_it_looked(tmp_path, capsys):
    args = ["--model", "constant:no", "--tasks", "world_pope_random", "--limit", "2", "-q", "-o", str(tmp_path / "r")]
    assert main([*args, "--protocol", "direct"]) == 0
    assert main(["show", str(tmp_path / "r")]) == 0
    said = capsys.readouterr()
    assert "focus" not in said.out + said.err and "crop" not in said.err
    assert "protocol direct/v1" in said.err


@pytest.mark.parametrize(("chosen", "kept"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_give_their_core_away_unless_the_user_chose(chosen, kept, monkeypatch, capsys):
    monkeypatch.setenv("OMP_WAIT_POLICY", chosen or "")
    if chosen is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    assert main(["--version"]) == 0
    assert os.environ["OMP_WAIT_POLICY"] == kept


def test_a_signal_before_the_command_begins_is_a_stop(monkeypatch, capsys):
    monkeypatch.setattr("typer.main.get_command", lambda app: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["show", "a folder"]) == 3
    said = capsys.readouterr().err
    assert "stopped: finished samples are kept" in said and "visrl-eval show 'a folder'" in said


@pytest.mark.parametrize("command", ["evaluate", "train"])
def test_a_signal_while_an_error_is_said_is_a_stop(monkeypatch, capsys, command):
    import importlib

    module = importlib.import_module(f"visrl.cli.{command}")
    monkeypatch.setattr(module, "say", lambda error: os.kill(os.getpid(), signal.SIGTERM))
    ends = {"evaluate": lambda: sys.exit(module.main([])), "train": lambda: module.main(["no.yaml"])}
    with pytest.raises(SystemExit) as end:
        ends[command]()
    assert end.value.code == 3 and "the same command resumes" in capsys.readouterr().err


@pytest.mark.parametrize("command", [("ls", "tasks"), ("ls",), ("tables", "--paper", "rec"), ("run", "--help")])
def test_a_reader_that_has_gone_is_not_a_failed_gate(command):
    """Exit code 3, nothing on stderr: rich's tables, click's help, and plain print each meet the closed pipe."""
    script = f"import sys; from visrl.cli.evaluate import main; sys.exit(main({list(command)!r}))"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 3


def test_a_training_command_whose_reader_has_gone():
    script = "from visrl.cli.train import main; main(['--list'])"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 3


def test_what_a_command_holds_to_its_end_is_let_go_then():
    """The collector rests while it is made, also where that fails, and is on again afterwards; a command's end unfreezes."""
    import gc

    from visrl.cli.start import held_to_the_end

    with pytest.raises(ValueError), held_to_the_end():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled() and gc.get_freeze_count() > 0
    assert main(["ls", "tasks"]) == 0
    assert gc.get_freeze_count() == 0
