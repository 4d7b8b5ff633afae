"""Whatever of a checkpoint cannot be loaded is damaged; whatever is not damaged is what was saved."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from exp.checkpoint_io import AtomicCheckpointIO, CheckpointError, damage, read_checkpoint
from tests.library.run_contents import assert_same


@pytest.fixture
def last(tmp_path: Path) -> Path:
    """A small checkpoint."""
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(5, 3)).sum().backward()
    optimizer.step()
    checkpoint: dict[str, Any] = {
        "state_dict": network.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "exp_config": "seed_everything: 0\n",
        "global_step": 3,
    }
    AtomicCheckpointIO().save_checkpoint(checkpoint, tmp_path / "last.ckpt")
    return tmp_path / "last.ckpt"


def harmed(whole: bytes) -> list[bytes]:
    """The file with a single bit flipped, with a block of zeros, or cut, at many places."""
    draw = random.Random(0)
    harms = []
    # Every part of the archive: headers of entries, the pickle, numbers, the directory at the end.
    places = [draw.randrange(len(whole)) for _ in range(200)] + [
        len(whole) - draw.randrange(1, 1500) for _ in range(100)
    ]
    pickle = whole.index(b"\x80\x02")
    for at in [*places, *range(0, 40), *range(pickle, pickle + 40)]:
        content = bytearray(whole)
        content[at] ^= 1 << draw.randrange(8)
        harms.append(bytes(content))
    for _ in range(30):
        at = draw.randrange(len(whole))
        harms.append((whole[:at] + bytes(512) + whole[at + 512 :])[: len(whole)])
        harms.append(whole[:at])
    return harms


def test_what_cannot_be_loaded_is_damaged(last: Path) -> None:
    whole, expected = last.read_bytes(), read_checkpoint(last)
    assert damage(last) is None
    assert_same(expected, torch.load(last, weights_only=True))
    found = 0
    for content in harmed(whole):
        last.write_bytes(content)
        if (problem := damage(last)) is None:
            assert_same(read_checkpoint(last), expected)
        else:
            found += 1
            assert problem.isprintable()
    # The others are in the padding between entries.
    assert found > 150


def test_every_bit_of_numbers_counts(last: Path) -> None:
    whole = last.read_bytes()
    weight = read_checkpoint(last)["state_dict"]["0.weight"].numpy().tobytes()
    start = whole.index(weight)
    for at in range(start, start + len(weight)):
        content = bytearray(whole)
        content[at] ^= 16
        last.write_bytes(content)
        assert "Bad CRC-32" in str(damage(last))


def test_a_damaged_checkpoint_names_its_neighbours(last: Path) -> None:
    whole = last.read_bytes()
    best = last.with_name("best.ckpt")
    best.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match=r"best\.ckpt: cut off or damaged \(.*\); take last\.ckpt beside it$"):
        AtomicCheckpointIO().load_checkpoint(best)
    last.unlink()
    with pytest.raises(CheckpointError, match=r"; copy or download it again$"):
        read_checkpoint(best)
    assert damage(last) == "no such file"


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    path = tmp_path / "official.pth"
    torch.save({"model": {"a": torch.ones(1)}}, path)
    said = r"not a checkpoint of exp \(it has model\); an official file goes with a config, by --config and --weights"
    with pytest.raises(CheckpointError, match=said):
        read_checkpoint(path)
    torch.save([torch.ones(1)], path)
    assert damage(path) == "not a checkpoint of exp (it holds a list)"
    torch.save({"exp_config": "a: 1"}, path)
    with pytest.raises(CheckpointError, match=r"not a checkpoint of exp \(it has exp_config\)"):
        AtomicCheckpointIO().load_checkpoint(path)


def test_little_is_read_for_a_word(last: Path) -> None:
    """Whoever asks for a step or a config reads no numbers, damaged or not."""
    whole = bytearray(last.read_bytes())
    whole[whole.index(read_checkpoint(last)["state_dict"]["0.weight"].numpy().tobytes())] ^= 1
    last.write_bytes(whole)
    content = read_checkpoint(last, tensors=False)
    assert content["global_step"] == 3
    assert content["state_dict"]["0.weight"].is_meta
    assert damage(last) is not None
