"""Which weights a folder holds, by their bytes."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


def weights_hash(folder: Path) -> str:
    """sha256 over the names and bytes of a folder's safetensors files, in the order of their names; read again only where a size
    or a time of change differs.
    """
    files = [(file, file.stat()) for file in sorted(folder.glob("*.safetensors"))]
    return _bytes_hash(tuple((str(file.resolve()), file.name, stat.st_size, stat.st_mtime_ns) for file, stat in files))


@functools.lru_cache(maxsize=64)
def _bytes_hash(files: tuple[tuple[str, str, int, int], ...]) -> str:
    total = hashlib.sha256()
    for path, name, *_ in files:
        total.update(name.encode())
        with Path(path).open("rb") as stream:
            while block := stream.read(1 << 22):
                total.update(block)
    return total.hexdigest()
