"""Generating with caches: prefill once, branch into k samples, go on from an earlier turn. Plain tensors in, token ids out.

A batch of B conversations is prefilled left-padded, [B, S]. Its k samples are not B*k rows with k copies of the cache: they
are k *branches* of one row. A step feeds k tokens per row, [B, k], all at the same position, and a mask lets a branch see
its row's prefix and its own tokens only. The prefix's keys and values are stored and read once, whatever k is.

A later prompt that starts like an earlier one (same tokens, same pictures) takes over that part of the cache; what differs is
masked out or cut off, and only the rest is computed.

Departures from ``generate``: 1. the checkpoint's generation_config is not read, except for the tokens that end a text: its
repetition penalties and temperatures would change scores unseen. 2. a sample depends on (seed, key, step, index) alone.
"""

from __future__ import annotations

import copy
import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from visrl.core.box_formats import BoxFormat
from visrl.core.boxes import Box
from visrl.policies.families.base import Chat, Family, Features, padded
from visrl.policies.hf.caches import PreallocatedLayer
from visrl.policies.protocol import Sampling

Signature = tuple[int | str, ...]


@dataclass(slots=True)
class Prefix:
    """What is known after reading B prompts.

    cache: keys and values of S slots. visible [B, S]: which slots belong to a row. next_position [B].
    logits [B, V]: behind the last token. axes: rotary axes of a position, 1 or 3.
    signatures: what has been read into each row; slots: where in the cache each of those tokens stands.
    """

    cache: Any
    visible: Tensor
    next_position: Tensor
    logits: Tensor
    axes: int
    signatures: list[Signature]
    slots: list[list[int]]


@dataclass(slots=True)
class Branch:
    """One text in the making."""

    rng: random.Random
    ids: list[int] = field(default_factory=list)
    done: bool = False
    broken: bool = False  # its logits were no numbers: what it says means nothing


def prefill(model: Any, family: Family, chats: Sequence[Chat], seen: Mapping[str, Features]) -> Prefix:
    """Read B prompts. ``seen``: features by picture digest."""
    width = max(len(chat.ids) for chat in chats)
    mask = padded([torch.ones(len(c.ids), dtype=torch.bool) for c in chats], width, 0, "left").to(model.device)
    cache = Cache(layer_class_to_replicate=PreallocatedLayer)
    positions = [family.positions(chat) for chat in chats]
    logits = _read(model, family, chats, seen, positions, mask, cache)
    return Prefix(
        cache,
        mask,
        _next(positions, model.device),
        logits,
        3 if positions[0].dim() == 2 else 1,
        [chat.signature for chat in chats],
        [list(range(width - len(chat.ids), width)) for chat in chats],
    )


def resume(
    model: Any,
    family: Family,
    chats: Sequence[Chat],
    seen: Mapping[str, Features],
    earlier: Prefix,
    rows: Sequence[int],
    shared: Sequence[int],
) -> Prefix:
    """Read B prompts whose first ``shared[i]`` tokens are those of row ``rows[i]`` of an earlier prefix."""
    places = [earlier.slots[r][:n] for r, n in zip(rows, shared, strict=True)]
    kept = max(place[-1] for place in places) + 1
    cache = _select(earlier.cache, rows, kept)
    before = torch.zeros(len(chats), kept, dtype=torch.bool)
    for row, place in enumerate(places):
        before[row, place] = True
    tails = [_tail(chat, n) for chat, n in zip(chats, shared, strict=True)]
    width = max(len(tail.ids) for tail in tails)
    mask = padded([torch.ones(len(t.ids), dtype=torch.bool) for t in tails], width, 0, "left").to(model.device)
    positions = [family.positions(chat)[..., n:] for chat, n in zip(chats, shared, strict=True)]
    visible = torch.cat([before.to(mask.device), mask], dim=1)
    logits = _read(model, family, tails, seen, positions, visible, cache)
    end = kept + width
    slots = [[*place, *range(end - len(tail.ids), end)] for place, tail in zip(places, tails, strict=True)]
    signatures = [chat.signature for chat in chats]
    return Prefix(cache, visible, _next(positions, model.device), logits, earlier.axes, signatures, slots)


