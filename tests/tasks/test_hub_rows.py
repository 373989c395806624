"""Documents through ``datasets`` become the same samples as the files'. Local copies in the hub's layout stand in for it."""

import gzip
import io
import json
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from PIL import Image

from visrl.errors import UsageError
from visrl.tasks import SOURCES, load
from visrl.tasks.pictures import IMAGES_VARIABLE


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.delenv(IMAGES_VARIABLE, raising=False)


def _as_hub(monkeypatch, name: str, **changes):
    monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], hub=replace(SOURCES[name].hub, **changes)))


def _png(colour: str) -> dict[str, object]:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def _dataset(folder: Path, rows: list[dict[str, object]], split: str = "test") -> str:
    folder.mkdir()
    table = datasets.Dataset.from_list(rows)
    if "image" in rows[0]:
        table = table.cast_column("image", datasets.Image())
    table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return str(folder)


def test_refcoco_objects_become_sentences(tmp_path, monkeypatch):
    row = {
        "image_path": "coco/train2014/COCO_train2014_000000000009.jpg",
        "image_id": 9,
        "raw_anns": json.dumps({"bbox": [10.5, 20, 30, 40]}),  # x, y, width, height
        "raw_image_info": json.dumps({"width": 640, "height": 480}),
        "sentences": [{"sent": "left cup", "sent_id": 1}, {"sent": "the cup", "sent_id": 2}],
    }
    _as_hub(monkeypatch, "refcoco_testA", path=_dataset(tmp_path / "hub", [row]))
    samples = list(load("refcoco_testA", None, with_pictures=False))
    assert [(s.id, s.question) for s in samples] == [("9_1", "left cup"), ("9_2", "the cup")]
    assert samples[0].box.xyxy == (10.5, 20.0, 40.5, 60.0)  # 10.5 + 30, 20 + 40
    assert (samples[0].size, samples[0].cluster) == ((640, 480), "COCO_train2014_000000000009.jpg")


def test_a_dataset_without_pictures_needs_a_folder_of_them(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match="do not contain their pictures") as caught:
        load("refcoco_testA", None, with_pictures=True)
    assert IMAGES_VARIABLE in caught.value.hint
    monkeypatch.setenv(IMAGES_VARIABLE, str(tmp_path))
    load("refcoco_testA", None, with_pictures=True)  # found late, picture by picture


def test_pope_splits_are_picked_out_of_the_pooled_dataset(tmp_path, monkeypatch):
    rows = [
        {
            "question_id": "1",
            "question": f"Is there a {c}?",
            "answer": "yes",
            "image_source": "COCO_val2014_1",
            "category": c,
        }
        | {"image": _png(colour)}
        for c, colour in (("random", "red"), ("popular", "blue"))
    ]
    _as_hub(monkeypatch, "pope_coco_popular", path=_dataset(tmp_path / "hub", rows))
    (sample,) = load("pope_coco_popular", None, with_pictures=True)
    assert (sample.question, sample.answers, sample.cluster) == ("Is there a popular?", ("yes",), "COCO_val2014_1.jpg")
    assert sample.picture.open().getpixel((0, 0)) == (0, 0, 255)


def test_mme_rows_are_numbered_within_their_picture(tmp_path, monkeypatch):
    rows = [
        {"question_id": "color/2.png", "question": f"{q} Please answer yes or no.", "answer": a, "category": "color"}
        | {"image": _png("red")}
        for q, a in (("Red?", "Yes"), ("Blue?", "No"))
    ]
    _as_hub(monkeypatch, "mme", path=_dataset(tmp_path / "hub", rows))
    samples = list(load("mme", None, with_pictures=True))
    assert [(s.id, s.question, s.answers[0]) for s in samples] == [
        ("color/2/1", "Red?", "yes"),
        ("color/2/2", "Blue?", "no"),
    ]
    assert samples[1].picture.open().size == (40, 30)


def test_viscot_files_at_a_commit_are_the_samples_of_the_folder(shared, tmp_path, monkeypatch):
    for ours, theirs in (("cub.json", "benchmark/cub.json"), ("det_cub.jsonl", "benchmark_det/cub.jsonl")):
        target = tmp_path / "viscot_benchmark" / theirs
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.decompress((shared / "viscot_benchmark" / f"{ours}.gz").read_bytes()))
    _as_hub(monkeypatch, "viscot_cub", url=f"{tmp_path}/{{file}}")
    assert list(load("viscot_cub", None, with_pictures=False)) == list(load("viscot_cub", shared, with_pictures=False))
    # the repository's own folder names are accepted as a data folder as well
    assert list(load("viscot_cub", tmp_path, with_pictures=False)) == list(
        load("viscot_cub", shared, with_pictures=False)
    )


def test_what_no_hub_dataset_holds_says_so():
    with pytest.raises(UsageError, match=r"no hub dataset contains pope/gqa_pope_random\.json"):
        list(load("pope_gqa_random", None, with_pictures=False))


def test_an_unreachable_hub_is_a_usage_error(tmp_path, monkeypatch):
    _as_hub(monkeypatch, "refcoco_testA", path=str(tmp_path / "nowhere" / "to" / "be" / "found"))
    with pytest.raises(UsageError, match="cannot load") as caught:
        list(load("refcoco_testA", None, with_pictures=False))
    assert "--data" in caught.value.hint


def test_lmms_labs_refcoco_val_is_used_by_no_task():
    """Its val is UNC's and Google's together: 23,962 sentences, not 10,834."""
    assert not [name for name, source in SOURCES.items() if "lmms-lab/RefCOCO" in str(source.hub)]
