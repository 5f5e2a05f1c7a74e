"""Checkpoints: tensors in one safetensors file, numbers in its header, a digest over both; nothing is ever unpickled."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from cellweave.core.errors import RunFolderError
from cellweave.core.files import write_atomic

LOG = logging.getLogger("cellweave.checkpoint")
FORMAT = 1
LAST, PREVIOUS, BEST = "last.safetensors", "previous.safetensors", "best.safetensors"


@dataclass
class Checkpoint:
    """Tensors and plain numbers that together let a run go on.

    Attributes
    ----------
    tensors
        ``model/...``, ``best/...``, ``optimizer/...``, ``rng/...``, ``sums/...``, ``epoch/...``.
    state
        Everything that is not a tensor.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors below ``prefix/``, by the rest of their names."""
        return {name[len(prefix) + 1 :]: tensor for name, tensor in self.tensors.items() if name.startswith(f"{prefix}/")}


def _digest(tensors: Mapping[str, Tensor], state: str) -> str:
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint, atomically.

    Raises
    ------
    OSError
        Where the disk is full; the file that was there before stays.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in checkpoint.tensors.items()}
    state = json.dumps(checkpoint.state, sort_keys=True)
    metadata = {"format": str(FORMAT), "state": state, "digest": _digest(tensors, state)}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata=metadata)
        except SafetensorError as error:  # it wraps the system's error
            raise OSError(str(error)) from None

    write_atomic(path, write)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and verify it.

    Raises
    ------
    RunFolderError
        Where the file is missing, cut short, altered or of a later version.
    """
    if not path.is_file():
        raise RunFolderError(f"There is no checkpoint '{path.name}' in '{path.parent}'.", "Start the run anew.")
    damaged = RunFolderError(f"The checkpoint '{path}' is damaged: it was cut short or altered.", "Nothing was loaded from it.")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (safe_open is no mapping)
    except (SafetensorError, OSError, ValueError):
        raise damaged from None
    if int(metadata.get("format", "0")) > FORMAT:
        raise RunFolderError(f"The checkpoint '{path}' was written by a later version.", "Update Cellweave to continue this run.")
    state = metadata.get("state", "")
    if metadata.get("digest") != _digest(tensors, state):
        raise damaged
    return Checkpoint(tensors, json.loads(state))


def save_last(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write the checkpoint a run resumes from, keeping the one before it."""
    last = folder / LAST
    if last.exists():
        # A hard link keeps the old content under the other name without writing it again.
        previous = folder / PREVIOUS
        previous.unlink(missing_ok=True)
        try:
            previous.hardlink_to(last)
        except OSError:  # a file system without links: the new file replaces the old one, atomically
            LOG.info("no hard links here; only the last checkpoint is kept")
    save_checkpoint(last, checkpoint)
    return last


def load_last(folder: Path) -> tuple[Checkpoint, str]:
    """Read the newest checkpoint that is whole.

    Returns
    -------
    checkpoint
        The checkpoint.
    warning
        A sentence where the newest was damaged and the one before it is used; else empty.

    Raises
    ------
    RunFolderError
        Where there is none.
    """
    try:
        return load_checkpoint(folder / LAST), ""
    except RunFolderError as error:
        if not (folder / PREVIOUS).is_file():
            raise
        return load_checkpoint(folder / PREVIOUS), f"{error.cause} The run continues from the checkpoint before it."


# ---------------------------------------------------------------------- optimiser states as plain tensors and numbers


def pack_optimizer(name: str, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimiser's state as tensors by name and plain numbers."""
    full = optimizer.state_dict()
    tensors, numbers = {}, {}
    for index, entry in full["state"].items():
        for key, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{name}/{index}/{key}"] = value
            else:
                numbers[f"{index}/{key}"] = value
    return tensors, {"groups": full["param_groups"], "numbers": numbers}


def unpack_optimizer(name: str, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Give an optimiser the state that :func:`pack_optimizer` stored."""
    packed = checkpoint.state["optimizers"][name]
    state: dict[int, dict[str, Any]] = {}
    for path, tensor in checkpoint.part(f"optimizer/{name}").items():
        index, _, key = path.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    for path, value in packed["numbers"].items():
        index, _, key = path.partition("/")
        state.setdefault(int(index), {})[key] = value
    # JSON knows no tuples, which torch has for settings of two numbers (betas, etas, limits of a step).
    groups = [{key: tuple(value) if isinstance(value, list) and key != "params" else value for key, value in group.items()} for group in packed["groups"]]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
