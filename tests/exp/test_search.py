"""`search` on a supernet of one epoch: its result, killed and continued, on several processes, and its refusals."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from exp.claims.code_version import code_version
from tests.library.runner import Ended, die, run

SUPERNET = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--model=Classification",
    "--model.network=models.supernet.autoformer_supernet",
    "--model.network.space=models.supernet.TransformerSpace",
    "--model.network.space.depths=[1, 2]",
    "--model.network.space.widths=[8, 16]",
    "--model.network.space.heads=[1, 2]",
    "--model.network.space.ratios=[1, 2.5]",
    "--model.network.img_size=8",
    "--model.network.patch_size=4",
    "--model.network.num_classes=10",
    "--model.network.head_dim=8",
    "--model.network.max_relative_position=2",
    "--data=Digits",
    "--data.batch_size=256",
    "--test=false",
    "--wandb=disabled",
    "--experiment=supernet",
]
SHORT = ["supernet", "--generations=2", "--population=6", "--parents=3", "--limit=params=5K", "--jobs=1"]
RESULTS = Path("runs/supernet/0/search")
NAME = "evolution-params=5K-seed0"


def search(folder: Path, *argv: str, sabotage: Callable[[], None] | None = None) -> Ended:
    return run("search", [*SHORT, *argv], folder, sabotage)


def result(folder: Path, name: str = NAME) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """What a search found, and its candidates."""
    place = folder / RESULTS / name
    with (place / "candidates.csv").open() as file:
        return json.loads((place / "result.json").read_text()), list(csv.DictReader(file))


def evaluated(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / RESULTS / "candidates").rglob("*.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A supernet's run, and a search of it."""
    # Every copy of this process would read the code anew.
    code_version({})
    folder = tmp_path_factory.mktemp("search")
    ended = run("fit", SUPERNET, folder)
    assert ended.code == 0, ended.output
    ended = search(folder)
    assert ended.code == 0, ended.output
    assert "judged on 180 validation images of Digits; the best are tested on its 359 test images" in ended.output
    return folder


def test_what_is_found_is_within_the_limits_and_the_best_of_all(folder: Path) -> None:
    found, rows = result(folder)
    assert len(rows) == found["evaluated"] == len(evaluated(folder)) <= 18
    assert len({row["architecture"] for row in rows}) == len(rows)
    assert max(float(row["params"]) for row in rows) <= 5000
    assert found["best"][0]["top1"] == max(float(row["top1"]) for row in rows)
    first = [float(row["top1"]) for row in rows if row["generation"] == "0"]
    assert found["random"]["mean"] == pytest.approx(sum(first) / len(first))
    costs, accuracies = ([row[name] for row in found["front"]] for name in ("params", "top1"))
    assert costs == sorted(set(costs))
    assert accuracies == sorted(set(accuracies))
    for name in ("front.png", "choices.png"):
        assert (folder / RESULTS / NAME / name).stat().st_size > 1000
    assert not list((folder / RESULTS / "candidates").rglob("*.lock"))


def test_the_best_is_a_config_with_the_weights_that_it_inherits(folder: Path) -> None:
    place, (found, _) = folder / RESULTS / NAME, result(folder)
    config = yaml.safe_load((place / "best.yaml").read_text())
    network = config["model"]["init_args"]["network"]
    assert network["class_path"] == "models.supernet.chosen"
    assert network["init_args"]["architecture"] == found["best"][0]["architecture"]
    weights = load_file(place / "best.safetensors")
    assert sum(each.numel() for each in weights.values()) == found["best"][0]["costs"]["params"]
    argv = [f"--config={place / 'best.yaml'}", f"--weights={place / 'best.safetensors'}"]
    ended = run("test", argv, folder)
    assert ended.code == 0, ended.output
    metrics = json.loads((place / "test" / "metrics.json").read_text())
    assert metrics["test/top1"] == pytest.approx(found["best"][0]["test/top1"], abs=1e-6)


def test_killed_it_goes_on_to_the_same_result(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("search"))
    shutil.copystat(*(each / "runs/supernet/0/checkpoints/best.ckpt" for each in (folder, tmp_path)))

    def die_after_seven() -> None:
        from exp.searching.candidates import Candidates

        original, counted = Candidates._evaluate_one, []

        def evaluate(self: Candidates, architecture: Any) -> Any:
            counted.append(architecture)
            if len(counted) > 7:
                die()
            return original(self, architecture)

        Candidates._evaluate_one = evaluate  # type: ignore[method-assign]

    assert search(tmp_path, sabotage=die_after_seven).code == -9
    known = {name: (tmp_path / RESULTS).rglob(name).__next__().stat().st_mtime_ns for name in evaluated(tmp_path)}
    assert len(known) == 7
    ended = search(tmp_path)
    assert ended.code == 0, ended.output
    # Nothing is evaluated twice.
    again = {name: (tmp_path / RESULTS).rglob(name).__next__().stat().st_mtime_ns for name in known}
    assert again == known
    assert result(tmp_path) == result(folder)


