"""What is written once for every task: the life of an evaluation, schedules, parts, teachers, shared randomness."""

from __future__ import annotations

import copy
import multiprocessing
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch import nn

from callbacks import StepSeed
from callbacks.reports.cost import first_samples
from lightning_modules import WarmupCosine
from lightning_modules.findings import Findings
from lightning_modules.optimization import Part
from tests.library.reports import trainer_with
from tests.library.toy_task import SAMPLES, Line, Numbers, Sums, saved, seeded


def mean_of(module: Sums) -> float:
    with torch.no_grad():
        return torch.cat([module(batch["image"]) for batch in Numbers().batches()]).double().sum(1).mean().item()


@pytest.mark.parametrize(("command", "split"), [("validate", "val"), ("test", "test")])
def test_every_sample_counts_once_the_last_incomplete_batch_included(command: str, split: str, tmp_path: Path) -> None:
    module = seeded()
    (logged,) = getattr(trainer_with(folder=tmp_path), command)(module, Numbers(), verbose=False)
    assert logged == {f"{split}/mean": pytest.approx(mean_of(module)), f"{split}/images": SAMPLES}
    assert isinstance(module.findings, Findings)
    assert module.findings.metrics["images"] == SAMPLES


def test_an_interrupted_evaluation_is_forgotten(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_validation_batch_end(self, *args: Any) -> None:
            raise RuntimeError("interrupted")

    module = seeded()
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer_with(Interrupt(), folder=tmp_path).validate(module, Numbers(), verbose=False)
    assert module.sums[1] == 4
    trainer_with(folder=tmp_path).validate(module, Numbers(), verbose=False)
    assert module.sums[1] == SAMPLES


def test_a_trial_before_training_is_no_evaluation(tmp_path: Path) -> None:
    seen: list[Any] = []

    class Look(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            seen.append(pl_module.findings)

    module = seeded()
    trainer_with(Look(), folder=tmp_path, max_epochs=1, num_sanity_val_steps=1).fit(module, Numbers())
    assert seen == [None]
    assert module.findings is not None


def test_evaluation_without_a_trainer_finds_the_same(tmp_path: Path) -> None:
    module, data = seeded(), Numbers()
    module.train()
    found = module.evaluate(data.val_dataloader(), data=data)
    assert module.training
    assert module.findings is None
    (logged,) = trainer_with(folder=tmp_path).validate(module, data, verbose=False)
    assert {f"val/{name}": float(value) for name, value in found.metrics.items()} == logged


@pytest.mark.parametrize("stage", ["fit", "validate", "test"])
def test_classes_of_network_and_data_must_agree(stage: str, tmp_path: Path) -> None:
    trainer = trainer_with(folder=tmp_path, max_epochs=1)
    with pytest.raises(ValueError, match=r"the network has 4 classes but the data has 3: set .*num_classes=3"):
        getattr(trainer, stage)(seeded(classes=4), Numbers())
    getattr(trainer, stage)(seeded(classes=3), Numbers())


def test_prediction_can_do_without_the_classes_of_the_data() -> None:
    module = seeded(classes=4)
    module.trainer = SimpleNamespace(datamodule=SimpleNamespace(num_classes=0))  # type: ignore[assignment]
    module.setup("predict")
    with pytest.raises(ValueError, match="the data has 0"):
        module.setup("validate")


def _on_process(rank: int, ranks: int, folder: str, results: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    torch.set_num_threads(1)
    module, data = seeded(), Numbers()
    batches = data.batches()
    # One process has nothing at all.
    mine = batches[rank :: ranks - 1] if rank < ranks - 1 else []
    found = module.evaluate(mine, data=data)
    results.put({name: float(value) for name, value in found.metrics.items()})
    results.close()
    results.join_thread()
    os._exit(0)


def test_processes_find_together_what_one_finds_alone(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    results, ranks = context.Queue(), 2
    for count in (ranks, ranks + 1):
        folder = tmp_path / str(count)
        folder.mkdir()
        processes = [context.Process(target=_on_process, args=(r, count, str(folder), results)) for r in range(count)]
        for process in processes:
            process.start()
        found = [results.get(timeout=240) for _ in range(count)]
        for process in processes:
            process.join()
        expected = seeded().evaluate(Numbers().batches()).metrics
        assert found == [pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-12)] * count


def test_a_network_that_does_not_suit_it_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    class Picky(Line):
        refuses_compile = "it is too short"

    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda module: compiled.append(module))
    for network in (Picky(), nn.Sequential(Picky())):
        with pytest.raises(ValueError, match=r"^Picky does not suit torch\.compile: it is too short\. Set --model"):
            Sums(network, compile=True)
        Sums(network).setup("fit")
    assert compiled == []
    module = Sums(compile=True)
    module.setup("fit")
    assert compiled == [module.network]


def test_the_first_samples_of_a_batch_are_a_copy() -> None:
    batch = {"image": torch.arange(6.0).view(3, 2), "target": [{"a": torch.ones(1)}, {}, {}]}
    first = first_samples(batch, 2)
    assert first["image"].tolist() == [[0, 1], [2, 3]]
    assert len(first["target"]) == 2
    first["image"].zero_()
    first["target"][0]["a"].zero_()
    assert batch["image"][0, 1] == 1
    assert batch["target"][0]["a"] == 1


class Steps(Callback):
    """Notes the groups of the optimiser at each step; saves a checkpoint at the end of the first epoch."""

    def __init__(self, keys: tuple[str, ...] = (), save: Path | None = None) -> None:
        self.keys, self.save = keys, save
        self.seen: list[list[tuple[float, ...]]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
        self.seen.append([tuple(group[key] for key in self.keys) for group in optimizer.param_groups])

    def on_train_epoch_end(self, trainer: Trainer, *args: Any) -> None:
        if self.save is not None and trainer.current_epoch == 0:
            trainer.save_checkpoint(self.save / "kept.ckpt")


def trained(module: Sums, folder: Path, *callbacks: Any, **options: Any) -> Trainer:
    trainer = trainer_with(*callbacks, folder=folder, log_every_n_steps=1, **({"max_epochs": 2} | options))
    trainer.fit(module, Numbers(12))
    return trainer


def test_any_quantity_of_the_optimiser_follows_a_schedule(tmp_path: Path) -> None:
    decay = WarmupCosine(min_lr=0.4)
    optimizer = lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.04)  # noqa: E731
    module = seeded(optimizer=optimizer, schedule=WarmupCosine(), schedules={"weight_decay": decay})
    steps = Steps(("lr", "weight_decay"))
    trainer = trained(module, tmp_path, steps)
    lr, rising = WarmupCosine().table(0.1, 3, 6), decay.table(0.04, 3, 6)
    # The weight decays and the bias never does.
    assert steps.seen == [[pytest.approx((a, b)), pytest.approx((a, 0.0))] for a, b in zip(lr, rising, strict=True)]
    assert trainer.callback_metrics["train/weight_decay"] == pytest.approx(rising[-1])
    assert trainer.callback_metrics["train/lr"] == pytest.approx(lr[-1])


def test_a_schedule_of_what_the_optimiser_lacks_is_refused(tmp_path: Path) -> None:
    module = seeded(optimizer=torch.optim.SGD, schedules={"beta": WarmupCosine()})
    with pytest.raises(ValueError, match="SGD has no beta other than 0 that could follow a schedule; it has lr"):
        trained(module, tmp_path)


def test_what_has_a_rate_of_0_stays_as_it_was(tmp_path: Path) -> None:
    module = seeded(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0))
    before = copy.deepcopy(module.state_dict())
    trained(module, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with pytest.raises(ValueError, match="SGD has no lr other than 0 that could follow a schedule"):
        trained(seeded(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.0), schedule=WarmupCosine()), tmp_path)


def test_the_learning_rate_grows_with_the_batch(tmp_path: Path) -> None:
    optimizer = lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=0.04)  # noqa: E731
    for reference, lr in ((16, 0.05), (2, 0.4), (None, 0.1)):
        steps = Steps(("lr", "weight_decay"))
        module = seeded(optimizer=optimizer, reference_batch=reference)
        trained(module, tmp_path, steps, max_epochs=1, accumulate_grad_batches=2)
        assert steps.seen == [[pytest.approx((lr, 0.04)), pytest.approx((lr, 0.0))]] * 2


