"""Losses and metrics of pose estimation, against their definitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from datamodules import StickFigures
from datamodules.mpii import MIRRORED
from lightning_modules import PoseEstimation
from lightning_modules.pose_metrics import PCKh, heatmap_accuracy
from models.pose import ADPCPose
from models.pose.decoding import decode, mirror_back
from tests.library.batches import Batches
from tests.library.recipes import built

SIZE = 16


class Seen(nn.Module):
    """Images are heat maps: a first exit that is blind, and one that sees them."""

    num_joints = 16

    def __init__(self, exits: int = 2) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.exits = exits

    def forward(self, images: Tensor) -> Any:
        return [0 * self.gain * images, self.gain * images][-self.exits :]


class Data(lightning.LightningDataModule):
    batch_size = 5
    mirrored = MIRRORED

    def __init__(self, people: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.maps = torch.rand(people, 16, SIZE, SIZE, generator=generator)
        # Batches come in another order than the split's.
        self.index = torch.randperm(people, generator=generator)
        self.weight = (torch.rand(people, 16, generator=generator) > 0.2).float()
        truth = torch.rand(people, 16, 2, generator=generator) * SIZE
        self.truth = torch.cat([truth, torch.rand(people, 16, 1, generator=generator).round()], 2)
        self.centre = torch.full((people, 2), SIZE / 2)
        self.scale = torch.full((people,), SIZE / 200)
        self.head_size = torch.rand(people, generator=generator) * 8 + 2

    def loader(self) -> Batches:
        fields = {
            "image": self.maps,
            "heatmaps": self.maps.flip(0),
            "weight": self.weight,
            "index": self.index,
            "centre": self.centre,
            "scale": self.scale,
            "joints": self.truth,
            "head_size": self.head_size,
        }
        parts = range(0, len(self.index), self.batch_size)
        return Batches([{key: value[i : i + self.batch_size] for key, value in fields.items()} for i in parts])

    train_dataloader = val_dataloader = test_dataloader = predict_dataloader = loader


def trainer(folder: Path, **options: Any) -> Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(accelerator="cpu", max_epochs=1, default_root_dir=folder, **quiet, **options)


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, 1e-3)


def share_within(joints: Tensor, data: Data, limit: float, columns: list[int]) -> float:
    near = (joints - data.truth[..., :2]).norm(dim=2) <= limit * data.head_size[:, None]
    counted = data.truth[..., 2] > 0
    return 100 * near[:, columns][counted[:, columns]].float().mean().item()


def test_metrics_count_every_joint_once_at_every_exit(tmp_path: Path) -> None:
    """13 people in batches of 5: the last batch has 3, which a mean of batch means would overrate."""
    data, module = Data(13), PoseEstimation(Seen(), flip_test="none")
    (logged,) = trainer(tmp_path).test(module, data, verbose=False)
    scored = [joint for joint in range(16) if joint not in (6, 7)]
    joints, _ = decode(data.maps, data.centre, data.scale)
    blind, _ = decode(0 * data.maps, data.centre, data.scale)
    for name, found in {"": joints, "_exit0": blind}.items():
        for metric, limit in {"pckh": 0.5, "pckh_01": 0.11, "pckh_01_exact": 0.1}.items():
            assert logged[f"test/{metric}{name}"] == pytest.approx(share_within(found, data, limit, scored), rel=1e-5)
    elbows = sum(share_within(joints, data, 0.5, [joint]) for joint in (11, 14)) / 2
    assert logged["test/pckh_elbow"] == pytest.approx(elbows, rel=1e-5)
    difference = (data.maps - data.maps.flip(0)) * data.weight[..., None, None]
    assert logged["test/loss"] == pytest.approx(0.5 * difference.square().mean().item(), rel=1e-5)
    assert 0 < logged["test/pckh"] < 100
    report = module.findings
    assert report is not None
    assert report.index.tolist() == list(range(13))
    torch.testing.assert_close(report.joints[data.index], joints)
    torch.testing.assert_close(report.truth[data.index], data.truth)


def test_joints_of_any_kind_are_measured_by_the_size_of_people(tmp_path: Path) -> None:
    data = Data(13)
    for name in ("maps", "weight", "truth"):
        setattr(data, name, getattr(data, name)[:, :5])
    network = Seen(1)
    network.num_joints = 5
    module = PoseEstimation(network, measure="pck", flip_test="none")
    assert (module.monitor, module.monitor_mode, module.shown) == ("val/pck", "max", ("pck",))
    (logged,) = trainer(tmp_path).test(module, data, verbose=False)
    joints, _ = decode(data.maps, data.centre, data.scale)
    # Lengths as small as these heads are no one's, but the definition is the same.
    for metric, limit in {"pck": 0.1, "pck_005": 0.05}.items():
        assert logged[f"test/{metric}"] == pytest.approx(share_within(joints, data, limit, list(range(5))), rel=1e-5)
    assert not any("pckh" in name for name in logged)


def test_a_flip_test_needs_to_know_what_a_mirror_exchanges(tmp_path: Path) -> None:
    data = Data(3)
    data.mirrored = ()
    with pytest.raises(ValueError, match="the data name 0 joints that a mirror exchanges, and the network finds 16"):
        trainer(tmp_path).test(PoseEstimation(Seen(1)), data, verbose=False)


def test_counts_of_several_processes_add_up_to_those_of_one() -> None:
    data = Data(12)
    joints, _ = decode(data.maps, data.centre, data.scale)
    parts = [slice(0, 5), slice(5, 12)]
    whole, *shares = (PCKh() for _ in range(3))
    whole.update(joints, data.truth, data.head_size)
    for share, part in zip(shares, parts, strict=True):
        share.update(joints[part], data.truth[part], data.head_size[part])
    shares[0].merge_state(shares[1])
    assert shares[0].compute() == whole.compute()
    # Counts of integers: any sharing gives the same bits.
    assert {state.dtype for state in shares[0].metric_state.values()} == {torch.int64}


def test_what_nobody_annotated_is_not_a_number() -> None:
    data, metric = Data(4), PCKh()
    data.truth[:, [1, 9], 2] = 0
    metric.update(data.truth[..., :2], data.truth, data.head_size)
    found = metric.compute()
    assert found["pckh_head"].isnan()
    assert found["pckh_knee"] == found["pckh"] == 100


@pytest.mark.parametrize("flip_test", ["shifted", "unshifted"])
def test_flip_test_averages_with_the_mirrored_image(flip_test: Any, tmp_path: Path) -> None:
    data = Data(5)
    outputs = trainer(tmp_path).predict(PoseEstimation(Seen(1), flip_test=flip_test), data)
    assert outputs is not None
    back = mirror_back(data.maps.flip(3), MIRRORED, flip_test == "shifted")
    joints, scores = decode((data.maps + back) / 2, data.centre, data.scale)
    torch.testing.assert_close(outputs[0]["joints"], joints)
    torch.testing.assert_close(outputs[0]["scores"], scores)
    assert outputs[0]["index"].tolist() == data.index.tolist()


@pytest.mark.parametrize(
    ("given", "weights"), [("sum", [1.0, 1.0]), ("mean", [0.5, 0.5]), ([0.25, 2.0], [0.25, 2.0])], ids=str
)
@pytest.mark.parametrize("hardest", [None, 8])
def test_loss_weighs_exits_and_picks_the_hardest_joints(
    given: Any, weights: list[float], hardest: int | None, tmp_path: Path
) -> None:
    data = Data(5)
    module = PoseEstimation(Seen(), sgd, exit_weights=given, hardest_joints=hardest)
    runner = trainer(tmp_path, log_every_n_steps=1, limit_val_batches=0)
    runner.fit(module, data)
    losses = [
        0.5 * ((maps - data.maps.flip(0)) * data.weight[..., None, None]).square().mean((2, 3))
        for maps in (0 * data.maps, data.maps)
    ]
    if hardest:
        losses = [each.sort(1).values[:, -hardest:] for each in losses]
    terms = [weight * each.mean().item() for weight, each in zip(weights, losses, strict=True)]
    logged = [runner.logged_metrics[f"train/loss_exit{i}"].item() for i in range(2)]
    assert logged == pytest.approx(terms, rel=1e-5)
    assert runner.logged_metrics["train/loss"].item() == pytest.approx(sum(terms), rel=1e-5)
    _, accuracy = heatmap_accuracy(data.maps, data.maps.flip(0))
    assert runner.logged_metrics["train/heatmap_accuracy"].item() == pytest.approx(accuracy.item())


def test_a_network_with_masked_exits_learns_and_is_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXP_CACHE", str(tmp_path / "cache"))
    stages = [[1, [1], [4]], [1, [1] * 2, [4, 8]], [1, [1] * 3, [4, 8, 16]], [1, [1] * 4, [4, 8, 16, 32]]]
    network = ADPCPose(stages=stages, pooled_dim=4, low=0.0)
    module = PoseEstimation(network, lambda parameters: torch.optim.Adam(parameters, 1e-3))
    runner = trainer(tmp_path, log_every_n_steps=1, num_sanity_val_steps=0)
    runner.fit(module, StickFigures(num_train=4, num_val=3, batch_size=2))
    names = {name for name in runner.logged_metrics if name.startswith("val/pckh") and name[-1].isdigit()}
    assert {f"val/pckh_exit{i}" for i in range(3)} < names
    assert module.findings is not None
    assert module.findings.joints.shape == (3, 16, 2)
    costs = [runner.logged_metrics[f"val/macs{name}"].item() for name in ("_exit0", "_exit1", "_exit2", "")]
    published = [
        runner.logged_metrics[f"val/published_macs{name}"].item() for name in ("_exit0", "_exit1", "_exit2", "")
    ]
    # The first exit is computed everywhere, later ones where there is something.
    dense = network.dense_macs((3, 64, 64))
    assert costs[0] == published[0] == pytest.approx(dense[0])
    assert costs == sorted(costs)
    assert costs[-1] <= dense[-1] * (1 + 1e-6)


def test_accuracy_on_heat_maps_knows_near_from_far() -> None:
    target = torch.zeros(2, 3, 20, 40)
    target[0, 0, 10, 10] = target[1, 0, 10, 10] = target[:, 1, 10, 1] = target[0, 2, 5, 30] = 1
    found = torch.zeros_like(target)
    # Along x, half of a tenth of the height (1 cell) is the limit, which is already too far.
    found[0, 0, 10, 10] = found[1, 0, 10, 11] = found[0, 2, 6, 30] = 1
    by_joint, mean = heatmap_accuracy(found, target)
    assert by_joint[0] == 0.5
    assert by_joint[1].isnan()
    assert by_joint[2] == 1
    assert mean == 0.75
    assert heatmap_accuracy(found, torch.zeros_like(target))[1] == 0


def test_maps_of_another_size_than_the_targets_are_refused(tmp_path: Path) -> None:
    data = Data(5)
    data.maps = data.maps[..., :8]
    batch = next(iter(data.loader())) | {"heatmaps": torch.zeros(5, 16, SIZE, SIZE)}
    message = r"Seen draws heat maps of \[16, 16, 8\] .* targets of \[16, 16, 16\]"
    with pytest.raises(ValueError, match=message):
        PoseEstimation(Seen(1)).training_step(batch, 0)


@pytest.mark.parametrize(
    "options",
    [{"hardest_joints": 0}, {"hardest_joints": 17}, {"exit_weights": "total"}, {"flip_test": "twice"}],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PoseEstimation(Seen(), **options)
    other = Seen()
    other.num_joints = 17
    with pytest.raises(ValueError, match="17 joints, but PCKh is defined for MPII's 16"):
        PoseEstimation(other)


@pytest.mark.parametrize(("name", "params"), [("hrnet_w32_mpii", 28_536_080), ("hrnet_w48_mpii", 63_595_696)])
def test_recipe_is_the_published_one(name: str, params: int) -> None:
    cli = built(Path(f"configs/pose/{name}.yaml"))
    assert sum(parameter.numel() for parameter in cli.model.network.parameters()) == params
    defaults = cli.model.main.optimizer([nn.Parameter(torch.zeros(1))]).defaults
    assert (defaults["lr"], defaults["weight_decay"]) == (1e-3, 0)
    assert (cli.trainer.max_epochs, cli.datamodule.batch_size, cli.model.reference_batch) == (210, 128, 128)
    table = cli.model.main.schedule.table(1e-3, 10, 2100)
    assert [table[step] for step in (0, 1699, 1700, 1999, 2000)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5])
    (crop,) = cli.datamodule.train_transforms
    assert (crop.size, crop.sigma, crop.scale, crop.rotation) == ((256, 256), 2.0, 0.25, 30.0)
    assert (crop.rotation_prob, crop.flip) == (0.6, 0.5)
    assert cli.model.flip_test == "shifted"
