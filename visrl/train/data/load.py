"""A recipe's ``data`` section -> demonstrations or preferences, with what was left out said on stderr."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TypeVar

from visrl.core.prompts import ProtocolName
from visrl.errors import UsageError
from visrl.train.config.protocols import most_looks, protocol_of, several
from visrl.train.config.recipe import DataSection
from visrl.train.data.candidates import Demonstration, Preference
from visrl.train.data.dataset_rows import dataset_rows
from visrl.train.data.importers import Imported, import_chains, import_conversations, import_pairs
from visrl.train.data.placement import (
    IN_COLUMNS,
    ON_SQUARE,
    PIXELS,
    Placement,
    boxes_of_chain,
    boxes_of_pair,
    boxes_on_square,
    reasons,
    square,
)
from visrl.train.data.rows import (
    Chain,
    ChainRow,
    PairRow,
    demonstrations,
    missing_pictures,
    placed_rows,
    preferences,
)
from visrl.train.data.shards import is_sharded, root_of

Row = TypeVar("Row", ChainRow, PairRow)


def load_demonstrations(section: DataSection) -> list[Demonstration]:
    """SFT chains of ``visrl``, ``viscot``, ``cot`` or ``llava`` files, or of ``datasets``.

    Raises UsageError for another format or an empty file, and for boxes in another frame than pixels of the picture.
    """
    if section.format == "visrl":
        tally = Imported()
        rows = [_whole(place, _asked_by(row, section.protocol)) for place, row in placed_rows(section.file, ChainRow)]
    elif section.format in ("viscot", "cot"):
        rows, tally = import_chains(section.file, section.format)
    elif section.format == "llava":
        rows, tally = import_conversations(section.file)
    elif section.format == "datasets":
        rows, tally = dataset_rows(section.file, section.dataset, taught=True)
    else:
        raise UsageError(
            f"data.format {section.format} holds preference pairs, not demonstrations",
            "SFT reads visrl, viscot, cot, llava or datasets",
        )
    hint = IN_COLUMNS if section.format == "datasets" else PIXELS
    placement: Placement[ChainRow] = Placement(
        section.path, boxes_of_chain, _pictures(section), tally.left_out, hint=hint
    )
    usable = [_asked_by(row, section.protocol) for row in _usable(section, rows, placement)]
    return demonstrations(usable, _pictures(section))


def _asked_by(row: Row, protocol: ProtocolName | None) -> Row:
    """The row with the protocol of its recipe, where it names none itself."""
    named = protocol is None or "protocol" in row.model_fields_set
    return row if named else row.model_copy(update={"protocol": protocol})


def _whole(place: str, row: ChainRow) -> ChainRow:
    """The row, if it has what it is to teach. Raises UsageError naming its place: half a chain would end a training that runs."""
    looks, chain = protocol_of(row.protocol).looks or row.kind == "rec", row.chain
    _looks_fit(f"{place}: chain", row, chain, chain)
    if looks and chain.box is None and chain.looks is None and (chain.box_text is None or row.kind == "qa"):
        raise UsageError(
            f"{place}: chain.box: missing, and {row.protocol} looks", "give the box, or the row `protocol: direct`"
        )
    if row.kind == "qa" and not chain.answer.strip() and not (chain.answer_text or "").strip():
        raise UsageError(f"{place}: chain.answer: empty", "give an answer, or `kind: rec` if the box is the answer")
    return row


def _looks_fit(place: str, row: ChainRow | PairRow, chain: Chain, chosen: Chain) -> None:
    """Raises UsageError where a chain's looks are not what its protocol allows, or the rejected one's are not as many."""
    if chain.looks is None:
        return
    most = most_looks(row.protocol)
    if not several(row.protocol):
        raise UsageError(f"{place}.looks: {row.protocol} looks once at most", "give `box`, or `protocol: zoom`")
    if chain.box is not None and row.kind == "qa":
        raise UsageError(f"{place}: box and looks are one thing", "of several looks leave `box` out")
    if len(chain.looks) > most:
        hint = f"fewer, or another limit: protocol {row.protocol.partition(':')[0]}:{len(chain.looks)}"
        raise UsageError(
            f"{place}.looks: {len(chain.looks)} boxes, and {row.protocol} looks {most} times at most", hint
        )
    if chain is chosen and None in chain.looks:
        raise UsageError(f"{place}.looks: null", "only what is rejected may have nothing to compare at a look")
    if len(chain.looks) != len(chosen.looks or ()):
        raise UsageError(
            f"{place}.looks: {len(chain.looks)} boxes, where the chosen chain has {len(chosen.looks or ())}",
            "null where a look has nothing to compare",
        )


def _both_boxes(place: str, row: PairRow) -> PairRow:
    """The row, if both of its chains have a box where its protocol looks. Raises UsageError naming its place otherwise."""
    for name, chain in (("win", row.chosen), ("lose", row.rejected)):
        _looks_fit(f"{place}: {name}", row, chain, row.chosen)
        if protocol_of(row.protocol).looks and chain.box is None and not any(chain.looks or ()):
            raise UsageError(
                f"{place}: {name}.box: missing, and {row.protocol} looks", "give the box, or the row `protocol: direct`"
            )
    return row


def load_preferences(section: DataSection) -> list[Preference]:
    """Preference pairs of ``visrl`` or ``official`` files, or the small world's oracle pairs. Raises UsageError as
    above.
    """
    if section.format == "world_oracle":
        from visrl.train.data.oracle import world_pairs

        return list(world_pairs(section.limit))
    if section.format == "visrl":
        if section.protocol is not None:
            raise UsageError("data.protocol: pairs already have the protocol they were sampled with", "leave it out")
        tally = Imported()
        rows = [_both_boxes(place, row) for place, row in placed_rows(section.file, PairRow)]
    elif section.format == "official":
        imported, tally = import_pairs(section.file, section.pictures)
        rows = [_asked_by(row, section.protocol) for row in imported]
    else:
        raise UsageError(
            f"data.format {section.format} holds demonstrations, not preference pairs",
            "DPO reads visrl, official or world_oracle",
        )
    placement: Placement[PairRow] = Placement(
        section.path, boxes_of_pair, _pictures(section), tally.left_out, sampled=True
    )
    if section.format == "official":
        placement = replace(placement, boxes_of=boxes_on_square, area=square, hint=ON_SQUARE)
    found = [_sized(row, placement) for row in _usable(section, rows, placement)]
    return preferences(found, _pictures(section))


def _sized(row: PairRow, placement: Placement[PairRow]) -> PairRow:
    """The row with the size of its picture, on which it hangs how its boxes are written."""
    return row if row.size is not None else row.model_copy(update={"size": placement.size_of(row)})


def _pictures(section: DataSection) -> Path:
    """The folder that picture names are relative to: that of the shards, where the data are shards."""
    return root_of(section.file) if section.format == "visrl" and is_sharded(section.file) else section.pictures


def _usable(section: DataSection, rows: Sequence[Row], placement: Placement[Row]) -> list[Row]:
    """The rows whose pictures are there and whose boxes lie in them, up to ``limit``; says how many were left out and why."""
    missing = missing_pictures(rows, _pictures(section))
    gone = set(missing.names)
    usable = [row for row in rows if row.picture not in gone]
    rest = iter(usable)
    kept = list(islice(placement.kept(rest), section.limit))
    placement.check(rest)
    said = reasons(placement.left_out, len(rows) - len(usable), missing)
    if not kept:
        hint = "are data.path and data.pictures right?"
        raise UsageError(f"{section.path} has no usable row: {said or 'it is empty'}", hint)
    if said:
        print(f"{section.path}: left out: {said}", file=sys.stderr)
    _unique(section, kept)
    return kept


def _unique(section: DataSection, rows: Sequence[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.id in seen:
            raise UsageError(
                f"{section.path}: id {row.id!r} occurs twice",
                "ids must be unique: errors and records name samples by them",
            )
        seen.add(row.id)
