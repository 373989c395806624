"""Gates that neither cry wolf nor sleep: every way to pass, to fail and to be inconclusive."""

import json
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import yaml

from visrl.cli.evaluate import main
from visrl.errors import UsageError
from visrl.evals import gates
from visrl.evals.baselines import read_baseline
from visrl.evals.compare import Difference
from visrl.evals.gates import Finding, Prompt, check_difference, check_prompts
from visrl.evals.suite import load_suite
from visrl.regression import gates as suite_gates
from visrl.regression.prompt_snapshots import data_folder, fixture, prompts_file, read_prompts, write_prompts
from visrl.regression.reports import to_junit, to_markdown

# --- the paired gate's verdict


def diff(delta, se, least=0.1, n=1000):
    return Difference("refcoco_val", "acc@0.5", "percent", 70.0, 70.0 + delta, delta, se, None, 0.5, n, n, least)


@pytest.mark.parametrize(
    ("delta", "se", "floor", "status"),
    [
        (0.0, 0.4, 1.0, "pass"),
        (-0.9, 0.4, 1.0, "pass"),  # beyond 2 se, above the floor
        (-1.0, 0.4, 1.0, "pass"),  # exactly the floor is no drop beyond it
        (-1.01, 0.4, 1.0, "fail"),
        (-1.1, 0.6, 1.0, "inconclusive"),  # 2 se = 1.2 > floor: neither a drop nor the lack of one can be told
        (-1.3, 0.6, 1.0, "fail"),  # beyond 2 se: told all the same
        (+5.0, 0.6, 1.0, "inconclusive"),
        (0.0, 0.0, 1.0, "pass"),
    ],
)
def test_verdict(delta, se, floor, status):
    assert check_difference(diff(delta, se), floor).status == status


def test_equal_answers_to_few_questions_do_not_pass():
    # five pictures: se 0, but one of them would be 20 points
    found = check_difference(diff(0.0, 0.0, least=20.0, n=5), floor=3.0)
    assert found.status == "inconclusive" and found.facts["n_needed"] == round(5 * (40 / 3) ** 2)


def test_says_the_smallest_drop_it_could_have_seen():
    # limit 2, se .5: a drop of 2 + .8416 * .5 lies beyond the limit in 80 % of runs
    found = check_difference(diff(0.0, 0.5), floor=2.0)
    assert found.facts["smallest_visible"] == pytest.approx(2.4208, abs=1e-4)
    assert "smallest drop it could have seen: 2.42" in found.reason


def test_no_value_and_no_standard_error():
    assert check_difference(replace(diff(0, 0.1), delta=None), 1.0).status == "fail"
    assert check_difference(replace(diff(0, 0.1), se=None), 1.0).status == "inconclusive"


def test_many_cells_need_more_than_two_standard_errors():
    assert [round(gates.z_for(k), 2) for k in (1, 2, 3, 10)] == [2.0, 2.0, 2.13, 2.58]  # 1.96 at two: 2 stays


def test_exit_codes():
    ok, bad, unsure = (Finding("paired", "x", s, "") for s in ("pass", "fail", "inconclusive"))
    assert [gates.exit_code(f) for f in ([ok], [ok, unsure], [ok, unsure, bad])] == [0, 3, 1]
    assert gates.exit_code([Finding("paper", "x", "info", "")]) == 0
    with pytest.raises(UsageError, match="nothing was checked"):
        gates.exit_code([])


# --- prompt gate


KEY = ("refcoco_val", "direct/v1", "turns")


def test_changed_text_without_version_bump_fails_with_a_diff():
    (found,) = check_prompts({KEY: Prompt.of("1", "a\nb c\n")}, {KEY: Prompt.of("1", "a\nb  c\n")})
    assert found.status == "fail" and "did not" in found.reason
    assert "-b c\\n" in found.detail and "+b  c\\n" in found.detail


def test_bumped_version_must_be_put_on_file():
    (found,) = check_prompts({KEY: Prompt.of("1", "a")}, {KEY: Prompt.of("2", "b")})
    assert found.status == "fail" and "accept --prompts" in found.reason
    assert gates.unbumped({KEY: Prompt.of("1", "a")}, {KEY: Prompt.of("2", "b")}) == []
    assert gates.unbumped({KEY: Prompt.of("1", "a")}, {KEY: Prompt.of("1", "b")})


