"""RunSpec: everything that determines a run, in one frozen tree."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, SerializeAsAny, ValidationError, field_validator, model_validator

from cellweave.core.errors import SpecError
from cellweave.core.models.declare import Family, LossTerm
from cellweave.core.models.registry import families, family
from cellweave.core.spec.analysis import AnalysisSpec
from cellweave.core.spec.covariates import SINGLE_ROLES, CovariateSpec
from cellweave.core.spec.data import DataSpec
from cellweave.core.spec.fields import Frozen, option
from cellweave.core.spec.losses import LossSpec
from cellweave.core.spec.optimisers import fitting, unused_settings
from cellweave.core.spec.optimisers import problems as optimiser_problems
from cellweave.core.spec.options import ModelOptions
from cellweave.core.spec.training import TrainingSpec

SCHEMA_VERSION = 2


def _default_model() -> ModelOptions:
    return next(iter(families().values())).options()  # type: ignore[call-arg]


class RunSpec(Frozen):
    """What to do: data, covariate roles, model, loss weights, training and analysis.

    The window edits it, the command line reads it, a script can write it; nothing else determines a run.
    """

    schema_version: int = option(
        SCHEMA_VERSION, "Schema", "Version of this file's layout.", advanced=True, ge=SCHEMA_VERSION, le=SCHEMA_VERSION
    )
    name: str = option("", "Name", "How the run is called in lists.")
    note: str = option("", "Note", "Anything worth remembering about the run.")
    reference: str | None = option(
        None, "Reference run", "Folder of a trained run onto which these data are mapped: only what is new in them is learned.", auto="none", advanced=True
    )
    data: DataSpec = Field(default_factory=DataSpec, title="Data")
    covariates: CovariateSpec = Field(default_factory=CovariateSpec, title="Covariates")
    model: SerializeAsAny[ModelOptions] = Field(default_factory=_default_model, title="Model")
    losses: LossSpec = Field(default_factory=LossSpec, title="Loss weights")
    training: TrainingSpec = Field(default_factory=TrainingSpec, title="Training")
    analysis: AnalysisSpec = Field(default_factory=AnalysisSpec, title="Analysis")

    @field_validator("model", mode="before")
    @classmethod
    def _by_kind(cls, value: object) -> object:
        """Read a table as the options of the family that its ``kind`` names."""
        if isinstance(value, ModelOptions):
            return value
        if not isinstance(value, Mapping):
            message = "the model is a table with a 'kind'"
            raise ValueError(message)
        known = families()
        kind = value.get("kind", next(iter(known)))
        if kind not in known:
            near = difflib.get_close_matches(str(kind), known, n=1, cutoff=0.4)
            message = f"there is no model of kind '{kind}'" + (f"; did you mean '{near[0]}'?" if near else "")
            raise ValueError(message)
        return known[kind].options.model_validate({**value, "kind": kind})

    @model_validator(mode="before")
    @classmethod
    def _training_of_family(cls, value: object) -> object:
        """Give what is not said of the training the family's own defaults."""
        if not isinstance(value, Mapping):
            return value
        model, training = value.get("model"), value.get("training", {})
        kind = model.get("kind") if isinstance(model, Mapping) else getattr(model, "kind", None)
        if not isinstance(training, Mapping):
            return value
        whole = {**(_stated(families()[kind].training) if kind in families() else {}), **training}
        return {**value, "training": fitting(whole, _plain(model), frozenset(training))}

    @model_validator(mode="after")
    def _agrees_with_family(self) -> RunSpec:
        """Refuse what the chosen family cannot honour: no option is accepted and ignored."""
        family = self.family
        unused = [role for role in self.covariates.assigned() if family.uses(role) is None]
        problems = [f"covariates.{role} is set, but {family.why_unused(role)}" for role in unused]
        known = {term.name for term in family.terms(self)}
        for name in self.losses.weights:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
                hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(sorted(known))}"
                problems.append(f"losses.weights.{name}: {family.title} with these options has no such term; {hint}")
        if self.training.kl_warmup_epochs and self.training.kl_warmup_steps:
            problems.append("training.kl_warmup_steps counts only where training.kl_warmup_epochs is 0: set one of the two")
        problems += optimiser_problems(self.training, self.model)
        given = {result.name for result in family.results}
        problems += [f"analysis.{name} is on, but {family.title} gives no such values" for name in VALUES if getattr(self.analysis, name) and name not in given]
        problems.extend(family.check(self))
        if problems:
            raise ValueError("; ".join(problems))
        return self

    @property
    def family(self) -> Family:
        """The declaration of the chosen model's family."""
        return families()[self.model.kind]

    def terms(self) -> tuple[LossTerm, ...]:
        """Return the loss terms of this model with these options, in the order of the curves."""
        return tuple(self.family.terms(self))

    def loss_weights(self) -> dict[str, float]:
        """Return the weight of every term: what the spec says, or the family's default."""
        return {term.name: self.losses.weights.get(term.name, term.default) for term in self.terms()}

    def with_model(self, kind: str) -> tuple[RunSpec, list[str]]:
        """Return a copy with another model family, and what had to be left behind.

        Options that both families know are carried over where the person had changed them; covariate roles and loss
        weights that the new family does not have are taken out.

        Parameters
        ----------
        kind
            The new family.

        Returns
        -------
        spec
            The new, valid spec.
        dropped
            One sentence for each role and weight that was taken out.
        """
        tree, dropped = self.model_dump(mode="python"), []
        _change_family(tree, kind)
        new = family(kind)
        for role, columns in self.covariates.assigned().items():
            if new.uses(role) is None:
                tree["covariates"][role] = None if role in SINGLE_ROLES else ()
                dropped.append(f"{', '.join(columns)} is no longer {role}: {new.why_unused(role)}")
        weights, tree["losses"]["weights"] = tree["losses"]["weights"], {}
        spec = parse_spec(tree)
        known = {term.name for term in spec.terms()}
        dropped += [f"{new.title} has no loss term '{name}', so its weight was left out." for name in weights if name not in known]
        return spec.with_changes({f"losses.weights.{name}": weight for name, weight in weights.items() if name in known}), dropped

    def with_changes(self, changes: Mapping[str, Any]) -> RunSpec:
        """Return a copy with some fields changed.

        Parameters
        ----------
        changes
            New values by dotted path, ``{"training.max_epochs": 50, "losses.weights.kl": 2.0}``. A value of
            None in a table of weights, layers or features takes the entry out.

        Returns
        -------
        RunSpec
            A new, validated spec.

        Raises
        ------
        SpecError
            Where a path does not exist (the sentence proposes the nearest) or a value is not valid.
        """
        tree = self.model_dump(mode="python")
        # The family first: what else is changed is meant for the new one.
        for path, value in sorted(changes.items(), key=lambda item: item[0] != "model.kind"):
            _set(tree, path, value)
        if "training" not in changes:
            self._fit_to_optimisers(tree, frozenset(path.removeprefix("training.") for path in changes))
        return parse_spec(tree)

    def _fit_to_optimisers(self, tree: dict[str, Any], stated: frozenset[str]) -> None:
        """Take the weight decay out of a tree whose optimisers have none, or give it back where they have one again."""
        training = tree["training"] = fitting(tree["training"], tree["model"], stated)
        gone = "weight_decay" in unused_settings(self.training, self.model)
        kind = tree["model"]["kind"]
        if gone and "weight_decay" not in stated and kind in families():
            own = families()[kind].training.get("weight_decay", TrainingSpec.model_fields["weight_decay"].default)
            tree["training"] = fitting({**training, "weight_decay": own}, tree["model"], stated)


