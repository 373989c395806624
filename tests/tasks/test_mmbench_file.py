"""MMBench's TSV: rotations, absent options, quoted fields over several lines, pictures read when they are asked for."""

import base64
import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from visrl.core.prompts import PROTOCOLS, answer_turns
from visrl.core.types import Picture
from visrl.errors import PictureError, UsageError
from visrl.tasks import load

HEADER = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]


def _picture(colour: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _row(index: int, answer: str = "A", image: str = "", **changes: str) -> dict[str, str]:
    row = {
        "index": str(index),
        "question": "Which one?",
        "hint": "nan",
        "A": "a cat",
        "B": "a dog",
        "C": "",
        "D": "",
    }
    return {**row, "answer": answer, "category": "c", "image": image, "l2-category": "l", "split": "dev", **changes}


def _write(folder: Path, rows: list[dict[str, str]], name: str = "mmbench_dev_en.tsv") -> Path:
    (folder / "mmbench").mkdir(exist_ok=True)
    with (folder / "mmbench" / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, HEADER, delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return folder


def _load(folder: Path):
    return list(load("mmbench", folder, with_pictures=True))


def test_rotations_share_group_and_picture_and_pictures_open_late(tmp_path):
    red, blue = _picture("red"), _picture("blue")
    rows = [_row(0, image=red), _row(1, image=blue), _row(1_000_000, "B", image="0"), _row(1_000_001, "B", image=blue)]
    zero, one, zero_again, one_again = _load(_write(tmp_path, rows))
    assert [s.group for s in (zero, one, zero_again, one_again)] == ["0", "1", "0", "1"]
    assert zero.cluster == zero_again.cluster != one.cluster == one_again.cluster
    assert zero_again.picture.open().getpixel((0, 0)) == (255, 0, 0), "a rotated row may name the row with the picture"
    assert one_again.picture.open().getpixel((0, 0)) == (0, 0, 255)
    assert (zero.id, zero_again.id, zero_again.answers) == ("0", "1000000", ("B",))


def test_the_prompt_is_llavas_and_leaves_absent_options_out(tmp_path):
    (sample,) = _load(_write(tmp_path, [_row(7, image=_picture("red"), hint="Look\nclosely.", C='a "finance" chart')]))
    (turn,) = answer_turns(PROTOCOLS["direct"], sample, Picture("p", Image.new), None, "")
    assert turn.text() == (
        '<image>\nLook\nclosely.\nWhich one?\nA. a cat\nB. a dog\nC. a "finance" chart'
        "\nAnswer with the option's letter from the given choices directly."
    )
    assert sample.meta["options"] == {"A": "a cat", "B": "a dog", "C": 'a "finance" chart'}


def test_a_row_after_a_field_of_several_lines_still_finds_its_picture(tmp_path):
    rows = [_row(0, image=_picture("red"), hint="one\ntwo\nthree ü"), _row(1, image=_picture("blue"))]
    first, second = _load(_write(tmp_path, rows))
    assert first.picture.open().getpixel((0, 0)) == (255, 0, 0)
    assert second.picture.open().getpixel((0, 0)) == (0, 0, 255)


def test_other_accepted_names(tmp_path):
    for name in ("mmbench_dev_en_20231003.tsv", "MMBench_DEV_EN.tsv"):
        folder = tmp_path / name
        folder.mkdir()
        assert len(_load(_write(folder, [_row(0)], name))) == 1


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (_row(0, answer="C"), "the true answer 'C' is not among the options A, B"),
        ({**_row(0), "index": "zero"}, "invalid literal"),
    ],
)
def test_a_malformed_row_is_named_by_line(tmp_path, row, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        _load(_write(tmp_path, [_row(1), row]))
    assert "mmbench_dev_en.tsv:3" in str(caught.value)


def test_broken_files(tmp_path):
    file = _write(tmp_path, []) / "mmbench" / "mmbench_dev_en.tsv"
    with pytest.raises(UsageError, match="no documents"):
        _load(tmp_path)
    file.write_text("index\tquestion\n1\tq\n")
    with pytest.raises(UsageError, match="no column A, B, answer"):
        _load(tmp_path)
    file.write_text("\t".join(HEADER) + "\n1\tq\n")
    with pytest.raises(UsageError, match=r"tsv:2: 2 fields, the header has 12"):
        _load(tmp_path)


def test_a_picture_that_is_not_base64_fails_its_sample_only(tmp_path):
    (sample,) = _load(_write(tmp_path, [_row(0, image="!" * 80)]))
    with pytest.raises(PictureError, match="not base64"):
        sample.picture.open()


def test_an_option_that_says_none_or_nan_is_an_option(tmp_path):
    (sample,) = _load(_write(tmp_path, [_row(7, "C", B="None", C="nan", D="")]))
    assert sample.meta["options"] == {"A": "a cat", "B": "None", "C": "nan"} and sample.answers == ("C",)


def test_hub_rows_say_nan_for_an_empty_cell_but_only_at_the_end():
    from visrl.tasks.mmbench import from_hub

    (row,) = from_hub({"index": 1, "A": "a", "B": "nan", "C": "None", "D": "nan", "L2-category": "l"})
    assert (row["B"], row["C"], row["D"]) == ("nan", "None", "")


def test_a_question_has_as_many_rotations_as_the_split_holds(tmp_path):
    # two options; the split holds one rotation of question 0 and two of question 1
    rows = [_row(0), _row(1), _row(1_000_001, "B")]
    assert [sample.meta["rotations"] for sample in _load(_write(tmp_path, rows))] == [1, 2, 2]


def test_index_twice_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="id '1' also occurs in"):
        _load(_write(tmp_path, [_row(1), _row(1)]))
