"""A weight of MIDAS that looks as an earlier schema had it is warned of, and the mend gives what such a file meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from cellweave.core.cli import main
from cellweave.core.spec import RunSpec, from_toml
from cellweave.core.study import load_study
from cellweave.core.study.checks import Check, Level
from cellweave.core.study.preflight import preflight

HEAD = "[covariates]\nbatch = 'batch'\n[model]\nkind = 'midas'\n"


def found(spec: RunSpec) -> list[Check]:
    return [check for check in preflight(spec, load_study(spec.data)) if check.id == "adversarial-product"]


def read(text: str, folder: Path) -> RunSpec:
    return from_toml(HEAD + text).with_changes({"data.paths": (str(folder / "mosaic_pbmc_rna_adt_4batches.h5mu"),)})


def test_a_hand_written_product_is_warned_of_and_mended(data_folder: Path):
    text = "[losses.weights]\nadversarial = 30.0\n"
    spec = read(text, data_folder)
    (check,) = found(spec)
    assert check.level is Level.WARN
    assert check.where == "losses.weights.adversarial"
    assert "30: 900 in all, where 30 is usual" in check.text
    assert "schema_version = 1" in check.text
    (fix,) = check.fixes
    mended = spec.with_changes(fix.changes)
    # What the file meant where it was of the first schema.
    assert mended.loss_weights() == from_toml("schema_version = 1\n" + HEAD + text).loss_weights()
    assert not found(mended)


@pytest.mark.parametrize("text", ["", "[losses.weights]\nadversarial = 3.0\n", "[losses.weights]\nadversarial = 30.0\ndiscriminators = 0.0\n"])
def test_usual_weights_and_no_discriminators_are_passed_over(data_folder: Path, text: str):
    assert not found(read(text, data_folder))


def test_other_families_and_no_batches_have_no_such_weight(data_folder: Path):
    assert not found(read("", data_folder).with_changes({"covariates.batch": None}))
    assert not found(read("", data_folder).with_changes({"model.kind": "vaeit"}))


def test_the_command_line_says_it_with_its_mend(data_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "spec.toml"
    data = data_folder / "mosaic_pbmc_rna_adt_4batches.h5mu"
    path.write_text(f"[data]\npaths = ['{data}']\n{HEAD}[losses.weights]\nadversarial = 30.0\n")
    assert main(["check", str(path)]) == 0
    said = "".join(capsys.readouterr())
    assert "900 in all" in said
    assert "losses.weights.adversarial=1.0" in said
