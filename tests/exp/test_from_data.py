"""What data say of a model stands in its config before it is built."""

from __future__ import annotations

import pytest

from exp.cli import Cli, resolve
from exp.usage import ConfigError
from exp.weights import weight_files
from tests.library.class_folders import write_class_folders
from tests.library.recipes import ROOT
from tests.library.refusals import refused

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


def test_options_that_another_network_does_not_take_are_named_with_their_config(capsys: pytest.CaptureFixture) -> None:
    quickstart = f"{ROOT}/configs/quickstart.yaml"
    said = refused(capsys, lambda: Cli([f"--config={quickstart}", "--model.network.name=resnet18"], "fit"))
    assert said.splitlines()[-1] == (
        "exp: resnet18 takes no patch_size, no depths, no dims, no kernel_sizes, no ls_init_value, which "
        f"{quickstart} has; the network's `options: {{}}` leaves them out"
    )
    changed = ["--model.network.name=resnet18", "--model.network.options={}", "--model.network.drop_path_rate=0"]
    assert Cli([f"--config={quickstart}", *changed], "fit").model.network.fc.out_features == 10


def test_a_hub_is_asked_where_no_package_has_weights(argv: list[str]) -> None:
    asking = Cli([*argv, "--model.network.pretrained=true", "--weights=package"], "fit")
    assert weight_files(asking) == {}
    lite = [*argv, "--model.network.pretrained=true", "--weights=package", "--model.network.name=tf_efficientnet_lite0"]
    assert list(weight_files(Cli(lite, "fit"))) == ["network"]
