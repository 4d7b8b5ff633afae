"""Everything that has to run well on a GPU, checked against the CPU: one table in under ten minutes.

    python -m benchmarks.gpu --device cuda
    python -m benchmarks.gpu --tiny                  # the same on a CPU, at sizes that a test has time for
    python -m benchmarks.gpu --device cuda --only DETR "early exit"

For each kernel and a network of each system, with random weights, in evaluation mode:

- `cpu`: the largest difference from the CPU's float32 outputs, as a share of their largest value; at most 1e-3 (TF32 is
  off; sums have another order).
- `waits`: how often the host waited for the device in a forward pass, and how often it may, once for a decision.
- `bf16`: the same difference under bfloat16 autocast, at most 0.1; not for networks that then take other ways.
- `compiled`: the same difference of `torch.compile(fullgraph=True)`, at most 1e-3, where shapes are static.
- `graph`: milliseconds of a replayed CUDA graph, where shapes are static; not on a CPU.
- `ms`: milliseconds of a forward pass, and of the compiled one.

The exit code is 1 if anything is beyond its tolerance.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.device import add_device, milliseconds, wait
from benchmarks.gpu_systems import SYSTEMS, System
from models.host_waits import HostWaits

# Largest differences, as shares of the largest output.
SAME, HALVED = 1e-3, 0.1
REPEATS = 5


def prepared(system: System, tiny: bool) -> tuple[nn.Module, tuple[Any, ...]]:
    """A module with norms that have seen statistics, and its inputs, on the CPU."""
    torch.manual_seed(0)
    module, inputs = system.build(tiny).eval(), system.inputs(tiny)
    norms = [each for each in module.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 0.9
    with torch.no_grad():
        module(*inputs)
    for norm in norms:
        norm.eval()
    return module, inputs


def difference(found: Any, expected: Any) -> float:
    """The largest difference of the tensors of two trees, as a share of the largest value; infinite for NaN."""
    worst = 0.0
    for ours, theirs in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        if isinstance(theirs, Tensor) and theirs.is_floating_point():
            apart = (ours.detach().float().cpu() - theirs.float()).abs().max().item()
            share = apart / max(theirs.abs().max().item(), 1e-6)
            worst = max(worst, share if share == share else float("inf"))
    return worst


def waits(module: nn.Module, inputs: tuple[Any, ...]) -> HostWaits:
    """What the host waits for in a forward pass without gradients."""
    with torch.no_grad(), HostWaits() as seen:
        module(*inputs)
    return seen


def compiled(module: nn.Module, backend: str) -> Callable[..., Any]:
    """The module as one graph."""
    torch._dynamo.reset()
    return torch.compile(module, backend=backend, fullgraph=True, dynamic=False)


def graphed(module: nn.Module, inputs: tuple[Any, ...]) -> Callable[[], object]:
    """A CUDA graph of a forward pass, to be replayed."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            module(*inputs)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        module(*inputs)
    return graph.replay


@torch.no_grad()
def row(name: str, system: System, device: torch.device, tiny: bool) -> tuple[str, bool]:
    """A line of the table, and whether all of it is within its tolerances."""
    module, inputs = prepared(system, tiny)
    expected = module(*inputs)
    there = copy.deepcopy(module).to(device)
    arguments = tree_map(lambda x: x.to(device) if isinstance(x, Tensor) else x, inputs)
    apart = difference(there(*arguments), expected)
    waited = waits(there, arguments).total
    fine = apart <= SAME and (system.waits is None or waited <= system.waits)
    cells = [f"cpu {apart:.0e}", f"waits {waited} of {'any' if system.waits is None else system.waits}"]
    if system.halved:
        with torch.autocast(device.type, torch.bfloat16):
            halved = difference(there(*arguments), expected)
        fine &= halved <= HALVED
        cells.append(f"bf16 {halved:.0e}")
    cells.append(f"{milliseconds(lambda: there(*arguments), device, REPEATS):.2f} ms")
    if system.compiled is True:
        whole = compiled(there, "inductor" if device.type == "cuda" else "eager")
        once = difference(whole(*arguments), expected)
        fine &= once <= SAME
        cells.append(f"compiled {once:.0e}, {milliseconds(lambda: whole(*arguments), device, REPEATS):.2f} ms")
        if device.type == "cuda":
            cells.append(f"graph {milliseconds(graphed(there, arguments), device, REPEATS):.2f} ms")
        else:
            cells.append("no CUDA graph on a CPU")
    else:
        cells.append(f"not compiled: {system.compiled}")
    return f"{name:>22} | {' | '.join(cells)}{'' if fine else ' | BEYOND TOLERANCE'}", fine


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device(parser)
    parser.add_argument("--tiny", action="store_true", help="sizes that a CPU has time for")
    parser.add_argument("--only", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="default: all of them")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    all_fine = True
    for name in options.only:
        line, fine = row(name, SYSTEMS[name], options.device, options.tiny)
        all_fine &= fine
        print(line, flush=True)
        wait(options.device)
    sys.exit(not all_fine)


if __name__ == "__main__":
    main()
