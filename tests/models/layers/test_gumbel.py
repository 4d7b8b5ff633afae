import torch
import torch.nn.functional as F

from models.layers.gumbel import straight_through


def test_straight_through_is_one_hot_with_the_gradient_of_the_softmax() -> None:
    scores, noise = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    weights = torch.randn(4, 3)
    hard, soft = straight_through(scores, noise, 0.5)
    assert torch.equal(hard, F.one_hot((scores + noise).argmax(1), 3).float())
    torch.testing.assert_close(soft, ((scores.log_softmax(1) + noise) / 0.5).softmax(1))
    (through_hard,) = torch.autograd.grad((hard * weights).sum(), scores, retain_graph=True)
    (through_soft,) = torch.autograd.grad((soft * weights).sum(), scores)
    torch.testing.assert_close(through_hard, through_soft)
