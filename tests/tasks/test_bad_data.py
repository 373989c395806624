"""What a damaged or hostile data folder does: a UsageError with file and line, or a PictureError for one sample."""

import gzip
import json
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from visrl.errors import PictureError, UsageError
from visrl.tasks import fingerprint, load, missing_pictures
from visrl.tasks.pictures import decoded

ROW = {
    "img_path": "a.jpg",
    "expression": "the left cup",
    "bbox": [1, 2, 30, 40],
    "width": 64,
    "height": 48,
    "image_id": 5,
    "sent_id": 7,
}
FILE = "rec/REC_refcoco_unc_val.jsonl"


@pytest.fixture
def data(tmp_path: Path):
    """A data folder; ``data(*rows)`` writes rows or raw lines into REC's validation file."""

    def write(*rows):
        path = tmp_path / FILE
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        return tmp_path

    return write


def _load(folder: Path, name: str = "refcoco_val", **options):
    return list(load(name, folder, **{"with_pictures": False, **options}))


def test_a_good_row_becomes_a_sample(data):
    (sample,) = _load(data(ROW))
    assert (sample.id, sample.question, sample.size, sample.box.xyxy) == (
        "5_7",
        "the left cup",
        (64, 48),
        (1, 2, 30, 40),
    )


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("{torn", "not JSON"),
        ("[1, 2]", "a JSON list, not an object"),
        ({**ROW, "bbox": [1, 2, 3, 4, 5]}, "not four numbers"),
        ({**ROW, "bbox": [1, 2, 3, float("nan")]}, "four finite numbers"),
        ({**ROW, "bbox": "1,2,3,4"}, "not four numbers"),
        ({**ROW, "width": 0}, "a picture of 0 x 48 pixels"),
        ({**ROW, "width": "64"}, "not a whole number"),
        ({**ROW, "expression": None}, "not text"),
        ({k: v for k, v in ROW.items() if k != "sent_id"}, "no field 'sent_id'"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(data, row, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        _load(data(ROW, row))
    assert f"{FILE}:2" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/../../b.jpg", "..\\b.jpg", "C:b.jpg", "", "a\0b"]
)
def test_a_picture_name_cannot_leave_the_folder(data, name):
    with pytest.raises(UsageError, match="not the name of a picture"):
        _load(data({**ROW, "img_path": name}))


def test_a_link_below_the_pictures_cannot_lead_out_of_them(data, tmp_path, monkeypatch):
    """The folder itself may be one: that is how a user names it. Links that stay within it are followed."""
    folder = data({**ROW, "img_path": "coco/a.png"})
    for place in ("real/coco", "elsewhere"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGB", (64, 48)).save(tmp_path / place / "b.png")
    (tmp_path / "images").symlink_to(tmp_path / "real")
    link = tmp_path / "real/coco/a.png"

    def opened():
        (sample,) = _load(folder, with_pictures=True)
        return sample.picture.open().size

    link.symlink_to("b.png")
    assert opened() == (64, 48) and not missing_pictures("refcoco_val", folder)
    link.unlink()
    link.symlink_to(tmp_path / "elsewhere/b.png")
    with pytest.raises(PictureError, match="is a symbolic link that points outside"):
        opened()
    with pytest.raises(UsageError, match=r"'coco/a.png' is a symbolic link that points outside .*images") as caught:
        missing_pictures("refcoco_val", folder)
    assert "VISRL_FOLLOW_LINKS=1" in caught.value.hint
    monkeypatch.setenv("VISRL_FOLLOW_LINKS", "1")
    assert opened() == (64, 48)
    monkeypatch.delenv("VISRL_FOLLOW_LINKS")
    (tmp_path / "real/coco").rename(tmp_path / "elsewhere/coco")
    (tmp_path / "real/coco").symlink_to(tmp_path / "elsewhere/coco")  # a folder, too
    with pytest.raises(UsageError, match="is a symbolic link that points outside"):
        missing_pictures("refcoco_val", folder)


def test_a_name_longer_than_any_file_has_is_a_missing_picture(data, tmp_path):
    folder = data({**ROW, "img_path": "a" * 5000 + ".png"})
    (tmp_path / "images").mkdir()
    (sample,) = _load(folder, with_pictures=True)
    with pytest.raises(PictureError, match="no picture a"):
        sample.picture.open()
    assert missing_pictures("refcoco_val", folder).n == 1


def test_missing_folder_missing_file_empty_file_unknown_task(data, tmp_path):
    with pytest.raises(UsageError, match="no data folder"):
        _load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="has no rec/REC_refcoco_unc_testA"):
        _load(data(ROW), "refcoco_testA")
    with pytest.raises(UsageError, match="no documents of refcoco_val"):
        _load(data())
    with pytest.raises(UsageError) as caught:
        _load(data(ROW), "refcoco_vall")
    assert "refcoco_val" in caught.value.hint


def test_missing_data_are_reported_before_the_first_sample_is_asked_for(tmp_path):
    with pytest.raises(UsageError):
        load("refcoco_val", tmp_path, with_pictures=False)


def test_a_torn_gzip_is_reported_by_loader_and_fingerprint(data, tmp_path):
    folder = data(ROW)
    whole = gzip.compress((folder / FILE).read_bytes() * 100)
    (folder / FILE).unlink()
    (folder / f"{FILE}.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match="cannot be read"):
        _load(folder)
    with pytest.raises(UsageError, match="cannot be read"):
        fingerprint("refcoco_val", folder)


def test_bytes_that_are_not_text(data):
    folder = data(ROW)
    (folder / FILE).write_bytes(b"\xff\xfe{}\n")
    with pytest.raises(UsageError, match="not UTF-8"):
        _load(folder)


def test_pictures_are_looked_up_under_images_and_opened_late(data, tmp_path):
    folder = data(ROW, {**ROW, "img_path": "gone.jpg", "sent_id": 8})
    with pytest.raises(UsageError, match="images is not a folder"):
        load("refcoco_val", folder, with_pictures=True)
    (folder / "images" / "train2014").mkdir(parents=True)
    Image.new("RGB", (64, 48), "red").save(folder / "images" / "train2014" / "a.jpg")
    found, gone = _load(folder, with_pictures=True)
    assert found.picture.open().size == (64, 48)
    with pytest.raises(PictureError, match=r"no picture gone\.jpg"):
        gone.picture.open()


def test_a_truncated_picture_fails_even_where_lmms_eval_has_switched_that_off(data, monkeypatch):
    folder = data(ROW)
    (folder / "images").mkdir()
    path = folder / "images" / "a.jpg"
    Image.effect_noise((256, 256), 80).save(path)
    path.write_bytes(path.read_bytes()[:4000])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    (sample,) = _load(folder, with_pictures=True)
    with pytest.raises(PictureError, match=r"a\.jpg: .*truncated"):
        sample.picture.open()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True, "the process's own setting is put back"


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"\x89PNG\r\n\x1a\nrubbish"])
def test_what_is_no_picture_is_a_picture_error(content):
    with pytest.raises(PictureError, match=r"p\.png"):
        decoded(content, "p.png")


