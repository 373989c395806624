"""Tables and figure of a loop's phases, from records made by hand."""

import pytest

from visrl.cli.evaluate import main
from visrl.core.records import TaskResult, write_results
from visrl.errors import UsageError
from visrl.tables.formats import render
from visrl.tables.phase_tables import draw_iterations, phase_table, points, runs, series

PHASES = {
    "base": ("base", 0), "sft": ("SFT", 0), "iter1/rl1": ("SFT+RL1", 1), "iter1/rl2": ("SFT+RL1+RL2", 1),
    "iter2/rl1": ("iteration 2: RL1", 2), "iter2/rl2": ("iteration 2: RL2", 2),
}  # fmt: skip


def record(phase, value, se=0.01, task="world_viscot", metric="answer", seed=0, run="world"):
    label, iteration = PHASES[phase]
    about = {"run": run, "phase": phase, "label": label, "iteration": iteration, "seed": seed}
    return TaskResult(
        task=task, task_version="1", metric=metric, value=value, se=se, ci=None, unit="fraction", n=9, n_expected=9,
        n_clusters=9, protocol="visrl_train/v1", focus="predicted", crop="tight", model=f"{run} · {label}",
        model_info={"phase": about}, small_world=True,
    )  # fmt: skip


def records(**more):
    return [record(phase, 0.1 * (i + 1), **more) for i, phase in enumerate(reversed(PHASES))]


def test_rows_are_the_phases_in_the_order_of_the_loop_whatever_that_of_the_records():
    found = points(records(), "world")
    assert list(found) == [label for label, _ in PHASES.values()]
    assert found["base"]["world_viscot", "answer"].value == pytest.approx(60.0)  # fraction .6
    assert found["base"]["world_viscot", "answer"].se == pytest.approx(1.0)


def test_of_several_seeds_the_mean_and_its_error_count():
    """.60, .70, .80: mean 70, s = 10, se 10 / sqrt 3 = 5.8, whatever each record's own error."""
    three = [record("sft", value, seed=seed) for seed, value in enumerate((0.6, 0.7, 0.8))]
    point = points(three, "world")["SFT"]["world_viscot", "answer"]
    assert (point.value, point.se, point.seeds) == (pytest.approx(70.0), pytest.approx(10 / 3**0.5), 3)
    assert "70.0 ±5.8" in render(phase_table(three, "world"), "md")


def test_a_cell_of_fewer_seeds_says_so():
    """Its error is by picture, that of the others over seeds."""
    some = [record("sft", 0.6 + seed / 10, seed=seed) for seed in range(3)] + [record("iter1/rl1", 0.8, seed=1)]
    said = render(phase_table(some, "world"), "md")
    assert "| SFT | 70.0 ±5.8 |" in said and "| SFT+RL1 | 80.0 ±1.0 (1 of 3 seeds) |" in said


def test_the_table_has_tasks_before_their_mean_and_says_it_is_the_small_world():
    both = [*records(), *records(metric="box_acc"), *records(task="world_viscot_doc")]
    table = phase_table(both, "world")
    assert [title for title, _ in table.columns] == ["doc answers", "mean answers", "mean box"]
    assert any("not comparable" in note for note in table.notes)
    with pytest.raises(UsageError, match="no phase of a loop named 'x'") as caught:
        phase_table(both, "x")
    assert "world" in caught.value.hint
    assert runs([*both, record("sft", 0.5, run="other")]) == ["world", "other"]


def test_the_figure_has_sft_and_the_end_of_each_iteration(tmp_path):
    both = [*records(), *records(metric="box_acc"), *records(task="world_viscot_doc")]
    found = series(both, "world")
    assert [x for x, _ in found["answers"]] == ["0", "1", "2"]
    assert [point.value for _, point in found["box"]] == pytest.approx([50.0, 30.0, 10.0])  # sft, iter1/rl2, iter2/rl2
    draw_iterations(both, "world", tmp_path / "a.png")
    draw_iterations(both, "world", tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with pytest.raises(UsageError, match="no second iteration"):
        draw_iterations([record("sft", 0.5)], "world", tmp_path / "c.png")


def test_the_command_shows_a_run_below_the_papers_table_and_draws_it(tmp_path, capsys):
    write_results(tmp_path / "run/records/r.json", [*records(), *records(metric="box_acc")])
    assert main(["tables", "--paper", "viscot", "--format", "md", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert (
        said.index("LLaVA-1.5-7B sft") < said.index("| base | 60.0 ±1.0") < said.index("| iteration 2: RL2 | 10.0 ±1.0")
    )
    assert main(["tables", "--figure", "iterations", "-o", str(tmp_path / "f.svg"), str(tmp_path / "run")]) == 0
    assert (tmp_path / "f.svg").read_text().startswith("<?xml")
    assert main(["tables", "--figure", "pie", str(tmp_path / "run")]) == 2


def test_records_may_be_gzipped(tmp_path):
    """Both kinds of one folder are read, in the order of their names; a damaged one is named."""
    import gzip

    from visrl.core.records import read_records

    write_results(tmp_path / "b.json", [record("sft", 0.5)])
    (tmp_path / "a.json.gz").write_bytes(gzip.compress((tmp_path / "b.json").read_bytes()))
    write_results(tmp_path / "b.json", [record("sft", 0.6)])
    assert [result.value for result in read_records(tmp_path)] == [0.5, 0.6]
    (tmp_path / "a.json.gz").write_bytes(b"no gzip")
    with pytest.raises(UsageError, match=r"a\.json\.gz: cannot be read"):
        read_records(tmp_path)
