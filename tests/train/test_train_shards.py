"""Shards made here: the rows and pictures of a jsonl, no path out of them, and memory that does not grow with their number."""

import io
import json
import tarfile
import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from visrl.errors import PictureError, UsageError
from visrl.train.config.recipe import DataSection
from visrl.train.data.load import load_demonstrations, load_preferences
from visrl.train.data.questions import LookedFor, QuestionSection, _all, load_questions
from visrl.train.data.rows import QuestionRow, picture_in, read_rows


def image(i, side=24):
    return Image.fromarray(np.random.default_rng(i).integers(0, 255, (side, side + i % 3, 3), dtype=np.uint8))


def encoded(i, side=24):
    file = io.BytesIO()
    image(i, side).save(file, "PNG")
    return file.getvalue()


def row(i):
    return {"id": f"q{i}", "question": f"what is it ? {i}", "answers": ["red"], "size": [24 + i % 3, 24]}


def member(tar, name, data, **more):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def tar_of(path, numbers, side=24):
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            text = json.dumps({**row(i), "size": [side + i % 3, side]}).encode()
            both = [(f"{i:05d}.json", text), (f"{i:05d}.png", encoded(i, side))]
            for name, data in both if i % 2 else both[::-1]:
                member(tar, name, data)
    return path


def parquet_of(path, numbers, rows=row, side=24):
    table = [{**rows(i), "image": {"bytes": encoded(i, side), "path": None}} for i in numbers]
    parquet.write_table(pa.Table.from_pylist(table), path, row_group_size=3)
    return path


def same(samples, numbers):
    assert [s.id for s in samples] == [f"q{i}" for i in numbers]
    for sample, i in zip(samples, numbers, strict=True):
        assert sample.question == f"what is it ? {i}" and sample.answers == ("red",) and sample.size == image(i).size
        assert sample.picture.open().tobytes() == image(i).tobytes(), "each row its own picture"


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_questions_of_several_shards_with_their_pictures(kind, tmp_path):
    make = tar_of if kind == "tar" else parquet_of
    make(tmp_path / f"b.{kind}", range(8, 12)), make(tmp_path / f"a.{kind}", range(8))
    for path in (tmp_path, tmp_path / f"*.{kind}", tmp_path / f"**.{kind}"):
        same(load_questions(QuestionSection(path=path)), range(12))
    same(load_questions(QuestionSection(path=tmp_path / f"b.{kind}", limit=2)), (8, 9))


def test_training_rows_in_parquet(tmp_path):
    chain = {"box": [1.0, 2.0, 20.0, 21.0], "box_text": None, "answer": "red"}
    parquet_of(tmp_path / "c.parquet", range(5), lambda i: {**row(i), "chain": chain})
    found = load_demonstrations(DataSection(path=tmp_path / "c.parquet"))
    assert [d.chain.answer for d in found] == ["red"] * 5 and found[4].sample.picture.open().size == image(4).size
    parquet_of(tmp_path / "p.parquet", range(5), lambda i: {**row(i), "win": chain, "lose": {**chain, "answer": "no"}})
    assert {p.rejected.answer for p in load_preferences(DataSection(path=tmp_path / "p.parquet"))} == {"no"}


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("../out.json", {}, "points outside the archive"),
        ("/etc/out.json", {}, "points outside the archive"),
        ("a\\out.json", {}, "points outside the archive"),
        ("link.png", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd", "size": 0}, "is not a regular file"),
        ("hard.png", {"type": tarfile.LNKTYPE, "linkname": "00001.png", "size": 0}, "is not a regular file"),
    ],
)
def test_members_that_lead_elsewhere_are_refused(name, more, message, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        member(tar, name, b"" if more else b"{}", **more)
    with pytest.raises(UsageError, match=message):
        list(read_rows(tmp_path / "x.tar", QuestionRow))


def test_a_picture_name_cannot_leave_the_folder_of_the_shards(tmp_path):
    (tmp_path / "in").mkdir()
    tar_of(tmp_path / "out.tar", range(2))
    with pytest.raises(UsageError, match="lies outside"):
        picture_in(tmp_path / "in", "../out.tar/00001.png")
    (tmp_path / "in" / "link.tar").symlink_to(tmp_path / "out.tar")
    with pytest.raises(UsageError, match="lies outside"):
        picture_in(tmp_path / "in", "link.tar/00001.png")


def test_what_is_damaged_names_the_shard(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 99)
    with pytest.raises(UsageError, match="not a readable tar"):
        list(read_rows(tmp_path / "a.tar", QuestionRow))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or not")
    with pytest.raises(UsageError, match="not a readable parquet file"):
        list(read_rows(tmp_path / "a.parquet", QuestionRow))
    pages = bytearray(parquet_of(tmp_path / "p.parquet", range(3)).read_bytes())
    pages[4:40] = b"\xff" * 36  # behind the four letters PAR1: the first page of the first column
    (tmp_path / "p.parquet").write_bytes(pages)
    with pytest.raises(UsageError, match=r"p\.parquet: not a readable parquet file"):
        list(read_rows(tmp_path / "p.parquet", QuestionRow))
    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        member(tar, "1.json", b'{"id": "q"}'), member(tar, "1.png", encoded(1))
    with pytest.raises(UsageError, match=r"b.tar: 1.json: question: Field required"):
        list(read_rows(tmp_path / "b.tar", QuestionRow))
    with tarfile.open(tmp_path / "c.tar", "w") as tar:
        member(tar, "1.json", json.dumps(row(1)).encode())
    with pytest.raises(UsageError, match="1 has no picture"):
        list(read_rows(tmp_path / "c.tar", QuestionRow))
    with pytest.raises(UsageError, match="no shards in"):
        list(read_rows(tmp_path / "none**.tar", QuestionRow))
    tar_of(tmp_path / "d.tar", [1])
    for name in ("d.tar/2.png", "d.tar/00001.json"):
        with pytest.raises(PictureError, match="has no"):
            picture_in(tmp_path, name).open()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_memory_is_flat_in_the_number_of_rows(kind, tmp_path):
    """1,000 rows of 12 kB pictures in shards of 100: 12 MB of pictures. The peak must not know how many there are."""
    make = tar_of if kind == "tar" else parquet_of
    for shard in range(10):
        make(tmp_path / f"{shard:02d}.{kind}", range(100 * shard, 100 * shard + 100), side=64)

    def peak(limit):
        tracemalloc.start()
        seen = 0
        for sample in _all(QuestionSection(path=tmp_path), LookedFor()):
            seen += 1
            if seen % 10 == 0:
                sample.picture.open()
            if seen == limit:
                break
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert seen == limit
        return most

    peak(100)  # imports and caches
    few, many = peak(200), peak(1000)
    assert many < 1.3 * few + 200_000 and many < 3e6
