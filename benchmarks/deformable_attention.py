"""Deformable attention against transformers' pure-PyTorch one, and Deformable DETR against theirs, side by side.

    python -m benchmarks.deformable_attention
    python -m benchmarks.deformable_attention --network

The first compares the sampling alone and the whole attention module, for the queries of the decoder and for the tokens
of the encoder; the second inference and training step of the network, losses and matching included, and the memory of
the tensors that they make. Weights, inputs and sizes are the same, and outputs are compared before anything is timed.
The two take turns in each repeat; printed are medians of CPU time on one thread, which other work on the machine
disturbs less than wall-clock, and medians of the repeats' ratios. A ratio above one: ours is faster, or smaller.

Needs `transformers`, which nothing else here does.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.detectors.deformable_detr import DeformableDETR
from models.layers.deformable_attention import DeformableAttention, Levels, weighted_samples
from models.memory import PeakMemory

try:
    from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
    from transformers.models.deformable_detr import modeling_deformable_detr as theirs
except ImportError as error:
    raise SystemExit(
        "this benchmark compares with transformers, which is not installed: pip install transformers"
    ) from error

# transformers' name and ours; `#` is a number.
NAMES = [
    ("model.level_embed", "transformer.level_embed"),
    ("model.backbone.model.", "backbone.body."),
    ("model.input_proj.", "input_proj."),
    ("model.query_position_embeddings.", "query_embed."),
    ("model.reference_points.", "reference_points."),
    ("model.encoder.layers.#.self_attn.", "transformer.encoder.#.attention."),
    ("model.encoder.layers.#.self_attn_layer_norm.", "transformer.encoder.#.attention_norm."),
    ("model.decoder.layers.#.self_attn.o_proj.", "transformer.decoder.#.self_attention.out_proj."),
    ("model.decoder.layers.#.self_attn_layer_norm.", "transformer.decoder.#.self_norm."),
    ("model.decoder.layers.#.encoder_attn.", "transformer.decoder.#.cross_attention."),
    ("model.decoder.layers.#.encoder_attn_layer_norm.", "transformer.decoder.#.cross_norm."),
    ("class_embed.0.", "class_embed.0."),
    ("bbox_embed.0.", "bbox_embed.0."),
    *(
        (f"model.{stack}.layers.#.{old}.", f"transformer.{stack}.#.{new}.")
        for stack in ("encoder", "decoder")
        for old, new in (("mlp.fc1", "ffn.linear1"), ("mlp.fc2", "ffn.linear2"), ("final_layer_norm", "ffn_norm"))
    ),
]


def our_weights(state: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """transformers' weights under our names."""
    ours = {}
    for name, value in state.items():
        for old, new in NAMES:
            if match := re.match(re.escape(old).replace(r"\#", r"(\d+)"), name):
                ours[new.replace("#", "".join(match.groups())) + name[match.end() :]] = value
    for name in network.state_dict():
        if match := re.fullmatch(r"transformer\.decoder\.(\d+)\.self_attention\.in_proj_(weight|bias)", name):
            layer = f"model.decoder.layers.{match[1]}.self_attn"
            ours[name] = torch.cat([state[f"{layer}.{part}_proj.{match[2]}"] for part in "qkv"])
    return ours


def turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """CPU seconds of each repeat by name, after one that does not count."""
    rows: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if repeat:
                rows[name].append(time.process_time() - started)
    return rows


def report(what: str, rows: dict[str, list[float]]) -> None:
    """One line of the table."""
    ours, other = rows["ours"], rows["transformers"]
    ratio = statistics.median(b / a for a, b in zip(ours, other, strict=True))
    mine, published = (statistics.median(times) * 1e3 for times in (ours, other))
    print(f"{what:>38} ours {mine:.1f} ms, transformers {published:.1f} ms, ratio {ratio:.2f}", flush=True)


def forward(run: Callable[..., Tensor], inputs: list[Tensor]) -> Callable[[], None]:
    """A run without gradients."""

    def step() -> None:
        with torch.no_grad():
            run(*inputs)

    return step


def backward(run: Callable[..., Tensor], inputs: list[Tensor], cotangent: Tensor) -> Callable[[], None]:
    """A run with gradients of everything that needs one."""

    def step() -> None:
        for x in inputs:
            x.grad = None
        run(*inputs).backward(cotangent)

    return step


def compare(what: str, ours: Callable[..., Tensor], other: Callable[..., Tensor], inputs: list[Tensor], n: int) -> None:
    """Two lines: forward, and forward and backward."""
    results = []
    for run in (ours, other):
        output = run(*inputs)
        cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(0))
        results.append((output.detach(), *torch.autograd.grad(output, inputs, cotangent)))
    for mine, published in zip(*results, strict=True):
        assert (mine - published).abs().max() <= 1e-4 * published.abs().max()
    runs = {"ours": ours, "transformers": other}
    report(f"{what}, forward", turns({name: forward(run, inputs) for name, run in runs.items()}, n))
    both = {name: backward(run, inputs, cotangent) for name, run in runs.items()}
    report(f"{what}, forward and backward", turns(both, n))


