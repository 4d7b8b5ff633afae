import torch

from models.detectors.postprocess import best_classes, to_pixels, top_scores

LOGITS = torch.tensor([[[0.0, 3.0, -1.0], [2.0, -4.0, 2.5]]])
BOXES = torch.tensor([[[0.5, 0.5, 0.2, 0.4], [0.25, 0.75, 0.5, 0.5]]])


def test_a_query_comes_back_once_for_each_of_its_classes() -> None:
    found = top_scores(LOGITS, BOXES, 4)
    torch.testing.assert_close(found.scores, torch.tensor([[3.0, 2.5, 2.0, 0.0]]).sigmoid())
    assert found.labels.tolist() == [[1, 2, 0, 0]]
    assert found.queries.tolist() == [[0, 1, 1, 0]]
    assert found.boxes.equal(BOXES[:, [0, 1, 1, 0]])


def test_there_are_no_more_than_all() -> None:
    assert top_scores(LOGITS, BOXES, 100).scores.shape == (1, 6)


def test_each_query_has_its_likeliest_class() -> None:
    found = best_classes(LOGITS, BOXES)
    torch.testing.assert_close(
        found.scores, torch.stack([LOGITS[0, 0].softmax(0)[1], LOGITS[0, 1].softmax(0)[0]])[None]
    )
    assert found.labels.tolist() == [[1, 0]]
    # The second query is surer here, of "nothing" that is; its first class is no more likely for it.
    likelier = best_classes(LOGITS.flip(1), BOXES.flip(1))
    assert likelier.queries.tolist() == [[1, 0]]
    assert likelier.boxes.equal(found.boxes)


def test_scores_and_boxes_stay_in_full_precision() -> None:
    for found in (
        top_scores(LOGITS.bfloat16(), BOXES.bfloat16(), 3),
        best_classes(LOGITS.bfloat16(), BOXES.bfloat16()),
    ):
        assert found.scores.dtype == found.boxes.dtype == torch.float32


def test_boxes_reach_beyond_the_image() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4], [0.0, 1.0, 0.5, 0.5]])
    expected = torch.tensor([[80.0, 30, 120, 70], [-50.0, 75, 50, 125]])
    torch.testing.assert_close(to_pixels(boxes, (100, 200)), expected)
