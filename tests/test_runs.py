import contextlib
import json
import logging

import pytest

from visrl.core.boxes import Box
from visrl.core.types import Episode, Step, Unparsed
from visrl.errors import UsageError
from visrl.runs.lines import episode_from_json, episode_to_json, read_episodes, sealed, unsealed
from visrl.runs.store import Run, held, request_hash, slug

REQUEST = {"model": "m", "tasks": {"t": "1"}}
EPISODES = [
    Episode(
        "1", "t", Step("p", "[0, 0, 1, 1]", 5, 6), Box(0, 0, 10, 10), (0, 0, 10, 10), Step("q", "cat \u202e\x1b[31m")
    ),
    Episode("2", "t", Step("p", "?"), Unparsed("no list of four numbers")),
    Episode("3", "t", error="picture: truncated"),
]


def write(folder, episodes, request=REQUEST):
    with Run(folder, request) as run:
        run.append(episodes)


def test_episodes_survive_the_disk(tmp_path):
    write(tmp_path, EPISODES)
    assert list(read_episodes(tmp_path / "episodes.jsonl")) == EPISODES
    assert [episode_from_json(episode_to_json(e)) for e in EPISODES] == EPISODES


def test_last_line_of_a_sample_counts(tmp_path):
    write(tmp_path, [EPISODES[2]])
    with Run(tmp_path, REQUEST) as run:
        assert run.finished() == {"t": set()}  # it failed: it is tried again
        run.append([Episode("3", "t", answer_step=Step("q", "dog"))])
        assert run.finished() == {"t": {"3"}}


def test_a_torn_last_line_is_dropped_and_appending_goes_on(tmp_path, caplog):
    write(tmp_path, EPISODES[:2])
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(path.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        assert [e.sample_id for e in read_episodes(path)] == ["1"]
        write(tmp_path, EPISODES[2:])
    assert "torn" in caplog.text
    assert [e.sample_id for e in read_episodes(path)] == ["1", "3"]


@pytest.mark.parametrize(
    "damage", ["not json\n", '{"task": "t"}\n', '{"task": "t", "sample_id": "9", "box": [1, 2, 3]}\n']
)
def test_other_damage_names_its_line(tmp_path, damage):
    write(tmp_path, EPISODES[:1])
    path = tmp_path / "episodes.jsonl"
    path.write_text(damage + path.read_text())
    with pytest.raises(UsageError, match=r"episodes\.jsonl:1: damaged"):
        list(read_episodes(path))


def test_another_request_is_refused(tmp_path):
    write(tmp_path, EPISODES)
    with (
        pytest.raises(UsageError, match="holds another run: model differ"),
        Run(tmp_path, {**REQUEST, "model": "other"}),
    ):
        pass


def test_two_writers_are_refused(tmp_path):
    with Run(tmp_path, REQUEST), pytest.raises(UsageError, match="another process"), Run(tmp_path, REQUEST):
        pass


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot write the run"), Run(tmp_path / "file" / "run", REQUEST):
        pass


def test_a_full_disk_keeps_what_was_written(tmp_path):
    with Run(tmp_path, REQUEST) as run:
        run.append(EPISODES[:1])
        real, run._file = run._file, open("/dev/full", "ab")  # noqa: SIM115 - closed below
        with pytest.raises(UsageError, match="free disk space"):
            run.append(EPISODES[1:])
        broken, run._file = run._file, real
        with contextlib.suppress(OSError):  # /dev/full refuses the buffered bytes once more
            broken.close()
    assert [e.sample_id for e in read_episodes(tmp_path / "episodes.jsonl")] == ["1"]


def test_hash_ignores_the_order_of_keys():
    assert request_hash({"a": 1, "b": 2}) == request_hash({"b": 2, "a": 1}) != request_hash({"a": 1, "b": 3})


def test_slug_stays_in_its_folder():
    assert slug("../../etc/passwd") == "etc-passwd"
    assert slug("replay:a b\n\x1b") == "replay-a-b" and slug("...") == "run"


def test_json_lines_hold_no_raw_control_characters(tmp_path):
    write(tmp_path, EPISODES)
    raw = (tmp_path / "episodes.jsonl").read_bytes()
    assert b"\x1b" not in raw and raw.isascii()
    assert json.loads(raw.splitlines()[0])["answer_step"]["output"] == EPISODES[0].answer


@pytest.mark.parametrize("before", [[], [EPISODES[2]]], ids=["nothing", "a failure"])
def test_a_command_that_got_nothing_done_does_not_keep_the_folder(before, tmp_path, caplog):
    """A typo's folder: the corrected command takes it, and nothing of the first is left in it."""
    write(tmp_path, before)
    (tmp_path / "scores.jsonl").write_text("{}\n")
    corrected = {**REQUEST, "model": "corrected"}
    with caplog.at_level(logging.WARNING):
        write(tmp_path, EPISODES[:1], corrected)
    assert list(read_episodes(tmp_path / "episodes.jsonl")) == EPISODES[:1]
    assert json.loads((tmp_path / "run.json").read_text())["request"] == corrected
    assert not (tmp_path / "scores.jsonl").exists() and "got nothing done" in caplog.text
    with pytest.raises(UsageError, match="holds another run"), Run(tmp_path, REQUEST):
        pass
    write(tmp_path, EPISODES[1:2], corrected)  # a refusal leaves no lock


def test_what_is_only_stated_makes_no_other_run():
    """A run begun by an older visrl, whose record said less of how the weights were loaded, goes on in its folder."""
    old = {"model": "m", "model_info": {"weights_sha256": "ab", "adapter": {"path": "a"}}}
    new = {
        "model": "m",
        "model_info": {"weights_sha256": "ab", "adapter": {"path": "a", "tensors": 4}, "torch": "2", "tensors": 9},
    }
    other = {"model": "m", "model_info": {"weights_sha256": "cd", "adapter": {"path": "a"}}}
    limited = {"model": "m", "model_info": {**old["model_info"], "pixel_limits": {"max_pixels": 784}}}
    assert request_hash(old) == request_hash(new)
    assert len({request_hash(r) for r in (old, other, limited)}) == 3
    assert request_hash({"torch": "1"}) != request_hash({"torch": "2"})  # only inside model_info


def test_a_bit_flipped_in_a_stored_box_is_noticed(tmp_path):
    write(tmp_path, EPISODES)
    path = tmp_path / "episodes.jsonl"
    data = path.read_bytes()
    at = data.index(b'"box": [0') + len('"box": [')
    path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])  # 0 becomes 1: still four numbers
    with pytest.raises(
        UsageError, match=r"episodes.jsonl:1: damaged: the line is not what was written: its checksum differs"
    ):
        list(read_episodes(path))


