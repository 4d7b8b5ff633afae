import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import models  # noqa: F401 (registers the backbones)
from models.compute import NotCountable, count, executed, flop_counter


class Everything(nn.Module):
    """One layer of each kind that is counted, and two that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
        self.transposed = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 5)
        self.tied = nn.Linear(4, 5)
        self.tied.weight = self.head.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.transposed(self.grouped(self.norm(self.conv(x)).relu()))
        tokens = x.flatten(2).mT
        attended = (tokens @ tokens.mT).softmax(-1) @ tokens
        fused = F.scaled_dot_product_attention(tokens[:, None], tokens[:, None], tokens[:, None])[:, 0]
        return self.head(attended) + self.tied(fused) + F.linear(tokens, self.head.weight)


# By hand, for 16 x 16 images: output pixels x weights of one output.
CONV = 16 * 16 * 8 * 3 * 9 + 8 * 8 * 8 * 2 * 9 + 8 * 8 * 8 * 4 * 4
LINEAR = 3 * 16 * 16 * 4 * 5
ATTENTION = 2 * 256 * 256 * 4


@pytest.mark.parametrize("batch_size", [1, 3])
def test_every_kind_of_layer(batch_size: int) -> None:
    network = Everything()
    for report in (count(network, (3, 16, 16), batch_size), executed(network, torch.randn(batch_size, 3, 16, 16))):
        assert report.conv_macs == CONV
        assert report.linear_macs == LINEAR
        assert report.matmul_macs == 2 * ATTENTION
        assert report.conv_linear_macs == CONV + LINEAR
        assert report.macs == CONV + LINEAR + 2 * ATTENTION
        assert report.params == sum(parameter.numel() for parameter in network.parameters())


def test_modules_add_up() -> None:
    report = count(timm.create_model("convnext_atto"), (3, 64, 64))
    root, *others = report.modules
    assert (root.name, root.depth, root.macs, root.params) == ("", 0, report.macs, report.params)
    assert root.macs == sum(module.macs for module in others if module.depth == 1)
    assert root.params == sum(module.params for module in others if module.depth == 1)
    table = {module.name: module for module in others}
    assert table["stem.0"].type == "Conv2d"
    assert table["stem.0"].macs == 16 * 16 * 40 * 3 * 16
    assert table["stages.3"].depth == 2


def test_network_is_left_as_it_was() -> None:
    network = Everything()
    network.norm.eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count(network, (3, 16, 16))
    executed(network, torch.randn(2, 3, 16, 16))
    assert network.training
    assert not network.norm.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network(torch.randn(2, 3, 16, 16)).requires_grad


class Picky(nn.Conv2d):
    """Looks at the pixels that it likes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y[y > 0]


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shapes_that_depend_on_the_images_cannot_be_counted(device: str) -> None:
    with pytest.raises(NotCountable, match="Picky chooses its shapes by what it sees"):
        count(Picky(3, 4, 3, device=device), (3, 16, 16))


