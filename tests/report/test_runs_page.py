"""Many runs at a glance: the index page and the leaderboard, with their paired differences."""

import csv
import io
import re

import pytest
import runs_made as made

from visrl.cli.evaluate import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs over twelve questions: right in all, in the first six, in none; and an unscored rest that is no run."""
    data = made.drawn(tmp_path_factory.mktemp("data"))
    truth = made.truth(data)
    place = tmp_path_factory.mktemp("runs")
    for name, until in (("half", 1006), ("all", 1012), ("none", 0)):
        policy = made.scripted(
            f"model-{name}", lambda i: truth[i][0], lambda i, n=until: truth[i][1] if int(i) < n else "?"
        )
        made.run(policy, data, place / name)
    (place / "notes").mkdir()
    return place


def test_the_index_lists_runs_best_first_with_links(runs, capsys):
    assert main(["view", str(runs / "half")]) == 0
    assert main(["view", str(runs)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(runs / "index.html")
    text = (runs / "index.html").read_text()
    rows = re.findall(r'<tr data-task="viscot_vsr">(.*?)</tr>', text, re.S)
    answers = [row for row in rows if "answer" in row]
    assert [re.search(r"model-(\w+)", row).group(1) for row in answers] == ["all", "half", "none"]
    assert [re.search(r'class="num" data-value="([^"]*)"', row).group(1) for row in answers] == ["1.0", "0.5", "0.0"]
    assert '<a href="half/report.html">' in answers[1] and "<a " not in answers[0]
    assert f"visrl-eval view {runs / 'all'}" in text
    # half minus all: six of twelve lost; all minus none: twelve won
    matrix = re.search(r"viscot_vsr answer, %.*?</table>", text, re.S).group(0)
    assert re.search(r"<bdi>half</bdi></th><td class=\"num v-wrong\">-50\.0 ± ", matrix)
    assert re.search(r"<bdi>all</bdi></th><td class=\"num \"></td>", matrix) and "+100.0" in matrix


def test_the_leaderboard_is_the_same_as_a_table(runs, capsys):
    assert main(["leaderboard", str(runs), "--format", "csv"]) == 0
    rows = [row for row in csv.DictReader(io.StringIO(capsys.readouterr().out)) if row["metric"] == "answer"]
    assert [(row["run"], row["value"]) for row in rows] == [("all", "1.0"), ("half", "0.5"), ("none", "0.0")]
    assert main(["leaderboard", str(runs), "--format", "md", "--task", "viscot_vsr"]) == 0
    assert "| model-half | viscot\\_vsr | answer | 50.0 |" in capsys.readouterr().out


def test_on_a_screen_a_row_is_a_run_and_what_it_is_of_stands_below(runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["leaderboard", str(runs)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    answers = [line.split() for line in lines if "viscot_vsr answer" in line]
    assert [(row[0], row[3]) for row in answers] == [("all", "100.0"), ("half", "50.0"), ("none", "0.0")]
    assert any(line.startswith("half: model-half · ") for line in lines)


def test_other_documents_are_not_paired(runs, tmp_path, capsys):
    other = made.drawn(tmp_path / "data", n=4)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "all").symlink_to(runs / "all")
    made.run(made.scripted("m", lambda i: "[0, 0, 1, 1]", lambda i: "red"), other, tmp_path / "runs" / "other")
    assert main(["view", str(tmp_path / "runs")]) == 0
    matrix = re.search(r"viscot_vsr answer, %.*?</table>", (tmp_path / "runs" / "index.html").read_text(), re.S).group(
        0
    )
    assert re.findall(r'<td class="num ">([^<]*)</td>', matrix) == ["", "–", "–", ""]


def test_a_folder_without_runs_is_wrong_use(tmp_path, capsys):
    assert main(["leaderboard", str(tmp_path)]) == 2
    assert "contains no runs" in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path / "gone")]) == 2
    assert not (tmp_path / "gone").exists()


def test_two_folders_of_runs_are_not_compared(runs, capsys):
    assert main(["view", str(runs), str(runs)]) == 2
    assert "give one of them:" in capsys.readouterr().err
    assert main(["leaderboard", str(runs), "--task", "viscot_vrs"]) == 2
    assert "viscot_vsr" in capsys.readouterr().err
