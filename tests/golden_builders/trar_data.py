"""Builders of the recorded TRAR cases: texts, features, schedules and steps of a training."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from datamodules.answers import normalised, soft_target, vqa_accuracy
from datamodules.grid_features import CANVAS, pooled_grid
from datamodules.questions import Vocabulary
from lightning_modules.parameter_groups import parameter_groups
from lightning_modules.schedules import SpanTemperature, StairWarmup
from models.official import load
from models.official.trar import LAYOUT
from tests.golden_builders.trar import features, loss_of, network

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 1e-5


def text(case: Case) -> dict[str, Tensor]:
    given = case.text
    vocabulary, numbers = Vocabulary.of(given["vocab_questions"]), given["ans_to_ix"]
    assert vocabulary.numbers == given["token_to_ix"]
    assert [normalised(answer) for answer in given["answers"]] == given["answers_normalised"]
    length = case.shapes["out.token_ids"][1]
    results: dict[str, list[Any]] = {
        "token_ids": [vocabulary.encode(question, length) for question in given["questions"]],
        "soft_target.bce": [soft_target(humans, numbers) for humans in given["human"]],
        "soft_target.kld": [soft_target(humans, numbers, "share") for humans in given["human"]],
        "vqa_accuracy_percent": [
            100 * vqa_accuracy(answer, humans) for answer, humans in zip(given["pred"], given["human"], strict=True)
        ],
    }
    return {f"out.{name}": torch.from_numpy(np.stack(values)) for name, values in results.items()}


def grid_feature_preprocess(case: Case) -> dict[str, Tensor]:
    return {
        name: pooled_grid(case.inputs[shape][0], (CANVAS // int(side)).bit_length() - 1).flatten(0, 1)
        for name in case.shapes
        for _, shape, side in [name.split(".")]
    }


def schedules(case: Case) -> dict[str, Tensor]:
    size, epochs, results = int(case.inputs["data_size"]), 13, {}
    for name, samples, batch, warmup in (("vqa", size, 64, 3), ("short", size // 3, 16, 1)):
        stairs = StairWarmup(warmup, milestones=[10, 12], batches_per_epoch=samples / batch)
        results[f"out.lr.{name}"] = stairs.table(1e-4, samples // batch, samples // batch * epochs)
    for name in case.shapes:
        if found := re.fullmatch(r"out\.tau\.policy(\d+)\.E(\d+)\.W(\d+)", name):
            policy, length, warmup = map(int, found.groups())
            temperature = SpanTemperature(policy, warmup, case.config["TAU_MIN"])  # type: ignore[arg-type]
            results[name] = temperature.table(case.config["TAU_MAX"], 1, length)
    return {name: torch.from_numpy(values) for name, values in results.items()}


def optimizer_steps(case: Case) -> dict[str, Tensor]:
    whole = network(case)
    load(whole, LAYOUT.to_ours(case.state))
    steps = len(case.inputs["target"])
    rates = StairWarmup().table(1e-3, 1, steps)
    optimizer = torch.optim.Adam(parameter_groups(whole, 1e-3, 0.0), betas=(0.9, 0.98), eps=1e-9)
    losses = []
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = float(rate)
        logits = whole(case.inputs["ques_ix"][step], features(case)[step])
        loss = loss_of(case, logits, case.inputs["target"][step])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    after = LAYOUT.to_official(whole.state_dict())
    return {
        "out.loss": torch.stack(losses),
        "out.lr": torch.from_numpy(rates),
        **{f"out.param_after.{name}": value for name, value in after.items()},
    }


CASES = {
    "text": text,
    "grid_feature_preprocess": grid_feature_preprocess,
    "schedules": schedules,
    "optimizer_steps": optimizer_steps,
}
