import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from visrl.core.records import TaskResult
from visrl.errors import UsageError
from visrl.evals import paper
from visrl.tables.formats import folded, plain, render
from visrl.tables.paper_tables import build, split_rows, why_not
from visrl.tables.result_tables import results_table

NASTY = "evil|[red]\x1b[2J\u202e=x_y&%$\\{}\nz"
PAPERS_JUDGE = "openai:api.openai.com#gpt-3.5-turbo-1106/viscot/v1/T0"


def result(task="refcoco_val", metric="acc@0.5", value=92.9, se=0.3, n=10834, n_expected=None, unit="percent", **more):
    base = {
        "task_version": "1",
        "ci": None if se is None else (value - 2 * se, value + 2 * se),
        "n_clusters": 1500,
        "protocol": "visrl_train/v1",
        "focus": "predicted",
        "crop": "viscot_square112",
        "model": "m",
    }
    n_expected = n if n_expected is None else n_expected
    return TaskResult(
        task=task, metric=metric, value=value, se=se, n=n, n_expected=n_expected, unit=unit, **{**base, **more}
    )


def records(table):
    return [r for r in table.tidy if r["source"] == "visrl"]


@pytest.mark.parametrize(
    ("value", "word"),
    [(92.12, "match"), (93.32, "match"), (93.33, "above"), (92.11, "below")],  # published 92.72, se .3: within .6
)
def test_two_standard_errors_make_the_verdict(value, word):
    (record,) = records(build("rec", [result(value=value)]))
    assert (record["verdict"], record["reason"]) == (word, "")


def test_the_row_to_compare_with_can_be_chosen():
    assert records(build("rec", [result(value=80.0)]))[0]["verdict"] == "below"
    assert records(build("rec", [result(value=80.0)], against="OFA-L"))[0]["verdict"] == "match"
    assert "against OFA-L" in render(build("rec", [result()], against="OFA-L"), "rich")
    with pytest.raises(UsageError) as caught:
        build("rec", [], against="OFA")
    assert "OFA-L" in caught.value.hint


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"n": 2000, "n_expected": 10834}, "not comparable: n 2000 of 10834"),
        ({"n": 10, "n_expected": 10834, "limit": 10}, "not comparable: n 10 of 10834; limit 10"),
        ({"n": 10830, "n_expected": 10834, "n_unscored": 4}, "not comparable: n 10830 of 10834, 4 unscored"),
        ({"focus": "gold"}, "not comparable: focus gold, not predicted"),
        ({"small_world": True, "n": 3}, "not comparable: small world"),
        ({"unit": "fraction"}, "not comparable: unit fraction, not percent"),
        ({"task_version": "0"}, "not comparable: task version 0, not 1"),
        ({"se": None}, "not comparable: no standard error: fewer than two pictures"),
        ({"value": None, "se": None, "n": 0, "notes": ["all failed"]}, "not comparable: no value: all failed"),
    ],
)
def test_reasons(changes, reason):
    (record,) = records(build("rec", [result(**changes)]))
    assert (record["verdict"], record["reason"]) == ("not comparable", reason)
    assert reason in render(build("rec", [result(**changes)]), "rich")
    assert reason in render(build("rec", [result(**changes)]), "latex")


def gqa(**more):
    return result("viscot_gqa", "answer", 0.666, 0.01, 978, unit="fraction", **more)


def reasons(found, against="LLaVA-1.5-7B sft+rl1+rl2"):
    table = paper.load("viscot")
    column = next(c for c in table.columns if c.name == "gqa")
    return why_not(found, column, table.row(against))


def test_only_the_paper_s_judge_is_the_paper_s():
    assert reasons(gqa(judge=PAPERS_JUDGE)) == []
    assert reasons(gqa(judge="exact")) == ["judge exact, not the paper's"]
    assert reasons(gqa()) == ["judge none, not the paper's"]


def test_base_rows_answer_directly_and_the_others_look():
    direct = gqa(judge=PAPERS_JUDGE, protocol="direct/v1", focus="full")
    assert reasons(direct, "LLaVA-1.5-7B base") == []
    assert reasons(direct) == ["protocol direct, not visrl_train or viscot_train or viscot_eval"]
    assert reasons(gqa(judge=PAPERS_JUDGE), "LLaVA-1.5-7B base") == ["protocol visrl_train, not direct"]


def test_a_suspect_or_lost_published_value_is_told():
    base = "Qwen2.5-VL-7B base"
    found = result(
        "viscot_docvqa", "answer", 0.836, 0.01, 888, unit="fraction", protocol="direct/v1", judge=PAPERS_JUDGE
    )
    (record,) = records(build("viscot", [found], against=base))
    assert record["verdict"] == "match"
    assert record["reason"].startswith("the published value is suspect")
    cub = result("viscot_cub", "answer", 0.5, 0.01, 492, unit="fraction", judge=PAPERS_JUDGE)
    (record,) = records(build("viscot", [cub]))
    assert (record["verdict"], record["reason"][:18]) == ("", "no published value")


