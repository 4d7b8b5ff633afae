"""A claim file is read as written, and what is wrong in it is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exp.claims.cells import Cell, plan, settle
from exp.claims.claim_file import ClaimError, read_claim
from exp.claims.seeds import Seeds
from exp.claims.taken import After

CONFIG = "configs/quickstart.yaml"
GOOD = f"""\
claim: Wide beats narrow.
config: {CONFIG}
metric: val/top1
seeds: [0, 1, 2]
overrides:
  trainer.max_epochs: 3
arms:
  narrow: {{reference: true}}
  wide:
    model.init_args.network.init_args.options.dims: [8, 8, 8, 16]
    trainer.max_epochs: 4
expect: wide > narrow
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "width.yaml"
    path.write_text(text)
    return path


def test_a_claim_is_what_it_says(tmp_path: Path) -> None:
    claim = read_claim(write(tmp_path, GOOD))
    assert (claim.name, claim.reference, claim.at) == ("width", "narrow", "last")
    assert (claim.seeds, claim.minutes) == (Seeds([0, 1, 2], [3]), None)
    assert claim.arms["wide"].overrides == {
        "trainer.max_epochs": 4,
        "model.init_args.network.init_args.options.dims": [8, 8, 8, 16],
    }
    cells = plan(claim, claim.arms, [0, 1], tmp_path, [])
    assert [cell.name for cell in cells] == ["narrow seed 0", "wide seed 0", "narrow seed 1", "wide seed 1"]
    assert cells[1].path == tmp_path / "claims/width/wide/seed0"
    configs = [cell.config for cell in cells]
    assert [c["trainer"]["max_epochs"] for c in configs] == [3, 4, 3, 4]
    assert [c["seed_everything"] for c in configs] == [0, 0, 1, 1]
    assert configs[1]["model"]["init_args"]["network"]["init_args"]["options"]["dims"] == [8, 8, 8, 16]
    # What the arm does not change stays, inside an option too.
    assert configs[1]["model"]["init_args"]["network"]["init_args"]["options"]["depths"] == [1, 1, 2, 1]


@pytest.mark.parametrize(
    ("given", "looks"),
    [
        ("{first: 6, most: 11}", [6, 8, 10, 11]),
        ("{first: 4, most: 10, block: 3}", [4, 7, 10]),
        ("{first: 8, most: 8}", [8]),
    ],
)
def test_seeds_until_it_is_settled(given: str, looks: list[int], tmp_path: Path) -> None:
    claim = read_claim(write(tmp_path, GOOD.replace("[0, 1, 2]", given) + "minutes: 12.5\n"))
    assert claim.seeds == Seeds(list(range(looks[-1])), looks)
    assert claim.minutes == 12.5


def test_percent_is_for_shares(tmp_path: Path) -> None:
    claim = read_claim(write(tmp_path, GOOD + "unit: percent\n"))
    shares = ("val/top1", "test/top1_at_50", "test/published_macs_saved")
    others = ("val/loss", "val/loss_exit0", "test/macs_exit0", "test/published_macs")
    assert [claim.scale(m) for m in shares] == [100] * 3
    assert [claim.scale(m) for m in others] == [1] * 4
    assert read_claim(write(tmp_path, GOOD)).scale("val/top1") == 1


def test_sweeps_and_arms_that_start_from_others(tmp_path: Path) -> None:
    text = GOOD.replace(
        "expect:",
        "  tuned: {after: {arm: lr_0.01_a, checkpoint: last}}\n"
        "  lr: {sweep: {model.optimizer.lr: [0.1, 0.01], experiment_tag: [a]}}\nexpect:",
    )
    claim = read_claim(write(tmp_path, text))
    assert list(claim.arms) == ["narrow", "wide", "lr_0.01_a", "tuned", "lr_0.1_a"]
    assert claim.arms["lr_0.1_a"].overrides["model.optimizer.lr"] == 0.1
    assert claim.arms["tuned"].after == (After("lr_0.01_a", "last"),)