def test_new_and_vanished_texts_fail_and_equal_changes_are_one_finding():
    a, b = {KEY: Prompt.of("1", "a")}, {(*KEY[:2], "llava"): Prompt.of("1", "a")}
    assert [f.status for f in check_prompts(a, b)] == ["fail", "fail"]
    old = {("t", "p", f): Prompt.of("1", "a") for f in "xyz"}
    new = {("t", "p", f): Prompt.of("1", "b") for f in "xyz"}
    (found,) = check_prompts(old, new)
    assert found.facts["cells"] == ["t · p · x", "t · p · y", "t · p · z"]


def test_prompts_file_round_trip_and_hand_edits(tmp_path):
    path = tmp_path / "prompts.json"
    prompts = {KEY: Prompt.of("1", "a text"), ("refcoco_testA", "direct/v1", "llava"): Prompt.of("1", "kept as hash")}
    write_prompts(path, prompts)
    assert read_prompts(path) == {
        KEY: prompts[KEY],
        ("refcoco_testA", "direct/v1", "llava"): replace(prompts["refcoco_testA", "direct/v1", "llava"], text=None),
    }
    path.write_text(path.read_text().replace("a text", "A text"))
    with pytest.raises(UsageError, match="edited by hand"):
        read_prompts(path)


def test_accept_prompts_refuses_what_kept_its_version(tmp_path, monkeypatch, capsys):
    from visrl.regression import prompt_snapshots

    path = tmp_path / "prompts.json"
    write_prompts(path, {KEY: Prompt.of("1", "a")})
    monkeypatch.setattr(prompt_snapshots, "prompts_file", lambda: path)
    for version, more, code in (("1", (), 1), ("1", ("--anyway",), 0), ("2", (), 0)):
        monkeypatch.setattr(prompt_snapshots, "render_all", lambda v=version, m=more: {KEY: Prompt.of(v, f"b{v}{m}")})
        before = path.read_text()
        assert main(["accept", "--prompts", *more]) == code
        assert (path.read_text() == before) == (code == 1)
    assert "+b1()" in capsys.readouterr().err  # the change that was not accepted is shown
    assert main(["accept"]) == 2 and main(["accept", "--prompts", "--exact"]) == 2


def test_every_task_has_a_fixture_and_prompts_on_file():
    from visrl.core.prompts import PROTOCOLS, SEVERAL
    from visrl.evals.benchmarks import TASKS
    from visrl.policies.families import known_families

    on_file = read_prompts(prompts_file())
    assert {key[0] for key in on_file} == set(TASKS)
    assert {key[1] for key in on_file} == {p.id for p in (*PROTOCOLS.values(), *SEVERAL.values())}
    assert {key[2] for key in on_file} >= {"turns", *known_families()}
    assert fixture("viscot_cub").box is not None


# --- replay gate


def test_exact_to_1e_12_and_no_further():
    recorded = {"results": [{"value": 1.0, "n": 3, "ci": [0.5, 1.5]}]}
    assert (
        gates.check_exact("x", recorded, {"results": [{"value": 1.0 + 5e-13, "n": 3, "ci": [0.5, 1.5]}]}).status
        == "pass"
    )
    for other in (
        {"value": 1.0 + 5e-12, "n": 3, "ci": [0.5, 1.5]},
        {"value": None, "n": 3, "ci": [0.5, 1.5]},
        {"value": float("nan"), "n": 3, "ci": [0.5, 1.5]},
        {"value": 1.0, "n": 3, "ci": [0.5]},
        {"value": 1.0, "n": 3},
        {"value": True, "n": 3, "ci": [0.5, 1.5]},
    ):
        assert gates.check_exact("x", recorded, {"results": [other]}).status == "fail"
    assert gates.check_exact("x", {}, {}).status == "fail"  # nothing recorded is not nothing wrong


def test_shipped_replays_give_the_recorded_numbers(tmp_path):
    findings = list(suite_gates.check_replays("shipped", tmp_path))
    assert len(findings) == 8 and {f.status for f in findings} == {"pass"}, [f.reason for f in findings]


def test_recorded_numbers_are_of_every_benchmark_and_of_no_machine():
    text = suite_gates.recorded_file().read_text()
    recorded = [r for name, item in json.loads(text).items() if name.startswith("shipped") for r in item["results"]]
    with_value = {(r["task"], r["metric"]) for r in recorded if r["value"] is not None}
    for what in (
        ("refcoco_val", "acc@0.5"),
        ("viscot_cub", "answer"),
        ("pope", "f1"),
        ("mme", "perception"),
        ("mmbench", "circular"),
    ):
        assert what in with_value
    assert str(data_folder()) not in text


def test_a_scoring_change_fails_g1(tmp_path, monkeypatch):
    from visrl.evals.scorers import rec

    def loose(boxed, match=rec.match):
        return {**match(boxed), "acc@0.5": (match(boxed)["miou"] >= 0.5).astype(float)}

    monkeypatch.setattr(rec, "match", loose)
    first = next(suite_gates.check_replays("shipped", tmp_path))
    assert first.status == "fail" and "recorded" in first.reason and first.detail