def test_general_holds_perception_circular_and_the_mean_f1():
    found = [
        result("mme", "perception", 1526.0, 20.0, 2114, unit="points"),
        result("mmbench", "circular", 60.0, 1.0, 4329, task_version="2"),
        result("pope", "f1", 88.9, 0.5, 9000),
        result("mme", "mme/OCR", 100.0, 20.0, 40, unit="points"),  # belongs nowhere
    ]
    assert [r["verdict"] for r in records(build("general", found))] == ["match", "below", "above"]


def test_one_row_per_model_protocol_and_focus():
    found = [result(), result("refcoco_testA", n=5657), result(focus="random"), result(model="other")]
    labels = [label for label, _ in split_rows(found)]
    assert labels == ["m · visrl_train/v1", "m · visrl_train/v1 · random focus", "other · visrl_train/v1"]


def test_an_unusual_crop_is_named_where_something_is_cropped():
    found = [gqa(crop="compat_visrl"), gqa(crop="tight", protocol="direct/v1"), result(crop="tight")]
    labels = [label.split(" · ")[1:] for label, _ in split_rows(found)]
    assert labels == [["visrl_train/v1", "compat_visrl crop"], ["direct/v1"], ["visrl_train/v1"]]


def test_two_results_for_one_cell_are_told_apart_by_what_differs():
    rows = split_rows([gqa(judge="exact"), gqa(judge="anls"), result()])
    assert [label.split(" · ")[2:] for label, _ in rows] == [["judge exact"], ["judge anls"], ["judge none"]]
    same = split_rows([gqa(seed=1), gqa(seed=1)])
    assert len(same) == 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            [{"adapter": None}, {"adapter": {"path": "sft", "weights_sha256": "a" * 64}}],
            ["adapter none", "adapter sft"],
        ),
        ([{"dtype": "float32"}, {"dtype": "bfloat16"}], ["dtype float32", "dtype bfloat16"]),
        ([{}, {"bits": 4}], ["bits all", "bits 4"]),
        (  # one folder, trained on in between: the first eight digits of the base's hash and of the adapter's
            [{"weights_sha256": "b" * 64, "adapter": {"path": "x", "weights_sha256": c * 64}} for c in "cd"],
            ["weights bbbbbbbb+cccccccc", "weights bbbbbbbb+dddddddd"],
        ),
    ],
)
def test_checkpoints_of_one_base_are_rows_of_their_own(changes, told):
    rows = split_rows([gqa(model_info=about) for about in changes])
    assert [label.split(" · ")[-1] for label, _ in rows] == told


def test_box_formats_are_told_apart():
    rows = split_rows([gqa(box_format={"name": name, "mode": "lenient"}) for name in ("paper", "json")])
    assert [label.split(" · ")[-1] for label, _ in rows] == ["boxes paper", "boxes json"]


def test_rec_fits_eighty_columns_in_one_piece():
    text = render(build("rec", [result(model="replay:a_very_long_file_name_of_predictions.json.gz")]), "rich", 80)
    body = text.split("¹")[0]
    assert max(map(len, body.splitlines())) <= 80
    assert text.count("LLaVA-1.5-7B + VisRL  ") == 1
    for word in ("92.72", "96.18", "±0.30", "match"):
        assert word in text


@pytest.mark.parametrize("name", paper.NAMES)
@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_cell_is_shown_at_any_width(name, width):
    table = build(name, [])
    text = render(table, "rich", width)
    for row in table.rows:
        for cell in row.cells:
            assert cell.lines[0] in text
    assert "None of the given runs" in text
    assert "the given runs" not in render(build(name, None), "rich", width)  # none was given


def test_names_from_outside_are_data_in_every_format():
    table = build("rec", [result(model=NASTY)])
    texts = {name: render(table, name) for name in ("rich", "md", "csv", "latex")}
    for text in texts.values():
        assert "\x1b" not in text
        assert "\u202e" not in text
    assert "evil|[red]" in texts["rich"]  # not taken for markup
    assert r"evil\|\[red\]" in texts["md"]
    assert r"x\_y&amp;%$" in texts["md"]
    assert r"evil\textbar{}{[}red{]}" in texts["latex"]
    assert r"x\_y\&\%\$\textbackslash{}\{\}" in texts["latex"]
    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    assert len(rows) == 11 * 8 + 1
    assert rows[-1]["row"].startswith("evil|[red]")