def test_an_arm_that_starts_from_another_takes_its_checkpoint(tmp_path: Path) -> None:
    claim = read_claim(write(tmp_path, GOOD.replace("expect:", "  tuned: {after: wide}\nexpect:")))
    *_, wide, tuned = plan(claim, claim.arms, [7], tmp_path, [])
    assert tuned.parents == [wide]
    assert tuned.config["weights"] == str(tmp_path / "claims/width/wide/seed7/checkpoints/best.ckpt")
    other = plan(claim, claim.arms, [7], tmp_path, ["--model.init_args.network.init_args.drop_path_rate=0.3"])[-1]
    assert other.identity["after"] != tuned.identity["after"]


TAKEN = """\
  again:
    after:
      - {arm: wide, checkpoint: last, as: weights.network}
      - {arm: wide, file: plan.json, as: model.init_args.network.init_args.name}
      - {arm: wide, content: widths.json, as: model.init_args.network.init_args.options.dims}
      - {number: 6 * macs(narrow) / macs(wide), as: trainer.max_epochs}
      - {number: "'val/loss'(narrow) / 2", as: model.init_args.label_smoothing}
"""


def finished(cell: Cell, macs: float, loss: float) -> None:
    """As if a cell had run."""
    cell.path.mkdir(parents=True)
    (cell.path / "run.json").write_text(json.dumps({"status": "finished", "cost": {"macs": macs}}))
    (cell.path / "metrics.csv").write_text(f"step,epoch,val/loss\n1,0,{loss}\n")
    cell.note(identity=cell.identity)


def test_an_arm_takes_files_and_numbers_of_others(tmp_path: Path) -> None:
    claim = read_claim(write(tmp_path, GOOD.replace("expect:", TAKEN + "expect:")))
    assert claim.arms["again"].parents == ["wide", "narrow"]
    assert claim.metrics() == {"val/top1": {"narrow", "wide", "again"}, "val/loss": {"narrow"}}
    assert [str(taken) for taken in claim.arms["again"].after][1:4] == [
        "model.init_args.network.init_args.name = plan.json of wide",
        "model.init_args.network.init_args.options.dims = what widths.json of wide says",
        "trainer.max_epochs = 6 * macs(narrow) / macs(wide)",
    ]
    narrow, wide, again = plan(claim, claim.arms, [7], tmp_path, [])
    run = tmp_path / "claims/width/wide/seed7"
    network = "--model.init_args.network.init_args"
    assert again.parents == [wide, narrow]
    taken = [f"--weights.network={run / 'checkpoints/last.ckpt'}", f"{network}.name={run / 'plan.json'}"]
    assert again.command[-5:-3] == taken
    before = dict(again.identity)

    finished(narrow, 50.0, 0.25)
    finished(wide, 70.0, 0.5)
    with pytest.raises(ClaimError, match=r"line 13: again seed 7: .*widths.json cannot be read"):
        plan(claim, claim.arms, [7], tmp_path, [])
    (wide.path / "widths.json").write_text("[8, 8, 8, 24]")
    again = plan(claim, claim.arms, [7], tmp_path, [])[-1]
    numbers = ["--trainer.max_epochs=4", "--model.init_args.label_smoothing=0.125"]
    assert again.command[-8:-3] == [*taken, f"{network}.options.dims=[8, 8, 8, 24]", *numbers]
    assert again.config["trainer"]["max_epochs"] == 4
    assert again.identity["config"] != before["config"]
    # When its turn comes, it has them already.
    command = list(again.command)
    settle(claim, again)
    assert again.command == command

    (wide.path / "run.json").write_text(json.dumps({"status": "finished"}))
    with pytest.raises(ClaimError, match=r"line 13: again seed 7: 6 \* macs\(narrow\) / macs\(wide\) is no number"):
        plan(claim, claim.arms, [7], tmp_path, [])


