"""`exp COMMAND --help`: one screen of what people set, and classes in a line each, without importing torch for it."""

from __future__ import annotations

import difflib
import re
import shutil
import textwrap
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from exp.arguments import config_files
from exp.class_lists import ROOMS, classes_of
from exp.usage import ConfigError

# The commands that share one parser, with hundreds of options.
COMMANDS = ("fit", "validate", "test", "predict")
_CLASS_HELP = re.compile(r"--(?P<key>[\w.]+)\.help(?:=(?P<name>.*))?")


class Unlisted(ValueError):
    """A class that there is no help for; the message says what there is."""


class Line(NamedTuple):
    """An option on the screen.

    Args:
        option: as it is typed, without `--`.
        value: what stands for its value.
        about: what it does.
    """

    option: str
    value: str
    about: str


HEADS = {
    "fit": """usage: exp fit CONFIG [CONFIG ...] [--option=value ...]

Train a network, then test its best checkpoint. CONFIG is a name that `exp configs` lists, or a file.

  exp fit quickstart --trainer.max_epochs=10
  exp fit own_images --data.root=data/mine""",
    "validate": """usage: exp validate RUN [--option=value ...]

Evaluate a checkpoint on the validation split. RUN is a run's directory, NAME/best, NAME/last or a checkpoint; or a
config, with --weights.

  exp validate quickstart/best""",
    "predict": """usage: exp predict RUN IMAGES [IMAGES ...] [--option=value ...]

Look at pictures. RUN is a run's directory, NAME/best, NAME/last or a checkpoint, or a config with --weights; IMAGES are
image files, or folders of them.

  exp predict quickstart/best photos/ cat.jpg""",
}
HEADS["test"] = HEADS["validate"].replace("validate", "test").replace("validation", "test")
_TRAINED = {
    "What is trained": [
        Line("model.network.name", "NAME", "another of timm's networks, or of ours"),
        Line("weights", "FILE", "start from these weights"),
        Line("data.root", "FOLDER", "where the images are"),
        Line("data.batch_size", "N", "images of a step, over all devices together"),
    ],
    "How": [
        Line("trainer.max_epochs", "N", "how long"),
        Line("model.optimizer.lr", "X", "learning rate"),
        Line("model.optimizer.weight_decay", "X", "weight decay"),
        Line("model.schedule.warmup_epochs", "X", "how long the learning rate grows"),
        Line("find", "lr,batch", "first look for a learning rate, a batch size or both"),
        Line("seed_everything", "N", "seed of everything that is drawn"),
    ],
}
_PLACE = {
    "Where it runs": [
        Line("trainer.accelerator", "NAME", "auto, cpu, gpu"),
        Line("trainer.devices", "N", "how many; -1 for all"),
        Line("trainer.precision", "NAME", "32-true, bf16-mixed, 16-mixed"),
        Line("data.num_workers", "N", "processes that load images"),
        Line("threads", "N", "CPU threads of each process"),
    ],
}
_KEPT = {
    "What is kept": [
        Line("experiment", "NAME", "the run's name (otherwise the config's)"),
        Line("runs", "FOLDER", "the folder of all runs"),
        Line("resume", "RUN", "what to go on with: auto, never, a run, a checkpoint"),
        Line("checkpoint.monitor", "METRIC", "what the best checkpoint is best by"),
        Line("wandb", "MODE", "auto, online, offline, disabled"),
        Line("test", "false", "do not test the best checkpoint at the end"),
    ],
}
_EVALUATED = {
    "What is evaluated": [
        Line("ckpt_path", "RUN", "the same as RUN in front"),
        Line("weights", "FILE", "with a config: an official file, or one of `convert`"),
        Line("trust", "PACKAGE", "of yours, whose classes the checkpoint's config may name"),
        Line("data.root", "FOLDER", "other data than it was trained on"),
        Line("data.batch_size", "N", "images at a time"),
    ],
}
_PROBED = {"How": [Line("probe", "KIND", "judge the network's features instead: knn, linear or knn,linear")]}
SCREENS = {
    "fit": _TRAINED | _PLACE | _KEPT,
    "validate": _EVALUATED | _PROBED | _PLACE,
    "test": _EVALUATED | _PROBED | _PLACE,
    "predict": _EVALUATED | _PLACE,
}
FEET = {
    "model.help": "our tasks; --model.help Classification: its options",
    "data.help": "our data sets; --data.help ImageFolder",
    "model.network.help": "our networks; --model.network.help SOLQ",
    "print_config": "print the config that all of it makes, and end",
    "help=all": "every option, Lightning's included",
}


def wants_help(argv: list[str]) -> bool:
    """Whether a command asks for help that is given here."""
    return any(each in ("-h", "--help") or _is_of_classes(each) for each in argv)


def in_full(argv: list[str]) -> list[str]:
    """The arguments with `--help=all` as the parser of all options knows it."""
    return ["--help" if each == "--help=all" else each for each in argv]


