"""Values of every schedule, what they are set on, and that a resumed run has the same ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from callbacks import Annealing
from callbacks.annealing import find_buffers
from lightning_modules import Classification
from lightning_modules.schedules import SpanTemperature
from tests.library.callback_batches import Data, batches


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("noise", torch.tensor(0.5))
        self.register_buffer("table", torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return x / self.temperature


class Other(Gate):
    pass


class Network(nn.Module):
    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 3)
        self.gates = nn.Sequential(Gate(), Gate())
        self.last = Other()

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.gates(self.layer(images.flatten(1))))


class Recorder(Callback):
    """What the forward pass of each batch saw."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.seen.append(pl_module.network.gates[0].temperature.item())


def fit(annealing: Annealing, folder: Path, callbacks: Any = (), ckpt: Path | None = None, **options: Any) -> Any:
    torch.manual_seed(0)
    module, recorder = Classification(Network()), Recorder()
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[annealing, recorder, *callbacks],
        default_root_dir=folder,
        **{"max_epochs": 4, **options},
    )
    trainer.fit(module, Data(batches(4)), ckpt_path=ckpt, weights_only=True)
    return module, recorder.seen


@pytest.mark.parametrize(
    ("shape", "middle", "quarter"),
    [("linear", 5.5, 7.75), ("cosine", 5.5, 1 + 9 * (1 + 2**-0.5) / 2), ("exponential", 10**0.5, 10**0.75)],
)
def test_shapes(shape: Any, middle: float, quarter: float) -> None:
    annealing = Annealing("temperature", 10.0, 1.0, shape=shape)
    values = [annealing.value(epoch, 8.0) for epoch in (0, 2, 4, 8, 20)]
    assert values == pytest.approx([10.0, quarter, middle, 1.0, 1.0])


def test_begin_and_end() -> None:
    annealing = Annealing("temperature", 10.0, 1.0, begin=2, end=4)
    assert [annealing.value(epoch, 8.0) for epoch in (0, 2, 3, 4, 8)] == pytest.approx([10, 10, 5.5, 1, 1])


def test_steps_move_at_their_milestones() -> None:
    annealing = Annealing("temperature", 10.0, 1.0, shape="steps", milestones=[1, 2.5, 6])
    assert [annealing.value(epoch, 8.0) for epoch in (0, 0.9, 1, 2.4, 2.5, 6)] == pytest.approx([10, 10, 7, 7, 4, 1])


def test_changes_every_step(tmp_path: Path) -> None:
    _, seen = fit(Annealing("temperature", 17.0, 1.0), tmp_path)
    assert seen == [17.0 - step for step in range(16)]


def test_changes_every_epoch(tmp_path: Path) -> None:
    _, seen = fit(Annealing("temperature", 5.0, 1.0, unit="epoch"), tmp_path)
    assert seen == [5.0] * 4 + [4.0] * 4 + [3.0] * 4 + [2.0] * 4


def test_follows_a_schedule(tmp_path: Path) -> None:
    schedule = SpanTemperature(policy=1, warmup_epochs=2)
    _, seen = fit(Annealing("temperature", 5.0, schedule=schedule), tmp_path)
    assert seen == [5.0] * 4 + [3.0] * 4 + [1.0] * 4 + [0.5] * 4
    for options in ({}, {"stop": 1.0, "schedule": schedule}):
        with pytest.raises(ValueError, match="either stop, to which the value moves, or a schedule"):
            Annealing("temperature", 5.0, **options)


@pytest.mark.parametrize("batches_a_step", [2, 3])
def test_accumulated_batches_are_one_step(batches_a_step: int, tmp_path: Path) -> None:
    # Of four batches, the last one is a step of its own when three make one: two steps an epoch either way.
    _, seen = fit(Annealing("temperature", 9.0, 1.0), tmp_path, accumulate_grad_batches=batches_a_step)
    lengths = [2, 2] if batches_a_step == 2 else [3, 1]
    assert seen == [9.0 - step for step in range(8) for _ in range(lengths[step % 2])]


@pytest.mark.parametrize("stop_after", [3, 6, 8])
def test_resumed_run_has_the_values_of_an_uninterrupted_one(stop_after: int, tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == stop_after:
                trainer.save_checkpoint(tmp_path / "stopped.ckpt")
                raise KeyboardInterrupt

    def annealing() -> Annealing:
        return Annealing("temperature", 17.0, 1.0, shape="cosine")

    whole, seen = fit(annealing(), tmp_path)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(annealing(), tmp_path, [Interrupt()])
    saved = torch.load(tmp_path / "stopped.ckpt", weights_only=True)["state_dict"]
    assert saved["network.gates.0.temperature"].item() == seen[stop_after - 1]
    resumed, rest = fit(annealing(), tmp_path, ckpt=tmp_path / "stopped.ckpt")
    assert rest[-1] == seen[-1]
    assert seen[-len(rest) :] == rest
    assert resumed.network.last.temperature.item() == whole.network.last.temperature.item()


@pytest.mark.parametrize(
    ("layers", "changed"),
    [
        ("*", ["gates.0", "gates.1", "last"]),
        ("gates.*", ["gates.0", "gates.1"]),
        ("gates.1", ["gates.1"]),
        ("Other", ["last"]),
        ("Gate", ["gates.0", "gates.1"]),
    ],
)
def test_layers_by_name_or_class(layers: str, changed: list[str], tmp_path: Path) -> None:
    network, _ = fit(Annealing("temperature", 17.0, 2.0, layers), tmp_path, max_epochs=1)
    temperatures = {n.removesuffix(".temperature"): b.item() for n, b in network.network.named_buffers() if "temp" in n}
    assert [name for name, value in temperatures.items() if value != 1.0] == changed


@pytest.mark.parametrize(
    ("layers", "buffer", "message"),
    [
        ("gate*", "temprature", r"no scalar buffer 'temprature': they have noise, temperature"),
        ("Gates", "temperature", r"no layer is called 'Gates'; there are gates.0, gates.1, last"),
        ("layer", "temperature", r"they have none; 'temperature' is in gates.0, gates.1, last"),
        ("*", "table", r"no scalar buffer 'table': they have noise, temperature"),
        ("*", "weight", r"no scalar buffer 'weight'"),
    ],
)
def test_unknown_layers_and_buffers_are_refused(layers: str, buffer: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        find_buffers(Network(), layers, buffer)
    with pytest.raises(ValueError, match=message):
        fit(Annealing(buffer, 1.0, 0.5, layers), tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "sine"}, "shape must be one of linear, cosine, exponential, steps"),
        ({"unit": "batch"}, "unit must be step or epoch"),
        ({"shape": "exponential", "stop": 0.0}, "same sign"),
        ({"shape": "steps"}, "needs at least one"),
        ({"milestones": [1.0]}, "milestones are epochs for shape steps"),
        ({"begin": 3.0, "end": 2.0}, "0 <= begin < end"),
        ({"begin": -1.0}, "0 <= begin < end"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Annealing(**{"buffer": "temperature", "start": 1.0, "stop": 0.1} | options)
