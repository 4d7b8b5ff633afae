"""A search from its question to its result, on any number of processes."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from callbacks.whole_files import write_whole
from exp.cli import Cli
from exp.evaluation import output_folder
from exp.probe import digest
from exp.searching.candidates import Candidates
from exp.searching.costs import LATENCY, Costs
from exp.searching.latency import Latency
from exp.searching.limits import Limits
from exp.searching.progress import Progress
from exp.searching.splits import parts
from exp.usage import UsageError
from models.mistakes import Mistake
from models.supernet import Architecture, Observant, Searchable, searchable
from models.supernet.evolution import Order, Plan, Proposal, Strategy, by_fitness, evolution, random_search
from models.supernet.front import by_front, front

ASKED = "asked.json"
# Images that a network takes one by one when the time of all of it is measured.
_TIMED_IMAGES = 8


@dataclass(frozen=True)
class Row:
    """A candidate of a search.

    Args:
        architecture: What it is.
        generation: Counted from 0, the random one.
        origin: `random`, `mutation` or `crossover`.
        metrics: What its evaluation found.
        fitness: The metric that the search is by; larger is better.
        costs: By name.
    """

    architecture: Architecture
    generation: int
    origin: str
    metrics: dict[str, float]
    fitness: float
    costs: dict[str, float]


class Search:
    """A search that a command asks for.

    Args:
        cli: The command, whose network has its trained weights.
        options: Of the search.
        checkpoint: Where the weights are from.
        leads: Whether this process writes the result; others evaluate candidates with it.

    Raises:
        UsageError: An option that does not fit the network or the data.
        Mistake: There is nothing to choose in the network.
    """

    def __init__(self, cli: Cli, options: argparse.Namespace, checkpoint: Path, leads: bool) -> None:
        self.cli, self.options, self.leads = cli, options, leads
        network = searchable(cli.model.network)
        assert isinstance(network, Searchable)
        self.network: Searchable = network
        self.plan = _plan(options)
        self.limits = Limits.read(options.limit)
        self.seed = options.seed if options.seed is not None else int(cli.config.seed_everything or 0)
        self.metric, self.sign = _judged_by(cli.model)
        self.judged, self.tested, self.told = parts(cli.datamodule, options.samples)
        self.home = output_folder(cli, checkpoint, "search")
        self.folder = self.home / (options.name or self._name())
        self.digest = digest(cli, checkpoint, "val")
        # By its own name, so that written configs build the network that the weights are of.
        cli.model.network = network
        cli.model.trainer = cli.trainer
        self.device: torch.device = cli.trainer.strategy.root_device
        cli.model.to(self.device)
        asked = self._asked()
        if isinstance(network, Observant):
            for batch in self.judged:
                network.observe(self._images(batch))
        self.latency = self._latency() if LATENCY in (*self.limits.ranges, options.over) else None
        self.costs = Costs(network, self.limits, self.latency)
        self.axis = self.costs.axis(options.over)
        judged = f"{self.digest[:16]}-{len(self.judged)}"
        self.candidates = Candidates(self.home / "candidates" / judged, network.space.described, self._evaluate)
        # Nothing is written before everything else is found to be right.
        if leads:
            write_whole(self.folder / ASKED, json.dumps(asked, indent=1) + "\n")

    def run(self) -> list[Row]:
        """All candidates, in the order in which the strategy asked for them.

        Raises:
            Mistake: No architecture is within the limits.
        """
        strategy = self._strategy()
        rows: list[Row] = []
        with Progress(self.plan, self.metric, self.sign, self.leads) as progress:
            proposals = next(strategy, None)
            if proposals is None:
                raise Mistake(self.costs.nobody())
            while proposals is not None:
                generation = rows[-1].generation + 1 if rows else 0
                found = self.candidates.results([each.architecture for each in proposals], progress.done)
                fitness = [self.sign * metrics.get(self.metric, math.nan) for metrics in found]
                rows += [
                    Row(each.architecture, generation, each.origin, metrics, value, self.costs.of(each.architecture))
                    for each, metrics, value in zip(proposals, found, fitness, strict=True)
                ]
                progress.generation(generation, [row.metrics.get(self.metric, math.nan) for row in rows], len(fitness))
                proposals = _next(strategy, fitness)
        return rows

    def best(self, rows: list[Row]) -> list[Row]:
        """The fittest candidates, as many as were asked for; of equals the cheapest."""
        known = [row for row in rows if not math.isnan(row.fitness)]
        if not known:
            raise Mistake(f"no candidate has a {self.metric} that is a number: the weights are broken")
        return sorted(known, key=lambda row: (-row.fitness, row.costs[self.axis]))[: self.options.best]

    def on_front(self, rows: list[Row]) -> list[Row]:
        """The candidates that none is cheaper than and as good as, by rising cost."""
        known = [row for row in rows if not math.isnan(row.fitness)]
        return [known[i] for i in front([row.costs[self.axis] for row in known], [row.fitness for row in known])]

    def test(self, row: Row) -> dict[str, float]:
        """What an architecture reaches on images that the search has not looked at."""
        return self._found(row.architecture, self.tested)

    def _strategy(self) -> Strategy:
        space, random = self.network.space, Random(self.seed)
        if self.options.strategy == "random":
            return random_search(space, self.costs.admits, self.plan, random)
        order: Order = by_fitness
        if self.options.strategy == "front":
            order = by_front(lambda architecture: self.costs.of(architecture)[self.axis])
        return evolution(space, self.costs.admits, self.plan, random, order)

    def _evaluate(self, architecture: Architecture) -> dict[str, float]:
        return self._found(architecture, self.judged)

    def _found(self, architecture: Architecture, images: Any) -> dict[str, float]:
        self.network.choose(architecture)
        findings = self.cli.model.evaluate(images, images.split, self.cli.datamodule)
        return {name: float(value) for name, value in findings.metrics.items()}

    def _images(self, batch: Any) -> Tensor:
        """Images as the network takes them, [B, C, H, W]."""
        moved = tree_map_only(Tensor, lambda tensor: tensor.to(self.device), batch)
        images = self.cli.model.inputs(self.cli.datamodule.on_after_batch_transfer(moved, 0))[0]
        if not isinstance(images, Tensor):
            raise UsageError(f"{type(self.cli.model).__name__} takes no images in one tensor, which this search needs")
        return images

    def _latency(self) -> Latency:
        file = self.home / "latency.json"
        # One process measures, while the others are quiet.
        while not self.leads and not file.exists():
            time.sleep(0.1)
        return Latency(self.network, self._images(next(iter(self.judged)))[:_TIMED_IMAGES], file)

    def _name(self) -> str:
        limits = "".join(f"-{part}" for part in self.options.limit.replace(" ", "").split(",") if part)
        return f"{self.options.strategy}{limits}-seed{self.seed}"

    def _asked(self) -> dict[str, Any]:
        """What is asked, which must be what was asked before in the same folder."""
        asked = {
            "digest": self.digest,
            "strategy": self.options.strategy,
            "limits": {name: list(ends) for name, ends in self.limits.ranges.items()},
            "over": self.options.over,
            "plan": vars(self.plan),
            "seed": self.seed,
            "judged": len(self.judged),
            "space": {name: list(values) for name, values in self.network.space.choices.items()},
        }
        file = self.folder / ASKED
        if file.is_file():
            before = json.loads(file.read_bytes())
            if changed := [name for name in asked if before.get(name) != asked[name]]:
                what = "weights, config, data or code" if changed == ["digest"] else ", ".join(changed)
                raise UsageError(
                    f"{self.folder} holds another search (other {what}): choose another --name, or remove it"
                )
        return asked


def _next(strategy: Strategy, fitness: list[float]) -> list[Proposal] | None:
    """What a strategy asks for next; None if it has ended."""
    try:
        return strategy.send(fitness)
    except StopIteration:
        return None


def _plan(options: argparse.Namespace) -> Plan:
    layer, whole = options.mutation
    half = options.population // 2
    return Plan(
        generations=options.generations,
        population=options.population,
        parents=options.parents,
        mutations=half if options.mutations is None else options.mutations,
        crossovers=half if options.crossovers is None else options.crossovers,
        layer=layer,
        whole=whole,
    )


def _judged_by(model: Any) -> tuple[str, int]:
    """The metric that says how good an architecture is, and 1 or -1: whether more is better."""
    monitor = getattr(model, "monitor", None)
    if not monitor or not monitor.startswith("val/") or not hasattr(model, "evaluate"):
        raise UsageError(f"{type(model).__name__} has no validation metric that says which network is better")
    return monitor.removeprefix("val/"), 1 if model.monitor_mode == "max" else -1