@pytest.mark.parametrize(
    ("old", "new", "line", "message"),
    [
        ("expect: wide", "expect: wider", 12, "no arm 'wider'; did you mean 'wide'?"),
        ("metric: val/top1", "metric: top1", 3, "train/..., val/... or test/..., not 'top1'"),
        ("seeds: [0, 1, 2]", "seeds: 3", 4, "list of whole numbers"),
        ("seeds: [0, 1, 2]", "seeds: [0, 0]", 4, "listed twice"),
        ("seeds: [0, 1, 2]", "seeds:\n  first: 6\n  moust: 9", 6, "'seeds' has no 'moust'; did you mean 'most'?"),
        ("seeds: [0, 1, 2]", "seeds:\n  first: 6\n  most: true", 6, "'most' is a number of seeds, not 'True'"),
        ("seeds: [0, 1, 2]", "seeds:\n  first: 6", 4, "needs 'first' and 'most'"),
        ("seeds: [0, 1, 2]", "seeds: {first: 6, most: 4}", 4, "'first' is 6 seeds, and 'most' only 4"),
        ("seeds: [0, 1, 2]", "seeds: [0]\nminutes: .inf", 5, "'minutes' is a number of minutes, not 'inf'"),
        ("claim:", "clame:", 1, "unknown key 'clame'; did you mean 'claim'?"),
        ("metric: val/top1\n", "", 1, "'metric' is missing"),
        (CONFIG, "configs/quickstrat.yaml", 2, "did you mean 'configs/quickstart.yaml'?"),
        ("trainer.max_epochs: 3", "trainer.max_epoch: 3", 6, "did you mean 'trainer.max_epochs'?"),
        ("trainer.max_epochs: 4", "trainer.max_epochs: four", 11, "expected int, got 'four'"),
        ("trainer.max_epochs: 4", "seed_everything: 4", 11, "list seeds under 'seeds'"),
        ("trainer.max_epochs: 4", "after: wides", 11, "no arm 'wides'; did you mean 'wide'?"),
        ("trainer.max_epochs: 4", "after: wide", 9, "wait for each other: wide after wide"),
        ("trainer.max_epochs: 4", "sweep: {trainer.max_epochs: 4}", 11, "a list of values"),
        ("trainer.max_epochs: 4", "after: {arm: narrow, ckpt: last}", 11, "'after' has no 'ckpt'"),
        ("trainer.max_epochs: 4", "after: {arm: narrow, file: a.json}", 11, "'file' stands with 'as'"),
        ("trainer.max_epochs: 4", "after: {arm: narrow, file: a, content: a}", 11, "in place of 'file'"),
        ("trainer.max_epochs: 4", "after: {arm: narrow, file: /a, as: weights}", 11, "a file in the run directory"),
        ("trainer.max_epochs: 4", "after: {number: 3, as: weights}", 11, "'3' names no arm"),
        ("trainer.max_epochs: 4", "after: {number: macs(narow), as: weights}", 11, "did you mean 'narrow'?"),
        ("trainer.max_epochs: 4", "after: {number: macs(narrow)}", 11, "'number' names its arms itself"),
        ("trainer.max_epochs: 4", "after:\n    - narrow\n    - 4", 13, "is the name of an arm, or a mapping"),
        ("trainer.max_epochs: 4", "reference: true", 11, "only one arm is the reference"),
        ("  wide:", "  wide-one:", 9, "letters, digits, _ and ., not 'wide-one'"),
        ("  wide:", "  narrow:", 9, "'narrow' is already on line 8"),
        ("expect: wide > narrow", "expect: [wide > narrow, wide = narrow]", 12, "|a - b| < margin"),
        ("expect: wide > narrow", "unit: percents\nexpect: wide > narrow", 12, "'unit' is percent, not 'percents'"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, old: str, new: str, line: int, message: str) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ClaimError) as caught:
        plan(claim := read_claim(path), claim.arms, claim.seeds.listed, tmp_path, [])
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("claim: [", "while parsing"), ("just text", "is a mapping"), ("", "is a mapping")]
)
def test_a_file_that_is_no_claim(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ClaimError, match=message):
        read_claim(write(tmp_path, text))


def test_a_missing_file_names_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(ClaimError, match=r"no such claim file; did you mean .*width\.yaml"):
        read_claim(tmp_path / "widht.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "claim: !!python/object/apply:os.system [true]",
        "claim: !mine One.",
        "claim: " + "[" * 3000,
        "claim: " + "[" * 100 + "]" * 100,
        "claim: &a [*a]",
        "claim: 2026-99-99",
        "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "\n".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdef", "bcdefg", strict=True)),
    ],
    ids=range(7),
)
def test_a_strangers_claim_file_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "claim.yaml").write_text(text)
    with pytest.raises(ClaimError) as caught:
        read_claim(tmp_path / "claim.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'claim.yaml'}: ")
    assert "\n" not in str(caught.value)