@pytest.mark.parametrize("start", "=+-@")
def test_a_spreadsheet_runs_no_formula(start):
    text = render(build("rec", [result(model=f"{start}1+1")]), "csv")
    assert text.splitlines()[-1].startswith(f"'{start}1+1")


def test_plain():
    assert plain("a\x00b\u200b \n\t c\ud800") == "ab c"
    assert plain("x" * 100, 10) == "x" * 9 + "…"


def test_markdown_is_a_table_with_the_verdicts_below():
    lines = render(build("rec", [result(n=2000, n_expected=10834)]), "md").splitlines()
    header = next(line for line in lines if line.startswith("| method"))
    assert header.count("|") == 10
    assert {line.count("|") for line in lines if line.startswith("|")} == {10}
    assert "- ¹ not comparable: n 2000 of 10834" in lines
    assert any("89.75" not in line and "92.90 ±0.30 n/c¹" in line for line in lines)


def test_unknown_format():
    with pytest.raises(UsageError, match="html"):
        render(build("rec", []), "html")


def test_the_table_after_a_run():
    found = [
        result(n=2000, n_expected=10834, value=89.75, se=0.77, n_unparsed=23),
        result("mme", "mme/OCR", 107.5, 17.5, 40, unit="points"),
        result("viscot_gqa", "answer", 0.5793, 0.022, 492, unit="fraction", judge="exact"),
        result("mmbench", "circular", None, None, 0, 4329, n_unscored=4329, unscored_reasons={"boom": 4329}),
    ]
    text = render(results_table(found), "rich", 80)
    assert max(map(len, text.splitlines())) <= 80
    for piece in (
        "89.8 ± 0.8",
        "2,000/10,834",
        "23",
        "mme OCR",
        "107.5 ± 17.5",
        "57.9 ± 2.2",
        "judge: exact match",
    ):
        assert piece in text
    assert "¹ 4,329 unscored: boom" in text
    assert "unsc" in text
    clean = render(results_table(found[1:2]), "rich", 80)
    assert "unp" not in clean
    assert "task and metric" in render(results_table([]), "rich", 80)


def test_the_schema_in_docs_is_the_records():
    path = Path(__file__).parents[1] / "docs" / "task_result.schema.json"
    assert json.loads(path.read_text(encoding="utf-8")) == TaskResult.model_json_schema(), (
        "docs/task_result.schema.json is out of date: write TaskResult.model_json_schema() into it with records.dump_json"
    )


def test_ours_alone():
    """--mine: the paper's rows are left out, of the flat records too; the verdict stays."""
    ours = [result(n=10834, n_expected=10834, value=92.9, se=0.3)]
    both, mine = build("rec", ours), build("rec", ours, mine=True)
    assert mine.rows == (replace(both.rows[-1], opens_section=False),) and len(both.rows) > 1
    assert {record["source"] for record in mine.tidy} == {"visrl"}


def test_a_run_that_is_not_finished_is_said_and_left_out(tmp_path, capsys):
    from visrl.cli.evaluate import main

    argv = ["run", "--model", "constant:red", "--tasks", "world_viscot_doc", "--limit", "2", "-q"]
    assert main([*argv, "--name", "step-1000", "-o", str(tmp_path / "a")]) == 0
    (tmp_path / "b").mkdir()
    (tmp_path / "b/run.json").write_bytes((tmp_path / "a/run.json").read_bytes())
    capsys.readouterr()
    assert main(["tables", "--paper", "viscot", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    assert f"left out: {tmp_path}/b: not finished, it has no records yet" in capsys.readouterr().err
    for command in (["tables", "--paper", "viscot"], ["show"]):
        assert main([*command, str(tmp_path / "b")]) == 2
        assert "b: not finished, it has no records yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("label", "width", "lines"),
    [
        ("world_rec acc@0.5", 17, ["world_rec acc@0.5"]),  # 17 characters
        ("world_rec acc@0.5", 16, ["world_rec", "acc@0.5"]),
        ("world_pope_adversarial f1", 14, ["world_pope_", "adversarial f1"]),
        ("a runs/tiny-world-96a0b7b6/direct", 22, ["a runs/tiny-world-", "96a0b7b6/direct"]),
        ("", 14, [""]),
    ],
)
def test_labels_are_broken_at_spaces_and_long_words_behind_a_mark(label, width, lines):
    assert folded(label, width).split("\n") == lines


def test_a_table_without_rows_is_its_note_alone():
    text = render(build("rec", [result(task="pope", metric="f1")], mine=True), "rich")
    assert text.splitlines() == [
        "Referring expression comprehension (poster, table 3)",
        "None of the given runs has a result for this table.",
    ]