def attention(height: int, width: int, repeats: int) -> None:
    """Eight lines: sampling and module, of decoder and encoder."""
    sizes = [(-(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64)]
    levels = Levels.of(sizes, torch.device("cpu"))
    shapes = torch.tensor(sizes)
    tokens, heads, points, dim = sum(h * w for h, w in sizes), 8, 4, 256
    module = DeformableAttention(dim, heads, len(sizes), points)
    config = DeformableDetrConfig(d_model=dim, num_feature_levels=len(sizes))
    peer = theirs.DeformableDetrMultiscaleDeformableAttention(config, heads, points)
    nn.init.normal_(module.sampling_offsets.weight, std=0.05)
    nn.init.normal_(module.attention_weights.weight, std=0.05)
    peer.load_state_dict(module.state_dict())
    kernel = theirs.MultiScaleDeformableAttention()
    centres = [
        torch.cartesian_prod((torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w).flip(-1) for h, w in sizes
    ]
    for who, centre in (("decoder", torch.rand(300, 2)), ("encoder", torch.cat(centres))):
        queries = len(centre)
        references = centre[None, :, None].expand(1, -1, len(sizes), -1)
        offsets = torch.randn(1, queries, heads, len(sizes), points, 2) * 2 / levels.extent[:, None]
        locations = (references[:, :, None, :, None] + offsets).requires_grad_()
        weights = torch.rand(1, queries, heads, len(sizes), points).requires_grad_()
        value = torch.randn(1, tokens, heads, dim // heads).requires_grad_()

        def ours(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            x, y = (locations * levels.extent[:, None] - 0.5).flatten(3, 4).unbind(-1)
            return weighted_samples(value, levels, x, y, weights.flatten(3))

        def other(value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return kernel(value, shapes, sizes, None, locations, weights, 64)

        compare(f"{who} sampling", ours, other, [value, locations, weights], repeats)
        query = torch.randn(1, queries, dim).requires_grad_()
        memory = torch.randn(1, tokens, dim).requires_grad_()

        def our_module(query: Tensor, memory: Tensor, references: Tensor = references) -> Tensor:
            return module(query, references, memory, levels)

        def their_module(query: Tensor, memory: Tensor, references: Tensor = references) -> Tensor:
            return peer(
                query,
                encoder_hidden_states=memory,
                reference_points=references,
                spatial_shapes=shapes,
                spatial_shapes_list=sizes,
            )[0]

        compare(f"{who} attention", our_module, their_module, [query, memory], repeats)


def network(height: int, width: int, repeats: int) -> None:
    """Four lines: time and memory of inference and of a training step of Deformable DETR with a ResNet-50."""
    config = DeformableDetrConfig(
        dropout=0.0, activation_dropout=0.0, attention_dropout=0.0, auxiliary_loss=True, class_cost=2
    )
    config.num_labels = 91
    peer = DeformableDetrForObjectDetection(config)
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    ours = DeformableDETR(num_classes=91, dropout=0.0)
    ours.load_state_dict(our_weights(peer.state_dict(), ours))
    image = torch.randn(3, height, width)
    corners = torch.rand(7, 2, 2).sort(1).values * torch.tensor([width, height])
    boxes, labels = corners.flatten(1), torch.randint(91, (7,))
    size = torch.tensor([width, height, width, height])
    relative = torch.cat([corners.mean(1), corners[:, 1] - corners[:, 0]], 1) / size

    def infer() -> Any:
        with torch.no_grad():
            return ours([image])

    def their_infer() -> Any:
        with torch.no_grad():
            return peer(image[None])

    def train() -> None:
        ours.zero_grad()
        torch.stack(list(ours([image], [{"boxes": boxes, "labels": labels}]).values())).sum().backward()

    def their_train() -> None:
        peer.zero_grad()
        peer(image[None], labels=[{"boxes": relative, "class_labels": labels}]).loss.backward()

    ours.eval()
    peer.eval()
    with torch.no_grad():
        mine = ours.predict(image[None], torch.zeros(1, height, width, dtype=torch.bool), all_layers=False)
    published = their_infer()
    for a, b in ((mine.logits[-1], published.logits), (mine.boxes[-1], published.pred_boxes)):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max(), "the two networks differ"
    for what, runs in (
        ("inference", {"ours": infer, "transformers": their_infer}),
        ("training step", {"ours": train, "transformers": their_train}),
    ):
        for each in (ours, peer):
            each.train(what != "inference")
        report(what, turns(runs, repeats))
        peaks = {}
        for name, run in runs.items():
            ours.zero_grad()
            peer.zero_grad()
            held = [image, *(ours if name == "ours" else peer).state_dict().values()]
            with PeakMemory(held) as memory:
                run()
            peaks[name] = memory.peak / 2**20
        line = ", ".join(f"{name} {peak:.0f} MiB" for name, peak in peaks.items())
        print(f"{what + ', peak memory':>38} {line}, ratio {peaks['transformers'] / peaks['ours']:.2f}", flush=True)


def main() -> None:
    """Prints the table of the attention, or of the network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="store_true", help="the whole network instead of its attention")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"{arguments.width} x {arguments.height} pixels, one image, one thread, torch {torch.__version__}")
    (network if arguments.network else attention)(arguments.height, arguments.width, arguments.repeats)


if __name__ == "__main__":
    main()
