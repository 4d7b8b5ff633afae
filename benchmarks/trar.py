"""What it saves to compute the chosen span alone, in a decoder layer of TRAR of published width.

    python -m benchmarks.trar [--grids 8 16 32] [--batch 4] [--orders 0 1 2 3]

The peer is the same layer with the same routes, each image one span, computed as published: the maps of all spans,
masked, and mixed by zeros and a one. Both run in turns on the same tokens. Weights are random, and routes are dealt:
one span for all images, and a different one for each. Prints multiply-adds of operators that ran, of the layer and of
the part that depends on the route, and medians of CPU time on one thread, which other work on the machine disturbs less
than wall-clock.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.compute import executed
from models.layers.spans import SpanMasks, Spans, span_name
from models.vqa.trar import DecoderLayer

REPEATS = 7
DIM, FEEDFORWARD_DIM, HEADS, WORDS = 512, 2048, 8, 14


class Dealt(nn.Module):
    """A path controller that gives each image the span that was dealt.

    Args:
        num_spans: Spans.
    """

    one_hot = True

    def __init__(self, num_spans: int) -> None:
        super().__init__()
        self.num_spans = num_spans
        self.choice = torch.zeros(0, dtype=torch.int64)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        """Tokens [B, N, dim] to shares [B, spans], one of which is 1."""
        return F.one_hot(self.choice, self.num_spans).to(x.dtype)


def seconds(layer: DecoderLayer, cells: Tensor, spans: Spans, words: Tensor, padding: Tensor) -> float:
    """CPU time of one inference."""
    started = time.process_time()
    with torch.no_grad():
        layer(cells, spans, words, padding)
    return time.process_time() - started


def main() -> None:
    """Prints a line for each grid and route."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grids", type=int, nargs="+", default=(8, 16, 32), help="sides of the grids")
    parser.add_argument("--batch", type=int, default=4, help="images that go through together")
    parser.add_argument("--orders", type=int, nargs="+", default=(0, 1, 2, 3), help="of the spans")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch, count = options.batch, len(options.orders)
    layer = DecoderLayer(DIM, FEEDFORWARD_DIM, HEADS, 0.0, count, eval_routing="argmax").eval()
    controller = Dealt(count)
    layer.self_attention.controller = controller  # type: ignore[assignment]
    mixing, masks = layer.self_attention.mixing, SpanMasks(options.orders)
    words, word_padding = torch.randn(batch, WORDS, DIM), torch.zeros(batch, WORDS, dtype=torch.bool)
    print(f"a decoder layer of width {DIM}, batch {batch}, one thread, torch {torch.__version__}")
    for side in options.grids:
        cells = torch.randn(batch, side**2, DIM)
        spans = masks((side, side), torch.zeros(batch, side**2, dtype=torch.bool))
        routes = {span_name(order): torch.full((batch,), i) for i, order in enumerate(options.orders)}
        routes["each another"] = torch.arange(batch) % count
        for name, controller.choice in routes.items():
            macs, routed, times = [], [], ([], [])  # type: ignore[var-annotated]
            for mixing.single in (False, True):
                report = executed(layer, cells, spans, words, word_padding)
                macs.append(report.macs)
                routed += [each.macs for each in report.modules if each.name == "self_attention.mixing"]
            for _ in range(REPEATS):
                for mixing.single, column in zip((False, True), times, strict=True):
                    column.append(seconds(layer, cells, spans, words, word_padding))
            published, alone = (statistics.median(column) * 1e3 for column in times)
            print(
                f"{side}x{side}, {name}: routed part {routed[1] / 1e6:.1f} of {routed[0] / 1e6:.1f} M multiply-adds, "
                f"layer {macs[1] / 1e6:.1f} of {macs[0] / 1e6:.1f} M ({1 - macs[1] / macs[0]:.1%} saved); "
                f"{alone:.1f} of {published:.1f} ms ({1 - alone / published:.1%} saved)",
                flush=True,
            )


if __name__ == "__main__":
    main()
