"""Draw the pictures of docs/protocols-and-frames.md: ``python docs/img/draw.py``. Every number in them is computed by visrl."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from visrl.core.box_formats import FORMATS
from visrl.core.boxes import PIXEL, SQUARE, UNIT, Box, Frame, grid
from visrl.core.crops import CROPS
from visrl.core.prompts import P_BOX, P_DETAIL, P_RL, PROTOCOLS, answer_turns, box_turns
from visrl.core.types import CoTSample, Picture

HERE = Path(__file__).parent
SIZE = (600, 400)
BOX = Box(330.0, 60.0, 510.0, 180.0)
BLUE, ORANGE, GREY, INK = "#0072b2", "#d55e00", "#8a8f98", "#1d2126"


def svg(width: int, height: int, parts: list[str], title: str) -> str:
    """A drawing with its own white paper, so that it reads on dark pages too."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img"'
    font = 'font-family="system-ui, DejaVu Sans, sans-serif" font-size="14"'
    body = "\n".join([f"<title>{escape(title)}</title>", rect(0, 0, width, height, fill="#fff"), *parts])
    return f"{head} {font}>\n{body}\n</svg>\n"


def rect(x: float, y: float, w: float, h: float, *, fill: str = "none", stroke: str = "none", more: str = "") -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" fill="{fill}" stroke="{stroke}" {more}/>'