def test_a_decompression_bomb_is_a_picture_error(monkeypatch):
    import io

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 21 x 21 is more than twice as many
    buffer = io.BytesIO()
    Image.new("1", (21, 21)).save(buffer, "PNG")
    with pytest.raises(PictureError, match="decompression bomb"):
        decoded(buffer.getvalue(), "p.png")


def _viscot(folder: Path, chains, detections):
    (folder / "viscot_benchmark").mkdir(exist_ok=True)
    (folder / "viscot_benchmark" / "cub.json").write_text(json.dumps(chains))
    (folder / "viscot_benchmark" / "det_cub.jsonl").write_text("".join(json.dumps(row) + "\n" for row in detections))
    return folder


P_BOX = " Please provide the bounding box coordinate of the region that can help you answer the question better."
CHAIN = {
    "question_id": 3,
    "image": ["cot/cub/x.jpg", "cot/cub/x.jpg###[1, 2, 3, 4]"],
    "conversations": [
        {"from": "human", "value": f"<image>\nIs it red?{P_BOX}"},
        {"from": "gpt", "value": "[0.1, 0.2, 0.3, 0.4]"},
        {"from": "human", "value": "<image>"},
        {"from": "gpt", "value": "No"},
    ],
}
DETECTION = {"question_id": 3, "img_path": "cot/cub/x.jpg", "bbox": [1, 2, 30, 40], "width": 64, "height": 48}


def test_viscot_files_must_belong_together(tmp_path):
    assert len(_load(_viscot(tmp_path, [CHAIN], [DETECTION]), "viscot_cub")) == 1
    with pytest.raises(UsageError, match="question_id 3, in the detection file 4"):
        _load(_viscot(tmp_path, [CHAIN], [{**DETECTION, "question_id": 4}]), "viscot_cub")
    with pytest.raises(UsageError, match=r"picture .*x\.jpg.*y\.jpg"):
        _load(_viscot(tmp_path, [CHAIN], [{**DETECTION, "img_path": "cot/cub/y.jpg"}]), "viscot_cub")
    with pytest.raises(UsageError, match=r"det_cub\.jsonl ends after 1 rows"):
        _load(_viscot(tmp_path, [CHAIN, CHAIN], [DETECTION]), "viscot_cub")
    with pytest.raises(UsageError, match=r"cub\.json ends after 0 rows"):
        _load(_viscot(tmp_path, [], [DETECTION]), "viscot_cub")
    with pytest.raises(UsageError, match="not a list of rows"):
        _load(_viscot(tmp_path, {"rows": []}, []), "viscot_cub")


