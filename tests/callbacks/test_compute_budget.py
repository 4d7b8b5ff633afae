"""The budget's penalty, its weight, what it logs and draws, and that it steers a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn

from callbacks import ComputeBudget
from callbacks.compute_budget import budget_penalty
from callbacks.reports import Place
from exp.loggers import MetricsTable
from lightning_modules import Classification
from models.compute import has_values, record, recorded
from models.mistakes import Mistake
from tests.library.batches import Batches

COST = 12.0


class Gate(nn.Module):
    """A linear layer that is run as often as `logit` says, of which a quarter always."""

    planned: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3, bias=False)
        self.logit = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        share = 0.25 + 0.75 * self.logit.sigmoid()
        record(self, (share * COST).expand(len(x)), COST, COST / 4, self.planned)
        return self.layer(x) * (share if has_values(x) else 1.0)


class Network(nn.Module):
    num_classes = 3

    def __init__(self, gates: int = 1) -> None:
        super().__init__()
        self.stem = nn.Linear(12, 4, bias=False)
        self.gates = nn.ModuleList(Gate() for _ in range(gates))

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.flatten(1))
        return torch.stack([gate(x) for gate in self.gates]).sum(0)


STATIC = 48.0


class Data(lightning.LightningDataModule):
    batch_size = 4

    def example(self, samples: int = 1) -> dict[str, Tensor]:
        return {"image": torch.zeros(samples, 3, 2, 2)}

    def batches(self, number: int) -> Batches:
        generator = torch.Generator().manual_seed(0)
        return Batches(
            [
                {
                    "image": torch.randn(4, 3, 2, 2, generator=generator),
                    "label": torch.randint(3, (4,), generator=generator),
                    "index": torch.arange(4 * i, 4 * i + 4),
                }
                for i in range(number)
            ]
        )

    def train_dataloader(self) -> Batches:
        return self.batches(8)

    def val_dataloader(self) -> Batches:
        return self.batches(2)

    def test_dataloader(self) -> Batches:
        return self.batches(2)


def fit(budget: ComputeBudget, folder: Path, network: nn.Module | None = None, lr: float = 1e-9, **options: Any) -> Any:
    torch.manual_seed(0)
    module = Classification(network or Network(), optimizer=lambda groups: torch.optim.SGD(groups, lr=lr))
    table = MetricsTable(folder / "metrics.csv")
    budget.place = Place(folder / "plots", folder, "run", table.series)
    callbacks: list[Callback] = [budget, *options.pop("callbacks", [])]
    trainer = Trainer(
        accelerator="cpu",
        logger=[table],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        callbacks=callbacks,
        default_root_dir=folder,
        **{"max_epochs": 1, **options},
    )
    trainer.fit(module, datamodule=Data())
    return module, table, trainer


@pytest.mark.parametrize(
    ("form", "above", "below"), [("squared", 0.09, 0.04), ("hinge", 0.3, 0.0), ("linear", 0.3, -0.2)]
)
def test_penalty(form: Any, above: float, below: float) -> None:
    share = torch.tensor([0.8, 0.3])
    torch.testing.assert_close(budget_penalty(share, 0.5, form), torch.tensor([above, below]))
    half = budget_penalty(share, 0.5, form, span=0.5)
    torch.testing.assert_close(half, torch.tensor([above, below]) * (4 if form == "squared" else 2))


# Each gate of a new network is open by 0.625 of its own compute: 0.25 + 0.75 / 2.
LAYER = 0.625
WHOLE = (STATIC + COST * LAYER) / (STATIC + COST)
WHOLE_LEAST = (STATIC + COST / 4) / (STATIC + COST)


@pytest.mark.parametrize(
    ("scope", "span", "share", "unit"),
    [
        ("layer", "dense", LAYER, 1.0),
        ("layer", "range", LAYER, 0.75),
        ("network", "dense", WHOLE, 1.0),
        ("network", "range", WHOLE, 1 - WHOLE_LEAST),
    ],
)
def test_share_and_loss_are_those_of_the_formula(
    scope: Any, span: Any, share: float, unit: float, tmp_path: Path
) -> None:
    _, table, _ = fit(ComputeBudget(0.2, 0.5, "hinge", scope, span), tmp_path)
    assert table.series("train/compute_share")[1] == pytest.approx([share] * 8)
    assert table.series("train/compute_target")[1] == pytest.approx([0.2] * 8)
    assert table.series("val/compute_share")[1] == pytest.approx([share])
    assert table.series("train/loss_compute")[1] == pytest.approx([0.5 * (share - 0.2) / unit] * 8)
    total = [
        a + b for a, b in zip(table.series("train/loss_ce")[1], table.series("train/loss_compute")[1], strict=True)
    ]
    assert table.series("train/loss")[1] == pytest.approx(total)


def test_drnet_regulariser_is_expressible(tmp_path: Path) -> None:
    # eta max(0, (F - alpha) / (C_max - C_min)) in multiply-adds of the dynamic part alone.
    eta, alpha = 0.2, 4.0
    _, table, _ = fit(ComputeBudget(alpha / COST, eta, "hinge", "layer", "range"), tmp_path)
    penalty = eta * max(0.0, (LAYER * COST - alpha) / (COST - COST / 4))
    assert table.series("train/loss_compute")[1] == pytest.approx([penalty] * 8)


def test_layers_are_penalised_one_by_one(tmp_path: Path) -> None:
    network = Network(2)
    nn.init.constant_(network.gates[0].logit, -50.0)
    nn.init.constant_(network.gates[1].logit, 50.0)
    _, table, _ = fit(ComputeBudget(0.625, scope="layer"), tmp_path, network)
    # On average they keep to the target, one by one they do not.
    assert table.series("train/compute_share")[1] == pytest.approx([0.625] * 8)
    assert table.series("train/loss_compute")[1] == pytest.approx([0.375**2] * 8)


def test_each_layer_is_held_to_its_plan(tmp_path: Path) -> None:
    network = Network(2)
    with pytest.raises(Mistake, match="target 'planned' needs dynamic layers that keep to a plan"):
        fit(ComputeBudget("planned", scope="layer"), tmp_path / "none", network)
    network.gates[0].planned, network.gates[1].planned = 0.5 * COST, 0.25 * COST
    _, table, _ = fit(ComputeBudget("planned", scope="layer"), tmp_path, network)
    assert table.series("train/compute_target")[1] == pytest.approx([0.375] * 8)
    penalty = ((LAYER - 0.5) ** 2 + (LAYER - 0.25) ** 2) / 2
    assert table.series("train/loss_compute")[1] == pytest.approx([penalty] * 8)


def test_weight_warms_up(tmp_path: Path) -> None:
    _, table, _ = fit(ComputeBudget(0.5, 2.0, warmup_epochs=0.5), tmp_path)
    weights = [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]
    assert table.series("train/compute_weight")[1] == pytest.approx(weights)
    assert table.series("train/loss_compute")[1] == pytest.approx([w * (WHOLE - 0.5) ** 2 for w in weights])


def test_warm_up_counts_optimiser_steps(tmp_path: Path) -> None:
    _, table, _ = fit(ComputeBudget(0.5, 2.0, warmup_epochs=0.5), tmp_path, accumulate_grad_batches=2)
    assert table.series("train/compute_weight")[1] == pytest.approx([0.0, 1.0, 2.0, 2.0])


@pytest.mark.parametrize("target", [0.4, 0.9])
def test_network_is_steered_to_its_budget(target: float, tmp_path: Path) -> None:
    budget = ComputeBudget(target, 100.0, "squared", "layer")
    module, table, _ = fit(budget, tmp_path, lr=0.05, max_epochs=15)
    assert table.series("train/compute_share")[1][-1] == pytest.approx(target, abs=0.02)
    assert (tmp_path / "plots" / "compute_budget.png").stat().st_size > 5_000
    assert recorded(module.network) == {}


def test_mean_over_processes_is_taken_before_the_hinge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Another process spends nothing, so both together keep to a target that this one exceeds.
    from lightning.pytorch.strategies import SingleDeviceStrategy

    def reduce(self: Any, tensor: Any, *args: Any, reduce_op: str = "mean", **kwargs: Any) -> Any:
        return tensor / 2 if isinstance(tensor, Tensor) and tensor.shape == (1,) else tensor

    monkeypatch.setattr(SingleDeviceStrategy, "reduce", reduce)
    _, table, _ = fit(ComputeBudget(0.5, 1.0, "hinge", "layer"), tmp_path)
    assert table.series("train/compute_share")[1] == pytest.approx([LAYER / 2] * 8)
    assert table.series("train/loss_compute")[1] == [0.0] * 8
    module, table, _ = fit(ComputeBudget(0.3, 100.0, "hinge", "layer"), tmp_path / "b", lr=0.01, max_steps=1)
    assert table.series("train/loss_compute")[1] == pytest.approx([100 * (LAYER / 2 - 0.3)], rel=1e-4)
    # Gradients are averaged over processes afterwards, so this one's is not halved here.
    slope = 100 * 0.75 * 0.25
    assert module.network.gates[0].logit.item() == pytest.approx(-0.01 * slope, rel=0.1)


def test_share_of_the_test_split(tmp_path: Path) -> None:
    module, _, trainer = fit(ComputeBudget(0.5), tmp_path)
    results = trainer.test(module, datamodule=Data(), verbose=False)
    assert results[0]["test/compute_share"] == pytest.approx(WHOLE)


class ByImage(nn.Module):
    """Two layers, the first of which is run for bright images alone and the second for all."""

    num_classes = 3

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(12, 3, bias=False) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        bright = (images[:, 0, 0, 0] > 0).to(images.dtype)
        for layer, share in zip(self.layers, (bright, torch.ones_like(bright)), strict=True):
            record(layer, share * COST, COST)
        return torch.stack([layer(images.flatten(1)) for layer in self.layers]).sum(0)


class Uneven(Data):
    """Three dark images, and one that is bright in a batch of its own."""

    def test_dataloader(self) -> Batches:
        batches = [(3, -1.0), (1, 1.0)]
        return Batches(
            [
                {
                    "image": torch.full((n, 3, 2, 2), light),
                    "label": torch.zeros(n, dtype=torch.long),
                    "index": torch.arange(n),
                }
                for n, light in batches
            ]
        )


@pytest.mark.parametrize("scope", ["dynamic", "layer"])
def test_share_of_a_split_is_the_mean_over_its_images(scope: Any, tmp_path: Path) -> None:
    module, _, trainer = fit(ComputeBudget(0.5, scope=scope), tmp_path, ByImage())
    results = trainer.test(module, datamodule=Uneven(), verbose=False)
    # Three images of four take one layer of two, the last one both.
    assert results[0]["test/compute_share"] == pytest.approx((3 * 0.5 + 1) / 4)


@pytest.mark.parametrize("per_sample", [False, True])
def test_the_mean_of_samples_meets_the_target_or_each_of_them(per_sample: bool, tmp_path: Path) -> None:
    budget = ComputeBudget(0.75, 2.0, scope="dynamic", per_sample=per_sample)
    _, table, _ = fit(budget, tmp_path, ByImage())
    shares = [(batch["image"][:, 0, 0, 0] > 0).float() / 2 + 0.5 for batch in Data().batches(8).batches]
    squares = [(x - 0.75).square().mean() if per_sample else (x.mean() - 0.75).square() for x in shares]
    assert table.series("train/loss_compute")[1] == pytest.approx([2 * x.item() for x in squares])
    assert table.series("train/compute_share")[1] == pytest.approx([x.mean().item() for x in shares])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": 0.0}, r"planned or .* in \(0, 1\], not 0"),
        ({"target": 1.5}, r"in \(0, 1\], not 1.5"),
        ({"target": -0.5}, r"in \(0, 1\]"),
        ({"weight": -1.0}, "weight=-1.0"),
        ({"warmup_epochs": -1.0}, "warmup_epochs=-1.0"),
        ({"form": "cubic"}, "form must be one of squared, hinge, linear"),
        ({"scope": "block"}, "scope must be one of network, layer"),
        ({"span": "least"}, "span must be one of dense, range"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComputeBudget(**{"target": 0.5} | options)


@pytest.mark.parametrize("scope", ["dynamic", "layer"])
def test_a_range_of_nothing_is_refused(scope: Any, tmp_path: Path) -> None:
    class Always(ByImage):
        def forward(self, images: Tensor) -> Tensor:
            for layer in self.layers:
                record(layer, torch.full((len(images),), COST), COST, COST)
            return self.layers[0](images.flatten(1)) + self.layers[1](images.flatten(1))

    with pytest.raises(ValueError, match=r"span 'range' needs least compute \((12|24)\) below dense \((12|24)\)"):
        fit(ComputeBudget(0.5, scope=scope, span="range"), tmp_path, Always())


@pytest.mark.parametrize("scope", ["network", "layer"])
def test_a_network_without_dynamic_layers_is_refused(scope: Any, tmp_path: Path) -> None:
    class Static(nn.Module):
        num_classes = 3

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(12, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.layer(images.flatten(1))

    with pytest.raises(ValueError, match="no dynamic layer of Static"):
        fit(ComputeBudget(0.5, scope=scope), tmp_path, Static())