def text(x: float, y: float, words: str, *, fill: str = INK, more: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" fill="{fill}" {more}>{escape(words)}</text>'


def scene(x: float, y: float, scale: float) -> list[str]:
    """A 600 x 400 picture: a wall, a floor, a shelf and a sign."""
    s = scale
    return [
        rect(x, y, 600 * s, 400 * s, fill="#dfe7ee"),
        rect(x, y + 290 * s, 600 * s, 110 * s, fill="#c9b79c"),
        rect(x + 60 * s, y + 150 * s, 150 * s, 170 * s, fill="#9c7f5c"),
        rect(x + 330 * s, y + 60 * s, 180 * s, 120 * s, fill="#f4d35e", stroke=INK),
        f'<text x="{x + 420 * s:g}" y="{y + 133 * s:g}" font-size="{46 * s:g}" text-anchor="middle" fill="{INK}">OPEN</text>',
    ]


def outlined(box: Box, x: float, y: float, scale: float, colour: str, dash: str = "") -> str:
    x1, y1, x2, y2 = (value * scale for value in box.xyxy)
    return rect(x + x1, y + y1, x2 - x1, y2 - y1, stroke=colour, more=f'stroke-width="3" stroke-dasharray="{dash}"')


def numbers(box: Box) -> str:
    """Three decimals for fractions, none for pixels and grids."""
    digits = 3 if max(box.xyxy) <= 1.0 else 0
    return "[" + ", ".join(f"{value:.{digits}f}" for value in box.xyxy) + "]"


def frames() -> str:
    """One box, four ways to write it."""
    scale = 0.5
    side = 600 * scale
    parts = [rect(30, 30, side, side, fill="#f1efe9", stroke=GREY, more='stroke-dasharray="5 4"')]
    parts += scene(30, 30 + 100 * scale, scale)
    parts.append(outlined(BOX, 30, 30 + 100 * scale, scale, BLUE))
    parts.append(text(36, 48, "pad: 100 px above and below", fill="#565d66"))
    rows: list[tuple[str, Frame, str]] = [
        ("pixel", PIXEL, "pixels of the original picture; all scoring happens here"),
        ("unit", UNIT, "x / 600, y / 400"),
        ("square", SQUARE, "padded to a square first: x / 600, (y + 100) / 600"),
        ("grid1000", grid(1000), "whole numbers from 0 to 1000 over the picture"),
    ]
    for i, (name, frame, about) in enumerate(rows):
        y = 60 + 72 * i
        parts.append(text(360, y, name, more='font-weight="700"'))
        parts.append(text(450, y, numbers(BOX.to(frame, SIZE)), more='font-family="monospace"', fill=BLUE))
        parts.append(text(360, y + 22, about, fill="#565d66"))
    return svg(800, 360, parts, "One box of a 600 x 400 picture in four frames")


def crops() -> str:
    """What each crop cuts out for the same box."""
    parts = []
    small = Box(360.0, 100.0, 420.0, 140.0)
    for i, (name, cut) in enumerate(CROPS.items()):
        x = 20 + 260 * i
        region = cut(small, SIZE)
        parts += scene(x, 40, 0.4)
        parts.append(outlined(small, x, 40, 0.4, BLUE))
        parts.append(outlined(Box(*map(float, region)), x, 40, 0.4, ORANGE, "7 4"))
        parts.append(text(x, 28, name, more='font-weight="700"'))
        parts.append(text(x, 222, " ".join(map(str, region)), more='font-family="monospace"', fill=ORANGE))
    parts.append(
        text(20, 250, "solid: the box · dashed: what is cut out and shown as the second picture", fill="#565d66")
    )
    return svg(800, 268, parts, "The three crops of one small box")


_SHORT = {P_RL: "⟨P_RL⟩", P_BOX: " ⟨P_BOX⟩", P_BOX.strip(): "⟨P_BOX⟩", P_DETAIL: "⟨P_DETAIL⟩ "}


def lanes() -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """(protocol, [(role, words)]) as visrl/core/prompts.py makes them, with the model's replies between."""
    sample = CoTSample("1", "t", "qa", "What does the sign say?", size=SIZE)
    picture, crop = Picture("p", _never), Picture("c", _never)
    box_text = FORMATS["padded_square_3dp"].write(BOX, SIZE)
    for name, protocol in PROTOCOLS.items():
        lines: list[tuple[str, str]] = []
        if protocol.looks:
            lines += [(t.role, t.text("▣")) for t in box_turns(protocol, sample, picture)]
            lines += [("reply", box_text), ("", "")]
        for turn in answer_turns(protocol, sample, picture, crop if protocol.looks else None, box_text):
            words = "".join(part if isinstance(part, str) else ("▣" if part.ref == "p" else "◳") for part in turn.parts)
            lines.append((turn.role, words))
        yield name, [*lines, ("reply", "OPEN")]


def _never() -> None:
    raise AssertionError("nobody looks at a drawing")


def protocols() -> str:
    """The conversations of the four protocols, as the prompts are."""
    parts, y = [], 34
    for name, lines in lanes():
        parts.append(text(20, y, name, more='font-weight="700" font-size="16"'))
        y += 10
        for role, words in lines:
            for long, short in _SHORT.items():
                words = words.replace(long, short)
            if not role:
                parts.append(text(40, y + 16, "the box is parsed, the crop is cut; a new request:", fill="#565d66"))
                y += 28
                continue
            colour = ORANGE if role == "reply" else GREY if role == "assistant" else BLUE
            parts.append(rect(40, y, 700, 26, fill="#f6f5f1", stroke=colour))
            parts.append(text(48, y + 18, role, fill=colour))
            parts.append(text(130, y + 18, words.replace("\n", " ⏎ "), more='font-family="monospace" font-size="12.5"'))
            y += 31
        y += 34
    parts.append(
        text(
            20,
            y,
            "▣ the picture · ◳ the crop · ⏎ a line break · ⟨…⟩ the constants of visrl/core/prompts.py",
            fill="#565d66",
        )
    )
    return svg(780, y + 20, parts, "The turns of the four protocols")


def drawings() -> dict[str, str]:
    """File name -> SVG."""
    return {"frames.svg": frames(), "crops.svg": crops(), "protocols.svg": protocols()}


if __name__ == "__main__":
    for name, drawing in drawings().items():
        (HERE / name).write_text(drawing, encoding="utf-8")
