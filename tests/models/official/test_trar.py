from __future__ import annotations

import pickle
from pathlib import Path

import torch

from exp.convert import main
from exp.weight_files import read
from models.official import layout_of, load
from models.vqa import TRAR
from tests.library.official_networks import BUILD, weights


def test_files_of_a_training_convert(tmp_path: Path) -> None:
    """As published they are called `epoch13.pkl`, and hold what a training needs beside the weights."""
    ours = weights("trar/attention")
    theirs = layout_of("trar").to_official(ours)
    optimizer = torch.optim.Adam(BUILD["trar"]().parameters()).state_dict()
    torch.save({"state_dict": theirs, "optimizer": optimizer, "lr_base": 4e-6, "epoch": 13}, tmp_path / "epoch13.pkl")
    assert main([str(tmp_path / "epoch13.pkl"), str(tmp_path / "ours.safetensors")]) == 0
    network = BUILD["trar/attention"]()
    assert load(network, read(tmp_path / "ours.safetensors")) == []
    for name, value in network.state_dict().items():
        assert torch.equal(value, ours[name]), name


class Call:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("touched"),)


def test_a_file_is_not_executed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = {name: value.numpy() for name, value in layout_of("trar").to_official(weights("trar")).items()}
    Path("epoch1.pkl").write_bytes(pickle.dumps({"state_dict": state, "optimizer": Call()}))
    main(["epoch1.pkl", "ours.safetensors"])
    assert not Path("touched").exists()


def test_features_of_clevr_have_an_adapter_of_another_name() -> None:
    layout, theirs = layout_of("trar"), layout_of("trar").to_official(weights("trar/fc"))
    clevr = {name.replace("frcn_linear", "grid_linear"): value for name, value in theirs.items()}
    assert clevr.keys() != theirs.keys()
    network = BUILD["trar/fc"]()
    assert isinstance(network, TRAR)
    load(network, layout.to_ours(clevr))
    assert torch.equal(network.adapter.linear.weight, theirs["adapter.frcn_linear.weight"])
