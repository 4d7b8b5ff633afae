"""What makes a cell stale, on a copy of the real sources."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exp.claims.claim_file import read_claim
from exp.claims.code_version import Version, changes, code_version, merged, registering_module, version_now
from exp.claims.imports import OURS, Sources, find_sources
from exp.claims.module_text import Module, read_module
from exp.cli import resolve
from tests.library.recipes import ROOT

CONFIGS = {
    "quickstart": "configs/quickstart.yaml",
    "ranet": "configs/classification/ranet_small_cifar10.yaml",
    "ladder": "configs/classification/ladder_cifar10.yaml",
    "detr": "configs/detection/detr_digits.yaml",
}
METRIC = "test/of_everything"
Versions = Callable[[], dict[str, Version]]


@pytest.fixture(scope="module")
def configs() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return {name: resolve([f"--config={path}"]) for name, path in CONFIGS.items()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources of all packages."""
    folder = tmp_path_factory.mktemp("sources")
    for package in OURS:
        if (ROOT / package).is_dir():
            shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture(scope="module", autouse=True)
def read_once() -> Iterator[None]:
    """Files that have not changed are read once for all tests."""

    @functools.cache
    def read(name: str, path: Path, time: int) -> Module:
        return read_module(name, path)

    def time_of(path: Path) -> int:
        file = path / "__init__.py" if path.is_dir() else path
        return file.stat().st_mtime_ns if file.is_file() else 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("exp.claims.imports.read_module", lambda name, path: read(name, path, time_of(path)))
        yield


@pytest.fixture
def versions(tree: Path, configs: dict[str, Any]) -> Versions:
    """The version of each config by the copy, read anew."""

    def read() -> dict[str, Version]:
        sources = Sources(lambda top: tree / top if top in OURS else find_sources(top), registering_module)
        return {name: code_version(config, [METRIC], sources) for name, config in configs.items()}

    return read


def stale(versions: Versions, file: Path, change: Callable[[str], str]) -> set[str]:
    """The configs whose version changes with a file."""
    before, text = versions(), file.read_text()
    file.write_text(change(text))
    try:
        after = versions()
    finally:
        file.write_text(text)
    return {name for name in before if before[name] != after[name]}


def statement(text: str) -> str:
    return text + "\nchanged = 1\n"


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("exp/checkpoint_io.py", {"quickstart", "ranet", "ladder", "detr"}),
        ("exp/fit.py", {"quickstart", "ranet", "ladder", "detr"}),
        ("lightning_modules/task.py", {"quickstart", "ranet", "ladder", "detr"}),
        ("callbacks/step_seed.py", {"quickstart", "ranet", "ladder", "detr"}),
        ("lightning_modules/detection.py", {"detr"}),
        ("models/classifiers/ranet_blocks.py", {"ranet"}),
        ("models/layers/position_encoding.py", {"detr"}),
        ("models/layers/mask_code.py", set()),
        ("models/detectors/retinanet.py", set()),
        # Known by what timm calls its networks alone.
        ("models/backbones/convnext_ladder.py", {"ladder"}),
        ("models/backbones/plain_conv.py", {"detr"}),
        ("models/backbones/swin_dense.py", set()),
        ("datamodules/coco.py", {"detr"}),
        ("datamodules/mpii.py", set()),
        ("models/classifiers/__init__.py", {"quickstart", "ranet", "ladder", "detr"}),
        ("models/__init__.py", {"quickstart", "ranet", "ladder", "detr"}),
        ("exp/profile.py", set()),
        ("lightning_modules/pose_estimation.py", set()),
        ("drawing/figures.py", set()),
        ("callbacks/reports/classification.py", set()),
        ("callbacks/reports/exit_curve.py", set()),
        # It counts the multiply-adds that a finished run states.
        ("callbacks/reports/cost.py", {"quickstart", "ranet", "ladder", "detr"}),
        ("exp/claims/report.py", set()),
    ],
)
def test_a_statement_makes_stale_who_imports_it(tree: Path, versions: Versions, file: str, expected: set[str]) -> None:
    assert stale(versions, tree / file, statement) == expected


def test_comments_and_docstrings_change_nothing(tree: Path, versions: Versions) -> None:
    file = tree / "lightning_modules/task.py"
    assert file.read_text().startswith('"""')
    assert stale(versions, file, lambda text: text.replace('"""', '"""Once more. ', 1) + "\n# the end\n") == set()


def test_a_new_file_that_nobody_imports_changes_nothing(tree: Path, versions: Versions) -> None:
    before = versions()
    new = [tree / folder / "new.py" for folder in ("models", "callbacks", "models/layers", "exp")]
    for file in new:
        file.write_text("class New: pass\n")
    assert versions() == before
    for file in new:
        file.unlink()


