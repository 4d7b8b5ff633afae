"""Builders of AutoFormer's recorded searches: what is drawn in which order, and what an evolution evaluates."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from models.supernet import TransformerSpace
from models.supernet.evolution import Plan, Proposal, by_fitness, evolution
from models.supernet.space import Architecture

if TYPE_CHECKING:
    from tests.library.golden import Case

TOLERANCE = 0.0


class Remembered(TransformerSpace):
    """A space that keeps what was drawn in it."""

    def __init__(self, **choices: Any) -> None:
        super().__init__(**choices)
        self.drawn: set[Architecture] = set()

    def draw(self, *args: Any) -> Architecture:
        return self._kept(super().draw(*args))

    def mutated(self, *args: Any) -> Architecture:
        return self._kept(super().mutated(*args))

    def crossed(self, *args: Any) -> Architecture:
        return self._kept(super().crossed(*args))

    def _kept(self, architecture: Architecture) -> Architecture:
        self.drawn.add(architecture)
        return architecture


def space_of(config: dict[str, Any]) -> Remembered:
    choices = config["choices"]
    return Remembered(
        depths=choices["depth"], widths=choices["embed_dim"], heads=choices["num_heads"], ratios=choices["mlp_ratio"]
    )


def row(architecture: Architecture, deepest: int) -> list[float]:
    depth, ratios, heads, width = TransformerSpace.parts(architecture)
    padding = [-1.0] * (deepest - depth)
    return [depth, *ratios, *padding, *heads, *padding, width]


def rows(architectures: list[Architecture], deepest: int) -> Tensor:
    return torch.tensor([row(each, deepest) for each in architectures], dtype=torch.float32)


def params(architecture: Architecture, config: dict[str, Any]) -> int:
    """The parameters of a sub-network, by the sheet's formula."""
    _, ratios, heads, width = TransformerSpace.parts(architecture)
    patches, channels = (config["img_size"] // config["patch_size"]) ** 2, 3 * config["patch_size"] ** 2
    tables = 4 * (2 * config["max_relative_position"] + 2) * config["head_dim"] if config["relative_position"] else 0
    count = channels * width + width + width + 2 * width + width * config["num_classes"] + config["num_classes"]
    count += (patches + 1) * width if config["abs_pos"] else 0
    for ratio, head in zip(ratios, heads, strict=True):
        inner, hidden = config["head_dim"] * head, int(width * ratio)
        bias = 3 * inner if config["qkv_bias"] else 0
        count += 4 * width + 3 * inner * width + bias + inner * width + width + 2 * width * hidden + hidden + width
        count += tables
    return count


def fitness(architecture: Architecture) -> int:
    depth, ratios, heads, width = TransformerSpace.parts(architecture)
    layers = sum(
        (i + 1) * (7 * round(2 * ratio) + 13 * head) for i, (ratio, head) in enumerate(zip(ratios, heads, strict=True))
    )
    return ((5 * depth + 3 * width + layers) * 37) % 1009


def sampling(case: Case) -> dict[str, Tensor]:
    space, deepest = space_of(case.config), case.config["max_depth"]
    _, draws, _ = case.shapes["out.configs"]
    drawn = []
    for seed in case.inputs["epochs"].tolist():
        random = Random(int(seed))
        drawn.append(rows([space.draw(random) for _ in range(draws)], deepest))
    return {"out.configs": torch.stack(drawn)}


def evolved(case: Case) -> dict[str, Tensor]:
    config, settings = case.config, case.config["evo"]
    space, deepest, limits = space_of(config), config["max_depth"], config["param_limits_millions"]
    plan = Plan(
        generations=settings["max_epochs"],
        population=settings["population_num"],
        parents=settings["select_num"],
        mutations=settings["mutation_num"],
        crossovers=settings["crossover_num"],
        layer=settings["m_prob"],
        whole=settings["s_prob"],
    )

    def admits(architecture: Architecture) -> bool:
        return limits["min"] <= params(architecture, config) / 1e6 <= limits["max"]

    parents: list[list[Any]] = []

    def order(scored: list[Any]) -> list[Any]:
        parents.append(by_fitness(scored)[: plan.parents])
        return by_fitness(scored)

    strategy = evolution(space, admits, plan, Random(int(case.inputs["seed"])), order)
    generations: list[list[Proposal]] = [next(strategy)]
    while len(generations) <= plan.generations:
        generations.append(strategy.send([fitness(each.architecture) for each in generations[-1]]))
    evaluated = [each.architecture for generation in generations for each in generation]
    # The published search evaluates its last generation and forgets it.
    counted = [[each.architecture for each in generation] for generation in generations[:-1]]
    wide = torch.full(case.shapes["out.generations"], -2.0)
    for i, generation in enumerate(counted):
        wide[i, : len(generation)] = rows(generation, deepest)
    best = parents[plan.generations - 1]
    return {
        "out.evaluated": rows(evaluated, deepest),
        "out.evaluated_fitness": torch.tensor([float(fitness(each)) for each in evaluated]),
        "out.evaluated_params": torch.tensor([params(each, config) for each in evaluated]),
        "out.generation_sizes": torch.tensor([len(generation) for generation in counted]),
        "out.generations": wide,
        "out.n_seen": torch.tensor(len(space.drawn)),
        "out.n_top50": torch.tensor(min(50, sum(map(len, counted)))),
        "out.topk": rows([each.architecture for each in best], deepest),
        "out.topk_fitness": torch.tensor([float(each.fitness) for each in best]),
    }


CASES = {"sampling": sampling, "evolution": evolved}