def test_a_viscot_question_that_does_not_ask_for_a_box_is_refused(tmp_path):
    other = json.loads(json.dumps(CHAIN).replace("can help", "could help"))
    with pytest.raises(UsageError, match="the first turn is not"):
        _load(_viscot(tmp_path, [other], [DETECTION]), "viscot_cub")


def test_mme_lines_and_pope_labels(tmp_path, data):
    from visrl.tasks.general import MME_SUBTASKS

    (tmp_path / "mme").mkdir()
    for subtask in MME_SUBTASKS:
        (tmp_path / "mme" / f"{subtask}.txt").write_text("1.jpg\tIs it? Please answer yes or no.\tYes\n")
    assert len(_load(tmp_path, "mme")) == len(MME_SUBTASKS)
    (tmp_path / "mme" / "count.txt").write_text("1.jpg\tIs it?\n")
    with pytest.raises(UsageError, match=r"count\.txt:1: 2 fields"):
        _load(tmp_path, "mme")
    (tmp_path / "mme" / "count.txt").write_text("1.jpg\tIs it?\tMaybe\n")
    with pytest.raises(UsageError, match=r"count\.txt:1: the true answer is 'Maybe'"):
        _load(tmp_path, "mme")


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"bbox": [30, 20, 12, 40]}, "x, y, width, height"),  # x2 12 < x1 30
        ({"bbox": [0.1, 0.2, 0.5, 0.6]}, "fractions of the picture"),
        ({"bbox": [1, 2, 70, 40]}, "reaches outside its picture of 64 x 48"),
        ({"bbox": [-5, 2, 30, 40]}, "reaches outside"),
        ({"bbox": [1, 2, 30, 10**400]}, "too large"),
        ({"width": 10**400}, "a picture of 100000000000 x 48"),
    ],
)
def test_boxes_of_another_convention_stop_with_their_row(data, changes, complaint):
    with pytest.raises(UsageError, match=complaint) as caught:
        _load(data(ROW, {**ROW, "sent_id": 8, **changes}))
    assert f"{FILE}:2" in str(caught.value)


def test_an_id_that_occurs_twice_names_both_rows(data):
    with pytest.raises(UsageError, match="id '5_7' also occurs in") as caught:
        _load(data(ROW, {**ROW, "expression": "the right cup"}))
    assert f"{FILE}:2" in str(caught.value) and f"{FILE}:1" in str(caught.value)


def _bytes(image, kind="PNG"):
    import io

    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def test_greys_of_more_than_8_bits_stay():
    import numpy as np

    deep = Image.fromarray(np.array([[0, 256, 32_768, 65_535]], dtype=np.uint16))
    assert [decoded(_bytes(deep), "p").getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]  # the high byte
    fractions = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert [decoded(_bytes(fractions, "TIFF"), "p").getpixel((x, 0)) for x in range(3)] == [
        (0,) * 3,
        (128,) * 3,
        (255,) * 3,
    ]
    whole = Image.fromarray(np.array([[-100, 20, 100]], dtype=np.int32))  # no usual scale: from least to greatest
    assert [decoded(_bytes(whole, "TIFF"), "p").getpixel((x, 0))[0] for x in range(3)] == [
        0,
        153,
        255,
    ]  # 120 / 200 * 255
    eight = Image.fromarray(np.array([[0, 7, 200]], dtype=np.int32))
    assert [decoded(_bytes(eight, "TIFF"), "p").getpixel((x, 0))[0] for x in range(3)] == [0, 7, 200]


def test_only_pictures_of_known_formats_and_sizes_are_decoded(monkeypatch):
    with pytest.raises(PictureError, match="known format"):
        decoded(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "p.eps")
    monkeypatch.setattr("visrl.tasks.pictures.MAX_PIXELS", 99)
    with pytest.raises(PictureError, match="10 x 10 pixels are more than 99"):
        decoded(_bytes(Image.new("1", (10, 10))), "p.png")
    monkeypatch.setattr(Image, "open", lambda *_, **__: (_ for _ in ()).throw(NotImplementedError("DDS 9")))
    with pytest.raises(PictureError, match="DDS 9"):
        decoded(b"DDS ", "p.dds")
