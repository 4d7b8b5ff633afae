"""Every shipped config: recipes are what was published, small ones run, and each does what its first lines say."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from timm.layers import DropPath

from callbacks import WeightEMA
from datamodules import CIFAR10, CIFAR100, ImageNet
from datamodules.batches import TrainBatches
from datamodules.transforms import Pipeline
from exp.cli import Cli
from lightning_modules.parameter_groups import parameter_groups
from models.classifiers import DRNet, timm_classifier
from models.compute import count, parameter_count
from tests.library.cifar_files import write as write_cifar
from tests.library.class_folders import write_class_folders
from tests.library.coco_files import CocoFiles
from tests.library.drconv_costs import COSTS as DRCONV
from tests.library.dvt_costs import TABLE as DVT
from tests.library.images import image_size
from tests.library.kernel_mixture_costs import COMPUTED, MEASURED
from tests.library.keypoint_files import write_keypoints
from tests.library.ladder_costs import COSTS
from tests.library.packed_files import arrays, pack
from tests.library.ranet_costs import CONFIGS as RANET
from tests.library.ranet_costs import MEASURED as RANET_MEASURED
from tests.library.recipes import HARDWARE, ROOT, TASKS, built, command, is_recipe, without_weights
from tests.library.runner import run
from tests.library.street_files import save, street

IMAGENET_TRAIN = 1_281_167


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are typed in the checkout's root."""
    monkeypatch.chdir(ROOT)


@dataclass(frozen=True)
class Recipe:
    """What was published of a training: arXiv 2201.03545, tables 1, 2, 5, 6 and 12, and parameters counted exactly.

    Args:
        params, macs: parameters, and 1e9 multiply-adds of convolutions and linear layers at `size`.
        drop_path: stochastic depth rate of the last block.
        size: height and width of the images.
        gammas: LayerScale parameters in the network.
        epochs, warmup: length of the training and of its warm-up, in epochs.
        batch: images an optimiser step.
        lr, weight_decay: of AdamW.
        layer_decay: learning rate of a layer by that of the layer above; None for one rate.
        mixed: whether images are mixed (mixup and cutmix).
        averaged: whether the weights are averaged (EMA).
    """

    params: int
    macs: float
    drop_path: float
    size: int = 224
    gammas: int = 0
    epochs: int = 300
    warmup: int = 20
    batch: int = 4096
    lr: float = 4e-3
    weight_decay: float = 0.05
    layer_decay: float | None = None
    mixed: bool = True
    averaged: bool = True


TUNING: dict[str, Any] = {
    "epochs": 30,
    "warmup": 0,
    "batch": 512,
    "lr": 5e-5,
    "weight_decay": 1e-8,
    "layer_decay": 0.7,
    "mixed": False,
    "averaged": False,
}
RECIPES = {
    "convnext_imagenet1k": Recipe(28_589_128, 4.4555, 0.1, gammas=18),
    "convnext_small_imagenet1k": Recipe(50_223_688, 8.6837, 0.4, gammas=36),
    "convnext_base_imagenet1k": Recipe(88_591_464, 15.3547, 0.5, gammas=36),
    "convnext_large_imagenet1k": Recipe(197_767_336, 34.3614, 0.5, gammas=36),
    "convnext_isotropic_small_imagenet1k": Recipe(22_308_712, 4.2864, 0.1, warmup=50),
    "convnext_isotropic_base_imagenet1k": Recipe(87_083_752, 16.8963, 0.2, warmup=50),
    "convnext_isotropic_large_imagenet1k": Recipe(305_942_504, 59.6992, 0.5, warmup=50, gammas=36),
    "ladder_imagenet1k": Recipe(33_761_032, 5.2680, 0.1, averaged=False),
    "convnext_base_imagenet1k_384": Recipe(88_591_464, 45.1221, 0.8, size=384, gammas=36, **TUNING),
    "convnext_large_imagenet1k_384": Recipe(197_767_336, 100.9776, 0.95, size=384, gammas=36, **TUNING),
    "convnext_imagenet22k_to_1k": Recipe(88_591_464, 15.3547, 0.2, gammas=36, **TUNING | {"layer_decay": 0.8}),
}


def mega(measured: tuple[int, float]) -> tuple[int, float]:
    return measured[0], measured[1] / 1e3


