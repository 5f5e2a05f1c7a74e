"""Specs on disk: TOML round trip, schema migrations, presets, and changes from the command line."""

from __future__ import annotations

import shlex
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import tomli_w

from cellweave.core.errors import SpecError
from cellweave.core.files import write_text_atomic
from cellweave.core.models.registry import families
from cellweave.core.spec.run import SCHEMA_VERSION, RunSpec, parse_spec

Tree = dict[str, Any]


def _weight_of_discriminators(tree: Tree) -> Tree:
    """Schema 1 had the discriminators' own weight among MIDAS' options, and as weight of the adversarial term the product of the two."""
    model = dict(tree.get("model") or {})
    if model.get("kind") != "midas":
        return tree
    scale = float(model.pop("discriminator_scale", 30.0))
    losses = dict(tree.get("losses") or {})
    weights = dict(losses.get("weights") or {})
    product = float(weights.get("adversarial", 30.0))
    if (tree.get("covariates") or {}).get("batch") is not None and (scale != 30.0 or "adversarial" in weights):
        # Switched off, there were no discriminators at all.
        weights |= {"adversarial": product / scale, "discriminators": scale if product else 0.0}
    return {**tree, "model": model, "losses": {**losses, "weights": weights}}


# MIGRATIONS[n] turns a tree of schema n into one of schema n + 1.
MIGRATIONS: dict[int, Callable[[Tree], Tree]] = {1: _weight_of_discriminators}


def migrate(tree: Mapping[str, Any], source: str = "spec") -> Tree:
    """Return the tree in today's schema.

    Raises
    ------
    SpecError
        Where the tree is of a later schema than this version knows: nothing is dropped silently.
    """
    result = dict(tree)
    version = result.get("schema_version", _version_of(result))
    if not isinstance(version, int) or version < 1:
        raise SpecError(f"'{source}' has the schema version {version!r}, which never existed.", "Set schema_version = 1.")
    if version > SCHEMA_VERSION:
        raise SpecError(
            f"'{source}' was written by a later version (schema {version}; this one knows up to {SCHEMA_VERSION}).",
            "Update Cellweave to open it.",
        )
    while version < SCHEMA_VERSION:
        result = MIGRATIONS[version](result)
        version += 1
        result["schema_version"] = version
    return result


def _version_of(tree: Mapping[str, Any]) -> int:
    """Return the schema of a file that names none: today's, but where it has an option that only an older one knew."""
    model = tree.get("model")
    return 1 if isinstance(model, Mapping) and model.get("kind") == "midas" and "discriminator_scale" in model else SCHEMA_VERSION


def to_toml(spec: RunSpec) -> str:
    """Return the spec as TOML; fields that are None are left out, which reads back as None."""
    return tomli_w.dumps(_without_none(spec.model_dump(mode="json")))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    return value


def from_toml(text: str, source: str = "spec") -> RunSpec:
    """Read a spec from TOML text.

    Raises
    ------
    SpecError
        Where the text is not TOML (with line and column) or not a valid spec.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"'{source}' is not a TOML file: {error}.", "Correct that place, or save the spec anew.") from None
    return parse_spec(migrate(tree, source), f"'{source}'")


def load_spec(path: str | Path) -> RunSpec:
    """Read a spec file; relative paths in it are taken from the file's folder."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise SpecError(f"'{path}' is not a text file.", "A spec is a TOML file; to train a data file directly add --model.") from None
    except OSError as error:
        raise SpecError(f"'{path}' cannot be read: {error.strerror or error}.", "Check the path.") from None
    return with_absolute_paths(from_toml(text, path.name), path.resolve().parent)


#: Where inside a data file a mask may be; any other text in ``data.masks`` is the path of a file.
MASK_PLACES = ("layers/", "obsm/", "var/", "uns/")


