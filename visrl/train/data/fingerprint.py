"""Hashes of training rows in memory: which rows, in which order, and what is asked and said in them.

Pictures count by name: their bytes are looked at when they are decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from visrl.core.prompts import ProtocolName
from visrl.core.types import CoTSample
from visrl.train.config.protocols import identity
from visrl.train.data.candidates import Candidate, Demonstration, Preference


def preferences_hash(pairs: Iterable[Preference], *settings: Any) -> str:
    """sha256 of every pair in order; settings: how they are put to the model, where that counts, too."""
    digest = hashlib.sha256(repr(settings).encode())
    for pair in pairs:
        digest.update(repr((*_asked(pair.sample, pair.protocol), *_said(pair.chosen))).encode())
        digest.update(repr(_said(pair.rejected)).encode())
    return digest.hexdigest()


def demonstrations_hash(rows: Iterable[Demonstration]) -> str:
    """sha256 of every chain in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(repr((*_asked(row.sample, row.protocol), *_said(row.chain))).encode())
    return digest.hexdigest()


def questions_hash(samples: Iterable[CoTSample]) -> str:
    """sha256 of every question in order, with its true box and its standard answers."""
    digest = hashlib.sha256()
    for sample in samples:
        box = sample.box and sample.box.xyxy
        several = ([box.xyxy for box in sample.boxes],) if sample.boxes else ()
        digest.update(repr((*_put(sample), box, sample.answers, *several)).encode())
    return digest.hexdigest()


def _asked(sample: CoTSample, protocol: ProtocolName) -> tuple[Any, ...]:
    *words, picture = _put(sample)
    return *words, identity(protocol), picture


def _put(sample: CoTSample) -> tuple[Any, ...]:
    return sample.id, sample.question, sample.instruction, sample.kind, sample.picture and sample.picture.ref


def _said(chain: Candidate) -> tuple[Any, ...]:
    one = chain.box and chain.box.xyxy, chain.box_text, chain.answer
    if chain.looks is None and chain.answer_text is None:
        return one
    looks = [(look.box and look.box.xyxy, look.text) for look in chain.looks or ()]
    return *one, chain.looks and looks, chain.answer_text