def _tail(chat: Chat, shared: int) -> Chat:
    later = [(p, s - shared) for p, s in zip(chat.pictures, chat.starts, strict=True) if s >= shared]
    return Chat(chat.ids[shared:], chat.loss_mask[shared:], tuple(p for p, _ in later), tuple(s for _, s in later))


def _select(cache: Any, rows: Sequence[int], kept: int) -> Any:
    """A cache of those rows and the first ``kept`` slots; the original stays as it is."""
    out = copy.copy(cache)
    out.layers = [layer.forked() for layer in cache.layers]
    out.crop(min(0, kept - cache.get_seq_length()))
    if list(rows) != list(range(out.layers[0].keys.shape[0])):
        out.batch_select_indices(torch.tensor(list(rows), device=out.layers[0].keys.device))
    return out


def _read(
    model: Any,
    family: Family,
    chats: Sequence[Chat],
    seen: Mapping[str, Features],
    positions: Sequence[Tensor],
    visible: Tensor,
    cache: Any,
) -> Tensor:
    """One forward pass over left-padded tokens behind whatever is in the cache; logits [B, V] of the last token."""
    width = max(len(chat.ids) for chat in chats)
    ids = padded([torch.tensor(chat.ids) for chat in chats], width, family.tokenizer.pad_token_id or 0, "left")
    extra = {key: value.to(model.device) for key, value in family.token_kwargs(chats, width, "left").items()}
    output = model(
        input_ids=ids.to(model.device),
        attention_mask=visible.long(),
        position_ids=_axes_first(padded(positions, width, 0, "left")).to(model.device),
        use_cache=True,
        logits_to_keep=1,
        **{_cache_word(model): cache},
        **family.vision_kwargs([[seen[p.digest] for p in chat.pictures] for chat in chats]),
        **extra,
    )
    return output.logits[:, -1]  # type: ignore[no-any-return]


def _cache_word(model: Any) -> str:
    """What the model's forward calls its cache: transformers 5.24 renamed it, remote code has the old name."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # below an adapter
    return "cache" if "cache" in inspect.signature(inner.forward).parameters else "past_key_values"


def _axes_first(positions: Tensor) -> Tensor:
    return positions.transpose(0, 1) if positions.dim() == 3 else positions  # [B, 3, T] -> [3, B, T]


def _next(positions: Sequence[Tensor], device: Any) -> Tensor:
    return torch.tensor([int(p.max()) + 1 for p in positions], device=device)


def sliding_window(model: Any) -> int | None:
    """The attention window of the language model in tokens, if it has one in use."""
    config = model.config.get_text_config()
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return getattr(config, "sliding_window", None)


def decode(
    model: Any,
    family: Family,
    chats: Sequence[Chat],
    prefix: Prefix,
    sampling: Sampling,
    keys: Sequence[str],
    ended: Callable[[list[int]], bool],
) -> list[list[Branch]]:
    """``sampling.n`` texts per row, in step. ``keys``: what each row's randomness hangs on. ``ended``: is this text over?

    Afterwards the prefix holds, for n = 1, the tokens that were generated too; for n > 1 the prompts alone.
    """
    rows = [[Branch(random.Random(f"{sampling.seed}:{key}:{i}")) for i in range(sampling.n)] for key in keys]
    if sampling.n > 1 and beyond_window(model, prefix.visible.shape[1] + sampling.n * sampling.max_tokens):
        each = [row for row in range(len(rows)) for _ in range(sampling.n)]  # a branch is a row of its own
        alone = [[branch] for row in rows for branch in row]
        _decode(model, family, [chats[row] for row in each], _rows_of(prefix, each), sampling, alone, ended)
    else:
        _decode(model, family, chats, prefix, sampling, rows, ended)
    return rows


def beyond_window(model: Any, slots: int) -> bool:
    """Whether a layer's window is shorter: it then needs a mask of its own, which transformers makes of a mask [B, S]."""
    window = sliding_window(model)
    return window is not None and slots > window


def _rows_of(prefix: Prefix, rows: Sequence[int]) -> Prefix:
    """A copy that holds these rows, in this order; a row may occur more than once."""
    where = torch.tensor(list(rows), device=prefix.visible.device)
    cache = _select(prefix.cache, rows, prefix.visible.shape[1])
    position = prefix.next_position[where.to(prefix.next_position.device)]
    logits = prefix.logits[where.to(prefix.logits.device)]
    marks = [prefix.signatures[row] for row in rows]
    return Prefix(
        cache, prefix.visible[where], position, logits, prefix.axes, marks, [prefix.slots[row] for row in rows]
    )


