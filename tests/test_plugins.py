"""What installed packages and a user's own file add: found by entry points or --include, and no harm where they are broken."""

import hashlib
import json
import subprocess
import sys

import pytest

from visrl.cli.evaluate import main
from visrl.core import plugins
from visrl.core.plugins import include, registry_of
from visrl.errors import UsageError
from visrl.policies.families import family_class, known_families
from visrl.train.critics.critics import CriticSection, make_critic
from visrl.train.grpo.rewards import reward_named

CODE = """
from visrl.core.boxes import Box
from visrl.core.prompts import Protocol
from visrl.core.types import CoTSample, Score, Turn
from visrl.evals.benchmarks import TaskSpec
from visrl.policies.families.base import Family
from visrl.tasks import Task
from visrl.tasks.common import Source, json_lines


def sample(row, task):
    return CoTSample(id=row["id"], task=task, kind="qa", question=row["q"], size=(8, 8), box=Box(0, 0, 4, 4),
                     answers=(row["a"],), cluster="p", meta={"picture": "p.png"})


signs = Task(TaskSpec("signs", "viscot", n=2, unit="fraction", judge_needed=True, about="what signs say"),
             Source(files=(("signs.jsonl",),), parse=json_lines, adapter=sample))


def first_word(argument):
    class Judge:
        name, description, kind = "first_word", "the first word", "rule"

        def judge_many(self, items):
            return [Score(float(item.answer.split()[0] == (argument or item.standard[0]))) for item in items]

    return Judge()


def ask(sample, picture, crop, box_text):
    return (Turn("user", (picture, f"\\nTell me: {sample.question}")),)


plain = Protocol("plain", 3, looks=False, ask_answer=ask)


class Foreign(Family):
    name = "foreign"
    model_types = ("foreign",)


class Strict:
    name, needs_pictures = "strict", False


def strict(policy, judge):
    return Strict()


def loud(groups, tools):
    return [[7.0] * len(group) for group in groups]
"""
POINTS = {
    "visrl.tasks": {"signs": "signs"},
    "visrl.judges": {"first_word": "first_word"},
    "visrl.protocols": {"plain": "plain"},
    "visrl.families": {"foreign": "Foreign"},
    "visrl.critics": {"strict": "strict"},
    "visrl.rewards": {"loud": "loud"},
}