def test_what_goes_on_has_the_commands_options_and_what_is_tested_has_none(tmp_path: Path) -> None:
    def module(weight_decay: float) -> Sums:
        return seeded(optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1, weight_decay=weight_decay))

    trained(module(0.1), tmp_path, Steps(save=tmp_path), max_epochs=1)
    trainer = trainer_with(folder=tmp_path, max_epochs=2)
    trainer.fit(module(0.3), Numbers(12), ckpt_path=tmp_path / "kept.ckpt", weights_only=True)
    assert [group["weight_decay"] for group in trainer.optimizers[0].param_groups] == [0.3, 0.0]
    pair_of_parts = pair()
    assert len(pair_of_parts.parts()) == 2
    # The checkpoint of one part has weights for another task's test, and no say in its optimisers.
    content = saved(tmp_path)
    content["state_dict"] = pair_of_parts.state_dict()
    torch.save(content, tmp_path / "other.ckpt")
    trainer.test(pair_of_parts, Numbers(12), ckpt_path=tmp_path / "other.ckpt", weights_only=True, verbose=False)
    with pytest.raises(ValueError, match="the checkpoint's optimiser trained one part, but the task trains network, d"):
        trainer_with(folder=tmp_path, max_epochs=2).fit(
            pair_of_parts, Numbers(12), ckpt_path=tmp_path / "other.ckpt", weights_only=True
        )


