"""Adapters: tokens equal the processor's, boxes survive the family's own frame, and the registry."""

import numpy as np
import pytest
import tiny_models as tiny
import torch
from PIL import Image
from tinies import FAMILIES, by_processor, draw, picture

from visrl.core.boxes import SQUARE, UNIT, Box
from visrl.core.chat_format import LayoutError
from visrl.core.types import Picture, Turn, Unparsed
from visrl.errors import UsageError
from visrl.policies import families
from visrl.policies.families import base
from visrl.policies.families.base import Family
from visrl.policies.families.llava import expand2square
from visrl.policies.protocol import Request, Sampling

SHAPES = [(640, 480), (480, 640), (512, 512)]
BOX = Box(101, 67, 303, 211)


def conversation(first=(90, 50), second=(40, 44)):
    return (
        Turn("user", (picture(*first, 1), "\nwhat letter is on the red circle ?")),
        Turn("assistant", ("[0.1, 0.2, 0.3, 0.4]",)),
        Turn("user", (picture(*second, 2), "\nAnswer the question")),
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_and_pixels_are_those_of_the_processor(name, policies):
    family = policies(name).family
    rendered = family.render(conversation())
    chat = family.chat(rendered, [family.encode_image(p.open()) for p in rendered.pictures])
    theirs = by_processor(family, conversation())
    ours = family.collate([chat])
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    for key in set(theirs) - {"attention_mask"}:
        assert torch.equal(ours[key].to(theirs[key].dtype).reshape(theirs[key].shape), theirs[key]), key


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_trained_is_the_reply_and_its_end(name, policies):
    family = policies(name).family
    rendered = family.render(conversation())
    chat = family.chat(rendered, [family.encode_image(p.open()) for p in rendered.pictures])
    trained = family.tokenizer.decode([i for i, t in zip(chat.ids, chat.loss_mask, strict=True) if t])
    assert trained.removeprefix(" ") == "[0.1, 0.2, 0.3, 0.4]" + family.layout.assistant_end
    longer = chat.continued(family.end_of_reply())
    assert longer.loss_mask[-1] and len(longer.ids) == len(chat.ids) + len(family.end_of_reply())
    labels = family.collate([longer])["labels"][0].tolist()
    assert [i for i in labels if i != -100] == [i for i, t in zip(longer.ids, longer.loss_mask, strict=True) if t]


@pytest.mark.parametrize("name", FAMILIES)
def test_padding_on_either_side_keeps_every_token_in_place(name, policies):
    family = policies(name).family
    chats = []
    for turns in (conversation(), conversation()[:1]):
        rendered = family.render(turns)
        chats.append(family.chat(rendered, [family.encode_image(p.open()) for p in rendered.pictures]))
    for side in ("left", "right"):
        batch = family.collate(chats, side)
        for row, chat in enumerate(chats):
            alone = family.collate([chat])
            mask = batch["attention_mask"][row].bool()
            for key in family.token_kwargs([chat], len(chat.ids), side):
                got = batch[key][row][mask]
                if key == "cross_attention_mask":  # a row with fewer pictures has blank ones behind
                    got = got[:, : len(chat.pictures)]
                assert torch.equal(got, alone[key][0]), (key, side)
            assert batch["input_ids"][row][mask].tolist() == list(chat.ids)


# 640x480, written by hand. Square: pad (640-480)/2 = 80 above, side 640: 101/640=.158 (67+80)/640=.230 303/640=.473 (211+80)/640=.455
SQUARE_TEXT = "[0.158, 0.230, 0.473, 0.455]"
# 0..1000: 101/640=.1578 67/480=.1396 303/640=.4734 211/480=.4396
NATIVE_TEXT = {
    "llava": SQUARE_TEXT,
    "llava_next": SQUARE_TEXT,
    "mllama": SQUARE_TEXT,
    "yi_vl": SQUARE_TEXT,
    "idefics3": SQUARE_TEXT,
    "smolvlm": SQUARE_TEXT,
    # 1024 bins, y first: 67/480*1024=142.9 101/640*1024=161.6 211/480*1024=450.1 303/640*1024=484.8
    "paligemma2": "<loc0143><loc0162><loc0450><loc0485>",
    "qwen2_vl": "<|box_start|>(158,140),(473,440)<|box_end|>",
    # at most 84*84 pixels in multiples of 28: 640x480 -> 84x56. 101*84/640=13.3 67*56/480=7.8 303*84/640=39.8 211*56/480=24.6
    "qwen2_5_vl": '{"bbox_2d": [13, 8, 40, 25]}',
    "qwen3_vl": '{"bbox_2d": [158, 140, 473, 440]}',
    "internvl": "<box>[[158, 140, 473, 440]]</box>",
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_box_in_the_family_s_own_words(name, policies):
    family = policies(name).family
    assert family.native.write(BOX, (640, 480)) == NATIVE_TEXT[name]
    assert family.box_format("paper").write(BOX, (640, 480)) == SQUARE_TEXT
    assert family.box_format(family.native.name) == family.native or callable(family.native.frame)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize("which", ["native", "paper"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_box_comes_back_within_half_a_grid_step(name, which, size, policies):
    family = policies(name).family
    fmt = family.box_format(which)
    back = fmt.parse(f"It is at {fmt.write(BOX, size)}.", size)
    assert not isinstance(back, Unparsed)
    step = 10 ** -getattr(fmt.syntax, "digits", 0)
    ux, uy = fmt.frame_for(size).unit(size)  # pixels of the original per unit
    for got, want, unit in zip(back.xyxy, BOX.xyxy, (ux, uy, ux, uy), strict=True):
        assert abs(got - want) <= 0.5 * step * unit + 1e-9


@pytest.mark.parametrize("size", SHAPES)
def test_qwen2_5_vl_measures_in_the_picture_its_processor_really_made(size, policies):
    family = policies("qwen2_5_vl").family
    _, rows, columns = family.encode_image(draw(*size)).pixels["image_grid_thw"][0].tolist()
    assert family.native.frame_for(size).extent == (columns * 14, rows * 14)


@pytest.mark.parametrize("size", SHAPES)
@pytest.mark.parametrize(("name", "frame"), [("llava", SQUARE), ("yi_vl", SQUARE), ("paligemma2", UNIT)])
def test_pixels_lie_where_the_frame_says(name, frame, size, policies):
    """A white rectangle, found again in the tensor the model gets, at the place its frame gives it (one of 32 cells)."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, (0, 0, 0))
    box = Box(0.2 * size[0], 0.3 * size[1], 0.7 * size[0], 0.9 * size[1])
    ImageDraw.Draw(image).rectangle(box.xyxy, fill=(255, 255, 255))
    pixels = policies(name).family.encode_image(image).pixels["pixel_values"][0, 0].numpy()  # [32, 32]
    ys, xs = np.nonzero(pixels > (pixels.max() + np.sort(np.unique(pixels.round(2)))[0]) / 2)
    found = (xs.min() / 32, ys.min() / 32, (xs.max() + 1) / 32, (ys.max() + 1) / 32)
    assert np.allclose(found, box.to(frame, size).xyxy, atol=1 / 32)


def test_the_pad_is_where_the_square_frame_puts_it():
    from PIL import Image

    white = Image.new("RGB", (101, 60), (255, 255, 255))
    square = np.asarray(expand2square(white, (122, 116, 104)))
    # (101 - 60) // 2 = 20 rows above, 21 below
    assert square.shape == (101, 101, 3)
    assert (
        (square[20:80] == 255).all()
        and tuple(square[19, 0]) == (122, 116, 104)
        and tuple(square[80, 0]) == (122, 116, 104)
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_question_that_holds_a_picture_mark_fails_its_sample(name, policies):
    family = policies(name).family
    with pytest.raises(LayoutError, match="picture mark"):
        family.render((Turn("user", (picture(40, 40), f"\nwhat does {family.image_token} mean?")),))


def test_picture_limit(policies, monkeypatch):
    family = policies("llava").family
    monkeypatch.setattr(type(family), "max_pictures", 1)
    with pytest.raises(LayoutError, match="takes 1 pictures, this has 2"):
        family.render(conversation())


def test_unknown_box_format_names_the_nearest(policies):
    with pytest.raises(UsageError, match="loc_1025") as caught:
        policies("paligemma2").family.box_format("loc_1025")
    assert "loc_1024" in caught.value.hint


class Config:
    def __init__(self, model_type, visrl_family=None):
        self.model_type, self.visrl_family = model_type, visrl_family


def test_visrl_family_goes_before_model_type():
    assert families.family_class(Config("llava")).name == "llava"
    assert families.family_class(Config("llava", "yi_vl")).name == "yi_vl"


def test_an_unknown_type_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="no family adapter for model type 'bert'") as caught:
        families.family_class(Config("bert"))
    assert "qwen2_5_vl" in caught.value.hint and "endpoint:" in caught.value.hint


def test_a_pixel_budget_is_set_used_and_recorded(tmp_path):
    """Qwen2.5-VL: 300x200 at sides of multiples of 28; 31,360 = 40 x 28²: scale (60,000/31,360)^½ = 1.383, 300/1.383 = 216.9 -> 7
    x 28 = 196, 200/1.383 = 144.6 -> 5 x 28 = 140 (both rounded down)."""
    from visrl.policies.hf.policy import HFPolicy

    folder = str(tiny.save("qwen2_5_vl", tmp_path / "m"))
    shown = Picture("p", lambda: Image.new("RGB", (300, 200)))
    asked = [Request("a", "box", (Turn("user", (shown, "\nwhere")),), (300, 200))]
    limited = HFPolicy.load(folder, max_pixels="31360", min_pixels="784")
    (output,) = limited.generate(asked, Sampling(max_tokens=2))
    assert output.seen_sizes == ((196, 140),)
    assert limited.describe()["pixels"] == {"min_pixels": 784, "max_pixels": 31360}
    plain = HFPolicy.load(folder)  # the checkpoint's own: at most 7,056 = 9 x 28²; 300x200 -> 84x56
    assert plain.generate(asked, Sampling(max_tokens=2))[0].seen_sizes == ((84, 56),)
    assert plain.describe()["pixels"] == {"min_pixels": 784, "max_pixels": 7056}
    # boxes are measured in the resized picture: half of the width is 98 of 196
    assert limited.box_format.write(Box(0, 0, 150, 200), (300, 200)) == '{"bbox_2d": [0, 0, 98, 140]}'


@pytest.mark.parametrize(
    ("name", "argument"), [("llava", "max_pixels"), ("mllama", "max_tiles"), ("internvl", "max_pixels")]
)
def test_a_limit_that_a_family_lacks_is_refused(name, argument, tmp_path):
    from visrl.policies.hf.policy import HFPolicy

    with pytest.raises(UsageError, match=f"{name} has no {argument}"):
        HFPolicy.load(str(tiny.save(name, tmp_path / "m")), **{argument: "4096"})


def test_fewer_tiles_are_fewer_tokens(tmp_path):
    from visrl.policies.hf.policy import HFPolicy

    folder = str(tiny.save("internvl", tmp_path / "m"))
    shown = Picture("p", lambda: Image.new("RGB", (96, 32)))  # three tiles side by side, and the whole picture
    asked = [Request("a", "box", (Turn("user", (shown, "\nwhere")),), (96, 32))]
    many, one = (HFPolicy.load(folder, **more) for more in ({}, {"max_tiles": "1"}))
    tokens = [p.generate(asked, Sampling(max_tokens=2))[0].prompt_tokens for p in (many, one)]
    assert tokens[0] > tokens[1] and one.describe()["pixels"] == {"min_tiles": 1, "max_tiles": 1}


def test_a_picture_is_named_by_its_pixels_and_read_once(monkeypatch):
    image, equal, other = (Image.new("RGB", (3, 2), colour) for colour in ("red", "red", "blue"))
    name = Family.digest(image)
    assert Family.digest(equal) == name != Family.digest(other)
    monkeypatch.setattr(Image.Image, "tobytes", None)  # calling it now would fail
    assert Family.digest(image) == name
    with pytest.raises(TypeError):
        Family.digest(Image.new("RGB", (3, 2), "red"))  # another object, maybe where a lost one was


def test_what_is_remembered_of_pictures_goes_with_them():
    known = len(base._DIGESTS)
    image = Image.new("RGB", (3, 2))
    Family.digest(image)
    assert len(base._DIGESTS) == known + 1
    del image
    assert len(base._DIGESTS) == known
