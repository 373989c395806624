"""What a repository owes others: a workflow that works elsewhere, a container, a citation, recipes in the wheel."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from visrl import __version__
from visrl.cli.evaluate import main
from visrl.cli.train import run as train

ROOT = Path(__file__).parents[1]


def yaml_of(title, number=0):
    """A YAML block of a section of docs/ci.md."""
    section = (ROOT / "docs" / "ci.md").read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return re.findall(r"^```yaml\n(.*?)^```$", section, re.M | re.S)[number]


def test_the_workflow_passes_in_another_repository(tmp_path, monkeypatch):
    """A folder with nothing but the suite of docs/ci.md: its commands, then every step of the workflow that a shell can run here."""
    (tmp_path / "visrl-ci").mkdir()
    (tmp_path / "visrl-ci" / "suite.yaml").write_text(yaml_of("In your own repository"))
    monkeypatch.chdir(tmp_path)
    for command in (
        "--model tiny --tasks world_viscot_doc --limit 50 -o runs/my-model",
        "accept runs/my-model --name my-model",
    ):
        assert main(command.split()) == 0
    summary = tmp_path / "summary.md"
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = []
    for step in yaml.safe_load(yaml_of("GitHub Actions"))["jobs"]["check"]["steps"]:
        words = step.get("run", "")
        if not words or words.startswith(("pip ", "gh ")):
            continue
        env = {**os.environ, "PATH": path, "GITHUB_STEP_SUMMARY": str(summary), **step.get("env", {})}
        done = subprocess.run(["bash", "-ec", words], cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"$ {words}\n{done.stdout}\n{done.stderr}"
        ran.append(words.split()[0])
    assert ran == ["visrl-eval", "cat"] and "world_viscot_doc answer" in (tmp_path / "check" / "check.md").read_text()
    assert summary.read_text() == (tmp_path / "check" / "check.md").read_text()


def test_the_container_runs_the_main_command():
    """No Docker here: every file copied is there and let through, and the command is the README's."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    let_through = (ROOT / ".dockerignore").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert copied and all((ROOT / name).exists() and f"!{name}" in let_through for name in copied)
    settings = {line.split()[0]: line.split(maxsplit=1)[1] for line in lines if line and not line.startswith("#")}
    command = " ".join([*json.loads(settings["ENTRYPOINT"]), *json.loads(settings["CMD"])])
    assert f"$ {command}\n" in (ROOT / "README.md").read_text()
    needed = {"package-dir", *re.findall(r'"visrl[.\w]*" = "(\w+)"', (ROOT / "pyproject.toml").read_text())}
    assert needed - {"package-dir"} <= set(copied)  # every folder that the wheel is made of


def test_the_citation_is_of_this_version():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["version"] == __version__ and found["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= found.keys()


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("[bf]*.yml")), ids=lambda f: f.stem)
def test_issue_forms_have_what_github_asks_for(form):
    found = yaml.safe_load(form.read_text())
    assert {"name", "description", "body"} <= found.keys()
    ids = [part["id"] for part in found["body"]]
    assert len(ids) == len(set(ids)) and all(part["attributes"]["label"] for part in found["body"])


def test_recipes_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train(["--list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert set(names) == {path.stem for path in (ROOT / "recipes").glob("*.yaml")} and "world" in names
    assert train(["world", "--dry-run"]) == 0
    assert "iter1/rl2: to run" in capsys.readouterr().out
    with pytest.raises(Exception, match="wrld: no such file, and no bundled recipe has this name") as wrong:
        train(["wrld"])
    assert "world" in wrong.value.hint
    with pytest.raises(Exception, match="no bundled recipe has this name") as far:
        train(["xyzzy"])
    assert far.value.hint == "`visrl-train --list` lists them all"
    with pytest.raises(Exception, match="no recipe is named"):
        train([])


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    from visrl.train.config.shipped import recipe_path

    monkeypatch.chdir(tmp_path)
    assert recipe_path("world").is_absolute() and recipe_path("recipes/x") == Path("recipes/x")
    assert recipe_path("qwen2.5-vl-7b-sft").name == "qwen2.5-vl-7b-sft.yaml", "a point in a name is no ending of a file"
    with pytest.raises(Exception, match=r"recipes/llava-1\.5-7b-sft\.yaml: no such file") as wrong:
        recipe_path("recipes/llava-1.5-7b-sft.yaml")  # as the guide says, but not in a clone
    assert "`visrl-train llava-1.5-7b-sft` runs" in wrong.value.hint
    (tmp_path / "world").write_text("kind: sft")
    assert recipe_path("world") == Path("world")


def test_the_wheel_holds_the_recipes(tmp_path):
    """Built from a copy: setuptools leaves its build/ and egg-info beside the sources."""
    import shutil

    source = tmp_path / "source"
    for name in ("visrl", "evals", "tasks", "recipes"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "No module named" in done.stderr:
        pytest.skip("no setuptools here to build with")
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"visrl/recipes/world.yaml", "visrl/report/grid.js", "visrl/report/runs.html.j2"} <= set(names)


def test_a_shell_completes_commands(monkeypatch):
    """As bash asks: the words so far, and which of them is being typed."""
    command = "import sys; from visrl.cli.evaluate import main; sys.exit(main([]))"
    asks = {"_VISRL_EVAL_COMPLETE": "complete_bash", "COMP_WORDS": "visrl-eval le", "COMP_CWORD": "1"}

    def said(more):
        env = {**os.environ, **more}
        return subprocess.run([sys.executable, "-c", command], env=env, capture_output=True, text=True).stdout

    assert said(asks).split() == ["leaderboard"]
    assert "complete -o default -F" in said({"_VISRL_EVAL_COMPLETE": "source_bash"})