def help_text(command: str, argv: list[str]) -> str:
    """What a command's help says.

    Args:
        command: its name.
        argv: what follows it, names of configs spelled out.

    Raises:
        Unlisted: a class that is not known.
    """
    for i, argument in enumerate(argv):
        if not _is_of_classes(argument):
            continue
        match = _CLASS_HELP.fullmatch(argument)
        assert match is not None
        following = argv[i + 1] if i + 1 < len(argv) else ""
        name = match["name"] or ("" if following.startswith("-") else following)
        return _about_class(match["key"], name) if name else _all_classes(match["key"])
    return _screen(command, argv)


def _is_of_classes(argument: str) -> bool:
    match = _CLASS_HELP.fullmatch(argument)
    return match is not None and match["key"].replace(".init_args", "") in ROOMS


def _screen(command: str, argv: list[str]) -> str:
    values = dict(settings(argv))
    groups = dict(SCREENS[command])
    if command == "predict":
        groups |= {"What is written": list(_options_of_predictions())}
    lines = [HEADS[command] + ("\n\nIn brackets: what the config says." if values else "")]
    for title, options in groups.items():
        lines += ["", f"{title}:"]
        for option in options:
            now = f" [{values[option.option]}]" if option.option in values else ""
            lines += _row(f"--{option.option}={option.value}", option.about + now)
    lines += ["", "More:", *(line for option, about in FEET.items() for line in _row(f"--{option}", about))]
    return "\n".join(lines)


def _columns() -> int:
    return max(60, min(120, shutil.get_terminal_size((100, 24)).columns))


def _row(left: str, right: str, width: int = 34) -> list[str]:
    """A line of two columns, the second folded."""
    first, *more = textwrap.wrap(right, _columns() - width - 3) or [""]
    gap = "\n" + " " * (width + 3) if len(left) > width else " " * (width - len(left) + 1)
    return [f"  {left}{gap}{first}".rstrip(), *(" " * (width + 3) + line for line in more)]


def settings(argv: list[str]) -> Iterator[tuple[str, Any]]:
    """What the config files of a command say, by option."""
    if not config_files(argv):
        return
    from exp.layers import with_base

    try:
        files = config_files(with_base(argv))
    except ConfigError:
        files = config_files(argv)
    for path in files:
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            # Without help, the command says what is wrong with it.
            continue
        yield from _flat(content, "")


def _flat(content: Any, key: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(content, dict):
        yield key, content
        return
    for name, value in content.items():
        inner = key if name in ("init_args", "class_path") else f"{key}.{name}".lstrip(".")
        yield from _flat(value, inner)


def _options_of_predictions() -> Iterator[Line]:
    """The options of what each task's predictions are written by."""
    from exp.prediction_options import PredictionOptions
    from exp.signatures import arguments_of

    seen: set[str] = set()
    for kind in PredictionOptions([]).kinds:
        for each in arguments_of(kind):
            if each.name not in seen:
                seen.add(each.name)
                yield Line(each.name.replace("_", "-"), "VALUE" if "[" in each.kind else each.kind.upper(), each.about)


def _all_classes(key: str) -> str:
    part = key.replace(".init_args", "")
    known = classes_of(part)
    # Two rooms of networks may each have a class of one name.
    names = [each.name for each in known]
    shown = {each: each.name if names.count(each.name) == 1 else each.path for each in known}
    width = max(map(len, shown.values())) + 2
    what = {"model": "Tasks", "data": "Data sets"}.get(part, "Networks")
    lines = [
        f"{what} of exp; a class of your own is named by its import path. --{part}.help NAME lists the options.",
        "",
    ]
    for each in known:
        lines += _row(shown[each], textwrap.shorten(each.about, _columns() - width - 3, placeholder=" ..."), width)
    if part == "model.network":
        lines += ["", "timm_classifier builds any network of timm's, and our backbones, by name."]
    return "\n".join(lines)


def _about_class(key: str, name: str) -> str:
    from exp.signatures import arguments_of, summary_of

    part = key.replace(".init_args", "")
    known = classes_of(part)
    path = next((each.path for each in known if name in (each.name, each.path)), name)
    target = _imported(path)
    if target is None:
        near = difflib.get_close_matches(name, [each.name for each in known], n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"--{part}.help lists them"
        raise Unlisted(f"--{part}.help: there is no class '{name}'; {hint}")
    lines = [path, "", *textwrap.wrap(summary_of(target), 100), ""]
    for each in arguments_of(target):
        said = f"{each.about} " if each.about else ""
        default = "required" if each.required else f"default: {each.default}"
        lines += _row(f"--{part}.{each.name}={each.kind}", f"{said}({default})", 46)
    return "\n".join(lines)


def _imported(path: str) -> Any:
    import importlib

    module, _, attribute = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None) if module else None
    except ImportError:
        return None
