"""`python -m exp prune RUN --budget 0.5`: a trained run made smaller and trained further, and what that took."""

from __future__ import annotations

import argparse
import json
import pkgutil
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exp.usage import UsageError

if TYPE_CHECKING:
    from exp.cli import Cli
    from models.pruning.plan import Plan

NETWORK = ("model", "init_args", "network")
# What a longer training stretches with its epochs.
STRETCHED = ("milestones", "every", "warmup_epochs")


def main(argv: list[str]) -> int:
    """Runs `prune`; the exit code is 0, 2 for a mistake in the command, 75 for a stop by signal, else 1.

    Args:
        argv: what follows the command's name; options that are not those of pruning are `fit`'s.
    """
    options, rest = _parser().parse_known_args(argv)
    from exp.cli import Cli
    from exp.errors import exit_code
    from exp.pruning_table import asked_before
    from exp.quiet import silence
    from exp.weights import to_evaluate

    silence()
    cli = Cli([f"--ckpt_path={options.run}", *rest], "prune")
    folder = None
    with exit_code(cli) as outcome:
        checkpoint = to_evaluate(cli)
        folder = Path(cli.config.runs) / (options.name or _name(cli, options))
        if options.of == "latency" and cli.trainer.world_size > 1:
            raise UsageError("--of latency is measured on one device: set trainer.devices=1")
        if not (folder / "plan.json").is_file():
            _write(cli, options, checkpoint, folder)
        elif asked_before(folder) != _asked(options, checkpoint):
            raise UsageError(f"{folder} holds another pruning: choose another --name, or remove it")
    if outcome.code or folder is None:
        return outcome.code
    return _train(folder, options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m exp prune",
        usage="%(prog)s RUN --budget SHARE [options] [overrides as for fit]",
        description="Prune a trained run to a share of what it costs, and train it further with its config and data.",
        allow_abbrev=False,
    )
    parser.add_argument("run", metavar="RUN", help="a run's directory, the name of an experiment, or a checkpoint")
    parser.add_argument("--budget", type=float, required=True, help="share of the cost that is left, such as 0.5")
    parser.add_argument("--of", choices=("macs", "parameters", "latency"), default="macs", help="which cost")
    parser.add_argument(
        "--criterion",
        default="l1",
        help="l1, l2, batch_norm_scale, taylor, thinet, lasso, random, branch_scale, or the class of an importance of "
        "torch-pruning",
    )
    parser.add_argument(
        "--scope", choices=("local", "global"), default="local", help="the same share of each layer, or not"
    )
    parser.add_argument("--minimum", type=int, default=1, help="channels that every layer keeps (default: 1)")
    parser.add_argument("--round_to", type=int, default=1, help="round widths up to a multiple of it (default: 1)")
    parser.add_argument("--part", default="", help="prune this part of the network only, such as backbone.body")
    parser.add_argument(
        "--batches", type=int, default=8, help="training batches that taylor, thinet and lasso look at (default: 8)"
    )
    parser.add_argument("--batch_size", type=int, default=1, help="images in a batch that latency is measured of")
    parser.add_argument("--name", help="the new experiment (default: the run's, with criterion and budget)")
    parser.add_argument(
        "--versus-scratch", action="store_true", help="train the same architecture from random weights, too"
    )
    return parser


def _asked(options: argparse.Namespace, checkpoint: Path) -> dict[str, Any]:
    """What decides about the plan."""
    mine = ("budget", "of", "criterion", "scope", "minimum", "round_to", "part")
    return {"checkpoint": str(checkpoint)} | {name: getattr(options, name) for name in mine}


def _name(cli: Cli, options: argparse.Namespace) -> str:
    criterion = options.criterion.rpartition(".")[2].lower()
    return f"{cli.experiment}-{criterion}-{options.of}-{options.budget:g}"


