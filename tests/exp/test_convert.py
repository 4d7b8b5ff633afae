import argparse
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import nn

from exp.convert import main
from exp.extraction import read_architecture
from models.official import layout_of
from models.official.convnext import LAYOUT
from models.supernet import TransformerSpace, autoformer_supernet
from tests.library.official_networks import weights
from tests.library.runner import run


@pytest.fixture
def ours() -> dict[str, torch.Tensor]:
    return timm.create_model("convnext_tiny", depths=(1, 1, 1, 1), dims=(4, 8, 8, 8), num_classes=3).state_dict()


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def test_there_and_back(tmp_path: Path, ours: dict, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(ours, tmp_path / "ours.safetensors")
    assert main([str(tmp_path / "ours.safetensors"), str(tmp_path / "new" / "official.pth"), "--to", "official"]) == 0
    checkpoint = torch.load(tmp_path / "new" / "official.pth", weights_only=True)
    assert same(checkpoint["model"], LAYOUT.to_official(ours))
    assert main([str(tmp_path / "new" / "official.pth"), str(tmp_path / "back.safetensors")]) == 0
    assert same(load_file(tmp_path / "back.safetensors"), ours)
    printed = capsys.readouterr().out.splitlines()
    numbers = sum(value.numel() for value in ours.values())
    said = f"convnext weights in our layout, {len(ours)} tensors, {numbers:,} numbers"
    look = "pixels RGB 0..1 less (0.485, 0.456, 0.406) over (0.229, 0.224, 0.225), bicubic"
    assert printed[1] == f"{tmp_path}/back.safetensors: {said}; {look}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back.safetensors", "new", "ours.safetensors"]


def test_training_checkpoint_with_averaged_weights(tmp_path: Path, ours: dict) -> None:
    averaged = {name: value + 1 for name, value in ours.items()}
    checkpoint = {
        "model": LAYOUT.to_official(ours),
        "model_ema": LAYOUT.to_official(averaged),
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        "epoch": 299,
        "args": argparse.Namespace(model="convnext_tiny", lr=4e-3, data_path="/imagenet"),
    }
    torch.save(checkpoint, tmp_path / "official.pth")
    trusted = torch.serialization.get_safe_globals()
    for options, expected in (([], ours), (["--ema", "--system", "convnext"], averaged)):
        assert main([str(tmp_path / "official.pth"), str(tmp_path / "ours.safetensors"), *options]) == 0
        assert same(load_file(tmp_path / "ours.safetensors"), expected)
    assert torch.serialization.get_safe_globals() == trusted


def test_our_training_checkpoint(tmp_path: Path, ours: dict) -> None:
    state = {f"network.{name}": value for name, value in ours.items()} | {"metric.count": torch.ones(1)}
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "last.ckpt")
    assert main([str(tmp_path / "last.ckpt"), str(tmp_path / "official.safetensors"), "--to", "official"]) == 0
    assert same(load_file(tmp_path / "official.safetensors"), LAYOUT.to_official(ours))


def test_detector_says_what_it_leaves_out(tmp_path: Path, ours: dict, capsys: pytest.CaptureFixture[str]) -> None:
    backbone = {f"backbone.{name}": value for name, value in LAYOUT.to_official(ours).items()}
    torch.save({"state_dict": backbone | {"neck.conv.weight": torch.ones(1)}}, tmp_path / "detector.pth")
    assert main([str(tmp_path / "detector.pth"), str(tmp_path / "ours.pth")]) == 0
    assert "left out (all but the backbone): neck.conv.weight" in capsys.readouterr().err
    assert same(torch.load(tmp_path / "ours.pth", weights_only=True)["model"], ours)


def test_checkpoint_of_adpcs_own_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its training script saves the network together with its loss."""
    ours = weights("adpc/all")
    theirs = layout_of("adpc").to_official(ours)
    state = {f"model.{name}": value for name, value in theirs.items()} | {"loss.criterion.weight": torch.ones(5)}
    torch.save(state, tmp_path / "best.pth")
    assert main([str(tmp_path / "best.pth"), str(tmp_path / "ours.safetensors")]) == 0
    assert same(load_file(tmp_path / "ours.safetensors"), ours)
    told = capsys.readouterr().err.splitlines()
    left_out = "left out (of a training, not of its network): loss.criterion.weight"
    assert told == [f"exp convert: {tmp_path}/best.pth: {left_out}"]
    assert main([str(tmp_path / "ours.safetensors"), str(tmp_path / "back.pth"), "--to", "official"]) == 0
    assert same(torch.load(tmp_path / "back.pth", weights_only=True)["model"], theirs)


def test_files_of_other_kinds(tmp_path: Path, ours: dict) -> None:
    """The same weights as arrays in a pickle, in numpy's archive, and as a network saved whole and compiled."""
    theirs = LAYOUT.to_official(ours)
    arrays = {name: value.numpy() for name, value in theirs.items()}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "a zoo"}, protocol=2))
    np.savez(tmp_path / "arrays.npz", **arrays)
    whole = nn.Module()
    for name, value in theirs.items():
        *parts, last = name.split(".")
        module = whole
        for part in parts:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_parameter(last, nn.Parameter(value))
    wrapped = nn.Module()
    wrapped.add_module("module", nn.Module())
    wrapped.module.add_module("_orig_mod", whole)
    torch.save(whole, tmp_path / "whole.pth")
    torch.save({"ema": wrapped, "model": None, "args": argparse.Namespace(folder=tmp_path)}, tmp_path / "wrapped.pt")
    for source in ("zoo.pkl", "arrays.npz", "whole.pth", "wrapped.pt"):
        target = tmp_path / f"{source}.safetensors"
        assert main([str(tmp_path / source), str(target)]) == 0
        assert same(load_file(target), ours), source