def _decode(
    model: Any,
    family: Family,
    chats: Sequence[Chat],
    prefix: Prefix,
    sampling: Sampling,
    rows: list[list[Branch]],
    ended: Callable[[list[int]], bool],
) -> None:
    """Write the branches of ``rows``."""
    read, n = prefix.cache.get_seq_length(), len(rows[0])
    mask = _masks(model, prefix.visible, n, sampling.max_tokens)
    logits = prefix.logits[:, None].expand(-1, n, -1)
    broken = _broken(logits)
    for step in range(sampling.max_tokens):
        _append(rows, sample_next_token(_sayable(logits, sampling, family), sampling, rows), family, ended)
        if step + 1 == sampling.max_tokens or all(b.done for row in rows for b in row):
            break
        logits = _step(model, family, chats, prefix, rows, mask[..., : read + n * (step + 1)], step)
        broken = broken | _broken(logits)
    for row, marks in zip(rows, broken.tolist(), strict=True):
        for one, mark in zip(row, marks, strict=True):
            one.broken = mark
    _close(prefix, rows, read)


def _broken(logits: Tensor) -> Tensor:
    """[B, n]: whether a branch's logits [B, n, V] are NaN. A hidden state that is makes all of them so: one is looked at."""
    return logits[..., 0].isnan()


def _sayable(logits: Tensor, sampling: Sampling, family: Family) -> Tensor:
    """Logits without the picture's placeholder: one that is drawn would stand for a picture that is not there."""
    if sampling.temperature <= 0 or family.image_token_id >= logits.shape[-1]:
        return logits
    banned = torch.tensor([family.image_token_id], device=logits.device)
    return logits.index_fill(-1, banned, -torch.inf)


def _append(
    rows: list[list[Branch]], chosen: list[list[int]], family: Family, ended: Callable[[list[int]], bool]
) -> None:
    for row, tokens in zip(rows, chosen, strict=True):
        for one, token in zip(row, tokens, strict=True):
            if not one.done:
                one.ids.append(token)
                one.done = token in family.end_ids or ended(one.ids)


def _step(
    model: Any, family: Family, chats: Sequence[Chat], prefix: Prefix, rows: list[list[Branch]], mask: Tensor, step: int
) -> Tensor:
    """Feed every branch its latest token; logits [B, n, V]. Branches that are over get a padding token no other one sees."""
    pad = family.tokenizer.pad_token_id or 0
    tokens = [[pad if b.done else b.ids[-1] for b in row] for row in rows]
    n = len(rows[0])
    positions = (prefix.next_position + step)[:, None].expand(-1, n)
    if prefix.axes > 1:
        positions = positions.expand(prefix.axes, -1, -1)
    output = model(
        input_ids=torch.tensor(tokens, device=model.device),
        attention_mask=mask,
        position_ids=positions,
        use_cache=True,
        **{_cache_word(model): prefix.cache},
        **{key: value.to(model.device) for key, value in family.step_kwargs(chats, n).items()},
    )
    return output.logits  # type: ignore[no-any-return]


def _masks(model: Any, visible: Tensor, n: int, steps: int) -> Tensor:
    """The last step's mask, which begins with that of every other: a branch's own view, or beyond a window [B, S + steps]."""
    if beyond_window(model, visible.shape[1] + n * steps):
        return torch.cat([visible, visible.new_ones(len(visible), steps)], dim=1).long()
    return _branch_mask(visible, n, steps, model.dtype)


def _branch_mask(visible: Tensor, n: int, steps: int, dtype: torch.dtype) -> Tensor:
    """[B, 1, n, S + n * steps], 0 where a branch may look and the lowest number where not."""
    own = torch.eye(n, dtype=torch.bool, device=visible.device).repeat(1, steps)  # slot S + n * step + i is branch i's
    allowed = torch.cat([visible[:, None, :].expand(-1, n, -1), own.expand(len(visible), -1, -1)], dim=2)
    return torch.zeros_like(allowed, dtype=dtype).masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def _close(prefix: Prefix, rows: list[list[Branch]], read: int) -> None:
    fed = prefix.cache.get_seq_length() - read
    if len(rows[0]) > 1:
        prefix.cache.crop(-fed) if fed else None
        return
    for i, row in enumerate(rows):
        ids = row[0].ids[:fed]
        prefix.signatures[i] = (*prefix.signatures[i], *ids)
        prefix.slots[i] += range(read, read + len(ids))


