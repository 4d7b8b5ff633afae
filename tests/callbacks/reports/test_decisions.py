"""What is drawn of dynamic layers is what they decided, and nothing is drawn of others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from torch import Tensor, nn

from callbacks.reports import Place, decisions
from callbacks.reports import balances as reported_balances
from callbacks.reports.decisions import Decisions
from datamodules import Digits
from drawing.choices import choices_by_class, kernel_attention
from drawing.figures import save
from lightning_modules import Classification
from models.classifiers import DRNet, ResolutionPredictor, dynamic_kernels, timm_classifier
from models.decisions import noted
from tests.library.reports import trainer_with

DRAWN = ("kernel_attention", "region_overlay", "choices_by_class", "exit_sheet")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[Any, ...]]]:
    """What the drawing functions are called with, by their names."""
    calls: dict[str, list[tuple[Any, ...]]] = {}

    def spy(module: Any, name: str) -> None:
        draw = getattr(module, name)

        def call(*args: Any) -> Any:
            calls.setdefault(name, []).append(args)
            return draw(*args)

        monkeypatch.setattr(module, name, call)

    for name in DRAWN:
        spy(decisions, name)
    spy(reported_balances, "balances")
    return calls


def separable(layer: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return dynamic_kernels("separable_tiny", 10, layer=layer, **options)


def drnet(phase: Any = "joint") -> DRNet:
    torch.manual_seed(0)
    host = timm_classifier("separable_tiny", 10)
    predictor = ResolutionPredictor(2, widths=(8,))
    # An untrained predictor would send all images to one resolution.
    nn.init.normal_(predictor.fc.weight, std=10)
    return DRNet(host, predictor, candidates=(8, 4), predictor_size=8, phase=phase)


def drawing(folder: Path) -> Decisions:
    report = Decisions()
    report.place = Place(folder / "plots", folder)
    return report


def evaluated(network: nn.Module, folder: Path) -> Digits:
    data = Digits(batch_size=100)
    trainer_with(drawing(folder), folder=folder).test(Classification(network), data, verbose=False)
    return data


def split(data: Digits) -> tuple[Tensor, Tensor]:
    """All test images as the network gets them, and their labels."""
    batches = [data.on_after_batch_transfer(batch, 0) for batch in data.test_dataloader()]
    return torch.cat([b["image"] for b in batches]), torch.cat([b["label"] for b in batches])


def files(folder: Path) -> set[str]:
    plots = folder / "plots"
    return {str(path.relative_to(plots)) for path in plots.rglob("*.png")}


@pytest.mark.parametrize("layer", ["cond_conv", "dynamic_conv"])
def test_kernel_attention_is_the_mean_over_a_class(layer: str, drawn: Any, tmp_path: Path) -> None:
    network = separable(layer, kinds=["pointwise"])
    images, labels = split(evaluated(network, tmp_path))
    assert files(tmp_path) == {"kernel_attention.png"}
    ((means, names, title),) = drawn["kernel_attention"]
    assert (names, title) == ([str(k) for k in range(10)], "test: kernels by class, over 359 images")
    assert list(means) == [f"blocks.{s}.{b}.conv_pw" for s, b in ((0, 0), (1, 0), (2, 0), (3, 0), (4, 0))]
    with torch.no_grad():
        network.eval()(images)
    for name, mean in means.items():
        coefficients = noted(network)[name].values
        for k in range(10):
            assert mean[k] == pytest.approx(coefficients[labels == k].mean(0).numpy(), abs=1e-5)


def test_layers_of_one_routing_are_one_panel(drawn: Any, tmp_path: Path) -> None:
    evaluated(separable("cond_conv", layer_options={"routing": "block"}), tmp_path)
    ((means, *_),) = drawn["kernel_attention"]
    assert list(means) == [f"blocks.{s}.0.conv_dw" for s in range(5)]


def test_balances_are_those_of_every_layer_and_head(drawn: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    options = {"dims": (4, 8), "depths": (1, 1), "patch_sizes": (2, 2), "mlp_ratios": (1, 1), "num_heads": 2}
    network = timm_classifier("container", 10, options=options | {"dynamic": (True, True), "mixing": "per_head"})
    layers = [f"stages.{stage}.blocks.0.aggregation.mixing" for stage in range(2)]
    logits = torch.tensor([[0.0, 1.0], [-1.0, 3.0]])
    with torch.no_grad():
        for layer, own in zip(layers, logits, strict=True):
            network.get_parameter(f"{layer}.logit").copy_(own)
    report, module = drawing(tmp_path), Classification(network)
    trainer = trainer_with(report, folder=tmp_path)
    (logged,) = trainer.test(module, Digits(batch_size=100), verbose=False)
    assert files(tmp_path) == {"balances.png"}
    ((balances, names, _),) = drawn["balances"]
    assert (list(balances), names) == (layers, ("dynamic", "static"))
    shares = logits.sigmoid()
    for i, layer in enumerate(layers):
        assert balances[layer] == pytest.approx(torch.stack([shares[i], 1 - shares[i]], 1).numpy())
        assert logged[f"test/affinity{i}_dynamic"] == pytest.approx(shares[i].mean().item())
    rows = (tmp_path / "balances.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * 2
    assert rows[3] == f"test,{layers[0]},1,dynamic,{shares[0, 1]:.6f}"


def test_regions_lie_over_the_images_that_have_them(drawn: Any, tmp_path: Path) -> None:
    network = separable("dr_conv", kinds=["pointwise"], layer_options={"num_regions": 3})
    data = evaluated(network, tmp_path)
    drawn_layers = ("blocks.0.0.conv_pw", "blocks.1.0.conv_pw", "blocks.3.0.conv_pw", "blocks.4.0.conv_pw")
    assert files(tmp_path) == {f"regions/{name}.png" for name in drawn_layers}
    images, labels = split(data)
    seen: list[int] = []
    wanted = []
    for i, k in enumerate(labels.tolist()):
        if k not in seen and len(seen) < 6:
            seen.append(k)
            wanted.append(i)
    with torch.no_grad():
        network.eval()(images)
    for (shown, regions, num_regions, title), name in zip(drawn["region_overlay"], drawn_layers, strict=True):
        assert (num_regions, title) == (3, f"test: regions of {name}")
        assert len(shown) == len(regions) == 6
        maps = noted(network)[name].values
        for i, image, region in zip(wanted, shown, regions, strict=True):
            assert np.array_equal(image, data.raw_image("test", i))
            assert np.array_equal(region, maps[i].numpy())


def test_resolutions_are_those_that_were_picked(drawn: Any, tmp_path: Path) -> None:
    network = drnet()
    data = evaluated(network, tmp_path)
    assert files(tmp_path) == {"resolutions.png", "resolutions_by_class.png"}
    images, labels = split(data)
    with torch.no_grad():
        predicted = network.eval()(images).argmax(1)
    choice = noted(network)[""].values
    ((counts, _, sizes, shares, _),) = drawn["choices_by_class"]
    assert sizes == ["8 x 8 pixels", "4 x 4 pixels"]
    assert list(shares) == [1, network.costs[1] / network.costs[0]]
    for k in range(10):
        assert counts[k].tolist() == [int(((labels == k) & (choice == j)).sum()) for j in range(2)]
    assert (counts.sum(0) > 0).all()
    # The cheapest row first.
    ((rows, captions, hits, texts, _),) = drawn["exit_sheet"]
    assert [text.split(" (")[0] for text in texts] == ["4 x 4 pixels", "8 x 8 pixels"]
    for j, row, names, right in zip((1, 0), rows, captions, hits, strict=True):
        there = (choice == j).nonzero().squeeze(1)
        places = torch.linspace(0, len(there) - 1, min(8, len(there))).round().long()
        for i, image, name, hit in zip(there[places].tolist(), row, names, right, strict=True):
            assert np.array_equal(image, data.raw_image("test", i))
            assert name == str(int(predicted[i]))
            assert hit == bool(predicted[i] == labels[i])


@pytest.mark.parametrize("network", [lambda: timm_classifier("separable_tiny", 10), lambda: drnet("pretrain")])
def test_networks_that_decide_nothing_are_left_alone(network: Any, tmp_path: Path) -> None:
    evaluated(network(), tmp_path)
    assert files(tmp_path) == set()


def test_a_training_is_drawn_at_its_end(drawn: Any, tmp_path: Path) -> None:
    module, report = Classification(separable("cond_conv")), drawing(tmp_path)
    trainer_with(report, folder=tmp_path, max_epochs=2, limit_train_batches=1).fit(module, Digits())
    assert files(tmp_path) == {"kernel_attention.png"}
    assert [title for _, _, title in drawn["kernel_attention"]] == ["val: kernels by class, over 180 images"]


def test_draws_nothing_without_a_place(drawn: Any, tmp_path: Path) -> None:
    trainer_with(Decisions(), folder=tmp_path).test(Classification(separable("cond_conv")), Digits(), verbose=False)
    assert drawn == {}


def test_processes_add_up_even_if_one_has_no_samples(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = (torch.tensor([[4.0], [2.0]]), {"layer": torch.tensor([[1.0, 3.0], [0.0, 4.0]])})
    monkeypatch.setattr(decisions, "gathered", lambda own: [other, own])
    report: Any = SimpleNamespace(split="test", data=SimpleNamespace(class_names=["a", "b"]))
    painter = decisions.Mixtures(report)
    painter.merge()
    painter.draw()
    painter = decisions.Mixtures(report)
    painter._sums, painter._samples = {"layer": torch.ones(2, 2)}, torch.tensor([[0.0], [2.0]])
    painter.merge()
    painter.draw()
    (alone, *_), (both, *_) = drawn["kernel_attention"]
    assert alone["layer"].tolist() == [[0.25, 0.75], [0.0, 2.0]]
    assert both["layer"].tolist() == [[0.5, 1.0], [0.25, 1.25]]


def test_a_class_without_samples_is_blank_and_an_indifferent_layer_white(tmp_path: Path) -> None:
    looking = np.array([[0.9, 0.1], [0.1, 0.9], [np.nan, np.nan]])
    figure = kernel_attention({"looking": looking, "blind": np.full((3, 2), 0.5)}, ["a", "b", "c"], "test")
    first, second = (axes.images[0] for axes in figure.axes[:2])
    assert np.asarray(first.get_array())[:2] == pytest.approx(np.array([[0.4, -0.4], [-0.4, 0.4]]))
    assert np.isnan(np.asarray(first.get_array().filled(np.nan))[2]).all()
    assert (second.norm.vmin, second.norm.vmax) == pytest.approx((-0.4, 0.4))
    assert (np.asarray(second.get_array()) == 0).all()
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0.50", "0.50"]
    assert save(figure, tmp_path / "figure.png").stat().st_size > 0


@pytest.mark.parametrize("classes", [3, 120])
def test_bars_are_shares_and_ordered_by_cost(classes: int, tmp_path: Path) -> None:
    counts = np.zeros((classes, 2), int)
    counts[:, 0] = 3
    counts[1] = [1, 3]
    # The second choice is the expensive one.
    figure = choices_by_class(counts, [f"class {k}" for k in range(classes)], ["low", "high"], [0.25, 1.0])
    (axes,) = figure.axes
    cheap, dear = axes.containers
    assert [bar.get_width() for bar in cheap] == [1.0] * (classes - 1) + [0.25]
    assert dear[-1].get_x() == 0.25
    assert dear[-1].get_width() == 0.75
    assert to_rgba(cheap[0].get_facecolor())[0] > to_rgba(dear[0].get_facecolor())[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == (["class 0", "class 2", "class 1"] if classes == 3 else [])
    assert save(figure, tmp_path / "figure.png").stat().st_size > 0