# The other systems' networks: parameters, and 1e9 multiply-adds of all that an image can cost. None where they are not
# measured, and for the networks with exits: their recipes are checked to be networks whose exits are counted one by one
# (test_ranet.py, test_dvt.py). Schedules and optimisers are checked with each system.
NETWORKS: dict[str, tuple[int, float | None]] = {
    "condconv_efficientnet_b0_4e_imagenet1k": mega(MEASURED["condconv_efficientnet_b0_4e"]),
    "condconv_efficientnet_b0_8e_imagenet1k": mega(MEASURED["condconv_efficientnet_b0_8e"]),
    "condconv_efficientnet_b1_8e_imagenet1k": mega(MEASURED["condconv_efficientnet_b1_8e"]),
    "condconv_mobilenetv2_imagenet1k": (22_877_496, 0.3229),
    "dynamic_conv_mobilenetv2_imagenet1k": (11_146_000, COMPUTED["dy_mobilenetv2_100"][1] / 1e3),
    "dynamic_conv_mobilenetv2_050_imagenet1k": (3_944_000, COMPUTED["dy_mobilenetv2_050"][1] / 1e3),
    # Not measured elsewhere: what we count.
    "dynamic_conv_mobilenetv3_small_imagenet1k": (4_376_172, 0.0588),
    "dynamic_conv_mobilenetv3_large_imagenet1k": (11_425_196, 0.2240),
    "dynamic_conv_resnet10_imagenet1k": mega(MEASURED["dy_resnet10"]),
    "dynamic_conv_resnet18_imagenet1k": mega(MEASURED["dy_resnet18"]),
    "dynamic_conv_resnet50_imagenet1k": mega(MEASURED["dy_resnet50"]),
    **{f"drconv_shufflenetv2_{x}_imagenet1k": mega((costs[0], costs[-1])) for x, costs in DRCONV.items()},
    **{f"dvt_{host.replace('t2t_vit', 't2t')}_imagenet1k": (n, None) for host, reuse, n, *_ in DVT if reuse == "both"},
    **{config: (RANET_MEASURED[row][2], None) for config, row in RANET.items() if "imagenet" in config},
    "container_v1_light_imagenet1k": (20_633_643, 3.8477),
    "container_imagenet1k": (21_808_826, 8.2319),
    # The largest architecture's multiply-adds; weights of the published super networks.
    "autoformer_tiny_imagenet1k": (11_669_224, 2.5414),
    "autoformer_small_imagenet1k": (34_790_440, 7.6840),
    "autoformer_base_imagenet1k": (80_160_360, 16.5378),
    "autoformer_tiny_retrain_imagenet1k": (5_867_944, 1.4819),
    "autoformer_small_retrain_imagenet1k": (22_891_432, 5.1614),
    "autoformer_base_retrain_imagenet1k": (53_691_688, 11.6912),
    "autoformer_finetune_imagenet1k": (5_867_944, 1.4819),
    # The plain hosts' multiply-adds and the routers'.
    "deit_dge_tiny_imagenet1k": (5_735_884, 1.7067),
    "deit_dge_small_imagenet1k": (22_087_564, 6.1419),
    "pvt_dge_small_imagenet1k": (24_617_432, 5.0381),
    "drnet_resnet50_imagenet1k": (30_570_603, 4.089),
    "drnet_joint_imagenet1k": (30_570_603, 4.089),
    "drnet_resnet101_imagenet1k": (44_759_848 + 4_907_331, None),
    # The widths of this predictor are ours, and so is the count.
    "drnet_mobilenetv2_imagenet1k": (3_854_643, 0.301),
    "pruning_imagenet1k": (20_151_764, 3.1002),
}


def test_every_recipe_is_checked() -> None:
    found = [path.stem for path in TASKS if path.parent.name == "classification" and is_recipe(path)]
    assert sorted([*RECIPES, *NETWORKS]) == found


@pytest.mark.parametrize("name", NETWORKS)
def test_other_network_has_the_published_size(name: str) -> None:
    params, macs = NETWORKS[name]
    cli = built(Path(f"configs/classification/{name}.yaml"))
    network = cli.model.network
    assert parameter_count(network) == pytest.approx(params, rel=0.01)
    if macs is not None:
        # DRNet's is its classifier's at the largest resolution.
        cost = network.dense if isinstance(network, DRNet) else count(network, image_size(cli.datamodule)).macs
        assert cost / 1e9 == pytest.approx(macs, rel=0.01)


