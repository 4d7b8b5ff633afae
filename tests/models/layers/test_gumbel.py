import math

import pytest
import torch
import torch.nn.functional as F

from models.layers.gumbel import GumbelSelection, gumbel_noise, straight_through


def test_straight_through_is_one_hot_with_the_gradient_of_the_softmax() -> None:
    scores, noise = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    weights = torch.randn(4, 3)
    hard, soft = straight_through(scores, noise, 0.5)
    assert torch.equal(hard, F.one_hot((scores + noise).argmax(1), 3).float())
    torch.testing.assert_close(soft, ((scores.log_softmax(1) + noise) / 0.5).softmax(1))
    (through_hard,) = torch.autograd.grad((hard * weights).sum(), scores, retain_graph=True)
    (through_soft,) = torch.autograd.grad((soft * weights).sum(), scores)
    torch.testing.assert_close(through_hard, through_soft)


def test_noise_is_that_of_the_formula_and_finite() -> None:
    uniform = torch.tensor([math.exp(-1), math.exp(-math.e), 0.0, 1 - 2**-24])
    noise = gumbel_noise(uniform)
    torch.testing.assert_close(noise[:2], torch.tensor([0.0, -1.0]), atol=1e-6, rtol=0)
    assert noise.isfinite().all()
    assert noise[2] == pytest.approx(-math.log(-math.log(1e-10)), rel=1e-6)


def test_options_are_drawn_as_often_as_their_softmax_says() -> None:
    torch.manual_seed(0)
    wanted = torch.tensor([0.5, 0.3, 0.2])
    selection = GumbelSelection(0.1)
    drawn = selection(wanted.log().expand(20_000, 3))
    assert (drawn.sum(1) == 1).all()
    # Four standard errors.
    assert ((drawn.mean(0) - wanted).abs() < 4 * (wanted * (1 - wanted) / 20_000).sqrt()).all()
    assert selection.state_dict() == {"temperature": torch.tensor(0.1)}