def test_every_single_bit_of_a_line_is_guarded():
    line = sealed('{"sample_id": "1", "task": "t", "box": [1, 2, 30, 40]}')
    assert unsealed(line) == b'{"sample_id": "1", "task": "t", "box": [1, 2, 30, 40]}'
    guarded = 8 * line.index(b', "crc32": ')  # the object itself; behind it stand the name and the checksum
    brace = 8 * (len(line) - 2)  # and the brace that ends the line, or a reader of the whole line finds no object
    for bit in (*range(guarded), *range(brace, brace + 8)):
        flipped = bytearray(line)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="its checksum differs"):
            unsealed(bytes(flipped))


def test_lines_without_a_checksum_are_read(tmp_path):
    path = tmp_path / "episodes.jsonl"
    path.write_text("".join(json.dumps(episode_to_json(episode)) + "\n" for episode in EPISODES))
    assert list(read_episodes(path)) == EPISODES


def pieces(folder):
    """What a kill in the middle of writing each whole file leaves; names as write_atomically makes them."""
    names = ("run.json", "scores.jsonl", "pairs.jsonl", "manifest.json", "records/t.json")
    found = [folder / name for name in names]
    return [path.parent / f".{path.name}.{'0f' * 16}.tmp" for path in found]


def test_pieces_of_killed_writes_are_taken_away_by_whoever_holds_the_run(tmp_path):
    with Run(tmp_path, REQUEST) as run:
        run.append([Episode("1", "t", error="x")])
    (tmp_path / "records").mkdir()
    page = tmp_path / f".report.html.{'0f' * 16}.tmp"  # whoever writes that holds nothing: it may be at work
    for path in (*pieces(tmp_path), page):
        path.write_text("half")
    with Run(tmp_path, REQUEST):
        assert [path for path in pieces(tmp_path) if path.exists()] == [] and page.exists()
        for path in pieces(tmp_path):
            path.write_text("half")  # of this run, say
        with pytest.raises(UsageError, match="another process"), held(tmp_path):
            pass
        with pytest.raises(UsageError, match="another process"), Run(tmp_path, REQUEST):
            pass
        assert all(path.exists() for path in pieces(tmp_path))
    with held(tmp_path):
        assert [path for path in pieces(tmp_path) if path.exists()] == [] and page.exists()
