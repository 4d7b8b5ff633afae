"""What trains beside an ICD student <-> our names: the decoder with what asks it, and the student's projection.

The published file keeps it under `teacher.` and `distillers.0.`; the frozen detector is not in it. Of the student's own
decoder only the projection of values is ever used.

Reference: "Instance-Conditional Knowledge Distillation for Object Detection", arXiv 2110.12724; layout of
MegEngine/ICD at acf27269, PyTorch release.
"""

from __future__ import annotations

import re

import torch

from models.official.layout import State

_LAYERS = {"matt": "attention", "linear_in": "linear1", "linear_out": "linear2", "norm1": "norm1", "norm2": "norm2"}
_TEACHER, _STUDENT = "teacher.", "distillers.0.attention_module."


def decoder_of(state: State) -> State:
    """A decoder of the published code under our names.

    Args:
        state: Names begin with `matt.`; with a number behind it where there are layers.
    """
    found = {}
    for name, value in state.items():
        if match := re.fullmatch(r"matt\.(\d+)\.(\w+)\.(.+)", name):
            layer, part, rest = match.groups()
            part = "attention.position" if part == "pos_projector" else _LAYERS[part]
            found[f"layers.{layer}.{part}.{rest}"] = value
        else:
            rest = name.removeprefix("matt.").replace("pos_projector", "position")
            found[f"layers.0.{rest}"] = value
    return found


def projections_of(state: State, position_on_values: bool = False) -> State:
    """What of a student's decoder is used: the rows of values of each joint projection.

    Args:
        state: Names begin with `matt.`.
        position_on_values: Whether positions are on the values, and projected with them.
    """
    found = {}
    for name, value in decoder_of(state).items():
        layer = name.split(".")[1]
        if name.endswith(("in_proj_weight", "in_proj_bias")):
            found[f"layers.{layer}.{name.rpartition('_')[2]}"] = torch.chunk(value, 3)[2].clone()
        elif position_on_values and ".position." in name:
            found[f"positions.{layer}.{name.rpartition('.')[2]}"] = value
    return found


def perceptron_of(state: State) -> State:
    """Three linear layers of the published code, `layers.0` to `layers.2`, under our names."""
    return {f"{2 * int(name.split('.')[1])}.{name.rpartition('.')[2]}": value for name, value in state.items()}


def term_of(state: State, position_on_values: bool = False) -> State:
    """A published training's parts beside the student under the names of our term.

    Args:
        state: Of the whole training.
        position_on_values: Whether positions are on the values.
    """

    def below(prefix: str) -> State:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    parts = {
        "decoder": decoder_of(below(f"{_TEACHER}attention_module.")),
        "projections": projections_of(below(_STUDENT), position_on_values),
        "describer": perceptron_of(below(f"{_TEACHER}ins_encoder.encoder.")),
        "predictor": perceptron_of(below(f"{_TEACHER}ins_encoder.predictor.")),
    }
    return {f"{part}.{name}": value for part, tensors in parts.items() for name, value in tensors.items()}
