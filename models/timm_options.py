"""Networks of timm's by their names, and which of the options that they are given they do not take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import nn

from models.mistakes import NotTaken

_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")


def create(name: str, options: Mapping[str, Any], **arguments: Any) -> nn.Module:
    """A network of timm's, or one registered with it.

    Args:
        name: timm's name of it.
        options: Arguments that not every network takes.
        arguments: Those that every network takes.

    Raises:
        NotTaken: It does not take some of the options.
    """
    try:
        network: nn.Module = timm.create_model(name, **arguments, **options)
    except TypeError as error:
        if refused := _refused(name, dict(options), error, arguments):
            raise NotTaken(name, refused) from error
        raise
    return network


def _refused(name: str, options: dict[str, Any], error: TypeError, arguments: Mapping[str, Any]) -> list[str]:
    """The options that a network does not take, of which an error names the first alone."""
    refused: list[str] = []
    while (match := _UNEXPECTED.search(str(error))) and match[1] in options:
        refused.append(match[1])
        del options[match[1]]
        try:
            with torch.device("meta"):
                timm.create_model(name, **{**arguments, "pretrained": False}, **options)
        except TypeError as next_one:
            error = next_one
        except Exception:
            # What is left is of another kind, and is said once these are gone.
            break
        else:
            break
    return refused
