"""Hints for options of other tools: ``--lr 1e-3`` is ``--set optim.lr=1e-3``."""

import re
import shlex
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from vit21k.errors import UsageError

_TRAIN = {
    "--amp": "--set precision=auto",
    "--arch": "--set model.name={}",
    "--batch": "--set data.global_batch_size={}",
    "--batch-size": "--set data.global_batch_size={}",
    "--bf16": "--set precision=bf16",
    "--checkpoint": "--init {}",
    "--ckpt": "--init {}",
    "--data-dir": "--data {}",
    "--data-path": "--data {}",
    "--drop-path": "--set model.drop_path_rate={}",
    "--epochs": "--set epochs={} --set total_steps=null",
    "--fp16": "--set precision=fp16",
    "--img-size": "--set model.img_size={}",
    "--input-size": "--set model.img_size={}",
    "--label-smoothing": "--set loss.smoothing={}",
    "--learning-rate": "--set optim.lr={}",
    "--lr": "--set optim.lr={}",
    "--max-steps": "--set total_steps={} --set epochs=null",
    "--mixup": "--set augment.mixup_alpha={}",
    "--model": "--set model.name={}",
    "--opt": "--set optim.kind={}",
    "--optimizer": "--set optim.kind={}",
    "--precision": "--set precision={}",
    "--pretrained": "--init {}",
    "--resume": "",
    "--save-dir": "--run-dir {}",
    "--seed": "--set seed={}",
    "--smoothing": "--set loss.smoothing={}",
    "--steps": "--set total_steps={} --set epochs=null",
    "--tensorboard": "--log tensorboard",
    "--wandb": "--log wandb",
    "--warmup-epochs": "--set schedule.warmup_epochs={} --set schedule.warmup_steps=0",
    "--wd": "--set optim.weight_decay={}",
    "--weight-decay": "--set optim.weight_decay={}",
}
"""Options of other trainers -> options of `train`; {} is the value."""

_SAME = (
    ("--num-workers", ("--workers", "--jobs", "--threads", "--num-threads", "-j")),
    ("--device-batch-size", ("--batch-size", "--batch")),
    ("--run-dir", ("--output", "--output-dir", "--out", "--out-dir")),
    ("--out", ("--output", "--output-dir", "--out-dir", "--dest")),
    ("--manifests", ("--output", "--output-dir", "--out", "--out-dir", "--manifest-dir")),
    ("--top-k", ("--topk", "--k")),
    ("--device", ("--gpu",)),
    ("--root", ("--data", "--data-dir", "--data-path", "--image-root")),
)
"""Options -> names of them in other tools, for the first option that a command has."""

_NOTES = {
    "--resume": "a run resumes from its newest checkpoint; `--resume-from RUN` starts a new run "
    "from another one",
    "--amp": "it uses bfloat16 if the device has it",
    "--batch-size": "it is the batch of a step over all processes; `--device-batch-size` is that "
    "of one forward pass",
}
_DESTRUCTIVE = ("--fresh", "--remove")


def unknown_option(
    command: str, arguments: Sequence[str], option: str, known: Collection[str]
) -> UsageError:
    """Return the error for an unknown *option* of *command*; its hint keeps all arguments.

    Args:
        command: Its words: "train", "labels select".
        arguments: What was typed after them.
        option: The first option that is unknown.
        known: All options of the command.
    """
    message = f"`vit21k {command}` has no option {option}"
    if command == "train" and option == "--gpus":
        return UsageError(message, hint=_torchrun(arguments))
    typed, changed = list(arguments), []
    position = 0
    while position < len(typed):
        name, equals, value = typed[position].partition("=")
        wanted = _translation(command, name, known)
        if wanted is None or name in known:
            changed.append(shlex.quote(typed[position]))
        elif "{}" not in wanted:
            changed.append(wanted)
        else:
            if not equals and position + 1 < len(typed):
                position += 1
                value = typed[position]
            changed.append(wanted.format(shlex.quote(value) if value else "VALUE"))
        position += 1
    if _translation(command, option, known) is not None:
        note = f"; {_NOTES[option]}" if command == "train" and option in _NOTES else ""
        line = " ".join(["vit21k", command, *filter(None, changed)])
        return UsageError(message, hint=f"`{line}`{note}")
    close = get_close_matches(option, sorted(set(known).difference(_DESTRUCTIVE)), 1, cutoff=0.75)
    meant = f"did you mean {close[0]}? " if close else ""
    meant = f"{_NOTES[option]}; " if option in _NOTES else meant
    return UsageError(message, hint=f"{meant}`vit21k {command} -h` lists its options")


def _torchrun(arguments: Sequence[str]) -> str:
    """Return the hint for ``train --gpus N``."""
    words = " ".join(map(shlex.quote, arguments))
    num_gpus = (re.findall(r"--gpus[= ](\d+)", words) or ["8"])[0]
    words = re.sub(r"--gpus([= ]\d+)? ?", "", words).strip()
    start = f"torchrun --standalone --nproc-per-node={num_gpus} -m vit21k train"
    return f"one process for each GPU: `{' '.join(filter(None, [start, words]))}`"


def unknown_command(group: str, typed: Sequence[str], known: Collection[str]) -> UsageError:
    """Return the error for an unknown command of *group*; "" for those of the program."""
    program = " ".join(filter(None, ["vit21k", group]))
    close = get_close_matches(typed[0], sorted(known), 1)
    meant = shlex.join([*program.split(), *close, *typed[1:]]) if close else ""
    return UsageError(
        f"there is no command `{program} {typed[0]}`",
        hint=f"`{meant}`" if close else f"`{program} -h` lists the commands",
    )


def invalid_usage(command: str, message: str) -> UsageError:
    """Return the error for a missing argument or an invalid value; *message* is that of click."""
    message = " ".join(message.split()).removesuffix(".")
    message = re.sub(
        r"^Invalid value for '(.+?)'(?: \(env var.*?\))?: (?:Value error, )?", r"\1: ", message
    )
    message = re.sub(r"(^|: )(Missing|Input) ", lambda found: found[0].lower(), message)
    return UsageError(message, hint=f"`vit21k {command} -h` shows arguments, options and examples")


def _translation(command: str, option: str, known: Collection[str]) -> str | None:
    """Return what *option* of another tool is for *command*, with {} for its value."""
    if option in known or not option.startswith("-"):
        return None
    option = option.replace("_", "-")
    if option in known:
        return f"{option} {{}}"
    if command == "train" and option in _TRAIN:
        return _TRAIN[option]
    for own, others in _SAME:
        if own in known and option in others:
            return f"{own} {{}}"
    return None