@pytest.fixture(params=sorted(RECIPES))
def recipe(request: pytest.FixtureRequest) -> tuple[Recipe, Cli]:
    return RECIPES[request.param], built(Path(f"configs/classification/{request.param}.yaml"))


def test_network_has_the_published_size(recipe: tuple[Recipe, Cli]) -> None:
    published, cli = recipe
    report = count(cli.model.network, image_size(cli.datamodule))
    assert report.params == published.params
    assert report.conv_linear_macs / 1e9 == pytest.approx(published.macs, abs=1e-4)
    assert report.macs == report.conv_linear_macs
    rates = [module.drop_prob for module in cli.model.network.modules() if isinstance(module, DropPath)]
    assert max(rates) == rates[-1] == pytest.approx(published.drop_path)
    names = [name for name, _ in cli.model.network.named_parameters()]
    assert sum(name.endswith("gamma") for name in names) == published.gammas
    assert cli.plain["model"]["init_args"]["network"]["init_args"]["options"].get("ls_init_value") in (None, 1e-6)


def test_schedule_is_the_published_one(recipe: tuple[Recipe, Cli]) -> None:
    published, cli = recipe
    data, accumulate = cli.datamodule, cli.trainer.accumulate_grad_batches
    assert isinstance(data, ImageNet)
    assert data.holdout == 0
    assert data.batch_size * accumulate == published.batch == cli.model.reference_batch
    micro_batches = len(TrainBatches(IMAGENET_TRAIN, data.batch_size, accumulate))
    steps = IMAGENET_TRAIN // published.batch
    assert micro_batches == steps * accumulate
    assert cli.trainer.max_epochs == published.epochs
    table = cli.model.main.schedule.table(published.lr, steps, steps * published.epochs)
    assert len(table) == {300: 93_600, 30: 75_060}[published.epochs]
    assert table.max() == published.lr
    assert np.flatnonzero(table == published.lr).tolist() in (
        [published.warmup * steps - 1, published.warmup * steps] if published.warmup else [0],
    )
    assert table[0] == (0 if published.warmup else published.lr)
    assert 1e-6 < table[-1] < 1.01e-6


def test_optimiser_groups_are_the_published_ones(recipe: tuple[Recipe, Cli]) -> None:
    published, cli = recipe
    network = cli.model.network
    defaults = cli.model.main.optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults
    assert (defaults["lr"], defaults["weight_decay"]) == (published.lr, published.weight_decay)
    assert (tuple(defaults["betas"]), defaults["eps"]) == ((0.9, 0.999), 1e-8)
    groups = parameter_groups(network, defaults["lr"], defaults["weight_decay"], cli.model.main.layer_decay)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    for group in groups:
        flat = {parameter.ndim == 1 for parameter in group["params"]}
        assert flat == {group["weight_decay"] == 0}
        assert group["weight_decay"] in (0, published.weight_decay)
    if published.layer_decay is None:
        assert [group["lr_scale"] for group in groups] == [1, 1]
    else:
        # The stem, 12 layers and the head, each with and without weight decay.
        expected = [published.layer_decay**k for k in range(14) for _ in range(2)]
        assert sorted((group["lr_scale"] for group in groups), reverse=True) == pytest.approx(expected)
        assert len(groups) == 28


