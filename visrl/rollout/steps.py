"""One look, step by step: open the picture, ask where to look, parse the box, cut the crop.

Evaluation, pair generation and training call these functions, so that all of them ask with one stop rule, read boxes alike
and cut the same pixels under the same name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from visrl.core.box_formats import BoxFormat
from visrl.core.boxes import Box, Size
from visrl.core.crops import CROPS, CropName, Region
from visrl.core.looking.points import read_point
from visrl.core.types import CoTSample, Picture, Unparsed
from visrl.errors import PictureError
from visrl.policies.protocol import Output, Policy, Request, Sampling
from visrl.rollout.retry import ask

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class PictureCache:
    """Pictures of one batch, each decoded once for all its samples and turns."""

    _images: dict[str, Image] = field(default_factory=dict)

    def picture(self, picture: Picture) -> Picture:
        """The same picture, whose pixels are kept once it has been opened."""
        return Picture(picture.ref, lambda: self._image(picture))

    def _image(self, picture: Picture) -> Image:
        if picture.ref not in self._images:
            self._images[picture.ref] = picture.open()
        return self._images[picture.ref]


def open_picture(sample: CoTSample, cache: PictureCache) -> tuple[Picture, Size]:
    """The sample's picture, decoded once, and its size (width, height) in pixels.

    Raises PictureError where there is none, it cannot be decoded, or it is not of the annotated size.
    """
    if sample.picture is None:
        raise PictureError("no picture was loaded for this sample")
    picture = cache.picture(sample.picture)
    size: Size = picture.open().size
    if sample.size is not None and size != tuple(sample.size):
        raise PictureError(f"{picture.ref} is {size}, the annotations say {tuple(sample.size)}")
    return picture, size


def ask_where(policy: Policy, requests: Sequence[Request], sampling: Sampling) -> list[Output]:
    """The box turn: an Output per request, in order, with the stop rule of the policy's box format.

    A box ends where its syntax ends: whatever a model would add is not read, and costs time. A thought or a quoted label does not
    end there. The answer turn begins like the box turn, so policies are told to keep what they computed.
    """
    box_format = policy.box_format
    asked = [replace(request, keep_cache=True) for request in requests]
    if stop := box_format.syntax.stop:
        sampling = replace(sampling, stop=(stop,), accept_stop=box_format.ends_with_box)
    return ask(policy, asked, sampling)


def parse_box(box_format: BoxFormat, text: str, size: Size | None, sample: CoTSample | None = None) -> Box | Unparsed:
    """The box of an output in pixels of the original picture, or why there is none. Where a sample asks where to click, a point
    will do, as an empty box.
    """
    if size is None:
        return Unparsed("the picture's size is unknown")
    found = box_format.parse(text, size)
    if isinstance(found, Unparsed) and sample is not None and sample.meta.get("pointing"):
        try:
            point = read_point(text, box_format.frame_for(size), size)
        except ValueError:  # a picture that the model's processor does not take, which the box has said
            return found
        return point if isinstance(point, Box) else found
    return found


def region_of(box: Box, size: Size, crop: CropName) -> Region:
    """What is cut out where a box (pixels of the original picture) looks: integer pixels x1, y1, x2, y2."""
    return CROPS[crop](box, size)


def crop_picture(picture: Picture, region: Region) -> Picture:
    """The second picture: ``region`` of a picture, cut when it is opened; its name says where it was cut."""
    return Picture(f"{picture.ref}#xyxy={','.join(map(str, region))}", lambda: picture.open().crop(region))
