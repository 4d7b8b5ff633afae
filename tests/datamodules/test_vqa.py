"""Questions about images: layouts, features, words and answers, and what is wrong with files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules import CLEVR, VQA, DigitQuestions
from datamodules.answers import soft_target, vqa_accuracy
from datamodules.digit_questions import QUESTIONS, scene
from datamodules.errors import DataError, OptionError
from tests.library.question_files import ASKED, annotation_file, question_file, write_clevr, write_vqa

Options = dict[str, Any]


def data(root: Path, **options: Any) -> VQA:
    given: Options = {"batch_size": 4, "fewest": 1, "num_workers": 0, "eval_transforms": [], "train_transforms": []}
    return VQA(root, **given | {"image_subsets": ["train2014"]} | options)


def opened(root: Path, **options: Any) -> VQA:
    made = data(root, **options)
    made.setup("fit")
    return made


def batch_of(made: VQA | CLEVR, split: str = "val") -> dict[str, Any]:
    return next(iter(made.val_dataloader() if split == "val" else made.train_dataloader()))  # type: ignore[arg-type]


def test_vqa_layout_is_read(tmp_path: Path) -> None:
    made = opened(write_vqa(tmp_path))
    assert made.known.answers == ("cup", "2", "yes", "no")
    assert made.vocabulary.words[:6] == ("PAD", "UNK", "CLS", "what", "is", "on")
    assert (made.answer_types, made.question_types) == (["number", "other", "yes/no"], ["how many", "is it", "what is"])
    batch = batch_of(made)
    assert batch["question"].shape == (4, 14)
    assert batch["image"][:, 0, 0, 0].tolist() == [70, 70, 90, 90]
    assert batch["answer_type"].tolist() == [1, 0, 2, 2]
    assert batch["question_type"].tolist() == [2, 0, 1, 1]
    assert batch["index"].tolist() == [0, 1, 2, 3]
    assert "scores" not in batch_of(made, "train")
    assert made.questions("val").name(2).endswith("COCO_train2014_000000000009.png (question 102)")


def test_counts_and_scores_are_those_of_the_published_formulas(tmp_path: Path) -> None:
    made = opened(write_vqa(tmp_path))
    batch = batch_of(made)
    for row, (_, _, humans, *_) in enumerate(ASKED):
        for number, answer in enumerate(made.known.answers):
            assert batch["scores"][row, number].item() == pytest.approx(vqa_accuracy(answer, humans), abs=1e-7)
        soft = torch.tensor([0, 0.3, 0.6, 0.9, 1.0])[batch["counts"][row].long().clamp(max=4)]
        assert soft.numpy() == pytest.approx(soft_target(humans, made.known.numbers))
    # Of ten people, four wrote no digits, and the three who did are not four.
    assert batch["counts"][1].tolist() == [0, 7, 0, 0]
    assert batch["scores"][1, 1].item() == pytest.approx(vqa_accuracy("2", ASKED[1][2])) != 1


def test_one_answer_alone_is_compared_by_itself(tmp_path: Path) -> None:
    write_vqa(tmp_path)
    for subset in ("train2014", "val2014"):
        content = json.loads(annotation_file(tmp_path, subset).read_text())
        for record in content["annotations"]:
            record["answers"] = record["answers"][:1]
        annotation_file(tmp_path, subset).write_text(json.dumps(content))
    batch = batch_of(opened(tmp_path))
    assert batch["people"].tolist() == [1] * 4
    assert batch["scores"].tolist() == batch["counts"].tolist() == np.eye(4).tolist()


def edit(file: Callable[[Path], Path], change: Callable[[list[Any]], None]) -> Callable[[Path], None]:
    def damage(root: Path) -> None:
        content = json.loads(file(root).read_text())
        change(next(iter(content.values())))
        file(root).write_text(json.dumps(content))

    return damage


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "twice": (edit(question_file, lambda found: found[1].update(question_id=0)), "question_id 0 is there twice"),
    "unasked": (edit(question_file, lambda found: found[2].update(question=" ")), "question is missing, empty"),
    "unnumbered": (edit(question_file, lambda found: found[2].update(image_id="7")), "image_id is missing"),
    "unanswered": (edit(annotation_file, lambda found: found.pop()), "question_id 3 has no annotation"),
    "two answers": (edit(annotation_file, lambda found: found[2].update(answers=[{"answer": "a"}] * 2)), "2 answers"),
    "no answers": (edit(annotation_file, lambda found: found[2].update(answers=[])), "answers is no list, or empty"),
    "no image": (lambda root: (root / "train2014/COCO_train2014_000000000009.png").unlink(), "there is no image 9"),
    "no file": (lambda root: annotation_file(root).unlink(), "annotations.json is missing"),
    "cut off": (lambda root: question_file(root).write_text('{"questions": [{'), "damaged or cut off"),
    "no number": (
        lambda root: (root / "train2014/COCO_train2014_000000000009.png").rename(root / "train2014/nine.png"),
        "has no number at the end of its name",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named(fault: str, tmp_path: Path) -> None:
    damage, said = FAULTS[fault]
    damage(write_vqa(tmp_path))
    with pytest.raises(DataError, match=said) as caught:
        opened(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_faulty_records_are_left_out_on_demand(tmp_path: Path) -> None:
    FAULTS["unanswered"][0](write_vqa(tmp_path))
    with pytest.warns(UserWarning, match="1 records cannot be used and are left out"):
        made = opened(tmp_path, on_bad_sample="skip")
    assert len(made.questions("train")) == 3


def test_a_test_needs_no_answers(tmp_path: Path) -> None:
    annotation_file(write_vqa(tmp_path, subsets=("train2014", "val2014", "test2015")), "test2015").unlink()
    made = opened(tmp_path, test="test2015")
    (batch,) = list(made.test_dataloader())
    assert {"counts", "scores"} & batch.keys() == set()


def test_subsets_are_trained_on_together(tmp_path: Path) -> None:
    made = opened(write_vqa(tmp_path), train=["train2014", "val2014"], val=None)
    assert made.questions("train").numbers.tolist() == [0, 1, 2, 3, 100, 101, 102, 103]
    assert not made.has("val")


def test_subsets_may_share_a_folder(tmp_path: Path) -> None:
    made = opened(write_vqa(tmp_path), images="train2014", image_subsets=None)
    assert batch_of(made)["image"][:, 0, 0, 0].tolist() == [70, 70, 90, 90]


def test_answers_are_known_from_the_number_of_questions_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Lower fewest"):
        opened(write_vqa(tmp_path), fewest=9)
    with pytest.warns(UserWarning, match=r"1 of 4 training questions \(25.0%\) have no known answer"):
        made = opened(tmp_path, answers=str(save(tmp_path / "answers.json", [{"yes": 1, "2": 0}, {}])))
    assert made.known.answers == ("2", "yes")


def save(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_words_and_answers_go_with_a_checkpoint(tmp_path: Path) -> None:
    made = opened(write_vqa(tmp_path))
    state = made.state_dict()
    torch.save({"VQA": state, "state_dict": {}}, tmp_path / "last.ckpt")
    for other in (data(tmp_path), opened(tmp_path, answers=str(save(tmp_path / "a.json", ["yes"])))):
        other.load_state_dict(state)
        assert (other.vocabulary.words, other.known.answers) == (made.vocabulary.words, made.known.answers)
        assert other.class_names == list(made.known.answers)
    words = save(tmp_path / "words.json", ["PAD", "UNK", "CLS", "table"])
    given = opened(tmp_path, words=str(words), answers=str(tmp_path / "last.ckpt"))
    assert (len(given.vocabulary), given.known.answers) == (4, made.known.answers)
    assert batch_of(given)["question"][0].tolist() == [1, 1, 1, 1, 3] + [0] * 9
    for strange in ({}, {"words": ["a"], "answers": [3]}, {"words": ["a\x1b[2J"], "answers": ["b"]}):
        with pytest.raises(DataError, match="checkpoint's"):
            made.load_state_dict(strange)
    for file, said in ((annotation_file(tmp_path), "list of texts"), (tmp_path / "none.json", "cannot be read")):
        with pytest.raises(DataError, match=said):
            opened(tmp_path, words=str(file))


def features(root: Path, **files: np.ndarray) -> Path:
    folder = write_vqa(root, images=False) / "features" / "train2014"
    folder.mkdir(parents=True)
    for name, array in files.items():
        np.save(folder / f"COCO_train2014_{int(name[1:]):012d}.jpg.npy", array)
    return root


GRID = np.arange(4 * 3, dtype=np.float16).reshape(4, 3)


def seen(root: Path, **options: Any) -> torch.Tensor:
    return batch_of(opened(root, features="features/{subset}", **options))["features"]


def test_features_are_grids_of_any_size(tmp_path: Path) -> None:
    found = seen(features(tmp_path, n7=GRID, n9=np.ones((1, 3, 3), np.float32)))
    assert (found.shape, found.dtype) == ((4, 2, 3, 3), torch.float32)
    assert found[0, :, :2].flatten(0, 1).tolist() == GRID.tolist()
    # What is smaller has cells of nothing, which are padding to the network.
    assert found[0, :, 2].abs().sum() == found[2, 1].abs().sum() == 0
    assert found[2, 0].min() == 1


def test_regions_are_filled_up(tmp_path: Path) -> None:
    found = seen(features(tmp_path, n7=GRID, n9=GRID[:1]), feature_shape=[2, 3])
    assert found[0].tolist() == GRID[:2].tolist()
    assert found[2].tolist() == [GRID[0].tolist(), [0, 0, 0]]


def test_features_of_a_subset_may_be_one_mapped_array(tmp_path: Path) -> None:
    folder = write_vqa(tmp_path, images=False) / "features"
    folder.mkdir()
    np.save(folder / "train2014.npy", np.stack([GRID + 1, GRID]))
    with pytest.raises(DataError, match=r"train2014_ids\.npy is missing"):
        seen(tmp_path)
    np.save(folder / "train2014_ids.npy", np.array([9, 7]))
    found = seen(tmp_path)
    assert found[0].flatten(0, 1).tolist() == GRID.tolist()
    assert found[3].flatten(0, 1).tolist() == (GRID + 1).tolist()


def test_archives_have_features(tmp_path: Path) -> None:
    folder = features(tmp_path, n7=GRID) / "features/train2014"
    np.savez(folder / "COCO_train2014_000000000009.npz", x=GRID + 2, boxes=np.zeros((4, 4)))
    assert seen(tmp_path)[2].flatten(0, 1).tolist() == (GRID + 2).tolist()


BROKEN: dict[str, tuple[Any, Options, str]] = {
    "no square": (GRID[:3], {}, "3 cells are no square"),
    "other grid": (GRID, {"feature_shape": [1, 3, 3]}, "4 cells are no grid of this size"),
    "other channels": (GRID, {"feature_shape": [2, 2, 8]}, r"shape \[2, 2, 3\], but feature_shape is \[2, 2, 8\]"),
    "no numbers": (GRID * np.nan, {}, "not finite"),
    "texts": (np.array(["a", "b"]), {}, "features are numbers"),
    "objects": (np.array([{}, None]), {}, "holds no array"),
    "nothing": (None, {}, "holds no array"),
}


@pytest.mark.parametrize("fault", BROKEN)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_broken_features_are_named(fault: str, tmp_path: Path) -> None:
    array, options, said = BROKEN[fault]
    root = features(tmp_path, n7=GRID)
    path = root / "features/train2014/COCO_train2014_000000000009.npy"
    path.write_bytes(b"") if array is None else np.save(path, array)
    with pytest.raises(DataError, match=said) as caught:
        seen(root, **options)
    assert path.name in str(caught.value) or "COCO_train2014_000000000007" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"feature_shape": [3]}, "feature_shape="),
        ({"feature_shape": [2, 2, 3]}, "give their folder by features"),
        ({"train": []}, "names a subset"),
        ({"length": 0}, "length=0"),
    ],
)
def test_options_that_cannot_be(options: Options, said: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=said):
        data(tmp_path, **options)


def test_clevr_layout_is_read(tmp_path: Path) -> None:
    made = CLEVR(write_clevr(tmp_path), batch_size=2, num_workers=0, eval_transforms=[], train_transforms=[])
    made.setup("fit")
    assert made.known.answers == ("yes", "no")
    assert made.question_types == made.answer_types == ["compare numbers", "exist"]
    batch = batch_of(made)
    # The image 0 of this subset, not that of the other.
    assert batch["image"].unique().tolist() == [20]
    assert batch["scores"].tolist() == [[1, 0], [0, 1]]
    assert batch["question_type"].tolist() == [1, 0]


def test_word_vectors_are_read(tmp_path: Path) -> None:
    text = tmp_path / "glove.txt"
    text.write_text("what 1 2\nnobody 5 5\ntable 3 4\n")
    np.savez(tmp_path / "glove.npz", words=np.array(["table", "what"]), vectors=np.array([[3.0, 4], [1, 2]]))
    for file in (text, tmp_path / "glove.npz"):
        made = opened(write_vqa(tmp_path), vectors=str(file))
        numbers = made.vocabulary.numbers
        found = {number: vector.tolist() for number, vector in made.embeddings().items()}
        assert found == {numbers["what"]: [1, 2], numbers["table"]: [3, 4]}
    for content, said in (("nobody 1\nno 2", "of none"), ("what 1 2\ntable 1", "line 2"), ("what x y", "line 1")):
        text.write_text(content)
        with pytest.raises(DataError, match=said):
            opened(tmp_path, vectors=str(text)).embeddings()


def test_digit_scenes_are_as_described() -> None:
    for number in range(50):
        drawn = scene(np.random.Generator(np.random.PCG64(number)))
        far = np.abs(drawn.cells[:, None] - drawn.cells).max(-1)
        assert len(set(drawn.labels.tolist())) == 6
        assert (far[0, 1], far[0, 2]) == (1, 3)
        assert (far[0, 3:] > 3).all()
        touching = np.argwhere(np.triu(far < 2, 1)).tolist()
        assert touching == [[0, 1]]
        asked, near, apart = drawn.labels[:3]
        assert QUESTIONS["touches"](drawn) == (f"which digit touches the {asked}?", str(near), "other")
        assert QUESTIONS["cells"](drawn)[1] == str(apart)
        assert QUESTIONS["count"](drawn)[1] == str((drawn.labels > asked).sum())
        assert QUESTIONS["compare"](drawn)[1] == ("yes" if near > asked else "no")
        vertical = "top" if drawn.cells[0, 0] < 4 else "bottom"
        assert QUESTIONS["where"](drawn)[1].startswith(vertical)


def test_digit_questions_are_a_data_set_in_vqas_layout() -> None:
    made = DigitQuestions(batch_size=8, num_train=8, num_val=3, kinds=["touches", "where"])
    made.setup("fit")
    assert (len(made.questions("train")), len(made.questions("val"))) == (16, 6)
    again = opened(made.root, image_subsets=None)
    assert again.known.answers == made.known.answers
    batch = made.on_after_batch_transfer(batch_of(made), 0)
    # Black is nothing.
    assert (batch["image"].shape, batch["image"].min(), batch["image"].max()) == ((6, 3, 64, 64), 0, 1)
    example = made.example(2)
    assert example["image"].shape == (2, 3, 64, 64)
    with pytest.raises(OptionError, match="kinds="):
        DigitQuestions(kinds=["why"])