@pytest.mark.slow
def test_two_processes_find_what_one_does(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "runs", tmp_path / "runs", ignore=shutil.ignore_patterns("search"))

    def wait_for_the_other() -> None:
        from exp.searching.candidates import Candidates

        original = Candidates._evaluate_one
        main = os.getpid()

        def evaluate(self: Candidates, architecture: Any) -> Any:
            # The helper has to load first.
            if os.getpid() == main and self.evaluated == 2:
                while len(list(self._folder.glob("*.json"))) < 4:
                    pass
            return original(self, architecture)

        Candidates._evaluate_one = evaluate  # type: ignore[method-assign]

    ended = search(tmp_path, "--jobs=2", sabotage=wait_for_the_other)
    assert ended.code == 0, ended.output
    assert result(tmp_path) == result(folder)


def hurry() -> None:
    """Has latencies measured less often: their values are not what is tested."""
    from exp.searching import latency

    latency._ROUNDS, latency._SECONDS, latency._FITTED, latency._JUDGED = 1, 0.0, 2, 2


def test_latency_is_limited_by_a_table_of_this_machine(folder: Path) -> None:
    argv = ["--limit=latency_ms=1000", "--generations=0", "--population=2", "--best=1", "--name=latency"]
    ended = search(folder, *argv, sabotage=hurry)
    assert ended.code == 0, ended.output
    assert "latency by 10 measured pieces on" in ended.output
    found, rows = result(folder, "latency")
    assert all(0 < float(row["latency_ms"]) < 1000 for row in rows)
    table = folder / RESULTS / "latency.json"
    facts = json.loads(table.read_text())
    assert {"frame 8", "frame 16"} < set(facts["pieces"])
    assert min(facts["pieces"].values()) > 0
    assert found["latency"] == facts
    table.write_text(json.dumps(facts | {"machine": facts["machine"] | {"chip": "a telephone"}}))
    ended = search(folder, *argv)
    assert ended.code == 2
    assert ended.output.count("\n") == 1
    assert "this table of latencies was measured elsewhere (chip a telephone, not " in ended.output


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--limit=params=1K", "--name=none"], "no architecture of this space has params of 1K at most; the nearest"),
        (["--limit=parms=6M"], "--limit parms: this network's costs are params, multiply_adds, complexity_official"),
        (["--seed=1", f"--name={NAME}"], "holds another search (other seed): choose another --name, or remove it"),
        (["--samples=500"], "--samples 500: there are 180 validation images to judge on"),
        (["--data.holdout=0"], "holds out no validation images"),
        (["--model.network.space.widths=[8]"], "weights of another size than EntangledAutoFormer's: cls_token"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(folder: Path, argv: list[str], message: str) -> None:
    ended = search(folder, *argv)
    assert ended.code in (1, 2), ended.output
    assert message in ended.output


def test_sizes_are_exported_and_one_that_is_fast_enough_predicts(folder: Path) -> None:
    (folder / "small.yaml").write_text("depth: 1\nratios: [1]\nheads: [1]\nwidth: 8\n")
    (folder / "large.yaml").write_text("depth: 2\nratios: [2.5, 2.5]\nheads: [2, 2]\nwidth: 16\n")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "image.png")
    ended = run("export", ["supernet", "--format=torch", "--architecture=small.yaml,large.yaml"], folder)
    assert ended.code == 0, ended.output
    place = folder / "runs/supernet/0/export"
    told = json.loads((place / "sizes.json").read_text())
    assert [size["name"] for size in told["sizes"]] == ["small", "large"]
    for size in told["sizes"]:
        assert (place / size["file"]).is_file()
        weights = load_file(place / f"{size['name']}.safetensors")
        assert sum(tensor.numel() for tensor in weights.values()) == size["params"]
        assert size["latency_ms"] > 0
    for size, milliseconds in zip(told["sizes"], (1.0, 2.0), strict=True):
        size["latency_ms"] = milliseconds
    (place / "sizes.json").write_text(json.dumps(told))
    for most, name, macs in ((1.5, "small", 0), (2.0, "large", 1)):
        ended = run("predict", ["supernet", "image.png", f"--latency-ms={most}", "--wandb=disabled"], folder)
        assert ended.code == 0, ended.output
        assert f"{name}: {1.0 + macs:.2f} ms for an image, of {most:g} ms" in ended.output
        spent = json.loads((place / "predict" / "compute.json").read_text())
        assert told["sizes"][macs]["multiply_adds"] in spent.values()
    refusals = [
        (told["sizes"], told["machine"], 0.5, "no size is as fast; small takes 1.00 ms"),
        (told["sizes"], told["machine"] | {"chip": "a telephone"}, 9, "measured elsewhere (chip a telephone, not "),
    ]
    for sizes, machine, most, message in refusals:
        (place / "sizes.json").write_text(json.dumps({"machine": machine, "sizes": sizes}))
        ended = run("predict", ["supernet", "image.png", f"--latency-ms={most}"], folder)
        assert (ended.code, ended.output.count("\n")) == (2, 1)
        assert message in ended.output
    ended = run("export", ["supernet", f"--architecture=small.yaml,{folder / 'small.yaml'}"], folder)
    assert ended.code == 2
    assert "two files have one name" in ended.output
