"""Weights without a run: converted official ones, those of another run or of a package; for a network or a part."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from exp.checkpoint_io import read_checkpoint
from exp.checkpoint_names import NoCheckpoint, find_checkpoint
from exp.cli import WHOLE, Cli
from exp.hubs import covered
from exp.official_files import apart_from_its_teacher, averaged_beside, translated
from exp.packaged_weights import PACKAGE, file_of, in_timms_names, network_of, networks_in, pixels_of
from exp.pixels import Statement, hand_over, hand_over_checkpoint, of_a_run, stated_by, statement_of
from exp.usage import UsageError
from exp.weight_files import WeightFileError, read
from lightning_modules import Task
from models import official
from models.official import State, backbones


@dataclass(frozen=True)
class Start:
    """What of a network and of weights did not meet.

    Args:
        absent: Names of the parameters and buffers that the weights have nothing for, by part of the network.
        spare: Names of the weights that the network has no place for, by part.
        classifier: Names of the parameters of a classifier of another number of classes.
        notes: What else was left out, a phrase each: what is of a training and not of its network.
        pixels: How the images look that the weights expect.
        layout: In whose official layout they were; empty for ours.
        averaged: Averages of the same weights, in our layout, that the file has besides.
        taken: What of the weights was taken, where they are not of such a network; a phrase.
    """

    absent: Mapping[str, list[str]]
    spare: Mapping[str, list[str]]
    classifier: list[str]
    notes: Sequence[str] = ()
    pixels: Statement = field(default=Statement(), compare=False)
    layout: str = ""
    averaged: State | None = field(default=None, compare=False, repr=False)
    taken: str = ""

    def message(self) -> str:
        """Whose layout it was, what starts afresh and what is left out, in one line; empty if there is nothing."""
        parts = [each for each in (self.recognised() if self.layout else "", self.taken) if each]
        if self.absent:
            parts.append(f"starting afresh: {_listed(self.absent)}")
        if self.spare:
            parts.append(f"left out: {_listed(self.spare)}")
        if self.classifier:
            parts.append(f"another number of classes, so {', '.join(self.classifier)} start afresh")
        return "; ".join([*parts, *self.notes])

    def recognised(self) -> str:
        """In whose official layout the weights were."""
        return f"weights in the official {self.layout} layout, translated"


def weight_files(cli: Cli) -> dict[str, Path]:
    """The files that a command's weights come from, by the part that each is for; a part follows what it is a part of.

    `package` stands for the files in installed packages that fit the networks of timm's in a part, and is for these;
    a network that no package has weights of, and that asks a hub for its own, is left to that.

    Raises:
        UsageError: no such file or package, or no such part.
    """
    given = cli.config.weights
    named = {WHOLE: given} if isinstance(given, str) else dict(given or {})
    files, packaged = {}, dict[str, Path]()
    for part in named:
        module = part_of(cli, part)
        try:
            if named[part] == PACKAGE:
                packaged |= _packaged(cli, part, module)
            else:
                files[part] = find_checkpoint(named[part], Path(cli.config.runs))
        except NoCheckpoint as error:
            raise UsageError(f"{_option(part)} {error}") from None
        except WeightFileError as error:
            raise UsageError(f"{_option(part)} {PACKAGE}: {error}") from None
    return dict(sorted((packaged | files).items()))


def check_weights(cli: Cli) -> None:
    """Looks into the files that a command's weights come from, before anything is done.

    Raises:
        UsageError: no such file or part, a file that holds no weights, or a part that needs some and has none.
    """
    files = weight_files(cli)
    for part, path in files.items():
        try:
            read(path, tensors=False)
        except WeightFileError as error:
            raise UsageError(f"{_option(part)} {path}: {error}") from error
    of_hubs = {id(each) for network in cli.held_back.values() for each in network.parameters()}
    for part in cli.model.beside_checkpoints():
        if part not in files and any(id(each) not in of_hubs for each in part_of(cli, part).parameters()):
            raise UsageError(
                f"{_option(part)}: it has no weights to begin with; give it those of a run, of `convert` or `{PACKAGE}`"
            )


def start_from(cli: Cli, path: Path, part: str = WHOLE, averages: bool = False) -> Start:
    """Puts weights into the command's network, or into a part of its module.

    A classifier of another number of classes stays as it was initialised, and so do the parts that the network says a
    training may start without (`models.official.absent_parts`).

    Args:
        cli: the command.
        path: an exp checkpoint, what `convert` wrote or would read, or the weights of a network of timm's, or a
            package's. For a part of a network it may hold that part alone, or a whole network with a part of the same
            name. Of a student and a teacher, a network that is neither gets the backbone of the one that is evaluated;
            and of a backbone, or of a learner of another kind, both of them get it.
        part: attribute of the module, dotted: `network`, `teacher`, `network.backbone`.
        averages: whether averages that a training has besides are looked for, too.

    Returns:
        What stayed, and what was left out.

    Raises:
        UsageError: the file does not fit.
    """
    option = _option(part)
    top, _, rest = part.partition(".")
    module = part_of(cli, part)
    network = getattr(cli.model, top)
    try:
        checkpoint = read(path)
        beside = None
        if averages and of_a_run(checkpoint) and _followers(cli.model):
            checkpoint, beside = apart_from_its_teacher(checkpoint)
        # Of a run with averaged weights, what its evaluation used.
        averaged = isinstance(checkpoint, Mapping) and "averaging_state" in checkpoint
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", UserWarning)
            state = official.unwrap(checkpoint, averaged)
        # What a checkpoint keeps apart from its network, such as what trained beside a student.
        apart = checkpoint.get(top) if isinstance(checkpoint, Mapping) else None
        if isinstance(apart, Mapping) and top != WHOLE:
            tensors = {name: each for name, each in apart.items() if isinstance(each, Mapping)}
            state = {f"{name}.{key}": value for name, each in tensors.items() for key, value in each.items()}
        if packaged := network_of(path):
            state = in_timms_names(packaged, state)
            pixels = Statement(stated_by(pixels_of(packaged)))
        else:
            pixels = statement_of(path, checkpoint, module)
    except (WeightFileError, official.LayoutError) as error:
        raise UsageError(f"{option} {path}: {error}") from error
    notes = tuple(str(note.message) for note in told)
    foreign = official.foreign(state)
    try:
        # Also of an official layout, which may be that of a network of timm's, which takes it as it is.
        start = _put(network, rest, state, checkpoint.get("published"), moves=not foreign)
        return replace(start, notes=notes, pixels=pixels, averaged=beside)
    except official.LayoutError as error:
        if not foreign:
            raise UsageError(
                f"{option} {path}: {error}; give weights of this network, or a file in an official layout that "
                "`python -m exp convert` knows"
            ) from error
    try:
        found = translated(path, checkpoint)
        beside = averaged_beside(checkpoint, found.system, set(found.state)) if averages else None
    except (WeightFileError, official.LayoutError) as error:
        raise UsageError(
            f"{option} {path}: {error}; `python -m exp convert --system NAME` reads it as another system's"
        ) from error
    try:
        start = _put(network, rest, found.state, found.published)
    except official.LayoutError as error:
        raise UsageError(
            f"{option} {path}: weights in the official {found.title} layout, which are not this network's ({error}): "
            f"give a config whose network is {found.title}'s, of their size"
        ) from error
    if found.pixels is not None:
        pixels = Statement(found.pixels)
    return replace(start, notes=found.notes, pixels=pixels, layout=found.title, averaged=beside)


def _put(network: nn.Module, part: str, state: State, side: str | None = None, moves: bool = True) -> Start:
    """Puts weights in our layout into a network, or into a part of it; see `start_from`.

    Args:
        network: the network.
        part: where the part is in it, dotted; empty for all of it.
        state: the weights.
        side: whose backbone is taken of a student and a teacher; by default that of the one that the paper evaluates.
        moves: whether a backbone is looked for where network and weights are not of a kind.

    Raises:
        LayoutError: they do not fit.
    """
    behind: list[str] = []
    moved, taken = None, ""
    wants_sides, has_sides = backbones.holds_sides(network.state_dict()), backbones.holds_sides(state)
    if moves and has_sides and not wants_sides:
        if part:
            state, side = backbones.published_backbone(state, side)
            taken = f"the {side}'s backbone is taken ({len(state)} tensors)"
        else:
            moved = backbones.into_classifier(network, state, side)
    elif moves and wants_sides and not part and (not has_sides or backbones.of_another_kind(network, state)):
        moved = backbones.into_learner(network, state, side)
    if moved is not None:
        state = moved.state
    if part:
        state, behind = _with_part(network, part, state)
    absent, spare = official.absent_parts(network, state), official.spare_parts(network, state)
    stayed = official.load(network, state)
    expected = {name for names in absent.values() for name in names}
    spare |= {"layers behind the feature maps": behind} if behind else {}
    start = Start(absent, spare, [name for name in stayed if name not in expected], taken=taken)
    return start if moved is None else replace(start, absent=moved.absent, spare=moved.spare, taken=moved.taken)


def to_evaluate(cli: Cli) -> Path:
    """What `validate`, `test` or `predict` works with: `--ckpt_path`, or `--weights`, which are put into the network.

    Returns:
        The file.

    Raises:
        UsageError: neither or both are given, or weights do not fit the whole network, or they expect other pixels
            than the config says.
    """
    checkpoint, files = cli.config.ckpt_path, weight_files(cli)
    if (checkpoint is None) == (not files):
        raise UsageError(
            f"{cli.command} needs --ckpt_path, a checkpoint of a run, or a config and --weights: an official file, one "
            f"of `convert`, or `{PACKAGE}`"
        )
    leads = cli.trainer.is_global_zero
    if checkpoint is not None:
        path = Path(checkpoint)
        hand_over_checkpoint(cli, path, read_checkpoint(path, tensors=False), leads)
        return path
    if list(files) != [WHOLE]:
        parts = ", ".join(map(_option, files))
        raise UsageError(f"{cli.command} needs the whole network, by --weights FILE: {parts} only start a training")
    path = files[WHOLE]
    start = start_from(cli, path, averages=True)
    if cli.config.get("probe") is not None:
        # Features need no more than a backbone.
        evaluated = _with_averages(cli.model, start)
        if leads and (message := start.message()):
            print(f"{path}: {message}{evaluated}")
        hand_over(cli, {WHOLE: (path, start.pixels)}, leads)
        return path
    kinds = {"missing": start.absent, "without a place": start.spare}
    if strange := [f"{kind}: {_listed(parts)}" for kind, parts in kinds.items() if parts]:
        raise UsageError(
            f"--weights {path}: only a start for a training of this network ({'; '.join(strange)}); train it by "
            "`python -m exp fit --weights`, or give the network the options of the one that the weights are of"
        )
    if start.classifier:
        raise UsageError(
            f"--weights {path}: another number of classes, so it has nothing for {official.some(start.classifier)}; "
            "train it by `python -m exp fit --weights`, or set the network's num_classes"
        )
    evaluated = _with_averages(cli.model, start)
    if leads:
        told = [f"{start.recognised()}{evaluated}"] if start.layout else []
        for note in [*told, *start.notes]:
            print(f"--weights {path}: {note}")
    hand_over(cli, {WHOLE: (path, start.pixels)}, leads)
    return path


def _with_averages(model: Any, start: Start) -> str:
    """Gives what an evaluation looks at the averaged weights of a file, and a teacher without these its student's.

    A teacher within the network has its own.

    Returns:
        What of averages an official file has given, to be told.
    """
    followers = _followers(model)
    for each in followers:
        official.load(each, start.averaged or model.network.state_dict())
    if start.averaged is None:
        return ""
    if not followers:
        official.load(model.network, start.averaged)
    return f"; {'its averaged weights are the teacher' if followers else 'of them the averaged ones'}"


def _followers(model: Any) -> list[nn.Module]:
    """The teachers that follow the network of a task from outside of it."""
    pairs = model.teacher_pairs() if isinstance(model, Task) else []
    return [teacher for student, teacher in pairs if student is model.network]


def _packaged(cli: Cli, part: str, module: nn.Module) -> dict[str, Path]:
    """The files in installed packages for the networks of timm's in a part, by where these are.

    Raises:
        WeightFileError: there is none for one of them that asks no hub, or it is not installed.
    """
    networks = networks_in(module)
    if not networks:
        raise WeightFileError(f"{type(module).__name__} has no network of timm's, which packages have weights of")
    asking = cli.held_back.values()
    found = {}
    for name, network in networks.items():
        of_hub = any(covered(each, [module.get_submodule(name)], cli.model) for each in asking)
        try:
            found[f"{part}.{name}".rstrip(".")] = file_of(network)
        except WeightFileError:
            if not of_hub:
                raise
    return found


def _option(part: str) -> str:
    return "--weights" if part == WHOLE else f"--weights.{part}"


def part_of(cli: Cli, part: str) -> nn.Module:
    """The module that a part is.

    Raises:
        UsageError: there is none.
    """
    found: Any = cli.model
    names = part.split(".")
    for i, name in enumerate(names):
        parent, found = found, getattr(found, name, None)
        if not isinstance(found, nn.Module):
            known = [".".join([*names[:i], child]) for child, _ in parent.named_children()]
            near = difflib.get_close_matches(part, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose from {', '.join(known) or 'none'}"
            raise UsageError(f"{_option(part)}: there is no part '{part}'; {hint}")
    return found


def _with_part(network: nn.Module, part: str, state: State) -> tuple[State, list[str]]:
    """The weights of a network as they are, with those of a part in their place.

    Args:
        network: the network.
        part: where the part is in it, dotted.
        state: weights of the part, or of a network that has such a part.

    Returns:
        The weights under the network's names, and the names of those that a feature extractor has no layers for.
    """
    own = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
    state = own or state
    module = network.get_submodule(part)
    # What is nothing but a wrapping of one module takes what that module takes.
    while len(inner := {name.partition(".")[0] for name in module.state_dict()}) == 1:
        name = inner.pop()
        child = getattr(module, name)
        if not isinstance(child, nn.Module) or any(key.startswith(f"{name}.") for key in state):
            break
        module, part = child, f"{part}.{name}"
    behind: list[str] = []
    if hasattr(module, "feature_info"):
        state, behind = _of_extractor(module, state)
    others = {key: value for key, value in network.state_dict().items() if not key.startswith(f"{part}.")}
    return others | {f"{part}.{key}": value for key, value in state.items()}, behind


def _of_extractor(module: nn.Module, state: State) -> tuple[State, list[str]]:
    """Weights of a classifier of timm's for the feature extractor that timm makes of it.

    An extractor ends with the last feature map that it hands out, and may call `stages.0` `stages_0`.

    Returns:
        The weights under the extractor's names, and the names of those that belong to layers behind its end.
    """
    layers = {name.partition(".")[0] for name in module.state_dict()}
    pattern = re.compile(f"({'|'.join(re.escape(layer).replace('_', '[._]') for layer in sorted(layers))})(\\..+)?")
    fitted, behind = {}, []
    for name, value in state.items():
        if match := pattern.fullmatch(name):
            layer = match[1] if match[1] in layers else match[1].replace(".", "_")
            fitted[layer + (match[2] or "")] = value
        else:
            behind.append(name)
    return fitted, behind


def _listed(parts: Mapping[str, list[str]]) -> str:
    return ", ".join(f"{part} ({len(names)} tensors)" for part, names in parts.items())
