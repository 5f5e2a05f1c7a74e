"""The trained model on disk: weights and everything needed to build the network again and feed it new cells."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cellweave.core.errors import RunFolderError
from cellweave.core.files import write_json_atomic
from cellweave.core.models.base import BuildContext, ModalityInfo, Model
from cellweave.core.models.registry import family
from cellweave.core.spec import RunSpec
from cellweave.core.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cellweave.core.training.data import Encoding, TrainingData

WEIGHTS, DESCRIPTION, EXTRAS = "weights.safetensors", "model.json", "summaries.safetensors"


@dataclass
class TrainedModel:
    """A model read back from a run folder.

    Attributes
    ----------
    model
        In evaluation mode, on the CPU.
    context
        What it was built from.
    encoding
        How obs columns become numbers.
    features
        Feature names by modality, in the order of the network's inputs.
    training
        How training ended.
    """

    model: Model
    context: BuildContext
    encoding: Encoding
    features: dict[str, tuple[str, ...]]
    training: dict[str, Any]


def save_model(folder: Path, model: Model, context: BuildContext, data: TrainingData, training: dict[str, Any]) -> None:
    """Write the model into ``folder`` (``model/`` of a run folder).

    Raises
    ------
    OSError
        Where the folder cannot be written.
    """
    folder.mkdir(exist_ok=True)
    description = {
        "kind": context.spec.model.kind,
        "training": training,
        "encoding": data.encoding.to_json(),
        "features": {m.name: [str(name) for name in m.var.index] for m in data.modalities},
        "modalities": [
            {
                "name": info.name,
                "n_features": info.n_features,
                "blocks": list(info.blocks),
                "block_names": list(info.block_names),
                "feature_mask": None if info.feature_mask is None else np.asarray(info.feature_mask).astype(int).tolist(),
            }
            for info in context.modalities
        ],
        "n_levels": {role: list(n) if isinstance(n, tuple) else n for role, n in context.n_levels.items()},
        "n_continuous": context.n_continuous,
        "n_cells": context.n_cells,
        "library_log_mean": {name: np.asarray(v).tolist() for name, v in context.library_log_mean.items()},
        "library_log_var": {name: np.asarray(v).tolist() for name, v in context.library_log_var.items()},
    }
    save_checkpoint(folder / WEIGHTS, Checkpoint(dict(model.named_state()), {"kind": context.spec.model.kind}))
    if context.extras:
        arrays = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in context.extras.items()}
        save_checkpoint(folder / EXTRAS, Checkpoint(arrays, {}))
    write_json_atomic(folder / DESCRIPTION, description)


def load_model(folder: Path, spec: RunSpec) -> TrainedModel:
    """Read the model that :func:`save_model` wrote.

    Raises
    ------
    RunFolderError
        Where it is missing or damaged.
    """
    path = folder / DESCRIPTION
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise RunFolderError(f"There is no trained model in '{folder.parent}'.", "Let the run finish, or stop it and keep the best weights.") from None
    infos = tuple(
        ModalityInfo(
            m["name"], m["n_features"], tuple(m["blocks"]),
            None if m["feature_mask"] is None else np.array(m["feature_mask"], dtype=bool), tuple(m.get("block_names", ())),
        )
        for m in tree["modalities"]
    )
    context = BuildContext(
        spec=spec,
        modalities=infos,
        n_levels={role: tuple(n) if isinstance(n, list) else n for role, n in tree["n_levels"].items()},
        n_continuous=tree["n_continuous"],
        n_cells=tree["n_cells"],
        library_log_mean={name: np.array(v) for name, v in tree["library_log_mean"].items()},
        library_log_var={name: np.array(v) for name, v in tree["library_log_var"].items()},
        extras={name: tensor.numpy() for name, tensor in load_checkpoint(folder / EXTRAS).tensors.items()} if (folder / EXTRAS).exists() else {},
    )
    with torch.random.fork_rng(devices=[]):
        model = family(tree["kind"]).build(context)
    model.load_state_dict(load_checkpoint(folder / WEIGHTS).tensors)
    features = {name: tuple(names) for name, names in tree["features"].items()}
    return TrainedModel(model.eval(), context, Encoding.from_json(tree["encoding"]), features, tree["training"])