def _write(cli: Cli, options: argparse.Namespace, checkpoint: Path, folder: Path) -> None:
    """Makes the plan and everything that goes with it, and then a folder with all of it."""
    from callbacks.whole_files import write_whole
    from exp.checkpoint_io import config_of, read_checkpoint
    from exp.convert import write
    from exp.plans import Pruning, scratch_epochs
    from exp.pruning_table import print_table, table_of
    from exp.run_directory import PLACE
    from exp.weights import start_from

    started = start_from(cli, checkpoint)
    if message := started.message():
        print(f"{checkpoint}: {message}")
    pruning = Pruning(cli, options)
    plan = pruning.plan()
    small = pruning.smaller(plan)
    table = table_of(pruning, plan, small)
    own = config_of(read_checkpoint(checkpoint, tensors=False)) or {}
    epochs = (own.get("trainer") or {}).get("max_epochs")
    scratch = scratch_epochs(epochs, table) if epochs is not None and epochs > 0 else None
    facts = table["costs"] | {"found": table["found"], "scratch_b_epochs": scratch}
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        pixels = started.pixels.pixels
        write(small.state_dict(), partial / "start.safetensors", None if pixels is None else pixels.plain())
        write_whole(partial / "plan.json", json.dumps(plan.as_dict(), indent=1) + "\n")
        write_whole(partial / "asked.json", json.dumps(_asked(options, checkpoint), indent=1) + "\n")
        write_whole(partial / "costs.json", json.dumps(facts, indent=1) + "\n")
        write_whole(partial / "layers.csv", _csv(table["layers"]))
        pruning.draw(table["layers"], partial / "channels.png")
        config = _config(cli, cli.plain, plan) | {"experiment": folder.name}
        _write_config(partial / "fine_tune.yaml", config | {"weights": str(folder / "start.safetensors")})
        if epochs is not None and scratch is not None:
            # By the run's own config, of which the command only says how it is trained further.
            alone = _config(cli, own | {key: cli.plain.get(key) for key in PLACE}, plan)
            alone |= {"experiment": f"{folder.name}-scratch", "weights": None}
            _write_config(partial / "scratch.yaml", _stretched(alone, epochs, scratch))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print_table(table, scratch, folder)


def _config(cli: Cli, plain: dict[str, Any], plan: Plan) -> dict[str, Any]:
    """A config with a network that becomes smaller by the plan."""
    config = json.loads(json.dumps(plain))
    place = config
    for key in NETWORK[:-1]:
        place = place.get(key) or {}
    network = place.get(NETWORK[-1])
    if not isinstance(network, dict) or "class_path" not in network:
        raise UsageError(f"{type(cli.model).__name__} takes no network by class path that could be made smaller")
    place["network"] = {
        "class_path": "models.classifiers.pruned",
        "init_args": {"network": network, "plan": plan.as_dict()},
    }
    for key in ("ckpt_path", "version", "config"):
        config.pop(key, None)
    trainer = config["trainer"]
    trainer["callbacks"] = [each for each in _listed(trainer.get("callbacks")) if not _prepares_pruning(each)]
    return config | {"resume": "auto"}


def _listed(callbacks: Any) -> list[Any]:
    """The callbacks of a config, which may be one, several or none."""
    return callbacks if isinstance(callbacks, list) else [callbacks] if callbacks else []


def _prepares_pruning(callback: Any) -> bool:
    """Whether a callback is for the training before a pruning, and says so by `prepares_pruning`."""
    path = str(callback.get("class_path", "")) if isinstance(callback, dict) else ""
    try:
        return bool(getattr(pkgutil.resolve_name(path), "prepares_pruning", False))
    except (ImportError, AttributeError, ValueError):
        return False


def _stretched(config: dict[str, Any], epochs: int, scratch: int) -> dict[str, Any]:
    """A config whose training lasts longer, with the milestones of its schedule."""
    config = json.loads(json.dumps(config))
    _forget_pretrained(config["model"])
    config["trainer"]["max_epochs"] = scratch
    schedule = (config["model"]["init_args"].get("schedule") or {}).get("init_args") or {}
    for key in STRETCHED:
        if isinstance(value := schedule.get(key), list):
            schedule[key] = [int(each * scratch / epochs) for each in value]
        elif value:
            schedule[key] = value * scratch / epochs
    return config


def _forget_pretrained(config: Any) -> None:
    """Has networks start from random weights, wherever a config asks for those of a package or a hub."""
    if isinstance(config, dict):
        if config.get("pretrained") is True:
            config["pretrained"] = False
        for value in config.values():
            _forget_pretrained(value)


def _train(folder: Path, options: argparse.Namespace) -> int:
    """Trains what is left further and, if that is asked for, the same architecture from random weights."""
    from exp import fit
    from exp.pruning_table import print_arms

    code = fit.main([f"--config={folder / 'fine_tune.yaml'}"])
    if code or not options.versus_scratch:
        return code
    if not (folder / "scratch.yaml").is_file():
        print(
            "exp: --versus-scratch: the run was trained for steps, not epochs, which cannot be set against",
            file=sys.stderr,
        )
        return 2
    code = fit.main([f"--config={folder / 'scratch.yaml'}"])
    if not code:
        print_arms({"fine-tuned": folder, "from scratch": folder.with_name(f"{folder.name}-scratch")})
    return code


def _write_config(path: Path, config: dict[str, Any]) -> None:
    import yaml

    from callbacks.whole_files import write_whole

    write_whole(path, yaml.safe_dump(config, sort_keys=False))


def _csv(rows: list[dict[str, Any]]) -> str:
    header = ",".join(rows[0])
    return "\n".join([header, *(",".join(map(str, row.values())) for row in rows)]) + "\n"