def package(folder, name, points, code=CODE, version="1.2"):
    """An installed package: a module and its .dist-info, as pip writes them."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{key} = {name}:{value}\n" for key, value in found.items())
        for group, found in points.items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return info


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder where packages can be laid; what was loaded from it is taken out of visrl's tables again."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    tables = [registry_of(kind) for kind in plugins.KINDS]
    before, modules = [set(table) for table in tables], set(sys.modules)
    plugins.forget()
    yield folder
    for table, names in zip(tables, before, strict=True):
        for name in set(table) - names:
            del table[name]
    for name in set(sys.modules) - modules:
        if name.startswith(("fake_", "other_", "visrl_included_")):
            del sys.modules[name]
    plugins.forget()


@pytest.fixture
def signs(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    rows = [{"id": "1", "q": "What?", "a": "OPEN"}, {"id": "2", "q": "And?", "a": "EXIT"}]
    (data / "signs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return data


def run(tmp_path, signs, *more):
    arguments = ["--model", "constant:EXIT now", "--tasks", "signs", "--data", str(signs), "-q", "--json"]
    return main([*arguments, "--output", str(tmp_path / "run"), *more])


def test_a_package_s_task_judge_and_protocol_are_used_and_recorded(site, signs, tmp_path, capsys):
    """ "EXIT now": the first word is the second sample's answer, not the first's: 1 of 2."""
    package(site, "fake_signs", POINTS)
    assert run(tmp_path, signs, "--judge", "first_word", "--protocol", "plain") == 0
    (record,) = [r for r in json.loads(capsys.readouterr().out) if r["metric"] == "answer"]
    assert (record["value"], record["n"], record["n_expected"], record["unit"]) == (0.5, 2, 2, "fraction")
    assert (record["judge"], record["protocol"]) == ("first_word", "plain/v3")
    assert record["versions"]["fake_signs"] == "1.2"
    assert json.loads((tmp_path / "run/run.json").read_text())["request"]["others_code"] == {"fake_signs": "1.2"}
    assert main(["score", str(tmp_path / "run"), "--judge", "first_word:OPEN", "--json"]) == 0
    (record,) = [r for r in json.loads(capsys.readouterr().out) if r["metric"] == "answer"]
    assert record["value"] == 0.0  # nobody said OPEN


def test_the_other_kinds_are_found_too(site):
    package(site, "fake_kinds", POINTS)
    assert family_class(type("Config", (), {"model_type": "foreign"})).name == "foreign"
    assert "foreign" in known_families()
    assert CriticSection(kind="strict").kind == "strict"
    assert make_critic("strict", None, "exact").name == "strict"
    assert reward_named("loud")([[1, 2], [3]], None) == [[7.0, 7.0], [7.0]]


def test_ls_shows_whose_each_is_and_loads_none(site, capsys):
    package(site, "fake_ls", POINTS, code="raise RuntimeError('loaded')")
    assert main(["ls", "others"]) == 0
    out = capsys.readouterr().out
    for kind, name in {"task": "signs", "judge": "first_word", "protocol": "plain", "critic": "strict"}.items():
        assert f"  {kind:<9} {name:<22} fake_ls 1.2\n" in out


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("raise SystemExit('bye')", "SystemExit: bye"),
        ("def broken(:", "SyntaxError: "),
        ("x = 1", "AttributeError: "),
        ("signs = 5", "not a visrl.tasks.Task(spec, source) but a int"),
        (CODE.replace('TaskSpec("signs"', 'TaskSpec("sings"'), "its spec is named 'sings'"),
        (CODE.replace('"viscot", n', '"vqa", n'), "its benchmark 'vqa' is none of rec, viscot, pope, mme, mmbench"),
    ],
)
def test_a_broken_package_is_an_error_with_its_name_where_it_is_used_only(code, said, site, signs, tmp_path, capsys):
    package(site, "fake_broken", {"visrl.tasks": {"signs": "signs"}}, code)
    assert run(tmp_path, signs) == 2
    error = capsys.readouterr().err
    assert "error: the task 'signs' of fake_broken 1.2" in error and said in error and "Traceback" not in error
    assert "hint: mend or uninstall fake_broken" in error
    assert main(["ls"]) == 0


def test_damaged_metadata_of_any_package_is_said_and_left_out(site, signs, tmp_path, capsys, caplog):
    package(site, "fake_good", POINTS)
    package(site, "other_bad", {}).joinpath("entry_points.txt").write_text("[visrl.tasks]\nno equals sign\n")
    assert run(tmp_path, signs) == 0
    assert "other_bad: its entry points cannot be read" in caplog.text


def test_a_name_that_two_packages_offer_is_refused_with_both(site, signs, tmp_path, capsys):
    package(site, "fake_one", POINTS)
    package(site, "other_one", POINTS, version="3")
    assert run(tmp_path, signs) == 2
    error = capsys.readouterr().err
    assert "the task 'signs' is offered by" in error and "fake_one 1.2" in error and "other_one 3" in error
    main(["ls", "others"])
    assert "offered by" in capsys.readouterr().out


def test_a_name_of_ours_stays_ours_and_ls_says_so(site, capsys):
    taken = {
        "visrl.judges": {"exact": "first_word"},
        "visrl.tasks": {"pope": "signs", "world_rec": "signs"},
        "visrl.families": {"llava": "Foreign"},
    }
    package(site, "fake_thief", taken)
    from visrl.evals.benchmarks import resolve
    from visrl.evals.judge import make_judge

    assert make_judge("exact").description.startswith("equal but for")
    assert [spec.name for spec in resolve(["world_rec"])] == ["world_rec"]
    assert len(resolve(["pope"])) == 3
    assert family_class(type("Config", (), {"model_type": "llava"})).name == "llava"
    main(["ls", "others"])
    assert capsys.readouterr().out.count("ignored: visrl has a") == 4


def test_unknown_names_are_answered_with_what_packages_offer(site):
    package(site, "fake_near", POINTS)
    from visrl.evals.benchmarks import resolve
    from visrl.evals.judge import make_judge

    with pytest.raises(UsageError) as error:
        resolve(["sign"])
    assert "signs" in error.value.hint
    with pytest.raises(UsageError) as error:
        make_judge("first_wort")
    assert "first_word" in error.value.hint


OWN = (
    CODE + "\nimport visrl\nvisrl.register('task', 'signs', signs)\nvisrl.register('judge', 'first_word', first_word)\n"
)


def test_a_file_of_one_s_own_is_run_and_its_hash_recorded(site, signs, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    digest = "sha256:" + hashlib.sha256(OWN.encode()).hexdigest()
    assert run(tmp_path, signs, "--include", str(file), "--judge", "first_word") == 0
    (record,) = [r for r in json.loads(capsys.readouterr().out) if r["metric"] == "answer"]
    assert (record["value"], record["versions"]["mine.py"]) == (0.5, digest)
    assert json.loads((tmp_path / "run/run.json").read_text())["request"]["others_code"] == {"mine.py": digest}


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 1\nx / 0\n", ":2: ZeroDivisionError: division by zero"),
        ("def f(:\n", ":1: SyntaxError: "),
        ("import visrl\nvisrl.register('tusk', 'a', 1)", "unknown kind 'tusk'"),
        ("import visrl\nvisrl.register('judge', 'exact', 1)", "visrl has a judge named 'exact'"),
        ("import visrl\nvisrl.register('task', 'a', 1)", "not a visrl.tasks.Task(spec, source) but a int"),
        (OWN + "visrl.register('task', 'signs', signs)", "the task 'signs' is registered twice"),
        (None, "No such file"),
    ],
)
def test_a_file_that_fails_is_an_error_with_its_line(code, said, site, tmp_path):
    file = tmp_path / "mine.py"
    if code is not None:
        file.write_text(code)
    with pytest.raises(UsageError) as error:
        include([file])
    assert said in str(error.value)


def test_a_file_is_run_once_and_not_on_ray(site, signs, tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    include([file, file])
    assert run(tmp_path, signs, "--include", str(file), "--ray", "2") == 2
    assert "the workers do not have the file" in capsys.readouterr().err


def test_help_looks_for_no_package(site):
    """A package that cannot be imported, and one whose metadata cannot be read, change nothing where nothing is named."""
    package(site, "fake_help", POINTS, "raise SystemExit(9)")
    code = "import sys; from visrl.cli.evaluate import main; main(['--help']); sys.exit('visrl.core.plugins' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
