"""The documentation as a site: it builds strictly, and a dead link or a name that is not there stops it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="no site: pip install visrl[docs]")
pytest.importorskip("mkdocstrings", reason="no site: pip install visrl[docs]")
ROOT = Path(__file__).parents[1]


def build(root, out):
    """(exit code, what was said) of a strict build of the site of ``root``."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        str(root / "mkdocs.yml"),
        "-d",
        str(out),
    ]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_the_site_builds_with_the_reference(tmp_path):
    code, said = build(ROOT, tmp_path)
    assert code == 0, said
    reference = (tmp_path / "reference" / "index.html").read_text()
    for name in (
        "visrl.api.evaluate",
        "visrl.api.EvaluatedRun.to_pandas",
        "visrl.core.boxes.iou",
        "visrl.errors.UsageError",
    ):
        assert f'id="{name}"' in reference, name
    assert (tmp_path / "contributing" / "index.html").is_file()


@pytest.mark.parametrize(
    ("text", "named"),
    [("[gone](nowhere.md)", "nowhere.md"), ("[gone](glossary.md#no-such-word)", "no-such-word"), ("::: visrl.nothing", "visrl.nothing")],
)  # fmt: skip
def test_what_leads_nowhere_is_an_error(tmp_path, text, named):
    for name in ("docs", "visrl"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    for name in ("mkdocs.yml", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, tmp_path)
    with (tmp_path / "docs" / "faq.md").open("a") as page:
        page.write(f"\n\n{text}\n")
    code, said = build(tmp_path, tmp_path / "site")
    assert code == 1 and named in said
