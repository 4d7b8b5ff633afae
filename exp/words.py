"""Commands as people say them, `exp fit solq_digits`, in the options that they stand for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from exp.arguments import config_files, option
from exp.checkpoint_names import NoCheckpoint, find_checkpoint, find_run
from exp.recipes import UnknownRecipe, find_recipe, is_name
from exp.run_state import CONFIG_FILE

# What is trained or measured is a config; what is evaluated is a run or, with weights of its own, a config.
OF_CONFIGS = ("fit", "data", "profile", "compare")
OF_RUNS = ("validate", "test", "predict", "export", "search")


class Unmeant(ValueError):
    """A word that stands for nothing; the message says what would."""


def spelled_out(command: str, argv: list[str]) -> list[str]:
    """The arguments of a command with its words as options, and names of configs as their files.

    The words in front are configs, `fit solq_digits gpu`; of what evaluates, the first is a run, an experiment, a
    checkpoint or a config, `predict mine/best photos/`. `profile` and `convert` take runs, too. `fit --resume RUN` has
    the run's config where it names no other.

    Args:
        command: its name.
        argv: what follows it.

    Raises:
        Unmeant: there is no such config or run.
    """
    if command == "convert" and argv:
        with suppress(NoCheckpoint):
            return [str(find_checkpoint(argv[0], Path("runs"))), *argv[1:]]
    if command not in (*OF_CONFIGS, *OF_RUNS):
        return argv
    if command == "data" and argv[:1] == ["pack"]:
        return ["pack", *spelled_out(command, argv[1:])]
    argv = _files_of_names(command, argv)
    front = next((i for i, argument in enumerate(argv) if argument.startswith("-")), len(argv))
    words, rest = argv[:front], argv[front:]
    runs = Path(option(rest, "--runs") or "runs")
    if command == "profile" and len(words) == 1:
        return [_config_or_run(words[0], runs), *rest]
    if command in OF_CONFIGS:
        configs = [f"--config={_config(word, command == 'compare')}" for word in words]
        return [*(configs or (_config_of_the_run(rest, runs) if command == "fit" else [])), *rest]
    if not words or option(rest, "--ckpt_path") or config_files(rest):
        return argv
    first, *others = words
    if Path(first).suffix in (".yaml", ".yml"):
        return [*others, f"--config={first}", *rest]
    try:
        checkpoint = find_checkpoint(first, runs)
    except NoCheckpoint as error:
        if is_name(first):
            with suppress(Unmeant):
                return [*others, f"--config={_config(first, claim=False)}", *rest]
        # Images without a network to look at them: the command says what is missing.
        if command == "predict" and os.path.exists(first):
            return argv
        raise Unmeant(f"{command} {error}") from None
    if _is_picture(checkpoint):
        return argv
    return [*others, f"--ckpt_path={checkpoint}", *rest]


def _files_of_names(command: str, argv: list[str]) -> list[str]:
    """The files that `--config NAME` and `--config=NAME` mean."""
    found, value = [], False
    for argument in argv:
        if value:
            found.append(_config(argument, command == "compare"))
        elif argument.startswith("--config="):
            found.append(f"--config={_config(argument.removeprefix('--config='), command == 'compare')}")
        else:
            found.append(argument)
        value = argument in ("-c", "--config") and not value
    return found


def _config(word: str, claim: bool) -> str:
    if not is_name(word):
        return word
    try:
        return os.path.relpath(find_recipe(word, claim))
    except UnknownRecipe as error:
        raise Unmeant(str(error)) from None


def _config_of_the_run(argv: list[str], runs: Path) -> list[str]:
    """The config of the run that a training goes on with, where the command names none."""
    resumed = option(argv, "--resume")
    if resumed in (None, "auto", "never") or config_files(argv) or option(argv, "--model") or Path(resumed).is_file():
        return []
    try:
        run = find_run(resumed, runs)
    except NoCheckpoint as error:
        raise Unmeant(f"--resume {error}") from None
    config = run / CONFIG_FILE
    if not config.is_file():
        return []
    if not run.resolve().is_relative_to(runs.resolve()):
        raise Unmeant(
            f"--resume {resumed}: it is none of the runs in {runs}, whose configs are yours; if you trust it, give its "
            f"config, too: --config={config}"
        )
    return [f"--config={config}"]


def _config_or_run(word: str, runs: Path) -> str:
    """The option that a word stands for: a config where there is one of that name, else a run."""
    unmeant: Unmeant | None = None
    try:
        config = _config(word, claim=False)
    except Unmeant as error:
        config, unmeant = word, error
    if not os.path.isfile(config):
        try:
            return f"--ckpt_path={find_checkpoint(word, runs)}"
        except NoCheckpoint:
            if unmeant is not None:
                raise unmeant from None
    return f"--config={config}"


def _is_picture(path: Path) -> bool:
    """Whether a file begins as no checkpoint does, which is a zip archive."""
    with path.open("rb") as file:
        return file.read(2) != b"PK"
