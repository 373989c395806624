"""The registry of families: ``config.visrl_family`` if a checkpoint names one, else ``config.model_type``.

Third parties add theirs under the entry-point group ``visrl.families`` (visrl/core/plugins.py): name = any value the config
may hold, object = a :class:`visrl.policies.families.base.Family` subclass. A name of ours cannot be taken over.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from visrl.core.plugins import KINDS, Registry
from visrl.errors import UsageError

if TYPE_CHECKING:
    from visrl.policies.families.base import Family

_HERE = "visrl.policies.families."
_OURS: dict[str, str] = {
    "llava": "llava:Llava",
    "world": "world:World",
    "yi_vl": "yi_vl:YiVL",
    "llava_next": "llava_next:LlavaNext",
    "mllama": "mllama:Mllama",
    "paligemma": "paligemma:PaliGemma",
    "qwen2_vl": "qwen:Qwen2VL",
    "qwen2_5_vl": "qwen:Qwen25VL",
    "qwen3_vl": "qwen:Qwen3VL",
    "internvl": "internvl:InternVL",
    "idefics3": "idefics:Idefics3",
    "smolvlm": "idefics:SmolVLM",
}


def _adapter(name: str, found: Any) -> type[Family]:
    from visrl.policies.families.base import Family

    if not (isinstance(found, type) and issubclass(found, Family)):
        raise ValueError("not a subclass of visrl.policies.families.base.Family")
    return found


FAMILIES: Registry[type[Family]] = Registry("family", {}, _adapter, reserved=lambda: _OURS)
"""Third parties'."""


def known_families() -> list[str]:
    """Names a config may hold, ours and installed third parties'."""
    return sorted({*_OURS, *FAMILIES.names()})


def family_class(config: Any) -> type[Family]:
    """The adapter of a model's config: of its ``visrl_family`` where it names one. Raises UsageError where there is none."""
    named, model_type = getattr(config, "visrl_family", None), getattr(config, "model_type", None)
    name = named or model_type
    if name in _OURS:
        module, _, attribute = _OURS[name].partition(":")
        return getattr(import_module(_HERE + module), attribute)  # type: ignore[no-any-return]
    if isinstance(name, str) and name in FAMILIES:
        return FAMILIES[name]
    raise UsageError(
        f"no family adapter for {f'visrl_family {named!r}' if named else f'model type {model_type!r}'}",
        f"known: {', '.join(known_families())}; add one by an entry point in the group {KINDS['family']}, or serve the model"
        " and use --model endpoint:URL#NAME",
    )


def family_for(config: Any, processor: Any) -> Family:
    """The adapter of a loaded model. Raises UsageError where there is none."""
    return family_class(config)(config, processor)