#: Fields of earlier versions, and where what they said is said now.
MOVED = {"model.discriminator_scale": "losses.weights.discriminators"}
#: Settings of the analysis that write values of every cell, which not every family gives.
VALUES = ("imputed", "corrected", "translated")
# Tables whose keys are names of the user's data (columns, modalities, loss terms), which may hold dots themselves.
OPEN_TABLES = ("losses.weights", "data.layers", "data.masks", "data.blocks", "data.features", "data.fill_missing", "data.combine", "data.new_columns")


def _split(path: str, value: Any) -> list[str]:
    """Split a dotted path into keys; a name in an open table stays whole, ``data.fill_missing.orig.ident``."""
    for table in OPEN_TABLES:
        if path.startswith(f"{table}."):
            name = path.removeprefix(f"{table}.")
            modality, dot, field = name.rpartition(".")
            to_field = table == "data.features" and dot and not isinstance(value, Mapping)
            inner = [modality, field] if to_field else [name]
            return [*table.split("."), *inner]
    return path.split(".")


def _set(tree: dict[str, Any], path: str, value: Any) -> None:
    """Set the value at a dotted path; a key of a fixed table must exist."""
    if path == "model.kind" and value != tree["model"]["kind"]:
        _change_family(tree, str(value))
        return
    keys, here = _split(path, value), tree
    for depth, key in enumerate(keys[:-1]):
        prefix = ".".join(keys[: depth + 1])
        if key not in here:
            if ".".join(keys[:depth]) not in OPEN_TABLES:
                _no_such_field(prefix, key, here)
            here[key] = {}
        if not isinstance(here[key], dict):
            raise SpecError(f"'{prefix}' is a value, not a table, so '{path}' does not exist.")
        here = here[key]
    last, parent = keys[-1], ".".join(keys[:-1])
    # The tables among a model's options are keyed by modality.
    if parent in OPEN_TABLES or (keys[0] == "model" and len(keys) == 3):
        if value is None:
            here.pop(last, None)
            return
    elif last not in here and not parent.startswith("data.features."):
        _no_such_field(path, last, here)
    here[last] = value