def test_network_without_data() -> None:
    with torch.device("meta"):
        network = timm.create_model("vit_tiny_patch16_224")
    report = count(network)
    assert network.head.weight.is_meta
    assert report.params == 5_717_416
    assert report.conv_linear_macs == pytest.approx(1.0746e9, rel=1e-3)
    assert report.matmul_macs == 12 * 2 * 3 * 197 * 197 * 64


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_costs_the_same_on_every_device(heads: int) -> None:
    """Fused attention of the CPU is an operator of its own, and so is what PyTorch's layers run in evaluation."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, heads, batch_first=True)
            self.layer = nn.TransformerEncoderLayer(32, heads, 64, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            tokens = x.flatten(2).mT
            return self.layer(self.attention(tokens, tokens, tokens, need_weights=False)[0])

    network = Attention()
    linear = 16 * (2 * 4 * 32 * 32 + 2 * 32 * 64)
    for report in (
        count(network, (32, 4, 4)),
        executed(network, torch.randn(2, 32, 4, 4)),
        count(network.to("meta"), (32, 4, 4)),
    ):
        assert (report.linear_macs, report.matmul_macs) == (linear, 2 * 2 * 16 * 16 * 32)
    assert torch.backends.mha.get_fastpath_enabled()


def test_vit_costs_the_same_on_every_device() -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3)
    dense = count(network, (3, 64, 64))
    assert dense.matmul_macs == 3 * 2 * 3 * 17 * 17 * 64
    assert executed(network, torch.randn(2, 3, 64, 64)).macs == dense.macs
    assert count(network.to("meta"), (3, 64, 64)).macs == dense.macs


def test_every_fused_attention_of_pytorch_is_counted() -> None:
    """A new one in a later PyTorch fails here, before it is taken for free."""
    names = {name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if name.startswith("aten::")}
    fused = {name.split(".")[0] for name in names if "scaled_dot_product" in name and "backward" not in name}
    # These two are written out in operators that are counted.
    fused -= {"scaled_dot_product_attention", "_scaled_dot_product_attention_math"}
    with flop_counter() as counter:
        assert {name for name in fused if getattr(torch.ops.aten, name) not in counter.flop_registry} == set()


@pytest.mark.parametrize("weighted", [True, False])
def test_a_weighted_sum_of_gathered_rows_costs_what_it_reads(weighted: bool) -> None:
    class Sampler(nn.Module):
        """Sums five of the pixels for each of seven queries."""

        def __init__(self) -> None:
            super().__init__()
            self.weights = nn.Parameter(torch.ones(7, 5))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows = x.flatten(2).mT.flatten(0, 1)
            index = torch.zeros(7 * len(x), 5, dtype=torch.int64, device=x.device)
            weights = self.weights.repeat(len(x), 1) if weighted else None
            return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)

    network = Sampler()
    for report in (
        count(network, (6, 4, 4)),
        executed(network, torch.randn(2, 6, 4, 4)),
        count(network.to("meta"), (6, 4, 4)),
    ):
        assert report.macs == report.matmul_macs == (7 * 5 * 6 if weighted else 0)


def test_every_gathered_sum_of_pytorch_is_counted() -> None:
    names = {name.split("::")[1].split(".")[0] for name in torch._C._dispatch_get_all_op_names() if "aten::" in name}
    # The public operator ends in one of the others.
    gathered = {name for name in names if "embedding_bag" in name and "backward" not in name} - {"embedding_bag"}
    assert gathered
    with flop_counter() as counter:
        assert {name for name in gathered if getattr(torch.ops.aten, name) not in counter.flop_registry} == set()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_networks_cost_their_products(kind: type[nn.RNNBase]) -> None:
    network, gates = kind(4, 6, 2, batch_first=True, bidirectional=True), 4 if kind is nn.LSTM else 3
    by_hand = 5 * gates * 6 * 2 * ((4 + 6) + (12 + 6))
    reports = [
        executed(network, torch.randn(2, 5, 4)),
        count(network, inputs=(torch.randn(2, 5, 4),)),
        count(network.to("meta"), inputs=(torch.empty(2, 5, 4, device="meta"),)),
    ]
    assert [report.linear_macs for report in reports] == [report.macs for report in reports] == [by_hand] * 3
    # CUDA has one operator for all layers.
    with flop_counter() as counter:
        rule = counter.flop_registry[torch.ops.aten._cudnn_rnn]
    assert rule(torch.empty(5, 2, 4), list(network.parameters()), out_val=None) == 2 * 2 * by_hand


def test_skipped_work_is_not_counted() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            keep = x[:, 0] > 0
            x = x.clone()
            x[keep] = self.layer(x[keep])
            return x

    x = torch.ones(4, 8)
    x[:3, 0] = -1
    assert executed(Skip(), x).linear_macs == 64 / 4