def test_augmentation_is_the_published_one(recipe: tuple[Recipe, Cli]) -> None:
    published, cli = recipe
    arguments = cli.plain["model"]["init_args"]
    assert arguments["label_smoothing"] == 0.1
    assert (arguments["random_erasing"], arguments["erase_mixed"]) == (0.25, False)
    assert arguments["mix"] == (
        {"mixup": 0.8, "cutmix": 1.0, "prob": 1.0, "switch_prob": 0.5, "mode": "batch"} if published.mixed else None
    )
    averages = [callback for callback in cli.trainer.callbacks if isinstance(callback, WeightEMA)]
    assert len(averages) == published.averaged
    given = cli.plain["trainer"]["callbacks"]
    average = {"class_path": "callbacks.WeightEMA", "init_args": {"decay": 0.9999, "warm_up": False}}
    assert given == ([average] if published.averaged else None)
    # Interpolation 2 is OpenCV's bicubic.
    crop, flip, augment = cli.plain["data"]["init_args"]["train_transforms"]
    assert crop["class_path"] == "albumentations.RandomResizedCrop"
    assert crop["init_args"]["size"] == [published.size] * 2
    assert crop["init_args"]["scale"] == [0.08, 1.0]
    assert crop["init_args"]["ratio"] == pytest.approx([3 / 4, 4 / 3])
    assert crop["init_args"]["interpolation"] == 2
    assert flip == {"class_path": "albumentations.HorizontalFlip", "init_args": {"p": 0.5}}
    assert augment["init_args"]["policy"] == "rand-m9-mstd0.5-inc1"
    evaluation = {
        t["class_path"].removeprefix("albumentations."): t["init_args"]
        for t in cli.plain["data"]["init_args"]["eval_transforms"]
    }
    if published.size == 224:
        assert list(evaluation) == ["SmallestMaxSize", "CenterCrop"]
        assert evaluation["SmallestMaxSize"]["max_size"] == 256
        assert evaluation["SmallestMaxSize"]["interpolation"] == 2
    else:
        assert list(evaluation) == ["Resize"]
        assert evaluation["Resize"]["interpolation"] == 2
    photo = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    for transforms in (cli.datamodule.train_transforms, cli.datamodule.eval_transforms):
        image = Pipeline(transforms)({"image": photo}, 0, 0)["image"]
        assert image.shape == (published.size, published.size, 3)


@pytest.mark.parametrize(("regime", "column"), [("r50", 0), ("r200", 2)])
@pytest.mark.parametrize("rung", COSTS)
def test_ladder_takes_every_rung(regime: str, column: int, rung: str) -> None:
    arguments = built(Path("configs/classification/ladder_imagenet1k.yaml")).plain["model"]["init_args"]["network"]
    with torch.device("meta"):
        network = timm_classifier(**arguments["init_args"] | {"name": f"ladder_{regime}_{rung}"})
    macs, params = COSTS[rung][column : column + 2]
    report = count(network)
    assert report.conv_linear_macs / 1e9 == pytest.approx(macs, abs=1e-4)
    assert report.params / 1e6 == pytest.approx(params, abs=5.1e-4)


@pytest.mark.parametrize("rung", COSTS)
def test_small_ladder_takes_every_rung(rung: str) -> None:
    arguments = built(Path("configs/classification/ladder_cifar10.yaml")).plain["model"]["init_args"]["network"]
    network = timm_classifier(**arguments["init_args"] | {"name": f"ladder_r50_{rung}"})
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def write_coco(root: Path) -> None:
    """Sixteen images of each split, with one object of COCO's eighty categories each."""
    root.mkdir(parents=True)
    files = CocoFiles(root)
    for split, records in files.records.items():
        records["categories"] = [{"id": number, "name": f"thing {number}"} for number in range(1, 81)]
        for _ in range(16):
            files.object(files.image(split), [5, 5, 30, 20], split)
    files.data()


def write_camvid(root: Path) -> None:
    """Eight images of each split, with all classes in stripes."""
    ids = np.repeat(np.array([*range(11), 255], np.uint8), 40)[None].repeat(360, 0)
    for split in ("train", "val", "test"):
        for number in range(8):
            image, mask = street(root, split, number)
            save(image, np.repeat(ids[..., None], 3, axis=2))
            save(mask, ids)


def write_weights(config: Path, folder: Path) -> None:
    """The runs that a config takes the weights of parts from, with any weights."""
    named = built(config).plain["weights"]
    for part, source in (named if isinstance(named, dict) else {}).items():
        state = built(config).model.get_submodule(part).state_dict()
        file = folder / "runs" / source.replace("/", "/0/checkpoints/")
        file.parent.mkdir(parents=True)
        torch.save(
            {"state_dict": {f"network.{name}": torch.rand(value.shape) for name, value in state.items()}},
            file.with_suffix(".ckpt"),
        )


