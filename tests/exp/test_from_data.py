"""What data say of a model stands in its config before it is built."""

from __future__ import annotations

import pytest

from exp.cli import Cli, resolve
from exp.usage import ConfigError
from tests.library.class_folders import write_class_folders
from tests.library.recipes import ROOT

NETWORK = ["--model.network.name=resnet18", "--model.network.pretrained=false", "--weights=null"]


@pytest.fixture(scope="module")
def argv(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a training on images of three classes."""
    root = tmp_path_factory.mktemp("mine")
    write_class_folders(root, classes=3, images=4, size=12)
    return [f"--config={ROOT}/configs/own_images.yaml", f"--data.root={root}", *NETWORK]


def network(plain: dict) -> dict:
    return plain["model"]["init_args"]["network"]["init_args"]


def test_classes_are_counted_and_stand_in_the_config(argv: list[str]) -> None:
    cli = Cli(argv, "fit")
    assert cli.model.num_classes == cli.model.network.num_classes == 3
    assert network(cli.plain)["num_classes"] == 3
    # What a run resumes from needs no data to be read.
    assert cli.plain["from_data"] is None
    # What `compare` expects of a run is what the run has.
    assert resolve(argv) == cli.plain
    # The data were opened once.
    assert cli.datamodule.class_names


@pytest.mark.parametrize("key", ["--model.network.num_classes=7", "--model.init_args.network.init_args.num_classes=7"])
def test_what_is_typed_stays(argv: list[str], key: str) -> None:
    assert network(resolve([*argv, key]))["num_classes"] == 7


def test_without_data_the_config_stays_as_it_is(argv: list[str]) -> None:
    plain = resolve([*argv, "--data.root=nowhere"])
    assert network(plain)["num_classes"] == 2


def test_what_cannot_be_read_off_is_said(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"from_data.network.nmu: the model has no such argument"):
        resolve([*argv, "--from_data={network.nmu: num_classes}"])
    with pytest.raises(ConfigError, match=r"from_data.network.num_classes: OwnImages has no classes_there_are"):
        resolve([*argv, "--from_data={network.num_classes: classes_there_are}"])
