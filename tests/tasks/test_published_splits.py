"""Our loaders against the published files: sizes, clusters, ids and frames of every split (docs/method.md b2 and c)."""

from pathlib import Path

import pytest

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import PIXEL, SQUARE, Box
from visrl.core.prompts import PROTOCOLS, answer_turns
from visrl.core.types import Picture
from visrl.evals.benchmarks import TASKS
from visrl.tasks import SOURCES, fingerprint, load

UNSEEN = {"vstar", "hrbench_4k", "hrbench_8k", "treebench", "ref_l4", "refcoco_m", "screenspot", "screenspot_pro"}
"""Benchmarks whose files were never seen: tests/tasks/test_zoom_benchmarks.py makes documents in their layouts."""
ON_FILE = sorted(
    set(SOURCES) - {"mmbench"} - UNSEEN
)  # MMBench's pictures may not be passed on: no copy in the shared data
_PICTURE = Picture("p", lambda: pytest.fail("opened"))


def _direct(sample):
    (turn,) = answer_turns(PROTOCOLS["direct"], sample, _PICTURE, None, "")
    return turn.text()


def test_every_published_task_has_a_source():
    assert {name for name, spec in TASKS.items() if not spec.small_world} == set(SOURCES)


@pytest.mark.parametrize("name", ON_FILE)
def test_sizes_pictures_and_ids_are_the_published_ones(shared: Path, name: str):
    samples, spec = list(load(name, shared, with_pictures=False)), TASKS[name]
    assert len(samples) == spec.n
    assert len({s.id for s in samples}) == spec.n, "ids are unique"
    assert len({s.cluster for s in samples}) == spec.n_pictures
    assert {s.task for s in samples} == {name}
    assert {s.kind for s in samples} == {"rec" if spec.benchmark == "rec" else "qa"}
    assert all(s.picture is None for s in samples)


@pytest.mark.parametrize("name", [name for name in ON_FILE if name.startswith("viscot_")])
def test_the_chains_boxes_convert_to_the_detection_files_boxes(shared: Path, name: str):
    """Padded-square numbers have three decimals: they may differ from the exact pixel box by 0.001 of the longer side."""
    for sample in load(name, shared, with_pictures=False):
        written = FORMATS["padded_square_3dp"].syntax.find(sample.meta["chain_box"])[0]
        exact = sample.box.to(SQUARE, sample.size).xyxy
        assert sample.box.frame == PIXEL
        assert max(abs(a - b) for a, b in zip(written, exact, strict=True)) <= 0.001 + 1e-9, sample.id
        chain = Box(*written, frame=SQUARE).to_pixel(sample.size)
        assert (
            max(abs(a - b) for a, b in zip(chain.xyxy, sample.box.xyxy, strict=True)) <= 0.001 * max(sample.size) + 1e-6
        )


def test_rec_boxes_are_pixels_within_their_pictures(shared: Path):
    for name in ("refcoco_testB", "refcocog_val"):
        for s in load(name, shared, with_pictures=False):
            assert 0 <= s.box.x1 < s.box.x2 <= s.size[0] + 1 and 0 <= s.box.y1 < s.box.y2 <= s.size[1] + 1, s.id


def test_direct_prompts_are_the_official_bytes(shared: Path):
    pope = next(iter(load("pope_coco_popular", shared, with_pictures=False)))
    assert _direct(pope) == (
        "<image>\nIs there a snowboard in the image?\nAnswer the question using a single word or phrase."
    )
    first, second = list(load("mme", shared, with_pictures=False, limit=2))
    assert _direct(first) == "<image>\nIs there a train in this image? Please answer yes or no."
    assert (first.id, second.id) == ("existence/000000006040/1", "existence/000000006040/2")
    assert (first.answers, second.answers) == (("yes",), ("no",))
    assert first.group == "existence"


def test_a_question_carries_neither_picture_mark_nor_the_sentence_that_asks_for_a_box(shared: Path):
    first = next(iter(load("viscot_gqa", shared, with_pictures=False)))
    assert (first.id, first.question, first.answers) == ("7", "What are the tree branches in front of?", ("window",))
    assert (first.size, first.box.xyxy) == ((391, 500), (217.0, 343.0, 242.0, 393.0))


def test_a_fingerprint_is_of_the_unpacked_bytes(shared: Path, tmp_path: Path):
    import gzip

    packed = shared / "rec" / "REC_refcoco_unc_testB.jsonl.gz"
    plain = tmp_path / "rec" / "REC_refcoco_unc_testB.jsonl"
    plain.parent.mkdir()
    plain.write_bytes(gzip.decompress(packed.read_bytes()))
    assert fingerprint("refcoco_testB", tmp_path) == fingerprint("refcoco_testB", shared)
    assert list(fingerprint("refcoco_testB", shared)["sha256"]) == ["rec/REC_refcoco_unc_testB.jsonl"]
