"""Several runs in one table: how their specs differ, and what came of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cellweave.core.errors import CellweaveError
from cellweave.core.models.registry import families
from cellweave.core.runs.folder import RunFolder, read_loss_rows
from cellweave.core.spec import RunSpec
from cellweave.core.spec.fields import words_of

#: Fields that differ between any two runs without saying how they were trained.
NOT_COMPARED = ("name", "note", "version", "data.sha256")


@dataclass(frozen=True)
class RunRow:
    """What a table says of one run.

    Attributes
    ----------
    folder, name, kind
        Which run.
    state
        How it stands, in a word.
    spec
        Plain values by dotted path.
    losses
        Of the last epoch: ``("elbo", "train")`` and the like; the last epoch that looked at held-out cells for these.
    metrics
        Scores and integration metrics by name.
    epochs, best_epoch
        Epochs done, and the best of them; None where no epoch was best.
    seconds
        From the start to the end of the run; None where it did not end.
    device
        Words for where it computed.
    problem
        Why the run could not be read; empty where it could.
    labels
        What its loss terms are called, by name, as its own spec declares them.
    """

    folder: Path
    name: str
    kind: str = ""
    state: str = ""
    spec: Mapping[str, Any] = field(default_factory=dict)
    losses: Mapping[tuple[str, str], float] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 0
    best_epoch: int | None = None
    seconds: float | None = None
    device: str = ""
    problem: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)


def read_row(folder: Path) -> RunRow:
    """Read what a table says of a run; what cannot be read is left out and named in ``problem``."""
    run = RunFolder(folder)
    status = run.status
    try:
        spec = run.spec
    except CellweaveError as error:
        return RunRow(folder, folder.name, state=status.state.value, problem=str(error))
    try:
        rows = read_loss_rows(run.losses_file)
    except ValueError:
        rows = []
    ended = status.finished if status.finished > status.started > 0 else None
    state = "interrupted" if status.lost else status.reason.value if status.reason is not None else status.state.value
    return RunRow(
        folder, spec.name or folder.name, spec.model.kind, state.replace("_", " "), flat(spec), last_losses(rows), _metrics(run.results), len(rows),
        status.best_epoch, None if ended is None else ended - status.started, status.device,
        labels={term.name: term.label for term in spec.terms()},
    )  # fmt: skip


def flat(spec: RunSpec) -> dict[str, Any]:
    """Return a spec as plain values by dotted path; lists and tables inside a field stay whole."""
    found: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        fields = getattr(type(value), "model_fields", None)
        if fields is None:
            found[path] = value.model_dump() if hasattr(value, "model_dump") else value
            return
        for name in fields:
            walk(getattr(value, name), f"{path}.{name}" if path else name)

    walk(spec, "")
    found.pop("losses.weights", None)
    return found | {f"losses.weights.{term}": weight for term, weight in spec.loss_weights().items()}


def setting_titles(rows: Iterable[RunRow]) -> dict[str, tuple[str, str]]:
    """Return title and help of every setting that these runs have, by dotted path."""
    rows = list(rows)
    found: dict[str, tuple[str, str]] = {}

    def walk(cls: Any, path: str) -> None:
        for name, info in cls.model_fields.items():
            place = f"{path}.{name}" if path else name
            found.setdefault(place, (info.title or name.replace("_", " "), info.description or ""))
            inner = info.annotation
            if hasattr(inner, "model_fields") and place != "model":
                walk(inner, place)

    walk(RunSpec, "")
    known = families()
    for kind in dict.fromkeys(row.kind for row in rows):
        if kind in known:
            walk(known[kind].options, "model")
            terms = known[kind].terms(RunSpec().with_changes({"model.kind": kind}))
            found |= {f"losses.weights.{term.name}": (f"Weight: {term.label}", term.help) for term in terms}
    for name, label in term_labels(rows).items():  # some terms are there only with some covariates: the runs know theirs
        found.setdefault(f"losses.weights.{name}", (f"Weight: {label}", ""))
    return found


@cache
def setting_words(kind: str) -> dict[str, Mapping[str, str]]:
    """Return what the values of choices are called in runs of one model, by dotted path and value."""
    found: dict[str, Mapping[str, str]] = {}

    def walk(cls: Any, path: str) -> None:
        for name, info in cls.model_fields.items():
            place = f"{path}.{name}" if path else name
            if words := words_of(info):
                found[place] = words
            if hasattr(info.annotation, "model_fields") and place != "model":
                walk(info.annotation, place)

    walk(RunSpec, "")
    if kind in families():
        walk(families()[kind].options, "model")
    return found


def term_labels(rows: Iterable[RunRow]) -> dict[str, str]:
    """Return what the loss terms of these runs are called."""
    labels = {"elbo": "Negative ELBO", "total": "Total (weighted)"}
    for row in rows:
        labels |= row.labels
    return labels


def differing(rows: Iterable[RunRow]) -> list[str]:
    """Return the dotted paths at which the specs of some runs differ; an option that only one family has counts as a difference.

    Options of different families are compared where both have them; what a family alone has is told by its kind already, unless two runs of it
    differ there.
    """
    rows = [row for row in rows if row.spec]
    paths = dict.fromkeys(path for row in rows for path in row.spec)
    found = []
    for path in paths:
        if path in NOT_COMPARED or path.startswith(NOT_COMPARED):
            continue
        values = [repr(row.spec[path]) for row in rows if path in row.spec]
        if len(set(values)) > 1:
            found.append(path)
    return found


def last_losses(rows: list[dict[str, float]]) -> dict[tuple[str, str], float]:
    """Return the last value of every column of ``losses.csv`` that is a loss, by term and side."""
    found: dict[tuple[str, str], float] = {}
    for row in rows:
        for column, value in row.items():
            for side in ("train", "validation"):
                if column.endswith(f"_{side}"):
                    found[column.removesuffix(f"_{side}"), side] = value
    return found


def _metrics(results: Path) -> dict[str, float]:
    found: dict[str, float] = {}
    scores = _json(results / "scores.json")
    for row in scores.get("scores", []) if isinstance(scores.get("scores"), list) else []:
        if isinstance(row, dict) and not row.get("group") and isinstance(row.get("value"), int | float):
            found[str(row.get("name"))] = float(row["value"])
    measured = _json(results / "integration.json")
    values = measured.get("values", {})
    main = values.get(measured.get("main", "latent"), {}) if isinstance(values, dict) else {}
    for name, value in main.items() if isinstance(main, dict) else ():
        if isinstance(value, int | float):
            found[f"integration.{name}"] = float(value)
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return tree if isinstance(tree, dict) else {}
