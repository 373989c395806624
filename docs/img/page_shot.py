"""Take the pictures of the run page for README.md and docs: ``python docs/img/page_shot.py``. Needs chromium (visrl[browser])."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import sync_playwright

import visrl
from visrl.report import write_report

HERE = Path(__file__).parent
SIZE = {"width": 1200, "height": 740}


def shots() -> dict[str, bytes]:
    """File name -> PNG: the head of a page of two runs, and one of its samples."""
    chromium = os.environ.get("VISRL_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    with TemporaryDirectory() as place, sync_playwright() as playwright:
        looked = visrl.evaluate("tiny", "world_viscot", limit=50, output=f"{place}/looked").folder
        direct = visrl.evaluate("tiny", "world_viscot", limit=50, output=f"{place}/direct", protocol="direct").folder
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport=SIZE, color_scheme="light")
        page.goto(write_report([direct, looked]).as_uri())
        found = {"page.png": page.screenshot()}
        page.locator(".chip-fixed").click()
        page.locator(".card").first.click()
        page.wait_for_timeout(300)
        found["sample.png"] = page.screenshot()
        browser.close()
    return found


def small(png: bytes) -> bytes:
    """The same with 160 colours: half of the size, and nothing lost that one would see."""
    out = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(160).save(out, "PNG", optimize=True)
    return out.getvalue()


if __name__ == "__main__":
    for name, shot in shots().items():
        (HERE / name).write_bytes(small(shot))