def with_absolute_paths(spec: RunSpec, base: Path) -> RunSpec:
    """Return the spec with every path in it made absolute, relative ones taken from ``base``.

    A run folder's spec must mean the same wherever it is read from.
    """

    def absolute(text: str) -> str:
        path = Path(text).expanduser()
        return str(path if path.is_absolute() else base / path)

    changes: dict[str, Any] = {}
    if spec.data.paths:
        changes["data.paths"] = tuple(absolute(path) for path in spec.data.paths)
    for name, features in spec.data.features.items():
        if features.file is not None:
            changes[f"data.features.{name}"] = features.model_copy(update={"file": absolute(features.file)})
    for name, place in spec.data.masks.items():
        if not place.startswith(MASK_PLACES):
            changes[f"data.masks.{name}"] = absolute(place)
    if spec.reference is not None:
        changes["reference"] = absolute(spec.reference)
    return spec.with_changes(changes)


def save_spec(spec: RunSpec, path: str | Path) -> None:
    """Write the spec as TOML, atomically."""
    write_text_atomic(Path(path), to_toml(spec))


def parse_assignment(text: str) -> tuple[str, Any]:
    """Read ``path=value`` of the command line; the value is TOML, or a plain string where it is not.

    ``none`` (in any case) means "left to the program", as an empty field in a form does, but where "none" is a choice
    of the field itself.
    """
    path, equals, raw = text.partition("=")
    if not equals or not path.strip():
        raise SpecError(f"'--set {text}' is not of the form path=value.", "Write for instance --set training.max_epochs=50.")
    raw = raw.strip()
    if raw.lower() == "none":
        return path.strip(), "none" if _takes_none_as_text(path.strip()) else None
    try:
        return path.strip(), tomllib.loads(f"v = {raw}")["v"]
    except tomllib.TOMLDecodeError:
        return path.strip(), raw


def assignment_value(value: object) -> str:
    """Return a value as :func:`parse_assignment` reads it back, quoted for a shell."""
    if value is None:
        return "none"
    text = tomli_w.dumps({"v": list(value) if isinstance(value, tuple) else value}).partition("=")[2].strip()
    return shlex.quote(" ".join(text.split()))


def _takes_none_as_text(path: str) -> bool:
    """Return whether "none" is one of a field's own values (a norm that is nowhere, a level of that name)."""
    if path.startswith("data.fill_missing."):
        return True
    table, _, name = path.partition(".")
    if table != "model":
        return False
    if "." in name:  # a table by modality, such as model.transform.atac
        return True
    fields = (family.options.model_fields.get(name) for family in families().values())
    return any(field is not None and "none" in get_args(field.annotation) for field in fields)


@dataclass(frozen=True)
class Preset:
    """A named set of changes to a spec."""

    name: str
    title: str
    help: str
    kind: str
    changes: dict[str, Any]

    def apply(self, spec: RunSpec) -> RunSpec:
        """Return ``spec`` with the preset's model, loss weights and training settings."""
        return spec.with_changes({"model.kind": self.kind}).with_changes(self.changes)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_preset(name: str, text: str) -> Preset:
    """Read a preset file: ``title``, ``help`` and ``kind``, then tables as in a spec."""
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SpecError(f"The preset '{name}' is not a TOML file: {error}.") from None
    title, help_text, kind = (tree.pop(key, "") for key in ("title", "help", "kind"))
    return Preset(name, str(title) or name, str(help_text), str(kind) or "vae", _flatten(tree))


def presets(user_folder: Path | None = None) -> dict[str, Preset]:
    """Return the presets that ship with the program and those in the user's folder, by name."""
    found: dict[str, Preset] = {}
    for entry in sorted(files("cellweave.resources").joinpath("presets").iterdir(), key=lambda item: item.name):
        if entry.name.endswith(".toml"):
            name = entry.name.removesuffix(".toml")
            found[name] = read_preset(name, entry.read_text(encoding="utf-8"))
    if user_folder is not None and user_folder.is_dir():
        for path in sorted(user_folder.glob("*.toml")):
            found[path.stem] = read_preset(path.stem, path.read_text(encoding="utf-8"))
    return found
