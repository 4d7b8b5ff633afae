"""Tiny data sets in the layouts of VQA v2 and CLEVR, and a network for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from models.vqa import TRAR

# Of an image each, with an odd one among the answers.
ASKED: list[tuple[int, str, list[str], str, str]] = [
    (7, "What is on the table?", ["a cup"] * 5 + ["Cup!"] * 3 + ["mug", "tea-cup"], "other", "what is"),
    (7, "How many cups?", ["two"] * 4 + ["2"] * 3 + ["3", "3", "many"], "number", "how many"),
    (9, "Is it hot?", ["yes"] * 10, "yes/no", "is it"),
    (9, "Is it's cup full/empty?", [*["no"] * 4, "No.", "No.", "yes", "yes", "maybe", "dont know"], "yes/no", "is it"),
]
SIDE = 16


def picture(path: Path, level: int = 100) -> None:
    """Writes an image of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((SIDE, SIDE, 3), level, np.uint8)).save(path)


def write_vqa(root: Path, images: bool = True, subsets: Sequence[str] = ("train2014", "val2014")) -> Path:
    """A data set in VQA v2's layout: the four questions in each subset, about images 7 and 9 of the first one."""
    root.mkdir(parents=True, exist_ok=True)
    for part, subset in enumerate(subsets):
        questions, annotations = [], []
        for place, (image, text, humans, answer_type, question_type) in enumerate(ASKED):
            ids: dict[str, Any] = {"image_id": image, "question_id": 100 * part + place}
            questions.append(ids | {"question": text})
            answers = [{"answer": answer, "answer_id": i} for i, answer in enumerate(humans)]
            annotations.append(ids | {"answers": answers, "answer_type": answer_type, "question_type": question_type})
        question_file(root, subset).write_text(json.dumps({"questions": questions}))
        annotation_file(root, subset).write_text(json.dumps({"annotations": annotations}))
    if images:
        for number in (7, 9):
            picture(root / subsets[0] / f"COCO_{subsets[0]}_{number:012d}.png", 10 * number)
    return root


def question_file(root: Path, subset: str = "train2014") -> Path:
    return root / f"v2_OpenEnded_mscoco_{subset}_questions.json"


def annotation_file(root: Path, subset: str = "train2014") -> Path:
    return root / f"v2_mscoco_{subset}_annotations.json"


def write_clevr(root: Path) -> Path:
    """A data set in CLEVR's layout: two questions in each subset, about an image 0 of its own."""
    for subset, level in (("train", 10), ("val", 20)):
        picture(root / "images" / subset / f"CLEVR_{subset}_000000.png", level)
        questions = [
            {"image_index": 0, "question": "Is there a cube?", "answer": "yes", "program": [{"function": "exist"}]},
            {
                "image_index": 0,
                "question": "Are there more cubes than balls?",
                "answer": "no",
                "program": [{"function": "scene"}, {"function": "greater_than"}],
            },
        ]
        (root / "questions").mkdir(exist_ok=True)
        (root / "questions" / f"CLEVR_{subset}_questions.json").write_text(json.dumps({"questions": questions}))
    return root


def tiny_trar(num_answers: int, vocabulary_size: int, in_chans: int, **options: Any) -> TRAR:
    """A network of two layers."""
    sizes: dict[str, Any] = {"dim": 8, "feedforward_dim": 8, "num_heads": 2, "num_layers": 2, "dropout": 0.0}
    sizes |= {"word_dim": 4, "pool_dim": 4, "out_dim": 8, "orders": (0, 1)}
    return TRAR(num_answers, vocabulary_size, in_chans, **sizes | options)
