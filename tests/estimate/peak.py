"""The most bytes that tensors hold at once while something runs, counted at every operation: allocations, not a formula."""

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """``known``: tensors that live already and are not counted. ``bytes``: the peak; ``live``: what is held now."""

    def __init__(self, known=()):
        super().__init__()
        self.known = {t.untyped_storage()._cdata for t in known}
        self.held, self.bytes, self.most = {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.known and (key not in self.held or self.held[key][0].expired()):
                    self.held[key] = (StorageWeakRef(storage), storage.nbytes())
                    self.most += storage.nbytes()
        if self.most > self.bytes:  # at most: what has gone since the last count is still in it
            self.most = self.live
            self.bytes = max(self.bytes, self.most)
        return out

    @property
    def live(self):
        self.held = {key: item for key, item in self.held.items() if not item[0].expired()}
        return sum(size for _, size in self.held.values())