def test_a_drawing_and_a_report_change_nothing(tree: Path, versions: Versions, configs: dict[str, Any]) -> None:
    report, drawing = tree / "callbacks/reports/new.py", tree / "drawing/new.py"
    report.write_text("import drawing.new\n\n\nclass New:\n    pass\n")
    drawing.write_text("GREY = 0.5\n")
    configs["named"] = configs["ranet"] | {"trainer": {"callbacks": [{"class_path": "callbacks.reports.new.New"}]}}
    assert stale(versions, drawing, statement) == set()
    assert stale(versions, report, statement) == set()
    # Until it logs what a claim is about.
    logs = "\n    def metrics(self):\n        return {%s: 1.0}\n"
    assert stale(versions, report, lambda text: text + logs % "'other'") == set()
    assert stale(versions, report, lambda text: text + logs % "f'of_{what}'") == set(configs)
    del configs["named"]
    report.unlink()
    drawing.unlink()


def test_a_report_counts_for_the_metric_that_chooses_the_checkpoint(
    tree: Path, versions: Versions, configs: dict[str, Any]
) -> None:
    report = tree / "callbacks/reports/new.py"
    report.write_text("class New:\n    def metrics(self):\n        return {'chosen': 1.0}\n")
    configs["monitored"] = configs["ranet"] | {"checkpoint": {"monitor": "val/chosen"}}
    assert stale(versions, report, statement) == {"monitored"}
    del configs["monitored"]
    report.unlink()


def test_a_callback_that_a_config_names_counts(tree: Path, versions: Versions, configs: dict[str, Any]) -> None:
    file = tree / "callbacks/annealing.py"
    assert stale(versions, file, statement) == set()
    named = configs["ranet"] | {"trainer": {"callbacks": [{"class_path": "callbacks.Annealing"}]}}
    configs["named"] = named
    assert stale(versions, file, statement) == {"named"}
    del configs["named"]


def test_libraries_that_a_config_names_have_their_version(configs: dict[str, Any]) -> None:
    libraries = code_version({"a": {"class_path": "scipy.ndimage.zoom"}})["libraries"]
    assert libraries["scipy"].count(".") == 2
    assert libraries.keys() > {"torch", "timm", "lightning"}
    assert "models" not in code_version(configs["ranet"])["libraries"]


def test_changes_are_told_in_words(configs: dict[str, Any]) -> None:
    version = code_version(configs["ranet"])
    assert changes(json.loads(json.dumps(version)), version) == []
    assert changes({"models": "0123", "torch": "2.14.1"}, version) == [
        "its code was recorded by whole packages, as was done once"
    ]
    old = {"modules": version["modules"] | {"exp.fit": "0"}, "libraries": version["libraries"] | {"torch": "1.0"}}
    assert changes(old, version) == ["the code of exp.fit", f"torch 1.0 -> {version['libraries']['torch']}"]
    two = {"modules": {"exp.fit": "0", "models.compute": "0"}, "libraries": {}}
    assert changes(two, {"modules": {}, "libraries": {}}) == ["the code of models.compute, exp.fit"]
    many = {"modules": {f"m{i}": "0" for i in range(7)}, "libraries": {}}
    assert changes(many, {"modules": {}, "libraries": {}}) == ["the code of m0, m1, m2, m3 and 3 more modules"]


def test_what_is_recorded_is_enough_to_ask_again(configs: dict[str, Any]) -> None:
    together = merged(code_version(config) for config in configs.values())
    assert version_now(together) == together
    assert "models.detectors.detr" in together["modules"]
    assert "models.backbones.convnext_ladder" in together["modules"]


def modules_of(name: str) -> dict[str, set[str]]:
    """The modules that the arms of a shipped claim import."""
    claim = read_claim(Path(f"configs/claims/{name}.yaml"))
    configs = [f"--config={path}" for path in claim.configs]
    arms = {arm.name: resolve([*configs, *arm.arguments()]) for arm in claim.arms.values()}
    return {arm: set(code_version(config, claim.metrics())["modules"]) for arm, config in arms.items()}


def test_arms_differ_in_their_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    arms = modules_of("condconv")
    assert "models.backbones.separable" in arms["static"]
    assert "models.layers.cond_conv" in arms["condconv"] - arms["static"]


@pytest.mark.parametrize(
    ("claim", "report"), [("early_exit", "exit_curve"), ("adpc", "threshold_curve"), ("weight_ema", "")]
)
def test_claims_count_the_reports_that_log_their_metrics(
    monkeypatch: pytest.MonkeyPatch, claim: str, report: str
) -> None:
    monkeypatch.chdir(ROOT)
    for modules in modules_of(claim).values():
        curves = {name for name in modules if name.startswith("callbacks.reports") and name.endswith("_curve")}
        assert curves == ({f"callbacks.reports.{report}"} if report else set())