class Pair(Sums):
    """A network that AdamW trains, and a decoder beside it that SGD does."""

    def __init__(self, clip: float | None = None) -> None:
        super().__init__(optimizer=lambda groups: torch.optim.AdamW(groups, lr=0.01))
        self.decoder = nn.Linear(3, 2)
        self.clip = clip

    def parts(self) -> dict[str, Part]:
        sgd = lambda groups: torch.optim.SGD(groups, lr=0.5, momentum=0.9)  # noqa: E731
        return super().parts() | {"decoder": Part(self.decoder, sgd, WarmupCosine(), clip=self.clip)}

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.decoder(self(batch["image"])).square().mean()
        return self.total_loss({"square": loss}, {}, len(batch["image"]))


def pair(**options: Any) -> Pair:
    torch.manual_seed(0)
    return Pair(**options)


def test_parts_take_the_steps_that_each_would_take_alone(tmp_path: Path) -> None:
    module, reference = pair(), pair()
    trainer = trained(module, tmp_path)
    assert trainer.global_step == 6
    network = torch.optim.AdamW(reference.main.groups(0.01, 0.01), lr=0.01)
    decoder = torch.optim.SGD(reference.decoder.parameters(), lr=0.5, momentum=0.9)
    table = WarmupCosine().table(0.5, 3, 6)
    for step, batch in enumerate(Numbers(12).batches() * 2):
        decoder.param_groups[0]["lr"] = table[step]
        loss = reference.decoder(reference.network(batch["image"])).square().mean()
        network.zero_grad()
        decoder.zero_grad()
        loss.backward()
        network.step()
        decoder.step()
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], value, rtol=1e-6, atol=1e-7)
    assert trainer.callback_metrics["train/decoder_lr"] == pytest.approx(table[-1])


def test_parts_go_on_where_they_stopped(tmp_path: Path) -> None:
    whole = pair()
    trained(whole, tmp_path, Steps(save=tmp_path))
    assert list(saved(tmp_path)["optimizer_states"][0]) == ["network", "decoder"]
    resumed = pair()
    trainer_with(folder=tmp_path, max_epochs=2).fit(
        resumed, Numbers(12), ckpt_path=tmp_path / "kept.ckpt", weights_only=True
    )
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


def test_norms_and_biases_of_a_part_do_not_decay_unless_asked() -> None:
    part = Part(nn.Linear(2, 2))
    assert [group["weight_decay"] for group in part.groups(0.1, 0.05)] == [0.05, 0.0]
    assert [group["weight_decay"] for group in Part(part.module, decay_all=True).groups(0.1, 0.05)] == [0.05]


def test_a_part_is_clipped_on_its_own(tmp_path: Path) -> None:
    norms: list[tuple[float, float]] = []

    class Norms(Callback):
        def on_before_zero_grad(self, trainer: Trainer, pl_module: Any, optimizer: Any) -> None:
            gradients = [[p.grad for p in part.parameters()] for part in (pl_module.network, pl_module.decoder)]
            if gradients[0][0] is not None:
                norms.append(tuple(nn.utils.get_total_norm(each).item() for each in gradients))  # type: ignore[arg-type]

    trained(pair(clip=1e-3), tmp_path, Norms())
    assert all(network > 1e-2 and decoder == pytest.approx(1e-3, rel=1e-3) for network, decoder in norms)
    # The trainer's is for the parts that say nothing.
    for options in ({}, {"gradient_clip_algorithm": "value"}):
        norms.clear()
        trained(pair(clip=1e-3), tmp_path, Norms(), gradient_clip_val=1e-4, **options)
        largest = 1e-4 * (15**0.5 if options else 1)
        assert all(network <= largest * 1.001 and decoder > 5e-4 for network, decoder in norms)


def test_teachers_are_kept_out_of_the_optimiser_and_in_the_checkpoint(tmp_path: Path) -> None:
    class Taught(Sums):
        def __init__(self) -> None:
            super().__init__(nn.ModuleDict({"student": Line(), "teacher": Line()}), lr_multipliers=None)

        def forward(self, images: Any) -> Any:
            return self.network["student"](images) + self.network["teacher"](images)

        def teacher_pairs(self) -> list[tuple[nn.Module, nn.Module]]:
            return [(self.network["student"], self.network["teacher"])]

    module = Taught()
    before = copy.deepcopy(module.state_dict())
    trained(module, tmp_path, Steps(save=tmp_path))
    after = saved(tmp_path)["state_dict"]
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed == {"network.student.layer.weight", "network.student.layer.bias"}


def test_processes_draw_alike_what_they_share() -> None:
    def draw(rank: int, step: int, seed: int = 0) -> tuple[float, float]:
        module, trainer = seeded(), SimpleNamespace(current_epoch=1, global_rank=rank)
        StepSeed(seed).on_train_batch_start(trainer, module, None, step)  # type: ignore[arg-type]
        return torch.rand((), generator=module.shared_generator).item(), torch.rand(()).item()

    (shared, own), (also_shared, other) = draw(0, 5), draw(1, 5)
    assert shared == also_shared
    assert own != other
    assert shared == draw(0, 5)[0]
    assert len({shared, draw(0, 6)[0], draw(0, 5, seed=1)[0]}) == 3


def test_the_module_can_be_copied() -> None:
    assert copy.deepcopy(seeded()).shared_generator.initial_seed() is not None