def test_detectron2s_pickle_lacks_what_is_not_saved(tmp_path: Path) -> None:
    ours = weights("detectron2")
    theirs = {name: value.numpy() for name, value in layout_of("detectron2").to_official(ours).items()}
    theirs |= {"pixel_mean": np.zeros((3, 1, 1)), "anchor_generator.cell_anchors.0": np.zeros((9, 4))}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": theirs, "__author__": "Detectron2 Model Zoo"}))
    assert main([str(tmp_path / "model.pkl"), str(tmp_path / "ours.safetensors")]) == 0
    assert same(load_file(tmp_path / "ours.safetensors"), ours)


class Malicious:
    def __reduce__(self) -> tuple:
        return (print, ("executed",))


def broken(folder: Path, ours: dict) -> dict[str, tuple[Path, list[str], str]]:
    """Argument lists that cannot work: file, further arguments, and what the message must say."""
    torch.save({"model": {"fc.weight": torch.ones(1)}}, folder / "unknown.pth")
    torch.save({"model": LAYOUT.to_official(ours)}, folder / "good.pth")
    torch.save({"model": {k: v for k, v in LAYOUT.to_official(ours).items() if k != "norm.bias"}}, folder / "torn.pth")
    (folder / "text.pth").write_text("not a checkpoint")
    (folder / "text.safetensors").write_text("not a checkpoint")
    (folder / "pickle.pth").write_bytes(pickle.dumps(Malicious()))
    return {
        "missing file": (folder / "none.pth", [], "no such file"),
        "unknown keys": (folder / "unknown.pth", [], "none of the systems"),
        "missing key": (folder / "torn.pth", [], "missing norm.bias"),
        "text": (folder / "text.pth", [], "not a checkpoint"),
        "text as safetensors": (folder / "text.safetensors", [], "not a safetensors file"),
        "code": (folder / "pickle.pth", [], "not a checkpoint"),
        "unknown system": (
            folder / "good.pth",
            ["--system", "resnext"],
            "'resnext'; known: adpc, autoformer, byol, condconv,",
        ),
        "no average": (folder / "good.pth", ["--ema"], "no averaged weights"),
        "already official": (folder / "good.pth", ["--to", "official"], "our layout of none of the systems"),
    }


def test_one_line_says_what_is_wrong(tmp_path: Path, ours: dict, capsys: pytest.CaptureFixture[str]) -> None:
    for source, options, message in broken(tmp_path, ours).values():
        assert main([str(source), str(tmp_path / "out.safetensors"), *options]) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith(f"exp convert: {source}: ")
        assert message in captured.err
        assert captured.err.count("\n") == 1
        assert not (tmp_path / "out.safetensors").exists()


def test_failed_writing_leaves_the_old_file(
    tmp_path: Path, ours: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": LAYOUT.to_official(ours)}, tmp_path / "good.pth")
    assert main([str(tmp_path / "good.pth"), str(tmp_path / "out.txt")]) == 2
    assert "must end in .safetensors, .pth or .pt" in capsys.readouterr().err
    assert main([str(tmp_path / "good.pth"), str(tmp_path / "good.pth" / "inside.pth")]) == 2
    assert "cannot write" in capsys.readouterr().err
    (tmp_path / "out.pth").write_text("old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    assert main([str(tmp_path / "good.pth"), str(tmp_path / "out.pth")]) == 2
    assert "No space left" in capsys.readouterr().err
    assert (tmp_path / "out.pth").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.pth", "out.pth"]


def test_an_architecture_of_a_searchable_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From official weights of a super network; the config beside the result evaluates it."""
    sizes: dict[str, Any] = {
        "num_classes": 10,
        "img_size": 16,
        "patch_size": 4,
        "head_dim": 8,
        "max_relative_position": 3,
    }
    network = autoformer_supernet(TransformerSpace([2, 3, 4], [16, 24, 32], [2, 3, 4], [2, 3, 4]), **sizes)
    torch.save({"model": layout_of("autoformer").to_official(network.state_dict())}, tmp_path / "supernet.pth")
    described = {"depth": 2, "ratios": [4, 3], "heads": [3, 2], "width": 24}
    (tmp_path / "chosen.yaml").write_text(yaml.safe_dump(described))
    config = Path("configs/classification/autoformer_digits.yaml").resolve()
    command = ["supernet.pth", "small.safetensors", f"--config={config}", "--wandb=disabled"]
    ended = run("convert", [*command, "--architecture=chosen.yaml"], tmp_path)
    assert ended.code == 0, ended.output
    assert 'network options {"img_size": 16' in ended.output
    plain = network.extracted(network.space.read(described))
    assert same(load_file(tmp_path / "small.safetensors"), plain.state_dict())
    written = yaml.safe_load((tmp_path / "small.yaml").read_text())
    assert written["model"]["init_args"]["network"]["class_path"] == "models.supernet.chosen"
    # A config whose network is an architecture says which it is.
    assert read_architecture(tmp_path / "small.yaml") == described
    ended = run("validate", ["--config=small.yaml", "--weights=small.safetensors"], tmp_path)
    assert ended.code == 0, ended.output
    assert "val/top1_smallest" not in ended.output
    (tmp_path / "nothing.yaml").write_text("12")
    monkeypatch.chdir(tmp_path)
    for file, said in (
        ("nothing.yaml", "nothing.yaml: no choices by name in it, such as `depth: 12`"),
        ("small.yaml", "its config would take the place of small.yaml: choose another name for OUT"),
    ):
        with pytest.raises(SystemExit):
            main(["supernet.pth", "small.safetensors", f"--architecture={file}"])
        assert said in capsys.readouterr().err
