"""docs/img/world-textured.jpg: four pictures of the textured world, as its contact sheet shows them.

python docs/img/textured.py
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from PIL import Image

from visrl.world.contact_sheet import cell_of
from visrl.world.questions import documents

SHOWN = (("general", 0), ("relation", 14), ("doc", 7), ("chart", 7))
"""Task, and which of its documents of ``test``."""


def main() -> None:
    cells = [cell_of(task, next(islice(documents(task, scenery="textured"), n, None))) for task, n in SHOWN]
    page = Image.new("RGB", (len(cells) * (cells[0].width + 6) - 6, cells[0].height), "white")
    for column, cell in enumerate(cells):
        page.paste(cell, (column * (cell.width + 6), 0))
    small = page.resize((page.width * 2 // 3, page.height * 2 // 3), Image.Resampling.LANCZOS)
    small.save(Path(__file__).with_name("world-textured.jpg"), quality=72, optimize=True)


if __name__ == "__main__":
    main()
