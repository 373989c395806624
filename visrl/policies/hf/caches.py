"""Keys and values with room behind them."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """A layer of keys and values with room behind them: a step writes into the room instead of copying all that went before.

    ``keys`` and ``values`` [B, heads, slots, width] are the filled part of the two stores. A layer copied with
    :meth:`forked` shares what is filled and gets stores of its own when it grows.
    """

    keys: Tensor
    values: Tensor
    _stores: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append, and return everything."""
        old = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = old + key_states.shape[-2]
        if self._stores is None or self._stores[0].shape[-2] < new:
            self._stores = (
                self._store(self.keys, key_states, old, new),
                self._store(self.values, value_states, old, new),
            )
        for store, states in zip(self._stores, (key_states, value_states), strict=True):
            store[..., old:new, :] = states
        self.keys, self.values = (store[..., :new, :] for store in self._stores)
        return self.keys, self.values

    @staticmethod
    def _store(filled: Tensor, states: Tensor, old: int, new: int) -> Tensor:
        """A store for ``new`` slots and an eighth more, holding the ``old`` ones."""
        store = states.new_empty(*states.shape[:-2], new + max(32, new // 8), states.shape[-1])
        if old:
            store[..., :old, :] = filled
        return store

    def forked(self) -> PreallocatedLayer:
        out = copy.copy(self)
        out._stores = None
        return out
