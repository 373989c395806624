"""Entry point of ``lmms_eval.models``: with visrl installed, plain ``lmms-eval --model visrl --tasks visrl_refcoco_val`` works.

lmms-eval 0.7 finds models by entry point, but has none for tasks. So the entry point also wraps one method,
``TaskManager.initialize_tasks``, to look into our folder as well. VISRL_NO_LMMS_HOOK=1 turns that off;
``--include_path "$(visrl-eval ls --path)"`` does the same by hand. tests/test_plugin.py holds the contract per version.

This module is imported while ``lmms_eval.models`` is half imported, and whatever it raises drops every plugin with one
warning: nothing of lmms_eval, and nothing heavy, may be imported at its top.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

HOOK_OFF = "VISRL_NO_LMMS_HOOK"
_HOOKED = "lmms_eval.tasks"
_MARK = "_visrl_hook"


def task_folder() -> Path:
    """The folder of our lmms-eval task files (``visrl_*.yaml``), installed or editable."""
    spec = importlib.util.find_spec("visrl.tasks")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("visrl.tasks")
    return Path(next(iter(spec.submodule_search_locations)))


def manifests() -> list[Any]:
    """What lmms-eval registers (a list of ModelManifest), called once by it; also hooks its TaskManager."""
    from lmms_eval.models.registry_v2 import ModelManifest

    if not os.environ.get(HOOK_OFF):
        _hook()
    return [ModelManifest(model_id="visrl", chat_class_path="visrl.lmms.model.LookThenAnswer")]


def _hook() -> None:
    """Wrap TaskManager now if it is there, else as soon as its module has been imported."""
    module = sys.modules.get(_HOOKED)
    if module is not None and hasattr(module, "TaskManager"):
        add_our_folder(module.TaskManager)
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())


def add_our_folder(task_manager: type) -> None:
    """Let TaskManagers that look into lmms-eval's own folder look into ours too. Wraps once, however often it is called."""
    if hasattr(task_manager, _MARK):
        return
    original = task_manager.initialize_tasks  # type: ignore[attr-defined]  # the contract this module stands on

    @functools.wraps(original)
    def initialize_tasks(self: Any, include_path: Any = None, include_defaults: bool = True) -> Any:
        paths = [include_path] if isinstance(include_path, str) else list(include_path or [])
        if include_defaults and str(task_folder()) not in paths:
            paths.append(str(task_folder()))
        return original(self, include_path=paths or None, include_defaults=include_defaults)

    task_manager.initialize_tasks = initialize_tasks  # type: ignore[attr-defined]
    setattr(task_manager, _MARK, True)


class _AfterImport(importlib.abc.MetaPathFinder):
    """Finds ``lmms_eval.tasks`` as the others would, and wraps its TaskManager when it has run. Imports nothing by itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _HOOKED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def run_and_hook(module: ModuleType) -> None:
            run(module)
            add_our_folder(module.TaskManager)

        spec.loader.exec_module = run_and_hook  # type: ignore[method-assign]  # this loader serves this one module
        return spec