def _plain(model: object) -> dict[str, Any]:
    """Return a model's options by field, from a table or an instance; empty where there are none."""
    return dict(model) if isinstance(model, Mapping | ModelOptions) else {}


def _stated(training: Mapping[str, Any]) -> dict[str, Any]:
    """Return a family's training settings but for those that a spec may leave to the program, which is when the family's hold."""
    return {name: value for name, value in training.items() if TrainingSpec.model_fields[name].default is not None}


def _change_family(tree: dict[str, Any], kind: str) -> None:
    """Give a tree the options of another family, and its training settings where the person had not chosen others."""
    old, new = _stated(families()[tree["model"]["kind"]].training), _stated(family(kind).training)
    # Another family has other options: those that both know are carried over, where they are valid.
    tree["model"] = _carry_over(tree["model"], kind)
    given = {result.name for result in family(kind).results}
    for name in VALUES:
        tree["analysis"][name] = tree["analysis"][name] and name in given
    plain, training = TrainingSpec().model_dump(mode="python"), tree["training"]
    for name in {**old, **new}:
        if training[name] == old.get(name, plain[name]):
            training[name] = new.get(name, plain[name])
    tree["training"] = fitting(training, tree["model"], frozenset())


def _carry_over(old: Mapping[str, Any], kind: str) -> dict[str, Any]:
    options, before = family(kind).options, family(old["kind"]).options().model_dump(mode="python")  # type: ignore[call-arg]
    kept: dict[str, Any] = {"kind": kind}
    for name, value in old.items():
        # What the person never touched becomes the new family's own default.
        if name == "kind" or name not in options.model_fields or value == before.get(name):
            continue
        try:
            options.model_validate({**kept, name: value})
        except ValidationError:
            continue
        kept[name] = value
    return options.model_validate(kept).model_dump(mode="python")


def _no_such_field(path: str, key: str, table: Mapping[str, Any]) -> None:
    if path in MOVED:
        raise SpecError(f"The spec has no field '{path}' any more.", f"Write '{MOVED[path]}' instead.")
    near = difflib.get_close_matches(key, table, n=1, cutoff=0.5)
    parent = path.rpartition(".")[0]
    where = f"{parent}." if parent else ""
    hint = f"Did you mean '{where}{near[0]}'?" if near else f"Known here: {', '.join(sorted(table))}."
    raise SpecError(f"The spec has no field '{path}'.", hint)


def parse_spec(tree: Mapping[str, Any], source: str = "") -> RunSpec:
    """Validate a tree of plain values.

    Parameters
    ----------
    tree
        As read from TOML.
    source
        Name of the file, for the error text.

    Returns
    -------
    RunSpec
        The validated spec.

    Raises
    ------
    SpecError
        One sentence for each thing that is wrong, with the nearest known name for an unknown one.
    """
    try:
        return RunSpec.model_validate(dict(tree))
    except ValidationError as error:
        raise SpecError(explain(error, tree, source)) from None


def explain(error: ValidationError, tree: Mapping[str, Any] | None = None, source: str = "") -> str:
    """Return the sentences that say what a pydantic error means for the person who wrote the spec."""
    lines = []
    for item in error.errors(include_url=False):
        location = [str(part) for part in item["loc"]]
        path = ".".join(location) or "spec"
        if item["type"] == "extra_forbidden" and path in MOVED:
            lines.append(f"there is no field '{path}' any more, write '{MOVED[path]}' instead")
        elif item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(location[-1], _known_fields(location[:-1], tree), n=1, cutoff=0.5)
            lines.append(f"unknown field '{path}'" + (f", did you mean '{near[0]}'?" if near else ""))
        elif item["type"] == "value_error":
            text = str(item["ctx"]["error"]) if "ctx" in item else item["msg"]
            lines.append(text if path in {"spec", "model"} else f"{path}: {text}")
        else:
            lines.append(f"{path}: {item['msg'][:1].lower()}{item['msg'][1:]} (it is {item['input']!r})")
    head = f"The spec {source} is not valid: " if source else "The spec is not valid: "
    text = head + "; ".join(lines).rstrip(".")
    return text if text.endswith("?") else f"{text}."


def _known_fields(location: Sequence[str], tree: Mapping[str, Any] | None) -> list[str]:
    """Return the field names of the table at ``location``."""
    model: Any = RunSpec
    for depth, part in enumerate(location):
        if part == "model" and depth == 0:
            kind = ((tree or {}).get("model") or {}).get("kind", next(iter(families())))
            model = families()[kind].options if kind in families() else ModelOptions
            continue
        if typing.get_origin(model) is dict:  # the key is the user's own word; go on with the type of the values
            model = typing.get_args(model)[1]
            continue
        info = getattr(model, "model_fields", {}).get(part)
        if info is None:
            return []
        model = info.annotation
    return list(getattr(model, "model_fields", {}))
