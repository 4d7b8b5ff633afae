"""A batch norm whose statistics settle: in evaluation, and when a training goes on; recorded vectors show the rest."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from models.layers.momentum_bn import MomentumBatchNorm


def test_a_resumed_training_goes_on_to_the_bit() -> None:
    torch.manual_seed(0)
    images = torch.randn(6, 8, 3, 2, 2)
    whole = MomentumBatchNorm(3, total_pairs=4)
    outputs = [whole(each) for each in images]
    first = MomentumBatchNorm(3, total_pairs=4)
    for each in images[:4]:
        first(each)
    second = MomentumBatchNorm(3, total_pairs=4)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert [torch.equal(second(each), outputs[4 + i]) for i, each in enumerate(images[4:])] == [True, True]
    assert torch.equal(second.running_var, whole.running_var)


def test_it_is_an_ordinary_norm_when_evaluated() -> None:
    norm = MomentumBatchNorm(3, total_pairs=4).eval()
    norm.running_mean += 1.0
    images = torch.randn(2, 3)
    assert torch.equal(norm(images), F.batch_norm(images, norm.running_mean, norm.running_var))
    assert norm.num_batches_tracked == 0


def test_statistics_have_no_gradient() -> None:
    norm, images = MomentumBatchNorm(2, total_pairs=1), torch.randn(8, 2, requires_grad=True)
    norm(images).sum().backward()
    # Were the batch's statistics differentiated, the sum of what is normalised by them would have none.
    assert images.grad is not None
    assert images.grad.abs().min() > 0.1
    with pytest.raises(ValueError, match="a batch norm takes"):
        norm(torch.zeros(2))
