"""Dynamic Grained Encoders against their plain host: time saved over multiply-adds saved, side by side on one thread.

    python -m benchmarks.grained

DeiT-S at 256 x 256. Routers are told what to choose, at random from region to region, block to block and image to
image, so that regions get 16, 4 and 1 queries with the probabilities of `--shares`. Multiply-adds are those that ran.
Both networks take turns; printed are medians of CPU time, which other work on the machine disturbs less than
wall-clock. In training all queries are computed, or with `sparse_train` the chosen ones.

Last, three ways to let the queries of all images attend, of some images more than of others: filled up to the longest
image, as ours does, as torch's nested tensors, and image by image.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import models.backbones  # noqa: F401  registers our networks with timm
from models.compute import executed
from models.layers.grained import Router
from models.layers.grained_regions import Regions
from models.layers.query_attention import attend


def told(network: nn.Module, shares: Sequence[float]) -> nn.Module:
    """The network with routers whose scores are drawn: each granularity is chosen with its share."""
    probabilities = torch.tensor(shares)

    def scores(module: nn.Module, _: Any, own: Tensor) -> Tensor:
        chosen = torch.multinomial(probabilities, own[..., 0].numel(), replacement=True).view(own.shape[:-1])
        # Far beyond the noise of training.
        return own + 1e3 * F.one_hot(chosen, own.shape[-1])

    for module in network.modules():
        if isinstance(module, Router):
            module.register_forward_hook(scores)
    return network


def medians(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """CPU seconds of each, which take turns; the first turn warms up."""
    rows: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if repeat:
                rows[name].append(time.process_time() - started)
    return {name: statistics.median(row) for name, row in rows.items()}


def forward(network: nn.Module, images: Tensor) -> None:
    """An inference."""
    with torch.no_grad():
        network.eval()(images)


def step(network: nn.Module, images: Tensor) -> None:
    """Forward and backward pass of a training."""
    network.train()(images).square().mean().backward()


def saved(plain: nn.Module, ours: nn.Module, batch_size: int, size: int, repeats: int) -> None:
    """Prints what an inference saves."""
    images = torch.randn(batch_size, 3, size, size)
    macs = {name: executed(network, images).macs for name, network in (("plain", plain), ("ours", ours))}
    times = medians({"plain": partial(forward, plain, images), "ours": partial(forward, ours, images)}, repeats)
    compute, seconds = 1 - macs["ours"] / macs["plain"], 1 - times["ours"] / times["plain"]
    print(
        f"batch {batch_size:2}: plain {times['plain']:.3f} s, ours {times['ours']:.3f} s; saved {compute:.1%} of the "
        f"multiply-adds and {seconds:.1%} of the time, ratio {seconds / compute:.2f}",
        flush=True,
    )


def attention(batch_size: int, size: int, shares: Sequence[float], repeats: int) -> None:
    """Prints what the three ways take at the sizes of DeiT-S."""
    regions = Regions((size // 16, size // 16), (4, 2, 1), 1, torch.device("cpu"))
    choice = torch.multinomial(torch.tensor(shares), batch_size * regions.grid[0] * regions.grid[1], replacement=True)
    ragged = regions.choose(choice.view(batch_size, *regions.grid)).ragged
    queries = torch.randn(len(ragged.image), 384)
    keys, values = torch.randn(2, batch_size, regions.tokens, 384).unbind()
    lengths = torch.bincount(ragged.image).tolist()

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (6, 64)).transpose(-3, -2)

    def nested() -> Tensor:
        rows = torch.nested.as_nested_tensor(list(queries.split(lengths)), layout=torch.jagged)
        dense = [torch.nested.as_nested_tensor(list(x.unbind()), layout=torch.jagged) for x in (keys, values)]
        q, k, v = (x.unflatten(-1, (6, 64)).transpose(1, 2) for x in (rows, *dense))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).values()

    def one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (
            F.scaled_dot_product_attention(heads(q)[None], heads(k)[None], heads(v)[None])[0].transpose(0, 1).flatten(1)
        )

    def looped() -> Tensor:
        return torch.cat([one(*each) for each in zip(queries.split(lengths), keys, values, strict=True)])

    ways = {"filled up": lambda: attend(queries, keys, values, 6, ragged), "nested": nested, "one by one": looped}
    for way in (nested, looped):
        torch.testing.assert_close(way(), ways["filled up"](), rtol=1e-3, atol=1e-4)
    times = medians(ways, repeats)
    listed = ", ".join(f"{name} {seconds * 1e3:.1f} ms" for name, seconds in times.items())
    print(f"attention of batch {batch_size:2}, {min(lengths)} to {max(lengths)} queries: {listed}", flush=True)


def main() -> None:
    """Prints a line for each comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", type=float, nargs=3, default=(0.35, 0.3, 0.35), metavar=("FINE", "HALF", "COARSE"))
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=(1, 16))
    parser.add_argument("--train-batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    size, repeats = arguments.image_size, arguments.repeats
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"DeiT-S, {size} x {size} pixels, shares {arguments.shares}, one thread, torch {torch.__version__}")
    name = "deit_dge_s124_small_patch16_256"
    plain = timm.create_model("deit_small_patch16_224", img_size=size)
    ours = told(timm.create_model(name, img_size=size), arguments.shares)
    sparse = told(timm.create_model(name, img_size=size, sparse_train=True), arguments.shares)
    for batch_size in arguments.batch_sizes:
        saved(plain, ours, batch_size, size, repeats)
    images = torch.randn(arguments.train_batch_size, 3, size, size)
    networks = {"plain": plain, "dense": ours, "sparse": sparse}
    times = medians({kind: partial(step, network, images) for kind, network in networks.items()}, repeats)
    listed = ", ".join(f"{kind} {seconds / times['plain']:.2f}" for kind, seconds in times.items())
    print(f"training step of batch {arguments.train_batch_size}, times the plain host's: {listed}", flush=True)
    for batch_size in arguments.batch_sizes:
        attention(batch_size, size, arguments.shares, 3 * repeats)


if __name__ == "__main__":
    main()