def sample_next_token(logits: Tensor, sampling: Sampling, rows: list[list[Branch]]) -> list[list[int]]:
    """The next token of each branch from logits [B, n, V]: the best one, or one drawn by the branch's own randomness.

    Temperature, then top-k, then top-p (the order of transformers' processors); then the token at which the cumulated
    probability, in the order of the vocabulary, passes a number drawn from [0, 1).
    """
    if sampling.temperature <= 0:
        return logits.argmax(-1).tolist()
    scores = logits.double() / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        lowest = scores.topk(sampling.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < lowest, -torch.inf)
    probabilities = scores.softmax(-1)
    if sampling.top_p < 1:
        ordered, where = probabilities.sort(dim=-1, descending=True, stable=True)
        beyond = ordered.cumsum(-1) - ordered >= sampling.top_p  # the token that passes top_p is kept
        probabilities = probabilities.scatter(-1, where, ordered.masked_fill(beyond, 0.0))
    total = probabilities.cumsum(-1)
    drawn = torch.tensor([[b.rng.random() for b in row] for row in rows], dtype=torch.double, device=logits.device)
    chosen = torch.searchsorted(total, (drawn.unsqueeze(-1) * total[..., -1:]), right=True).squeeze(-1)
    return chosen.clamp_max(logits.shape[-1] - 1).tolist()


def shared_prefixes(chats: Sequence[Chat]) -> tuple[list[Chat], list[int]]:
    """The distinct beginnings of some prompts, each up to the end of its first picture, and which one each prompt has."""
    cut = []
    for chat in chats:
        end = chat.starts[0] + len(chat.pictures[0].ids) if chat.pictures else 0
        cut.append(Chat(chat.ids[:end], chat.loss_mask[:end], chat.pictures[:1], chat.starts[:1]))
    distinct = {chat.signature: chat for chat in cut}
    order = {signature: i for i, signature in enumerate(distinct)}
    return list(distinct.values()), [order[chat.signature] for chat in cut]


def shared_length(chat: Chat, known: Signature) -> int:
    """How many first tokens of a prompt stand in a cache: never all of it, and never a part of a picture."""
    wanted = chat.signature
    length = 0
    for mine, theirs in zip(wanted[:-1], known, strict=False):
        if mine != theirs:
            break
        length += 1
    for seen, start in zip(chat.pictures, chat.starts, strict=True):
        if start < length < start + len(seen.ids):
            length = start
    return length


class OutputText:
    """Token ids -> text: without the tokens that structure a chat, but with those a box is written in, special or not."""

    def __init__(self, family: Family, box_format: BoxFormat) -> None:
        self.tokenizer = family.tokenizer
        self.ends = family.end_texts
        written = box_format.write(Box(1, 2, 3, 4), (8, 8))
        keep = set(self.tokenizer(written, add_special_tokens=False)["input_ids"])
        self.dropped = (set(self.tokenizer.all_special_ids) | {family.image_token_id}) - keep

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode([i for i in ids if i not in self.dropped], skip_special_tokens=False))

    def ender(self, sampling: Sampling) -> Callable[[Sequence[int]], bool]:
        """A test whether a text is over: an end text of the family, or a stop that counts, is in its last tokens."""
        tail = max(map(len, (*sampling.stop, *self.ends)), default=0) + 1

        def ended(ids: Sequence[int]) -> bool:
            last = self.text(ids[-tail:])
            if any(end in last for end in self.ends):
                return True
            return any(stop in last for stop in sampling.stop) and sampling.end_of(self.text(ids)) is not None

        return ended if sampling.stop or self.ends else lambda _: False

    def final(self, ids: Sequence[int], sampling: Sampling) -> str:
        """The text, cut behind the first stop that counts and before the first end text."""
        text = self.text(ids)
        for end in self.ends:
            text = text.partition(end)[0]
        return sampling.cut(text)