def test_shared_replays(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("VISRL_SHARED", str(shared.parent))
    fast = [r for r in suite_gates.replays("shared") if r.name in ("VLM-R1 RefCOCO", "LaVIN MME")]
    monkeypatch.setattr(suite_gates, "replays", lambda _: fast)
    assert [f.status for f in suite_gates.check_replays("shared", tmp_path)] == ["pass", "pass"]


def test_absent_data_are_inconclusive_not_passed(tmp_path, monkeypatch):
    monkeypatch.setenv("VISRL_SHARED", str(tmp_path / "nowhere"))
    assert {f.status for f in suite_gates.check_replays("shared", tmp_path)} == {"inconclusive"}


# --- the paired gate from the command line, on the shipped documents


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with run `base`, accepted as `b`, and a suite that gates it."""
    monkeypatch.chdir(tmp_path)
    run("base")
    assert main(["accept", "base", "--allow-unscored", "--name", "b", "--baseline", "baselines.yaml"]) == 0
    suite("suite.yaml")
    return tmp_path


def run(output, change=lambda i, row: row, tasks="refcoco_val", **options):
    exact = data_folder() / "exact"
    rows = [json.loads(line) for line in (exact / "outputs.jsonl").read_text().splitlines()]
    rows = [change(i, row) for i, row in enumerate(row for row in rows if row["task"] == tasks)]
    with open(f"{output}.jsonl", "w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows if row))
    args = ["--model", f"replay:{output}.jsonl", "--tasks", tasks, "--data", str(exact), "-q", "-o", output]
    args += [x for k, v in options.items() for x in (f"--{k.replace('_', '-')}", v)]
    assert main([*args, "--fail-on-error", "1000"]) == 0


def suite(name, floor=20.0, **options):
    gate = {"baseline": "b", "model": "constant:x", "tasks": "refcoco_val", "max_unscored": 0.1, "max_unparsed": 0.3}
    gate["cells"] = [{"task": "refcoco_val", "metric": "acc@0.5", "floor": floor}]
    with open(name, "w") as file:
        yaml.safe_dump({"paired": [{**gate, **options}]}, file)


def check(*more, suite="suite.yaml", run="new"):
    return main(["check", "--suite", suite, "--baseline", "baselines.yaml", "--run", run, *more])


def lost(every):
    return lambda i, row: (
        {**row, "box_step": {"prompt": "", "output": "[0.9, 0.9, 0.91, 0.91]"}} if i % every == 0 else row
    )


def test_unchanged_run_passes_and_a_worse_one_fails(place, capsys):
    run("new")
    # 12 pictures: the least standard error is 100 / 12, so that a floor of 20 can just be told
    assert check() == 0
    run("bad", lost(2))
    assert check("--save", "out", run="bad") == 1
    out = json.loads((place / "out/check.json").read_text())
    assert out["exit_code"] == 1 and out["counts"]["fail"] == 1
    (finding,) = out["findings"]
    assert finding["facts"]["delta"] < -20 and finding["detail"]  # the worst flips are named
    junit = ElementTree.parse(place / "out/check.xml").getroot()
    assert junit.find("testsuite").get("failures") == "1" and junit.find(".//failure") is not None
    assert "❌ fail" in (place / "out/check.md").read_text()
    assert "dropped by more than" in capsys.readouterr().err


def test_too_few_samples_for_the_floor_is_exit_3(place, capsys):
    run("new")
    suite("fine.yaml", floor=1.0)
    assert check(suite="fine.yaml") == 3
    assert "is too small for a floor of 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "options", "reason"),
    [
        (lambda i, row: None if i == 5 else row, {}, "1 samples of the baseline were not run"),
        (lambda i, row: {**row, "box_step": {"prompt": "", "output": "?"}}, {}, "unparsed, 30.0% allowed"),
        (lambda i, row: {**row, "error": "no memory"} if i < 9 else row, {}, "unscored, 10.0% allowed: no memory"),
        (lambda i, row: {**row, "error": "no memory"}, {}, "no value"),
        (
            lambda i, row: row,
            {"protocol": "viscot_train"},
            "protocol is viscot_train/v1, the baseline's viscot_eval/v1",
        ),
        (lambda i, row: row, {"crop": "tight"}, "crop is tight"),
        (lambda i, row: row, {"model_args": "box_format=wh_norm_3dp"}, "box_format is"),
        (lambda i, row: row, {"limit": "20"}, "limit is 20, the baseline's None"),
    ],
)
def test_what_cannot_be_paired_fails_with_the_reason(place, capsys, change, options, reason):
    run("new", change, **options)
    capsys.readouterr()
    assert check() == 1
    assert reason in capsys.readouterr().err


def test_another_judge_fails(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("base", tasks="viscot_cub", protocol="viscot_eval")
    main(["accept", "base", "--allow-unscored", "--name", "b", "--baseline", "baselines.yaml"])
    run("new", tasks="viscot_cub", protocol="viscot_eval", judge="anls")
    suite("suite.yaml", cells=[{"task": "viscot_cub", "floor": 0.5}], tasks="viscot_cub")
    assert check() == 1
    assert "judge is anls, the baseline's exact" in capsys.readouterr().err


def test_another_task_version_fails(place, capsys, monkeypatch):
    from visrl.evals import benchmarks

    monkeypatch.setitem(benchmarks.TASKS, "refcoco_val", replace(benchmarks.TASKS["refcoco_val"], version="2"))
    run("new")
    assert check() == 1
    assert "task_version is 2, the baseline's 1" in capsys.readouterr().err


def test_missing_baseline_cell_and_tampered_scores_fail(place, capsys):
    run("new")
    suite("other.yaml", baseline="nothing")
    assert check(suite="other.yaml") == 1
    assert "no baseline 'nothing'" in capsys.readouterr().err
    suite("cell.yaml", cells=[{"task": "refcoco_val", "metric": "acc@0.9", "floor": 1.0}])
    assert check(suite="cell.yaml") == 1
    assert "the baseline has no refcoco_val acc@0.9" in capsys.readouterr().err
    scores = next((place / "baselines").iterdir())
    scores.write_bytes(scores.read_bytes() + b"x")
    assert check() == 1
    assert "differs from the scores accepted" in capsys.readouterr().err


def test_baseline_file_holds_no_nan_and_stays_in_its_folder(place):
    path = place / "baselines.yaml"
    text = path.read_text()
    path.write_text(text.replace("value: ", "value: .nan #", 1))
    with pytest.raises(UsageError, match="not a file of baselines"):
        read_baseline(path, "b")
    path.write_text(text.replace("baselines/b.jsonl.gz", "../../etc/passwd"))
    with pytest.raises(UsageError, match="is outside the folder"):
        read_baseline(path, "b")


def test_accept_is_a_diff_with_equal_bytes_for_equal_runs(place, capsys):
    before = {p: p.read_bytes() for p in (place / "baselines.yaml", place / "baselines/b.jsonl.gz")}
    assert main(["accept", "base", "--allow-unscored", "--name", "b", "--baseline", "baselines.yaml"]) == 0
    assert {p: p.read_bytes() for p in before} == before
    run("new", lost(2))
    capsys.readouterr()
    assert main(["accept", "new", "--allow-unscored", "--name", "b", "--baseline", "baselines.yaml"]) == 0
    assert "refcoco_val acc@0.5: 71.43 → " in capsys.readouterr().out
    assert str(place) not in (place / "baselines.yaml").read_text()  # no path of this machine
    run("failed", lambda i, row: {**row, "error": "no memory"})
    assert main(["accept", "failed", "--allow-unscored", "--name", "b", "--baseline", "baselines.yaml"]) == 2


def test_check_runs_the_model_itself(place, capsys):
    """A constant "yes" on the small world is accepted: F1 2/3. Run again it passes; a constant "no" has F1 0 and fails."""
    args = ["--model", "constant:yes", "--tasks", "world_pope_random", "--limit", "60", "-q", "-o", "w"]
    assert main(args) == 0 and main(["accept", "w", "--name", "w", "--baseline", "baselines.yaml"]) == 0
    gate = {"baseline": "w", "tasks": "world_pope_random", "limit": 60, "max_unparsed": 1.0}
    gate["cells"] = [{"task": "world_pope_random", "floor": 30.0}]  # the primary metric
    for model, code in (("constant:yes", 0), ("constant:no", 1)):
        (place / "w.yaml").write_text(yaml.safe_dump({"paired": [{**gate, "model": model}]}))
        capsys.readouterr()
        assert main(["check", "-s", "w.yaml", "--baseline", "baselines.yaml", "--json"]) == code
        (found,) = json.loads(capsys.readouterr().out)["findings"]
        assert found["facts"]["before"] == pytest.approx(200 / 3)
        assert found["facts"]["delta"] == pytest.approx(0 if code == 0 else -200 / 3)


def test_a_pooled_cell(place, capsys):
    """Two tasks as one number: RefCOCO and VisCoT's boxes of the shipped outputs."""
    exact = data_folder() / "exact"
    args = ["--model", f"replay:{exact}/outputs.jsonl", "--tasks", "refcoco_val,viscot_cub", "--data", str(exact), "-q"]
    assert main([*args, "-o", "new", "--fail-on-error", "1000"]) == 0
    assert main(["accept", "new", "--allow-unscored", "--name", "b", "--baseline", "baselines.yaml"]) == 0
    suite(
        "p.yaml",
        tasks="refcoco_val,viscot_cub",
        cells=[{"pool": {"refcoco_val": "acc@0.5", "viscot_cub": "box_acc"}, "floor": 12.0}],
    )
    capsys.readouterr()
    assert check("--json", suite="p.yaml") == 0
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert found["name"] == "refcoco_val acc@0.5 + viscot_cub box_acc" and found["facts"]["n"] == 35 + 29
    suite("q.yaml", cells=[{"pool": {"refcoco_val": "acc@0.5"}, "task": "refcoco_val", "floor": 12.0}])
    assert check(suite="q.yaml") == 2  # a task or a pool


# --- suites, output


def test_named_suites_load_and_unknown_ones_are_usage_errors(capsys):
    for name in ("smoke", "world", "nightly"):
        assert load_suite(name).about
    assert main(["check", "--suite", "smokey"]) == 2
    assert "did you mean smoke" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text",
    ["{}", "prompts: false", "promts: true", "paired: [{baseline: b}]", "exact: [all]", "- 1", "a: [", "paired: []"],
)
def test_a_suite_that_checks_nothing_or_does_not_parse_is_exit_2(tmp_path, text, capsys):
    (tmp_path / "s.yaml").write_text(text)
    assert main(["check", "--suite", str(tmp_path / "s.yaml")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("floor", ["0", "-1", ".nan", ".inf"])
def test_a_floor_is_a_positive_number(tmp_path, floor):
    gate = f"{{baseline: b, model: m, tasks: t, cells: [{{task: t, floor: {floor}}}]}}"
    (tmp_path / "s.yaml").write_text(f"paired: [{gate}]")
    with pytest.raises(UsageError):
        load_suite(str(tmp_path / "s.yaml"))


def test_hostile_names_do_not_reach_terminal_xml_or_markdown():
    evil = Finding("paired", "\x1b[2J</testcase>|`x`", "fail", "<script>\x00", "```\n\x1b[31mred\u202e")
    xml = to_junit("s\x1b", [evil])
    assert ElementTree.fromstring(xml).find(".//failure") is not None and "\x1b" not in xml
    page = to_markdown("t", [evil])
    assert "\x1b" not in page and "<script>" not in page and "\u202e" not in page and "````diff" in page


def test_paper_gate_informs_and_never_fails(tmp_path):
    findings = list(suite_gates.check_paper("rec", tmp_path / "none"))
    assert [f.status for f in findings] == ["info"] and gates.exit_code(findings) == 0


# --- result tables


def test_tables_check(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("base")
    (tmp_path / "results/records").mkdir(parents=True)
    (tmp_path / "results/records/a.json").write_bytes((tmp_path / "base/records/refcoco_val.json").read_bytes())
    assert main(["tables", "--check"]) == 1
    assert "rec.md" in capsys.readouterr().err
    assert main(["tables", "--write"]) == 0 and main(["tables", "--check"]) == 0
    table = tmp_path / "results/tables/rec.md"
    assert "71.43" in table.read_text()
    table.write_text(table.read_text().replace("71.43", "91.43"))
    assert main(["tables", "--check"]) == 1
    (tmp_path / "results/tables/old.md").write_text("left over")
    assert main(["tables", "--write"]) == 0 and not (tmp_path / "results/tables/old.md").exists()
    assert main(["tables"]) == 2


def test_our_own_tables_are_up_to_date(monkeypatch):
    from pathlib import Path

    monkeypatch.chdir(Path(__file__).parents[2])
    assert main(["tables", "--check"]) == 0


@pytest.mark.parametrize("floor", [0.0, -1.0, 1e-300, 9.9e-7, float("nan"), float("inf"), 1e13])
def test_a_floor_that_says_nothing_is_refused_where_it_is_called_as_a_function_too(floor):
    with pytest.raises(UsageError, match="a floor of"):
        check_difference(diff(0.0, 0.5), floor)
    assert check_difference(diff(0.0, 4e-7, least=4e-7), 1e-6).status == "pass"  # 2 x 4e-7 = 8e-7 < 1e-6
    with pytest.raises(UsageError, match="a z of"):
        check_difference(diff(0.0, 0.5), 1.0, float("nan"))
