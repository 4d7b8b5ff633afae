"""What two configs differ in, as a person who resumes a run is told of it."""

from __future__ import annotations

from typing import Any

import pytest

from exp.resuming import changes


def model(**options: Any) -> dict[str, Any]:
    network = {"class_path": "models.Net", "init_args": {"width": 4, **options.pop("network", {})}}
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "betas": [0.9, 0.999]}}
    options = {"network": network, "optimizer": optimizer, "lr_multipliers": {"stem": 0.1}, **options}
    return {"class_path": "lightning_modules.Classification", "init_args": options}


OLD: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 3, "callbacks": [{"class_path": "a.Stop", "init_args": {"patience": 3}}]},
    "model": model(),
    "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 8}},
}


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({}, []),
        ({"seed_everything": 1}, ["seed_everything: 0 -> 1"]),
        ({"trainer": OLD["trainer"] | {"max_epochs": 9}}, ["trainer.max_epochs: 3 -> 9"]),
        (
            {"trainer": {"max_epochs": 3, "callbacks": [{"class_path": "a.Stop", "init_args": {"patience": 9}}]}},
            ["trainer.callbacks.0.patience: 3 -> 9"],
        ),
        ({"trainer": {"max_epochs": 3, "callbacks": None}}, ["trainer.callbacks: [Stop] -> None"]),
        ({"model": model(optimizer="torch.optim.SGD")}, ["model.optimizer: AdamW -> SGD"]),
        ({"model": model(network={"width": 5})}, ["model.network.width: 4 -> 5"]),
        ({"model": model(lr_multipliers={"stem": 0.1, "head": 2})}, ["model.lr_multipliers.head: None -> 2"]),
        (
            {"model": model(optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.1, "betas": [0, 1]}})},
            ["model.optimizer.betas: [0.9, 0.999] -> [0, 1]"],
        ),
        ({"data": {"class_path": "datamodules.Coco", "init_args": {"root": "x"}}}, ["data: Digits -> Coco"]),
        # An option that has come since.
        ({"model": model(network={"neck": "fpn"}), "trainer": OLD["trainer"] | {"barebones": False}}, []),
    ],
)
def test_each_value_that_differs_is_told(part: dict[str, Any], told: list[str]) -> None:
    assert [str(change) for change in changes(OLD, OLD | part)] == told
