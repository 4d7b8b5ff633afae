"""A config that came inside a file builds what exp knows; a stranger's leaves no mark, however it is spelled."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from exp.cli import Cli, resolve
from exp.plugins import own_modules
from exp.trust import Distrust, Rule, check_size, taken_from
from tests.library.recipes import ROOT, TASKS

NETWORK = "model/init_args/network"
OPTIONS = f"{NETWORK}/init_args/options"
# Everything that would run leaves this file in the folder that the command is started in.
RUN = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", "mark"]}}
ELSEWHERE = {"dirpath": "mark"}
EVIL = """
open("mark", "w").close()

class Network:
    def __init__(self, *args, **options):
        open("mark", "w").close()

def function(*args, **options):
    open("mark", "w").close()
"""


@cache
def quickstart() -> dict[str, Any]:
    return resolve([f"--config={ROOT / 'configs/quickstart.yaml'}"])


def config(**changes: Any) -> dict[str, Any]:
    """The quickstart's resolved config with other values at places, which are spelled with slashes."""
    changed = copy.deepcopy(quickstart())
    for place, value in changes.items():
        *parents, last = place.split("/")
        inner = changed
        for parent in parents:
            inner = inner[parent]
        inner[last] = value
    return changed


class Resolved(Cli):
    """Builds nothing."""

    def instantiate_classes(self) -> None:
        """Nothing."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A downloaded folder, in which the command is started as `python -m exp` starts it."""
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "sub.yaml").write_text(yaml.safe_dump(RUN))
    (tmp_path / "evil_callbacks.yaml").write_text(yaml.safe_dump([RUN]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("evil", None)


def save(text: Any, **others: Any) -> None:
    torch.save({"exp_config": text if not isinstance(text, dict) else yaml.safe_dump(text), **others}, "s.ckpt")


def refused(capsys: pytest.CaptureFixture[str], *argv: str, command: str = "validate") -> str:
    """The one line that a command says when it refuses the checkpoint."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        Cli(["--ckpt_path=s.ckpt", *argv], command)
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert said.startswith("exp: ")
    assert said.count("\n") == 1, said
    return said


def unmarked(folder: Path) -> bool:
    return "evil" not in sys.modules and not [path for path in folder.rglob("*") if "mark" in path.name]


# Where a class is named -> the package that would have to be trusted.
NAMED: dict[str, tuple[dict[str, Any], str]] = {
    "among the options of a network": ({OPTIONS: RUN}, "subprocess"),
    "deep among the options": ({OPTIONS: {"depths": [1, {"a": [RUN]}]}}, "subprocess"),
    "as a network": ({NETWORK: RUN}, "subprocess"),
    "as a network, in short": ({NETWORK: "evil.Network"}, "evil"),
    "as a network, of this folder": ({NETWORK: {"class_path": "evil.Network"}}, "evil"),
    "in a file of this folder": ({NETWORK: "sub.yaml"}, "sub"),
    "as a task": ({"model": RUN}, "subprocess"),
    "as a task, in short": ({"model": "evil.Network"}, "evil"),
    "as data": ({"data": RUN}, "subprocess"),
    "as an optimizer": ({"model/init_args/optimizer": {"class_path": "evil.function"}}, "evil"),
    "as an optimizer, in short": ({"model/init_args/optimizer": "os.system"}, "os"),
    "as a schedule": (
        {"model/init_args/schedule": {"class_path": "shutil.rmtree", "init_args": {"path": "evil.py"}}},
        "shutil",
    ),
    "in a list of callbacks": ({"trainer/callbacks": [RUN]}, "subprocess"),
    "as the only callback": ({"trainer/callbacks": "evil.Network"}, "evil"),
    "as a hook of a callback": (
        {
            "trainer/callbacks": {
                "class_path": "lightning.pytorch.callbacks.LambdaCallback",
                "init_args": {"setup": "evil.function"},
            }
        },
        "evil",
    ),
    "as a function that a callback calls": (
        {
            "trainer/callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.StochasticWeightAveraging",
                    "init_args": {"swa_lrs": 0.1, "avg_fn": "os.system"},
                }
            ]
        },
        "os",
    ),
    "as a logger": ({"trainer/logger": [RUN]}, "subprocess"),
    "as a logger, in short": ({"trainer/logger": "evil.Network"}, "evil"),
    "as a plugin": ({"trainer/plugins": RUN}, "subprocess"),
    "as a seed": ({"seed_everything": RUN}, "subprocess"),
    "as what is monitored": ({"checkpoint/monitor": RUN}, "subprocess"),
    "as an argument that no class has": ({f"{NETWORK}/dict_kwargs": {"x": RUN}}, "subprocess"),
    "as a transform": ({"data/init_args/train_transforms": [RUN]}, "subprocess"),
    "as a transform, in short": ({"data/init_args/train_transforms": ["evil.Network"]}, "evil"),
    "as a function of a transform": (
        {
            "data/init_args/train_transforms": [
                {"class_path": "albumentations.Lambda", "init_args": {"image": "os.remove"}}
            ]
        },
        "os",
    ),
    "a function that loads files": ({NETWORK: "timm.models.load_checkpoint"}, "timm"),
    "a function that loads transforms": (
        {"data/init_args/train_transforms": [{"class_path": "albumentations.load"}]},
        "albumentations",
    ),
    "a function that builds anything": ({NETWORK: {"class_path": "torchvision.models.get_model"}}, "torchvision"),
    "a function that downloads code": ({NETWORK: {"class_path": "torch.hub.load"}}, "torch"),
    "a data set that downloads": (
        {NETWORK: {"class_path": "torchvision.datasets.MNIST", "init_args": {"root": "mark", "download": True}}},
        "torchvision",
    ),
    "by a dotted key": ({f"{NETWORK}/init_args/options": {"x.class_path": "evil.Network"}}, "evil"),
}


@pytest.mark.parametrize("place", NAMED)
def test_a_class_of_a_stranger(place: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, package = NAMED[place]
    save(config(**changes))
    said = refused(capsys)
    assert "s.ckpt" in said
    assert f"--trust {package}" in said
    assert unmarked(folder)


# What a config may not say, and a word of what is said about it.
OTHERWISE: dict[str, tuple[dict[str, Any], str]] = {
    "an absolute path as experiment": ({"experiment": "/tmp/mark"}, "'/tmp/mark'"),
    "a way out as experiment": ({"experiment": "../mark"}, "'../mark'"),
    "a dotted key of the trainer": ({"trainer/logger.save_dir": "mark"}, "logger.save_dir"),
    "a file in place of options": ({OPTIONS: "sub.yaml"}, "expected dict"),
    "a file in place of transforms": ({"data/init_args/train_transforms": "sub.yaml"}, "expected list"),
    "a file in place of callbacks": ({"trainer/callbacks": "evil_callbacks.yaml"}, "trust"),
    "a path that the parser would follow": ({"model/__path__": "sub.yaml"}, "'__path__'"),
    "words in place of a class": ({"model/class_path": "evil.X; import os"}, "no name of a class"),
    "a list in place of a class": ({"model/class_path": ["evil.Network"]}, "no name of a class"),
    "a library of a library": (
        {"model/init_args/optimizer": "models.classifiers.torch.os.system"},
        "no class 'models.classifiers.torch'",
    ),
    "a network of a hub": ({f"{NETWORK}/init_args/name": "hf-hub:evil/network"}, "asks a hub"),
    "a network of a hub, in spaces": ({f"{NETWORK}/init_args/name": " hf-\nhub:evil/network"}, "asks a hub"),
    "a place for downloads, in a text": ({OPTIONS: "{cache_dir: mark}"}, "'cache_dir'"),
    "a place for downloads, by a dotted key": (
        {f"{NETWORK}/init_args": {"name": "resnet18", "num_classes": 2, "options.cache_dir": "mark"}},
        "cache_dir",
    ),
    "an address of weights, in a text": ({OPTIONS: "{pretrained_cfg: {url: file:mark}}"}, "'url'"),
    "a class in a text": (
        {"trainer/callbacks": "[{class_path: ModelCheckpoint, init_args: {dirpath: mark}}]"},
        "no class",
    ),
    "a command to the screen": ({"model/init_args/optimizer": "\x1b[2J"}, "\\x1b[2J"),
    "a network of a folder": ({f"{NETWORK}/init_args/name": "local-dir:."}, "asks a hub or a folder"),
    "a list in place of the model": ({"model": [1]}, "'model' of its config is no mapping"),
    "a number in place of the trainer": ({"trainer": 3}, "'trainer' of its config is no mapping"),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_what_a_strangers_config_may_not_say(what: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, word = OTHERWISE[what]
    save(config(**changes))
    assert word in refused(capsys)
    assert unmarked(folder)


def test_no_place_of_a_strangers_is_written_to(folder: Path) -> None:
    writers = [
        {"class_path": "lightning.pytorch.callbacks.OnExceptionCheckpoint", "init_args": ELSEWHERE},
        {"class_path": "ModelCheckpoint", "init_args": ELSEWHERE},
        {"class_path": "callbacks.BadSamples", "init_args": {"path": "mark"}},
    ]
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/top1"}}
    places = {
        "runs": "mark",
        "resume": "mark",
        "weights": "mark",
        "config": "sub.yaml",
        "wandb": "online",
        "threads": 3,
        "experiment": "a/plain-name_2",
        "trainer/callbacks": [*writers, stopping],
        "trainer/logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "mark"}},
        "trainer/profiler": {"class_path": "lightning.pytorch.profilers.SimpleProfiler", "init_args": ELSEWHERE},
        "trainer/default_root_dir": "mark",
        "trainer/accelerator": "gpu",
        f"{OPTIONS}/cache_dir": "mark",
        f"{OPTIONS}/pretrained_cfg_overlay": {"url": "file:mark", "mean": [0.5, 0.5, 0.5]},
    }
    save(config(**places))
    cli = Cli(["--ckpt_path=s.ckpt"], "validate")
    assert unmarked(folder)
    own = {"runs": "runs", "resume": "auto", "weights": None, "wandb": "auto", "threads": None}
    assert {name: cli.plain[name] for name in own} == own
    assert cli.experiment == "a/plain-name_2"
    kinds = [type(each).__name__ for each in cli.trainer.callbacks]
    assert "EarlyStopping" in kinds
    assert not {"OnExceptionCheckpoint", "ModelCheckpoint", "BadSamples"} & set(kinds)
    network = cli.plain["model"]["init_args"]["network"]["init_args"]
    assert network["options"]["pretrained_cfg_overlay"] == {"mean": [0.5, 0.5, 0.5]}
    assert "cache_dir" not in network["options"]


def explosion() -> str:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    return "\n".join(lines)


TEXTS: dict[str, Any] = {
    "a tag that runs a function": "model: !!python/object/apply:os.system ['touch mark']",
    "a tag that builds an object": "model: !!python/object/new:evil.Network []",
    "an unknown tag": "model: !network x",
    "a list": "[1, 2]",
    "a word": "hello",
    "what has no end": "model: [",
    "lists in lists": "[" * 5000 + "]" * 5000,
    "a list in itself": "model: &a [*a]",
    "aliases of aliases": explosion(),
    "a day that there is not": "model: 2026-99-99",
    "a number without end": "model: " + "9" * 5000,
    "no text": "\x00\x01",
    "bytes": b"model: x",
    "a text without end": "model: Classification\n" + "# and so on\n" * 100_000,
    "a number": 5,
    "a list of values": [1],
    "a list as a key": "[1]: 2",
}


@pytest.mark.parametrize("what", TEXTS)
def test_what_is_no_config(what: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(TEXTS[what])
    said = refused(capsys)
    assert "s.ckpt: its config" in said
    assert "--config" in said
    assert unmarked(folder)


@pytest.mark.parametrize(
    "what", ["an unknown tag", "lists in lists", "aliases of aliases", "a tag that runs a function"]
)
def test_an_own_config_that_is_none(what: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(TEXTS[what])
    with pytest.raises(SystemExit):
        Cli(["--config=mine.yaml"], "fit")
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert unmarked(folder)


def test_nothing_is_built_inside_of_anything(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine.yaml").write_text(yaml.safe_dump(config(**{OPTIONS: {"act_layer": RUN}})))
    with pytest.raises(SystemExit):
        Cli(["--config=mine.yaml"], "validate")
    assert unmarked(folder)


def test_what_the_user_types_is_free(folder: Path) -> None:
    save(config())
    typed = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=own", "--trainer.callbacks+=ModelCheckpoint"]
    typed += ["--model.network=torch.nn.Identity"]
    cli = Resolved(["--ckpt_path=s.ckpt", *typed], "validate")
    assert cli.plain["model"]["init_args"]["network"]["class_path"] == "torch.nn.Identity"
    assert cli.plain["trainer"]["logger"]["class_path"].endswith("CSVLogger")
    (folder / "own.py").write_text("import torch\n\nclass Network(torch.nn.Identity):\n    pass\n")
    cli = Resolved(["--ckpt_path=s.ckpt", "--model.network=own.Network"], "validate")
    assert cli.plain["model"]["init_args"]["network"]["class_path"] == "own.Network"


def test_a_package_of_the_users(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "plugged").mkdir()
    (folder / "plugged/__init__.py").write_text("from plugged.nets import Network\n")
    (folder / "plugged/nets.py").write_text("import torch\n\nclass Network(torch.nn.Identity):\n    pass\n")
    Path("configs").mkdir()
    Path("configs/mine.yaml").write_text(yaml.safe_dump(config(**{NETWORK: {"class_path": "plugged.Network"}})))
    # An own config finds it where the command is started, or beside itself.
    own = Resolved(["--config=configs/mine.yaml"], "fit").plain
    save(own)
    assert "names plugged.Network" in (said := refused(capsys))
    assert "--trust plugged" in said
    for trust in (["--trust", "plugged"], ["--trust=evil", "--trust=plugged"]):
        network = Resolved(["--ckpt_path=s.ckpt", *trust], "validate").plain["model"]["init_args"]["network"]
        assert network["class_path"] == "plugged.Network"
    assert "no such package" in refused(capsys, "--trust=plugedd")
    assert "the name of a package" in refused(capsys, "--trust=./plugged")
    assert unmarked(folder)


def test_only_what_is_named_is_looked_for(folder: Path) -> None:
    before = list(sys.path)
    (folder / "evil.d").mkdir()
    named = ["--ckpt_path=evil.ckpt", "--data.root=evil.d", "--weights=evil.pt", "--model.network=own.Network"]
    assert own_modules(named) == ({"own"}, [folder])
    save(config())
    Resolved(["--ckpt_path=s.ckpt"], "validate")
    assert sys.path == before


def test_what_ships_may_come_inside_of_a_file() -> None:
    rule = Rule("shipped", [])
    for path in TASKS:
        assert rule.read((ROOT / path).read_text()), path


@pytest.mark.parametrize(
    "name",
    [
        "classification/dvt_digits",
        "classification/drnet_digits",
        "detection/solq_digits",
        "segmentation/dynamic_routing_digits",
        "pose/hrnet_figures",
    ],
)
def test_what_is_computed_stays(name: str, folder: Path) -> None:
    plain = resolve([f"--config={ROOT / 'configs' / name}.yaml"])
    save(plain)
    again = Resolved(["--ckpt_path=s.ckpt"], "validate").plain
    for part in ("model", "data", "checkpoint", "seed_everything"):
        assert again[part] == plain[part]
    assert again["trainer"]["callbacks"] == plain["trainer"]["callbacks"]


def test_the_guard_ends_with_the_command(folder: Path) -> None:
    rule = Rule("s.ckpt", [])
    with rule.guard(), pytest.raises(SystemExit):
        Resolved(
            [f"--config={ROOT / 'configs/quickstart.yaml'}", f"--{NETWORK.replace('/', '.')}=os.path.Network"], "fit"
        )
    with pytest.raises(Distrust):
        rule.check(os.system)
    assert resolve([f"--config={ROOT / 'configs/quickstart.yaml'}"]) == quickstart()


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def test_the_largest_config() -> None:
    check_size({"a": nested(59)})
    check_size(nested(60))
    check_size(list(range(99_999)))
    for large in ({"a": nested(60)}, nested(61)):
        with pytest.raises(yaml.YAMLError, match="nested more than 60 levels deep"):
            check_size(large)
    with pytest.raises(yaml.YAMLError, match="more than 100000 values"):
        check_size(list(range(100_000)))
    text = "experiment: a\n#"
    rule = Rule("s.ckpt", [])
    assert rule.read(text.ljust(1_000_000, "#")) == {"experiment": "a", "trainer": {}}
    with pytest.raises(Distrust, match="its config is longer than 1000000 characters"):
        rule.read(text.ljust(1_000_001, "#"))


def test_packages_that_are_trusted() -> None:
    assert taken_from(["fit", "--trust", "numpy.random", "--trust=torch", "--a=b"]) == (
        ["numpy.random", "torch"],
        ["fit", "--a=b"],
    )
    with pytest.raises(Distrust, match="--trust : it takes the name of a package"):
        taken_from(["--trust"])
    rule = Rule.of("s.ckpt", ["b"], ["--model.network=own.nets.Network", "--data=Digits"])
    assert rule.trusted == ["b", "own"]
    assert {"Network", "Digits"} <= rule.typed


def test_a_trusted_package_is_no_more_than_itself() -> None:
    rule = Rule("s.ckpt", ["torch.hub"])
    assert rule.read("model: torch.hub.load") == {"model": {"class_path": "torch.hub.load"}, "trainer": {}}
    for other in ("torch.hubs.load", "torch.load"):
        with pytest.raises(Distrust, match=f"names {re.escape(other)}, which is none of the classes"):
            rule.read(f"model: {{class_path: {other}}}")
