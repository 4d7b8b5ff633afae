from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodules import CIFAR10, CIFAR100, DataError
from tests.library.cifar_files import PER_FILE, write


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_official_files(kind: type[CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = write(tmp_path, kind, monkeypatch)
    data = kind(tmp_path, batch_size=7, holdout=10)
    data.setup("fit")
    files = 5 if kind is CIFAR10 else 1
    sizes = [len(data.source(split)) for split in ("train", "val", "test")]
    assert sizes == [files * PER_FILE - 10, 10, PER_FILE]
    assert len(kind(tmp_path, holdout=10, num_train=4).source("train")) == 4
    assert data.num_classes == (10 if kind is CIFAR10 else 100)
    batches = list(data.test_dataloader())
    images = np.concatenate([batch["image"].numpy() for batch in batches]).transpose(0, 2, 3, 1)
    assert np.array_equal(images, pixels[-PER_FILE:])
    assert batches[0]["label"].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert data.sample_name("test", 3) == f"{kind.__name__.lower()}/test #3"
    assert next(iter(data.train_dataloader()))["image"].shape == (7, 3, 32, 32)


@pytest.mark.parametrize("kind", [CIFAR10, CIFAR100])
def test_missing_files_are_listed_with_the_way_to_get_them(kind: type[CIFAR10], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="download=True") as caught:
        kind(tmp_path).setup("fit")
    message = str(caught.value)
    assert str(tmp_path / kind.official.base_folder) in message
    assert kind.official.test_list[0][0] in message
    assert kind.official.url in message


def test_another_file_of_that_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, CIFAR10, monkeypatch)
    file = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(DataError, match=r"data_batch_3 is not the official file"):
        CIFAR10(tmp_path).setup("fit")


class Attack:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("pwned"),))


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, CIFAR10, monkeypatch, extra=Attack())
    with pytest.raises(DataError, match="which is neither an array nor a text"):
        CIFAR10(tmp_path, holdout=10).setup("fit")
    assert not (tmp_path / "pwned").exists()


def test_labels_that_disagree_with_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, CIFAR10, monkeypatch, labels=[0] * (PER_FILE - 1))
    with pytest.raises(DataError, match="100 train images and 95 labels"):
        CIFAR10(tmp_path, holdout=10).setup("fit")
