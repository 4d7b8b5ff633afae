"""What a checkpoint holds, believed only if it is of the kind that belongs there."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exp.faults import mistake_in
from exp.trust import Distrust

KINDS: dict[str, tuple[type, ...]] = {
    "state_dict": (dict,),
    "callbacks": (dict,),
    "class_names": (list, tuple),
    "epoch": (int,),
    "global_step": (int,),
    "loops": (dict,),
    "published": (str,),
    "optimizer_states": (list,),
    "lr_schedulers": (list,),
    "pytorch-lightning_version": (str,),
}
LONGEST_NAME = 1000
# Lightning's part that hands what a checkpoint holds to the module, the callbacks and the data.
RESTORING = "lightning.pytorch.trainer.connectors.checkpoint_connector"
LONGEST_REASON = 300


def check_contents(path: Path, content: dict[str, Any]) -> None:
    """Looks at every part of a checkpoint that has a place, before anything takes it.

    Args:
        path: the file, for messages.
        content: what is in it.

    Raises:
        Distrust: a part is of another kind.
    """
    if problem := _strange_part(content):
        raise Distrust(f"{path}: {problem}; it is damaged, or no checkpoint of exp's: take another")


def _strange_part(content: dict[str, Any]) -> str | None:
    for name, kinds in KINDS.items():
        value = content.get(name)
        if name in content and (not isinstance(value, kinds) or isinstance(value, bool)):
            return f"its '{name}' is a {type(value).__name__}, not a {kinds[0].__name__}"
    for name, value in (content.get("state_dict") or {}).items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            return f"its weights have a {type(value).__name__} under the name {name!r}"
    for name in content.get("class_names") or []:
        if not isinstance(name, str) or len(name) > LONGEST_NAME:
            return f"its names of classes have a {type(name).__name__} among them, or a text without end"
        if any(unicodedata.category(character) == "Cc" for character in name):
            return f"its names of classes have {name!r} among them, which commands the screen"
    return None


def misfit(error: BaseException) -> str | None:
    """What to say of an error that came while a checkpoint's content was handed on; None for any other."""
    reason = " ".join(str(error).split())
    if not isinstance(error, (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)):
        return None
    if isinstance(error, torch.OutOfMemoryError):
        return None
    path = None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__") == RESTORING:
            path = getattr(trace.tb_frame.f_locals.get("self"), "_ckpt_path", None) or path or "the checkpoint"
        trace = trace.tb_next
    if path is None:
        return None
    if mistake := mistake_in(error):
        return f"{path}: {mistake}"
    kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
    reason = f"{reason[:LONGEST_REASON]} ..." if len(reason) > LONGEST_REASON else reason
    return f"{path}: what it holds does not fit this command's config: {kind}{reason}"