@pytest.mark.parametrize("path", [path for path in TASKS if not is_recipe(path)], ids=str)
def test_small_config_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    argv = without_weights(command(path))
    data, options = built(path).plain["data"], "--data.init_args"
    if "data" in data["init_args"]:
        # Views of another data module's images.
        data, options = data["init_args"]["data"], "--data.init_args.data.init_args"
    if data["class_path"].endswith(("DigitScenes", "DigitStreets", "StickFigures", "DigitQuestions")):
        batch = data["init_args"]["batch_size"]
        argv = [*argv, f"{options}.num_train={batch}", f"{options}.num_val=4"]
    elif data["class_path"].endswith("CamVid"):
        write_camvid(tmp_path / data["init_args"]["root"])
    elif data["class_path"].endswith(("ImageFolder", "OwnImages", "UnlabelledFolder")):
        write_class_folders(tmp_path / data["init_args"]["root"], classes=5, images=16)
        argv = [*argv, f"{options}.num_workers=0"]
    elif data["class_path"].endswith(("Coco", "OwnBoxes")):
        write_coco(tmp_path / data["init_args"]["root"])
        # As small as they are: at full size one batch takes a minute.
        argv = [
            *argv,
            f"{options}.num_workers=0",
            *(f"{options}.{s}_transforms=[]" for s in ("train", "eval")),
        ]
    elif data["class_path"].endswith("OwnPoses"):
        write_keypoints(tmp_path / data["init_args"]["root"], train=16, val=4)
        argv = [*argv, f"{options}.num_workers=0", f"{options}.size=64"]
    elif "root" in data["init_args"]:
        root = tmp_path / data["init_args"]["root"]
        root.mkdir(parents=True)
        if data["class_path"].endswith("PackedImages"):
            pack(root, **arrays(n=40, classes=10))
        else:
            write_cifar(root, CIFAR100 if "CIFAR100" in data["class_path"] else CIFAR10, monkeypatch)
        argv = [*argv, f"{options}.batch_size=10", f"{options}.holdout=10"]
        if data["init_args"].get("num_train"):
            argv = [*argv, f"{options}.num_train=20"]
    write_weights(path, tmp_path)
    ended = run("fit", [*argv, "--trainer.fast_dev_run=true", "--trainer.accelerator=cpu"], tmp_path)
    assert ended.code == 0, ended.output
    assert "Traceback" not in ended.output
    assert f"runs/{path.stem}/0" in ended.output


@pytest.mark.parametrize("path", HARDWARE, ids=str)
def test_hardware_merges_onto_any_config(path: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    ended = run("fit", ["--config=configs/quickstart.yaml", f"--config={path}", "--print_config"], tmp_path)
    assert ended.code == 0, ended.output
    merged = yaml.safe_load(ended.output)
    wanted = yaml.safe_load((ROOT / path).read_text())
    assert list(wanted) == ["trainer"]
    assert {key: merged["trainer"][key] for key in wanted["trainer"]} == wanted["trainer"]
    assert merged["experiment"] == "quickstart"
    quickstart = yaml.safe_load((ROOT / "configs/quickstart.yaml").read_text())
    assert merged["trainer"]["max_epochs"] == quickstart["trainer"]["max_epochs"]


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/*.md")), ids=lambda page: page.stem)
def test_docs_name_only_configs_that_exist(page: Path) -> None:
    named = set(re.findall(r"configs/[\w/]+\.yaml", page.read_text()))
    assert {path for path in named if not (ROOT / path).is_file()} == set()


def test_docs_list_every_recipe_with_its_cost() -> None:
    text = (ROOT / "docs" / "classification.md").read_text()
    for name, published in RECIPES.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}.yaml`"))
        if "ladder" not in name:
            assert f"{published.params:,} | {published.macs:.4f} G" in row
    for name, (params, macs) in NETWORKS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}.yaml`"))
        size, costs = [cell.strip() for cell in row.split("|")][3:5]
        # The second phase has the sizes of the first.
        if size != "as the first":
            assert float(size.replace(",", "")) == pytest.approx(params, rel=0.01)
            largest = max(float(number) for number in re.findall(r"\d+\.\d+", costs))
            assert macs is None or largest == pytest.approx(macs, rel=0.01)
    for rung, (macs, params, wide_macs, wide_params) in COSTS.items():
        cells = next(line for line in text.splitlines() if line.startswith(f"| `{rung}`")).split(" | ")
        counted = [float(cells[i].replace(",", "")) for i in (1, 2, 4, 5)]
        assert counted == pytest.approx([params * 1e6, macs, wide_params * 1e6, wide_macs], rel=3e-5)
