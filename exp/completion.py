"""`exp completion`: what makes a shell complete commands, configs, runs and keys, in a tenth of a second a time."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from exp.class_lists import classes_of
from exp.helping import FEET, SCREENS, settings
from exp.recipes import CLAIMS, recipes
from exp.words import OF_CONFIGS, OF_RUNS, Unmeant, spelled_out

WORDS = "--words"
# bash's own variables hold a line split at `=`, so that a value is completed alone. Zsh takes the same by bashcompinit.
SCRIPT = """_exp() {
    local found word="${COMP_WORDS[COMP_CWORD]}"
    [ "$word" = "=" ] && word=""
    found="$(exp completion --words "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null)"
    COMPREPLY=($(compgen -W "$found" -- "$word"))
    [ "${#COMPREPLY[@]}" = 1 ] && [ "${COMPREPLY[0]: -1}" = "=" ] && compopt -o nospace 2>/dev/null
}
complete -o bashdefault -o default -F _exp exp
"""
SHELLS = {"bash": SCRIPT, "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{SCRIPT}"}
CHOICES = {
    "--trainer.accelerator": ("auto", "cpu", "gpu"),
    "--trainer.precision": ("32-true", "bf16-mixed", "16-mixed"),
    "--wandb": ("auto", "online", "offline", "disabled"),
    "--find": ("lr", "batch", "lr,batch"),
}


def main(argv: list[str]) -> int:
    """Prints a shell's script, or the words that may come next.

    Args:
        argv: arguments after `completion`.
    """
    if argv[:1] == [WORDS]:
        print("\n".join(words(argv[1:])))
        return 0
    parser = argparse.ArgumentParser(
        prog="exp completion",
        description='Complete commands, configs and keys: put `eval "$(exp completion bash)"` into ~/.bashrc, '
        'or `eval "$(exp completion zsh)"` into ~/.zshrc.',
    )
    parser.add_argument("shell", choices=sorted(SHELLS))
    print(SHELLS[parser.parse_args(argv).shell], end="")
    return 0


def words(before: list[str]) -> list[str]:
    """What may come next on a command's line.

    Args:
        before: the words between `exp` and the one that is completed.
    """
    from exp.__main__ import COMMANDS

    if not before:
        return list(COMMANDS)
    command, *rest = before
    # A shell hands on `--option=` as two words.
    last = (rest[-2] if rest[-1:] == ["="] and len(rest) > 1 else rest[-1]) if rest else ""
    if last.endswith(".help") and (part := last[2:].removesuffix(".help")) in ("model", "data", "model.network"):
        return [each.name for each in classes_of(part)]
    if last in CHOICES:
        return list(CHOICES[last])
    if last in ("--config", "-c"):
        return _configs(command)
    return [*_configs(command), *_runs(command), *_keys(command, rest)]


def _configs(command: str) -> list[str]:
    if command not in (*OF_CONFIGS, *OF_RUNS):
        return []
    return [each.name for each in recipes() if (each.kind == CLAIMS) == (command == "compare")]


def _runs(command: str) -> list[str]:
    folder = Path("runs")
    if command not in OF_RUNS or not folder.is_dir():
        return []
    names = sorted(each.name for each in os.scandir(folder) if each.is_dir())
    return [f"{name}{end}" for name in names for end in ("", "/best", "/last")]


def _keys(command: str, rest: list[str]) -> list[str]:
    """What people set, and what the configs set that stand on the line."""
    if command not in SCREENS:
        return []
    front = [word for word in rest if not word.startswith("-") and word != "="]
    try:
        named = settings(spelled_out("fit", front))
        known = [option for option, _ in named]
    except Unmeant:
        known = []
    options = [line.option for lines in SCREENS[command].values() for line in lines]
    flags = [f"--{option}" for option in FEET]
    return [*(f"--{option}=" for option in dict.fromkeys([*options, *known]) if option), *flags]
