"""The paper's models and Qwen3-VL at their real width: tokens by hand, labels, and the memory of a training step against its estimate.

Opt-in (``tox -e shapes``): real vocabularies are fetched (fetch.py), and every step takes a minute and up to 8 GB. ``-s`` prints the
table of docs/estimating.md.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

if "VISRL_TOKENIZERS" not in os.environ:
    pytest.skip("tox -e shapes: needs real vocabularies", allow_module_level=True)

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from real_shapes import SHAPES  # noqa: E402

from visrl.core.boxes import Box  # noqa: E402
from visrl.core.types import CoTSample, Picture  # noqa: E402
from visrl.policies.families import family_class  # noqa: E402
from visrl.train.common.encoding import ConversationEncoder  # noqa: E402
from visrl.train.data.candidates import Candidate, Demonstration  # noqa: E402
from visrl.train.sft.collator import SFTCollator  # noqa: E402

PICTURE_TOKENS = {  # of 640 x 480
    "llava": 576,  # 336 / 14 = 24 a side
    # best of the grids: 672 x 672, at scale 1.05 all of the picture fits; 48 x 48 patches, of which 48 x 36 hold it; a mark behind
    # each of 36 rows, and the whole picture: 36 * 49 + 576
    "llava_next": 2340,
    "mllama": 1,  # pictures are looked at, not read
    "paligemma2": 1024,  # 448 / 14 = 32 a side
    "yi_vl": 1024,
    "qwen2_5_vl": 23 * 17,  # 644 x 476 in squares of 28 (640 / 28 = 22.9, 480 / 28 = 17.1)
    "qwen3_vl": 20 * 15,  # squares of 32
}


@pytest.fixture(scope="module")
def families():
    built = {}

    def family(name):
        if name not in built:
            processor, config = SHAPES[name]()
            built[name] = family_class(config)(config, processor)
        return built[name]

    return family


def picture():
    return Image.new("RGB", (640, 480), (90, 120, 60))


@pytest.mark.parametrize("name", SHAPES)
def test_picture_tokens(name, families):
    family = families(name)
    assert family.encode_image(picture()).ids.count(family.image_token_id) == PICTURE_TOKENS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_labels_decode_to_exactly_box_and_answer(name, families):
    """On a square of 640 with 80 above: y 67 -> 147/640 = .230, 211 -> 291/640 = .455; x 101 -> .158, 303 -> .473."""
    family = families(name)
    image = picture()
    sample = CoTSample("a", "t", "qa", "What is written on the sign?", Picture("p", lambda: image), image.size)
    chain = Demonstration(sample, "visrl_train", Candidate(Box(101, 67, 303, 211), answer="Main Street 12"))
    encoder = ConversationEncoder(family, family.box_format("paper"))
    collator = SFTCollator([(chain, 0), (chain, 1)], encoder)
    texts = []
    for row in (0, 1):
        chat = collator.chat(row)
        said = family.tokenizer.decode([i for i, kept in zip(chat.ids, chat.loss_mask, strict=True) if kept])
        texts.append(
            said.removesuffix(family.layout.assistant_end.rstrip()).removesuffix(family.layout.assistant_end).strip()
        )
    assert texts == ["[0.158, 0.230, 0.473, 0.455]", "Main Street 12"]


@pytest.mark.parametrize("name", SHAPES)
def test_memory_of_a_step(name, tmp_path):
    """SFT with LoRA in bfloat16 and checkpointing, as the recipes have it: what the process grew by, and what torch held."""
    paths = os.pathsep.join(str(p) for p in (HERE, HERE.parent, HERE.parent / "estimate"))
    environment = {**os.environ, "PYTHONPATH": paths, "MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, HERE / "step.py", name, tmp_path], env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(done.stdout.strip().splitlines()[-1])
    giga = {key: value / 1e9 for key, value in seen.items()}
    print(
        f"| {name} | {giga['weights']:.2f} | {giga['estimated']:.2f} | {giga['counted']:.2f} ({seen['estimated'] / seen['counted'] - 1:+.0%}) | "
        f"{giga['resident']:.2f} ({seen['estimated'] / seen['resident'] - 1:+.0%}) |"
    )
    assert seen["estimated_weights"] == seen["weights"]
    assert seen["estimated"] == pytest.approx(seen["counted"], rel=0.15)
    assert seen["estimated"] == pytest.approx(seen["resident"], rel=0.15)
