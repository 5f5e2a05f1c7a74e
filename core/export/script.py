"""What was done by point and click, as a command and as a Python script."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.spec import RunSpec, to_toml

# Fields with an option of their own in `cellweave train`.
_OWN_OPTION = {
    "covariates.batch": "--batch",
    "covariates.labels": "--labels",
    "training.max_epochs": "--epochs",
    "training.seed": "--seed",
}
# Found out by the run itself, or given as arguments.
_NOT_SET = {"schema_version", "data.paths", "data.sha256", "model.kind"}


def train_command(spec: RunSpec, out: str | Path | None = None) -> str:
    """Return the command that trains this spec: every field that differs from its default.

    Parameters
    ----------
    spec
        The spec.
    out
        Run folder; None leaves it to the program.

    Returns
    -------
    str
        One line for a POSIX shell.
    """
    words = ["cellweave", "train", *spec.data.paths, "--model", spec.model.kind]
    settings = []
    for path, value in changed_fields(spec).items():
        if path in _OWN_OPTION and value is not None:
            words += [_OWN_OPTION[path], str(value)]
        else:
            settings += ["--set", f"{path}={toml_value(value)}"]
    words += settings
    if out is not None:
        words += ["--out", str(out)]
    return shlex.join(words)


def resume_command(run_folder: str | Path) -> str:
    """Return the command that continues a run."""
    return shlex.join(["cellweave", "resume", str(run_folder)])


def export_command(
    run_folder: str | Path, out: str | Path | None = None, *, denoised: bool = False, figures: Mapping[str, str | Path] | None = None,
    options: FigureOptions | None = None,
) -> str:  # fmt: skip
    """Return the command that exports a run.

    Parameters
    ----------
    run_folder
        The run.
    out
        The h5ad or h5mu to write, or None.
    denoised
        Whether with denoised expression.
    figures
        Files to write by what they show (``losses``, ``embedding``, ``scores``).
    options
        Options of the figures.
    """
    words = ["cellweave", "export", str(run_folder)]
    if out is not None:
        words += ["--h5mu" if Path(out).suffix == ".h5mu" else "--h5ad", str(out)]
    if denoised:
        words.append("--denoised")
    for what, path in (figures or {}).items():
        words += ["--figure", f"{what}={path}"]
    for name, value in _changed_options(options).items():
        if name == "columns":
            for column in value:
                words += ["--colour-by", column]
        else:
            words += ["--figure-set", f"{name}={toml_value(value)}"]
    return shlex.join(words)


def train_script(spec: RunSpec, out: str | Path) -> str:
    """Return a Python script that trains this spec into a new run folder."""
    return _script(
        "Train a model with Cellweave.",
        ["from cellweave.core.runs.execute import execute", "from cellweave.core.spec import from_toml"],
        f"SPEC = {_text_literal(to_toml(spec))}\n",
        [f"reason = execute(from_toml(SPEC), {str(out)!r})", "print(reason.value)"],
    )


def export_script(run_folder: str | Path, out: str | Path, *, denoised: bool = False) -> str:
    """Return a Python script that writes the h5ad or h5mu of a run."""
    function = "export_h5mu" if Path(out).suffix == ".h5mu" else "export_h5ad"
    extra = ", denoised=True" if denoised else ""
    return _script(
        "Export a run of Cellweave.",
        [f"from cellweave.core.export.h5ad import {function}"],
        "",
        [f"print({function}({str(run_folder)!r}, {str(out)!r}{extra}))"],
    )


def figure_script(run_folder: str | Path, what: str, out: str | Path, options: FigureOptions | None = None) -> str:
    """Return a Python script that draws a figure of a run."""
    changed = _changed_options(options)
    lines = [f"    {name}={value!r}," for name, value in changed.items()]
    made = ["options = FigureOptions(", *lines, ")"] if lines else ["options = FigureOptions()"]
    return _script(
        "Draw a figure of a run of Cellweave.",
        ["from cellweave.core.export.figures import FigureOptions, save_figure"],
        "",
        [*made, f"save_figure({str(run_folder)!r}, {what!r}, {str(out)!r}, options)"],
    )


def changed_fields(spec: RunSpec) -> dict[str, Any]:
    """Return the fields of a spec that differ from the defaults of its model, by dotted path."""
    defaults = RunSpec().with_changes({"model.kind": spec.model.kind}).model_dump(mode="json")
    found: dict[str, Any] = {}
    for part, value in spec.model_dump(mode="json").items():
        if not isinstance(value, dict):
            if value != defaults[part] and part not in _NOT_SET:
                found[part] = value
            continue
        for name, item in value.items():
            path = f"{part}.{name}"
            if item != defaults[part][name] and path not in _NOT_SET:
                found[path] = item
    return found


def toml_value(value: Any) -> str:
    """Return a value as it is written behind ``--set path=``; None as ``none``."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {toml_value(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return json.dumps(str(value), ensure_ascii=False)


def _changed_options(options: FigureOptions | None) -> dict[str, Any]:
    if options is None:
        return {}
    defaults = FigureOptions()
    return {name: value for name in FigureOptions.model_fields if (value := getattr(options, name)) != getattr(defaults, name)}


def _text_literal(text: str) -> str:
    """Return a text as a Python literal, readable where it can be."""
    return repr(text) if "'''" in text or text.endswith("\\") else f"r'''\n{text}'''"


def _script(title: str, imports: list[str], constants: str, body: list[str]) -> str:
    lines = "\n".join(f"    {line}" for line in body)
    middle = f"\n{constants}" if constants else ""
    return f'"""{title}"""\n\n' + "\n".join(imports) + f'\n{middle}\n\nif __name__ == "__main__":\n{lines}\n'
