"""The contact sheet: a cell per task and column, and a hint for what cannot be drawn."""

import pytest
from PIL import Image

from visrl.errors import UsageError
from visrl.world.contact_sheet import TASKS, write_sheet


def test_a_row_for_each_task_with_the_true_box_in_magenta(tmp_path):
    write_sheet(tmp_path / "s.png", columns=2, skip=3)
    page = Image.open(tmp_path / "s.png")
    assert page.width == 12 + 2 * 312 and page.height % len(TASKS) == 12 % len(TASKS)
    high = page.height // len(TASKS)
    for row in range(len(TASKS)):
        for column in range(2):
            cell = page.crop((12 + column * 312, row * high, (column + 1) * 312, (row + 1) * high))
            magenta = sum(n for n, (r, g, b) in cell.getcolors(1 << 20) if r > 240 and g < 15 and b > 240)
            assert magenta > 100, (TASKS[row], column)  # a frame 4 pixels wide, smaller than drawn


def test_over_textures_there_are_no_walls(tmp_path):
    write_sheet(tmp_path / "p.png", columns=1)
    write_sheet(tmp_path / "t.png", columns=1, scenery="textured")
    plain, textured = (Image.open(tmp_path / name) for name in ("p.png", "t.png"))
    assert (plain.height - 12) // len(TASKS) == (textured.height - 12) // (len(TASKS) - 1)
    assert plain.crop((100, 12, 224, 312)).tobytes() != textured.crop((100, 12, 224, 312)).tobytes()


def test_what_cannot_be_drawn_or_written_has_a_hint(tmp_path):
    with pytest.raises(UsageError, match="no split 'tset'") as error:
        write_sheet(tmp_path / "s.png", split="tset")
    assert "test" in error.value.hint
    with pytest.raises(UsageError, match="cannot write"):
        write_sheet(tmp_path / "none" / "s.png", columns=1)
