"""Questions about images: losses, accuracy as VQA v2 has it, words with the weights, reports and predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer

from callbacks import StepSeed
from callbacks.reports import Place, Report, reports_of
from callbacks.reports.answers import Answers
from callbacks.reports.spans import Spans
from datamodules import VQA
from datamodules.answers import vqa_accuracy
from lightning_modules import QuestionAnswering
from models.mistakes import Mistake
from models.vqa import BackboneCells, FromImages, Patches, answer_loss
from tests.library.processes import averaged, on_two_processes
from tests.library.question_files import ASKED, tiny_trar, write_vqa
from tests.library.recorder import SaveEverywhere

PATCH = 4
IN_CHANS = 3 * PATCH**2 + 1


class Files(NamedTuple):
    """Four questions to train on and to validate on, twice for pictures and for features."""

    data: VQA
    root: Path


def data_of(root: Path, **options: Any) -> VQA:
    given: dict[str, Any] = {"batch_size": 4, "fewest": 1, "num_workers": 0, "image_subsets": ["train2014"]}
    given |= {"train_transforms": [], "eval_transforms": [], "length": 6}
    made = VQA(root, **given | options)
    made.setup("fit")
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    root = write_vqa(tmp_path_factory.mktemp("vqa"))
    return Files(data_of(root), root)


def task_of(data: VQA, seed: int = 0, **options: Any) -> QuestionAnswering:
    torch.manual_seed(seed)
    answerer = tiny_trar(len(data.known), len(data.vocabulary), IN_CHANS)
    return QuestionAnswering(FromImages(Patches(PATCH), answerer), **options)


def trainer_of(folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    given: dict[str, Any] = {"max_steps": 1, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    given |= {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), use_distributed_sampler=False, **given | options)


def placed(report: Report, folder: Path) -> Report:
    report.place = Place(folder / "plots", folder)
    return report


def test_accuracy_is_that_of_the_published_evaluation(files: Files, tmp_path: Path) -> None:
    answers, spans = placed(Answers(), tmp_path), placed(Spans(), tmp_path)
    task = task_of(files.data)
    (logged,) = trainer_of(tmp_path, answers, spans).validate(task, files.data, verbose=False)
    written = json.loads((tmp_path / "answers.json").read_text())
    assert [each["question_id"] for each in written] == [100, 101, 102, 103]
    right = [vqa_accuracy(each["answer"], humans) for each, (_, _, humans, *_) in zip(written, ASKED, strict=True)]
    assert logged["val/accuracy"] == pytest.approx(np.mean(right))
    assert logged["val/accuracy_number"] == logged["val/accuracy_how_many"] == pytest.approx(right[1])
    assert logged["val/accuracy_yes_no"] == logged["val/accuracy_is_it"] == pytest.approx(np.mean(right[2:]))
    batch = files.data.on_after_batch_transfer(next(iter(files.data.val_dataloader())), 0)
    with torch.no_grad():
        logits = task(*task.inputs(batch))
    assert logged["val/loss"] == pytest.approx(answer_loss(logits, task.target(batch)).item() / 4)
    assert {path.name for path in (tmp_path / "plots").iterdir()} == {
        "accuracy_by_kind.png",
        "answered.png",
        "spans.png",
    }
    with (tmp_path / "spans.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Two layers, three kinds of questions.
    assert len(rows) == 6
    assert all(float(row["global"]) + float(row["3x3"]) == pytest.approx(1, abs=2e-4) for row in rows)
    assert 0 < logged["val/spans_apart"] < 1
    assert {Answers, Spans} <= set(reports_of(QuestionAnswering))


def test_targets_are_those_of_the_losses(files: Files) -> None:
    batch = {
        "counts": torch.tensor([[1, 0, 3], [5, 4, 0], [0, 0, 0]], dtype=torch.uint8),
        "people": torch.full((3,), 10),
    }
    soft = torch.tensor([[0.3, 0, 0.9], [1, 1, 0], [0, 0, 0]])
    assert torch.equal(task_of(files.data).target(batch), soft)
    assert task_of(files.data, loss="kld").target(batch) == pytest.approx(batch["counts"].numpy() / 10)
    # Nobody's answer is known: nothing to learn.
    assert task_of(files.data, loss="ce").target(batch).tolist() == [2, 0, -100]
    alone = {"counts": batch["counts"].clamp(max=1), "people": torch.ones(3, dtype=torch.long)}
    assert torch.equal(task_of(files.data).target(alone), alone["counts"].float())


def test_a_step_sums_over_accumulated_batches(files: Files, tmp_path: Path) -> None:
    steps = {}
    for name, batch_size, accumulate in (("whole", 4, 1), ("parts", 2, 2)):
        data, task = data_of(files.root, batch_size=batch_size), task_of(files.data, optimizer=sgd)
        # The state of the generators is that of the weights alone.
        trainer_of(tmp_path, accumulate_grad_batches=accumulate, limit_val_batches=0).fit(task, data)
        steps[name] = {key: value.clone() for key, value in task.network.state_dict().items()}
    for key, value in steps["whole"].items():
        torch.testing.assert_close(steps["parts"][key], value, rtol=1e-4, atol=1e-6)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01)


def gradients(task: QuestionAnswering, batch: dict[str, Any], world_size: int) -> dict[str, torch.Tensor]:
    class Accountant:
        def __init__(self) -> None:
            self.world_size, self.accumulate_grad_batches = world_size, 1

    task.network.zero_grad()
    task._trainer = Accountant()  # type: ignore[assignment]
    task.total_loss = lambda losses, *_: sum(losses.values())  # type: ignore[assignment, method-assign]
    task.training_step(batch, 0).backward()
    return {name: each.grad for name, each in task.network.named_parameters() if each.grad is not None}


def test_two_processes_train_with_the_loss_of_one(files: Files, tmp_path: Path) -> None:
    batch = files.data.on_after_batch_transfer(next(iter(files.data.val_dataloader())), 0)

    def half(rank: int) -> dict[str, torch.Tensor]:
        own = {key: value[2 * rank : 2 * rank + 2] for key, value in batch.items()}
        return gradients(task_of(files.data), own, world_size=2)

    two = averaged(on_two_processes(half, tmp_path))
    for name, value in gradients(task_of(files.data), batch, world_size=1).items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_ends_with_the_same_bits(files: Files, tmp_path: Path) -> None:
    """With routes that are drawn in training, in the middle of an epoch and behind its end."""

    def fit(*callbacks: Any, resume: Path | None = None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        data = data_of(files.root, batch_size=1)
        answerer = tiny_trar(len(data.known), len(data.vocabulary), IN_CHANS, routing="hard", dropout=0.1)
        task = QuestionAnswering(FromImages(Patches(PATCH), answerer))
        trainer = trainer_of(tmp_path, StepSeed(3), *callbacks, max_steps=6, limit_val_batches=0)
        trainer.fit(task, data, ckpt_path=resume, weights_only=True)
        return task.network.state_dict()

    whole = fit(SaveEverywhere(tmp_path))
    for place in ("batch2", "epoch0"):
        again = fit(resume=tmp_path / f"{place}.ckpt")
        assert all(torch.equal(value, again[name]) for name, value in whole.items())


def test_findings_of_two_processes_are_those_of_one(files: Files, tmp_path: Path) -> None:
    batches = [
        files.data.on_after_batch_transfer(batch, 0) for batch in data_of(files.root, batch_size=2).val_dataloader()
    ]

    def found(own: list[Any]) -> dict[str, torch.Tensor]:
        findings = task_of(files.data).evaluate(own, data=files.data)
        return {name: torch.tensor(value) for name, value in findings.metrics.items()} | {"index": findings.index}

    alone = found(batches)
    for other in on_two_processes(lambda rank: found(batches[rank : rank + 1]), tmp_path):
        assert other.keys() == alone.keys()
        for name, value in alone.items():
            torch.testing.assert_close(other[name], value)


def test_questions_without_answers_get_some(files: Files, tmp_path: Path) -> None:
    root = write_vqa(tmp_path / "data", subsets=("train2014", "val2014", "test2015"))
    (root / "v2_mscoco_test2015_annotations.json").unlink()
    data, report = data_of(root, test="test2015"), placed(Answers(), tmp_path)
    task = task_of(data)
    trainer_of(tmp_path, report).test(task, data, verbose=False)
    assert task.findings is not None
    assert task.findings.metrics == {}
    assert [each["question_id"] for each in json.loads((tmp_path / "answers.json").read_text())] == [200, 201, 202, 203]
    assert not (tmp_path / "errors.log").exists()


def test_network_has_to_fit_the_words_and_answers(files: Files, tmp_path: Path) -> None:
    for answers, words, said in (
        (3, 20, "3 answers but the data has 4: set num_answers"),
        (4, 5, "vocabulary_size to "),
    ):
        task = QuestionAnswering(FromImages(Patches(PATCH), tiny_trar(answers, words, IN_CHANS)))
        with pytest.raises(Mistake, match=said):
            trainer_of(tmp_path).fit(task, files.data)
    with pytest.raises(Mistake, match="makes 49 features of a cell, and TRAR takes 7"):
        FromImages(Patches(PATCH), tiny_trar(4, 20, 7))
    with pytest.raises(Mistake, match="loss="):
        task_of(files.data, loss="mse")


def test_words_start_from_vectors_unless_weights_are_given(files: Files, tmp_path: Path) -> None:
    glove = tmp_path / "glove.txt"
    glove.write_text("what 1 2 3 4\ntable 5 6 7 8\n")
    data = data_of(files.root, vectors=str(glove))
    what = data.vocabulary.numbers["what"]
    fresh = task_of(data, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    trainer_of(tmp_path, limit_val_batches=0).fit(fresh, data)
    assert fresh.network.embedding.weight[what].tolist() == [1, 2, 3, 4]
    given = task_of(data, seed=1, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.0))
    weights = task_of(data, seed=2).network.state_dict()
    given.network.load_state_dict(weights)
    trainer_of(tmp_path, limit_val_batches=0).fit(given, data)
    assert torch.equal(given.network.embedding.weight, weights["answerer.embedding.weight"])
    glove.write_text("what 1 2\n")
    with pytest.raises(Mistake, match="have 2 numbers, the network's 4: set its word_dim to 2"):
        trainer_of(tmp_path).fit(task_of(data), data)


def test_cells_of_a_backbone_and_of_patches() -> None:
    images = torch.randn(2, 3, 32, 64)
    cells = BackboneCells("narrow_resnet", options={"layers": (1, 1, 1, 1), "width": 2})
    network = FromImages(cells, tiny_trar(3, 9, cells.out_chans)).train()
    before = {name: value.clone() for name, value in cells.state_dict().items()}
    assert cells(images).shape == (2, 1, 2, cells.out_chans)
    network(torch.ones(2, 4, dtype=torch.long), images).sum().backward()
    # Frozen: no gradients, and norms that do not follow the batch.
    assert all(parameter.grad is None for parameter in cells.parameters())
    assert all(torch.equal(value, before[name]) for name, value in cells.state_dict().items())
    trained = BackboneCells("narrow_resnet", level=1, frozen=False, options={"layers": (1, 1, 1, 1), "width": 2})
    trained(images).sum().backward()
    assert next(trained.parameters()).grad is not None
    patches = Patches(16, places=True)(images)
    assert patches.shape == (2, 2, 4, 3 * 256 + 3)
    assert torch.equal(patches[0, 1, 2, :256].view(16, 16), images[0, 0, 16:, 32:48])
    assert patches[0, 1, 2, -3:].tolist() == pytest.approx([1, 1, 2 / 3])
    with pytest.raises(Mistake, match="resize these"):
        Patches(24)(images)
    with pytest.raises(Mistake, match="no backbone is called"):
        BackboneCells("resnot")
    with pytest.raises(Mistake, match="no feature map of level 9"):
        BackboneCells("narrow_resnet", level=9)


def test_features_of_predict_train_like_the_images(files: Files, tmp_path: Path) -> None:
    cells = Patches(PATCH)
    folder = tmp_path / "features" / "train2014"
    write_vqa(tmp_path, images=False)
    folder.mkdir(parents=True)
    for batch in files.data.val_dataloader():
        images = files.data.on_after_batch_transfer(batch, 0)["image"]
        for number, array in zip((7, 7, 9, 9), cells(images).numpy(), strict=True):
            np.save(folder / f"COCO_train2014_{number:012d}.png.npy", array)
    data = data_of(tmp_path, features="features/{subset}")
    from_images = task_of(files.data)
    from_features = QuestionAnswering(from_images.network.answerer)
    found = [
        task.evaluate(own.val_dataloader(), data=own)
        for task, own in ((from_images, files.data), (from_features, data))
    ]
    assert found[0].metrics == pytest.approx(found[1].metrics)
