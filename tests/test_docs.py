"""The documentation's commands: those marked ``<!-- runnable -->`` run, in order, page by page; all others must parse.

A runnable page runs in a folder of its own that holds ``DATA/``, a made benchmark in VisCoT's layout with drawn pictures.
"""

import os
import re
import shlex
import subprocess
import sys
import tokenize
from dataclasses import dataclass
from pathlib import Path

import pytest
import runs_made as made

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
BLOCK = re.compile(r"(?:^<!-- (runnable)(?:: (\S+))? -->\n)?^```(console|python)\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


@dataclass
class Block:
    language: str
    text: str
    runnable: bool
    file: str | None

    @property
    def commands(self):
        """Lines that begin with ``$``, their comments cut off."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line[2:] for line in lines if line.startswith("$ ")]


def blocks(page):
    return [Block(lang, text, bool(run), file) for run, file, lang, text in BLOCK.findall(page.read_text())]


def words(command):
    """The words of a simple command, without a comment; [] for what a shell would have to expand."""
    try:
        return shlex.split(command, comments=True)
    except ValueError:
        return []


def options(program, name):
    """Every option a command takes."""
    if program == "visrl-train":
        if name == "estimate":
            from visrl.estimate.cli import _parser

            return {option for action in _parser()._actions for option in action.option_strings}
        if name == "merge":
            from visrl.cli.merge import _parser as merge_parser

            return {option for action in merge_parser()._actions for option in action.option_strings}
        from visrl.cli.train import _parser as train_parser

        return {option for action in train_parser()._actions for option in action.option_strings}
    from typer.main import get_command

    from visrl.cli.evaluate import app

    command = get_command(app).commands.get(name)
    return (
        None
        if command is None
        else {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help", "-h"}
    )


def invocations():
    for page in PAGES:
        for block in blocks(page):
            for command in block.commands if block.language == "console" else ():
                found = words(command)
                while found and "=" in found[0]:
                    found = found[1:]
                if found and found[0] in ("visrl-eval", "visrl-train"):
                    yield pytest.param(found, id=f"{page.name}: {' '.join(found)[:60]}")


@pytest.mark.parametrize("command", invocations())
def test_commands_and_options_exist(command):
    program, *rest = command
    name = "run" if not rest or rest[0].startswith("-") else rest[0]
    if program == "visrl-eval" and rest[:1] == ["--help"]:
        return
    known = options(program, name)
    assert known is not None, f"visrl-eval has no command {name}"
    used = {word.split("=")[0] for word in rest if word.startswith("-") and not word[1:2].isdigit() and word != "-"}
    assert used <= known


def shipped(command):
    """Whether the small models a command names are there."""

    try:
        from visrl.world import CHECKPOINTS, checkpoint_path
    except ImportError:
        return not re.search(rf"--model ({'|'.join(CHECKPOINTS)})\b", command)
    return all(
        Path(checkpoint_path(name)).exists() for name in re.findall(rf"--model ({'|'.join(CHECKPOINTS)})\b", command)
    )


RUNNABLE = [page for page in PAGES if any(block.runnable for block in blocks(page))]


def run(command, folder):
    """(exit code, output) of one command: visrl-eval in this process, which saves its imports; all else in a shell."""
    found = words(command)
    if found[0] == "visrl-eval" and not set(command) & set("|>&;$"):
        from visrl.cli.evaluate import main

        return main(found[1:]), ""
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("page", RUNNABLE, ids=[page.name for page in RUNNABLE])
def test_runnable_commands_run(page, tmp_path, monkeypatch, capfd):
    made.drawn(tmp_path / "DATA")
    monkeypatch.chdir(tmp_path)
    left_out = []
    for block in blocks(page):
        if block.runnable and block.language == "python":
            (tmp_path / block.file).write_text(block.text)
        elif block.runnable:
            missing = [command for command in block.commands if not shipped(command)]
            left_out += missing
            for command in block.commands if not missing else ():
                code, output = run(command, tmp_path)
                assert code == 0, f"$ {command}\n{output}{capfd.readouterr()}"
                if command == "python signs.py":
                    assert output.startswith("{'answer': (0.5, 2)}\n")  # as the page says
    if left_out:
        pytest.skip(f"no shipped model yet for: {'; '.join(left_out)}")


MAIN = "visrl-eval --model tiny --tasks world --limit 50"
REPLAY = "visrl-eval --model replay:baseline__refcoco_val.json.gz --tasks refcoco_val --data DATA"


def test_every_output_in_the_readme_is_of_a_tested_command():
    """Blocks with lines that are neither commands nor blank; Python's are run by tests/test_api.py."""
    found = blocks(ROOT / "README.md")
    shown = [b for b in found if b.language == "console" and re.search(r"^(?!\$ )\S", b.text, re.M)]
    assert [b.commands for b in shown] == [[MAIN], [REPLAY]]


def printed(command):
    """What the README says that ``command`` prints."""
    (text,) = [b.text for b in blocks(ROOT / "README.md") if b.commands == [command] and "\n" in b.text.strip()]
    return text.removeprefix(f"$ {command}\n")


def printed_here(command, capsys, *more):
    from visrl.cli.evaluate import main

    assert main([*words(command)[1:], "--quiet", *more]) == 0
    return capsys.readouterr().out


def test_the_main_command_prints_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    if not shipped(MAIN):
        pytest.skip("no shipped model yet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert printed_here(MAIN, capsys) == printed(MAIN)


def test_the_replay_prints_what_the_readme_shows(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(shared / "predictions" / "rec")
    monkeypatch.setenv("COLUMNS", "80")
    assert printed_here(REPLAY, capsys, "--data", str(shared), "-o", str(tmp_path / "r")) == printed(REPLAY)


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_lead_somewhere(page):
    targets = [t for t in LINK.findall(page.read_text()) if not re.match(r"https?:", t)]
    assert [t for t in targets if not (page.parent / t).exists()] == []


# --- what comments and pages cite

CITED = re.compile(r"(?<![\w/.*<-])((?:[\w.-]+/)*[\w-]+\.(?:md|py))\b(?!\w|://)")
WRITTEN = {
    "check.md",
    "check/check.md",
    "out/check.md",
    "summary.md",
    "signs.py",
    "darkest.py",
    "my_signs.py",
    "FILE.py",
    "merged/README.md",
}
"""What commands and the reader write."""
ELSEWHERE = {
    # VisRL and Visual CoT (docs/method.md names the commits)
    "generate.py", "filter.py", "statistic_bbox.py", "eval_cot_score.py", "model_cot_loader.py", "model_cot_det_loader.py",
    "model_refcoco_loader.py", "model_vqa_mmbench.py",
    # LLaVA and Yi
    "llava/mm_utils.py", "llava/conversation.py", "llava/eval/eval_pope.py", "conversation.py",
    "VL/llava/model/multimodal_projector/builder.py", "multimodal_projector/builder.py",
    # MME's authors, transformers
    "calculation.py", "modeling_paligemma.py",
}  # fmt: skip
"""Files of other projects, whose rule or layout the citing line says it follows."""


def comments(file):
    """The comments and docstrings of a module, with their line numbers."""
    strings = (tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    with file.open("rb") as stream:
        for token in tokenize.tokenize(stream.readline):
            if token.type == tokenize.COMMENT or (token.type in strings and token.string[:3] == '"""'):
                yield from enumerate(token.string.splitlines(), token.start[0])


def prose():
    """(file, line number, line) of every page, recipe, setting and comment."""
    for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "tox.ini"):
        yield from ((ROOT / name, n, line) for n, line in enumerate((ROOT / name).read_text().splitlines(), 1))
    for file in sorted(
        [*(ROOT / "docs").glob("*.md"), *(ROOT / "recipes").rglob("*.yaml"), *ROOT.glob("results/*.md")]
    ):
        yield from ((file, n, line) for n, line in enumerate(file.read_text().splitlines(), 1))
    for folder in ("visrl", "evals", "tasks", "tests", "docs"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield from ((file, n, line) for n, line in comments(file))


def is_here(name, file):
    """Whether a cited name is a file here: from the root, from visrl/, from the folder of who cites it, or a page of docs/."""
    return any((place / name).is_file() for place in (ROOT, ROOT / "visrl", file.parent, ROOT / "docs"))


def test_cited_files_are_in_the_repository():
    missing = [
        f"{file.relative_to(ROOT)}:{number}: {name}"
        for file, number, line in prose()
        for name in CITED.findall(re.sub(r"https?://\S+", "", line))
        if name not in WRITTEN | ELSEWHERE and not is_here(name, file)
    ]
    assert not missing, "\n".join(missing)


def test_contributing_names_what_there_is():
    """In each row of "How to add", every name in backticks is in one of the row's files, and every file is there."""
    rows = [line for line in (ROOT / "CONTRIBUTING.md").read_text().splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    for row in rows:
        quoted = re.findall(r"`([^`]+)`", row)
        files = [ROOT / name for name in quoted if "/" in name]
        assert all(file.exists() for file in files), row
        text = "".join(
            f.read_text() for place in files for f in ([place] if place.is_file() else sorted(place.rglob("*.py")))
        )
        names = [name for name in quoted if re.fullmatch(r"[A-Za-z_]+", name)]
        assert not [name for name in names if not re.search(rf"\b{name}\b", text)], row


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=[page.name for page in PAGES])
def test_links_to_headings_lead_to_headings(page):
    links = re.findall(r"\]\(([^)#\s]*)#([^)]*)\)", page.read_text())
    targets = [(page.parent / name if name else page, anchor) for name, anchor in links if "://" not in name]
    assert [(target.name, anchor) for target, anchor in targets if anchor not in anchors(target)] == []


def pixels(drawing):
    """A drawing with its pictures as hashes of their pixels: compressors differ from machine to machine."""
    import base64
    import hashlib
    import io

    from PIL import Image

    def hashed(found):
        return hashlib.sha256(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB").tobytes()).hexdigest()

    return re.sub(r"data:image/png;base64,([^\"]+)", hashed, drawing)


def test_the_picture_at_the_top_is_what_the_model_answers():
    if not shipped("--model tiny"):
        pytest.skip("no shipped model yet")
    done = subprocess.run(
        [sys.executable, "-c", "import hero; print(hero.hero())"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "docs" / "img")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    there = (ROOT / "docs" / "img" / "hero.svg").read_text(encoding="utf-8")
    assert pixels(done.stdout.strip()) == pixels(there.strip()), "python docs/img/hero.py"


def test_pictures_stay_small():
    """The repository is cloned whole: no picture of the documentation is above 100 kB."""
    assert [file.name for file in (ROOT / "docs").rglob("*.*g") if file.stat().st_size > 100_000] == []


def test_drawings_are_what_the_code_draws():
    done = subprocess.run(
        [sys.executable, "-c", "import draw, json; print(json.dumps(draw.drawings()))"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "docs" / "img")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    import json

    for name, drawing in json.loads(done.stdout).items():
        assert (ROOT / "docs" / "img" / name).read_text(encoding="utf-8") == drawing, (
            f"python docs/img/draw.py  # {name}"
        )


def test_every_promise_of_security_is_held_by_a_test():
    """Each row of SECURITY.md names tests that are there."""
    rows = [row for row in (ROOT / "SECURITY.md").read_text().splitlines() if row.startswith("| ")][1:]
    assert len(rows) >= 8
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for file, test in named:
            assert f"def {test}(" in (ROOT / file).read_text(), (file, test)
