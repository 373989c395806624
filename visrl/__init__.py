"""visrl: evaluate and train vision-language models that look, then answer.

    import visrl

    run = visrl.evaluate("tiny", "world", limit=50)
    run.to_pandas()

docs/python.md has an example of each name. Import-light on purpose: lmms-eval imports entry points on every start, and
``visrl-eval --help`` must not load torch; what is used is imported when it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from visrl.api import EvaluatedRun, audit, compare, evaluate, load, parse_box, score
    from visrl.core.boxes import Box, iou
    from visrl.core.plugins import register

_PLACES = {
    **dict.fromkeys(("EvaluatedRun", "audit", "compare", "evaluate", "load", "parse_box", "score"), "visrl.api"),
    **dict.fromkeys(("Box", "iou"), "visrl.core.boxes"),
    "register": "visrl.core.plugins",
}

__all__ = [
    "Box",
    "EvaluatedRun",
    "__version__",
    "audit",
    "compare",
    "evaluate",
    "iou",
    "load",
    "parse_box",
    "register",
    "score",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'visrl' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
