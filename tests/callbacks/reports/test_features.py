"""What is drawn and written of features: neighbours, a projection, attention, views."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from rich.console import Console

import models.backbones  # noqa: F401
from callbacks.reports import Source, predictions_of, reports_of
from callbacks.reports.features import Attention, NearestImages, Projection
from callbacks.reports.neighbours import Neighbours
from callbacks.reports.views import ViewSheet
from datamodules import Digits, UnlabelledFolder, View
from datamodules.transforms import Transform
from lightning_modules import Classification, SelfSupervised
from models.mistakes import Mistake
from models.self_supervised import DINO
from models.self_supervised.attention import class_attention, has_class_attention
from tests.library.learners import SmallConv, learner, views
from tests.library.reports import placed, trainer_with


def texts(figure: Any) -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]


def transformer() -> torch.nn.Module:
    torch.manual_seed(0)
    sizes = {"img_size": 8, "patch_size": 2, "embed_dim": 12, "depth": 2, "num_heads": 3}
    return timm.create_model("vit_small_patch16_dino", num_classes=0, **sizes).eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Bright and dark images, four of each."""
    random = np.random.default_rng(0)
    (folder := tmp_path / "photos").mkdir()
    for i in range(8):
        pixels = random.integers(40, size=(12, 12, 3)) + (200 if i % 2 else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{'bright' if i % 2 else 'dark'}{i}.png")
    return folder


def unlabelled(photos: Path) -> UnlabelledFolder:
    transforms: list[Transform] = []
    return UnlabelledFolder(photos, batch_size=4, holdout=2, views=[View(copies=2)], eval_transforms=transforms)


def test_every_run_without_labels_draws_them_and_predicts_neighbours() -> None:
    drawn = set(reports_of(SelfSupervised))
    assert drawn >= {NearestImages, Projection, Attention, ViewSheet}
    assert predictions_of(SelfSupervised) == [Neighbours]
    assert not {NearestImages, Projection, Attention} & set(reports_of(Classification))


def test_an_evaluation_draws_neighbours_and_a_projection(tmp_path: Path) -> None:
    reports = [placed(each, tmp_path) for each in (NearestImages(), Projection(images=60), Attention())]
    module, data = SelfSupervised(learner("byol"), evaluates="teacher"), views("byol", 256)
    trainer_with(*reports, folder=tmp_path, limit_val_batches=1).validate(module, data, verbose=False)
    # The convolution has no attention to be drawn.
    assert {path.name for path in tmp_path.glob("*.png")} == {"nearest_images.png", "projection.png"}
    nearest, projection = (report.draw() for report in reports[:2])
    figure = nearest["nearest_images"]
    assert figure.get_suptitle() == "val: on the left, with the nearest training images by the teacher's features"
    assert len(figure.axes) == 8 * 7
    labels = [int(text.split("\n")[0]) for text in texts(figure)]
    own, others = labels[::7], [labels[i + 1 : i + 7] for i in range(0, 56, 7)]
    # Most neighbours of a digit are of its class, and the caption's colour says which.
    for row, (label, near) in enumerate(zip(own, others, strict=True)):
        colours = [figure.axes[7 * row + j].title.get_color() for j in range(1, 7)]
        assert [colour == "#1a7f37" for colour in colours] == [each == label for each in near]
    assert sum(each == label for label, near in zip(own, others, strict=True) for each in near) > 24
    legend = projection["projection"].axes[0].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [str(digit) for digit in range(10)]


def test_images_without_classes_are_called_by_their_files(tmp_path: Path, photos: Path) -> None:
    report = placed(NearestImages(images=2, neighbours=3), tmp_path)
    module, data = SelfSupervised(learner("byol")), unlabelled(photos)
    with pytest.warns(UserWarning, match="the images have no classes that a probe could tell apart"):
        (found,) = trainer_with(report, folder=tmp_path).validate(module, data, verbose=False)
    assert found.keys() == {"val/rank", "val/spread"}
    assert module.monitor is None
    captions = texts(report.draw()["nearest_images"])
    for row in (captions[:4], captions[4:]):
        kind = row[0].rstrip("0123456789.png")
        assert [text.rstrip("0123456789.png\n ").rstrip("0123456789.png") for text in row[1:3]] == [kind] * 2


def test_a_transformer_shows_where_its_heads_look(tmp_path: Path) -> None:
    report = placed(Attention(images=2), tmp_path)
    network = DINO(transformer(), {"out_dim": 8, "hidden_dim": 8, "bottleneck_dim": 4})
    trainer_with(report, folder=tmp_path, limit_val_batches=1).validate(
        SelfSupervised(network), views("dino", 256), verbose=False
    )
    assert (tmp_path / "attention.png").exists()
    figure = report.draw()["attention"]
    assert texts(figure) == ["image", "head 1", "head 2", "head 3"]
    assert figure.get_suptitle() == "val: attention of the teacher's class token in the last block"


def test_attention_is_what_the_last_block_computes() -> None:
    network: Any = transformer()
    assert has_class_attention(network)
    assert not has_class_attention(SmallConv())
    images = torch.rand(2, 3, 8, 8)
    shares = class_attention(network, images)
    assert shares.shape == (2, 3, 4, 4)
    attention = network.blocks[-1].attn
    seen: list[torch.Tensor] = []
    attention.fused_attn = False
    attention.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        network(images)
    torch.testing.assert_close(shares.flatten(2), seen[0][:, :, 0, 1:])


def test_views_stand_beside_their_image(tmp_path: Path) -> None:
    report = placed(ViewSheet(images=3), tmp_path)
    trainer = trainer_with(report, folder=tmp_path, fast_dev_run=True)
    trainer.fit(SelfSupervised(learner("dino")), views("dino", 256))
    assert (tmp_path / "views.png").exists()
    captions = texts(report.draw()["views"])
    assert len(captions) == 3 * 5
    assert captions[1:5] == ["view 1: 8x8", "view 2: 8x8", "view 3: 6x6", "view 4: 6x6"]
    report.trainer.datamodule = Digits()  # type: ignore[attr-defined]
    assert not report.applies(report.task)


def predicted(photos: Path, folder: Path, report: Neighbours, queries: list[Path]) -> tuple[list[Any], str]:
    module, data = SelfSupervised(learner("byol")), unlabelled(photos)
    data.predict_paths = queries
    trainer = trainer_with(report, folder=folder)
    report.prepare(trainer, module, Source(Path("x.ckpt"), {}, [], folder))
    batches = trainer.predict(module, data)
    console = Console(file=StringIO(), width=200)
    written = report.finish(batches or [], folder, console)
    assert [path.name for path in written] == ["neighbours.json", "neighbours.png"]
    return json.loads(written[0].read_text()), console.file.getvalue()  # type: ignore[attr-defined]


def test_predict_names_the_nearest_training_images_and_never_the_image_itself(tmp_path: Path, photos: Path) -> None:
    told, printed = predicted(photos, tmp_path, Neighbours(neighbours=2), [photos])
    assert [Path(each["file"]).name for each in told] == sorted(path.name for path in photos.iterdir())
    data = unlabelled(photos)
    trained = {data.sample_name("train", i) for i in range(len(data.source("train")))}
    for each in told:
        names = [near["file"] for near in each["neighbours"]]
        assert len(names) == 2
        assert set(names) <= trained - {each["file"]}
        kinds = {Path(name).name[:4] for name in names}
        assert kinds == {Path(each["file"]).name[:4]}
        similarities = [near["similarity"] for near in each["neighbours"]]
        assert similarities == sorted(similarities, reverse=True)
    assert "bright1.png" in printed


def test_predict_looks_in_another_folder(tmp_path: Path, photos: Path) -> None:
    (other := tmp_path / "other").mkdir()
    for name in ("bright1.png", "dark0.png"):
        (other / name).write_bytes((photos / name).read_bytes())
    told, _ = predicted(photos, tmp_path, Neighbours(5, str(other)), [photos / "bright1.png"])
    # A copy is another image.
    assert [Path(each["file"]) for each in told[0]["neighbours"]] == [other / "bright1.png", other / "dark0.png"]
    assert told[0]["neighbours"][0]["similarity"] == 1
    with pytest.raises(Mistake, match="--among nowhere: no such folder"):
        predicted(photos, tmp_path, Neighbours(5, "nowhere"), [photos])
    with pytest.raises(Mistake, match="--neighbours 0: name one or more"):
        Neighbours(0)
