"""Commands and scripts that can be copied do what was done by point and click."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys

import pytest
from synthetic_runs import make_run

from cellweave.core.cli.export import figure_options
from cellweave.core.cli.inputs import change, spec_of
from cellweave.core.export.figure_options import FigureOptions
from cellweave.core.export.script import (
    changed_fields,
    export_command,
    export_script,
    figure_script,
    resume_command,
    train_command,
    train_script,
)
from cellweave.core.spec import RunSpec, from_toml

CHANGES = {
    "name": "It's \"mine\" $HOME `x`",
    "data.layers": {"rna": "layers/counts", "my adt": "X"},
    "data.fill_missing": {"cell.type": "unknown"},
    "data.combine": {"lane": ("batch", "donor")},
    "data.switched_off": ({"column": "batch", "level": "p1", "modality": "adt"},),
    "covariates.batch": "batch",
    "covariates.decoder": ("donor", "sex"),
    "losses.weights": {"kl_z": 2.5},
    "model.n_latent": 20,
    "model.gene_likelihood": "nb",
    "training.max_epochs": 7,
    "training.early_stopping": False,
    "training.learning_rate": 4e-3,
    "analysis.colour_by": ("batch", "leiden"),
}


def options_of(words, flag):
    return [words[at + 1] for at, word in enumerate(words) if word == flag]


def spec_from_command(command, paths):
    """Read a train command the way the command line does."""
    words = shlex.split(command)
    assert words[:2] == ["cellweave", "train"]
    named = {"model.kind": options_of(words, "--model")[0]}
    for path, flag, kind in (("covariates.batch", "--batch", str), ("training.max_epochs", "--epochs", int), ("training.seed", "--seed", int)):
        found = options_of(words, flag)
        named[path] = kind(found[0]) if found else None
    return change(spec_of(paths), None, named, options_of(words, "--set"))


def test_the_command_says_the_whole_spec(tmp_path):
    data = tmp_path / "my data.h5ad"
    data.touch()
    spec = RunSpec().with_changes({"data.paths": (str(data),), **CHANGES})
    command = train_command(spec, tmp_path / "run")
    assert spec_from_command(command, [data]) == spec
    assert shlex.split(command)[-2:] == ["--out", str(tmp_path / "run")]


def test_a_spec_of_defaults_gives_a_short_command():
    spec = RunSpec().with_changes({"data.paths": ("a.h5ad",), "data.sha256": ("0" * 64,)})
    assert train_command(spec) == "cellweave train a.h5ad --model vae"
    assert changed_fields(spec) == {}


@pytest.mark.parametrize("path", sorted(CHANGES))
def test_every_kind_of_field_comes_through(tmp_path, path):
    data = tmp_path / "a.h5ad"
    data.touch()
    spec = RunSpec().with_changes({"data.paths": (str(data),), path: CHANGES[path]})
    assert list(changed_fields(spec)) == [path]
    assert spec_from_command(train_command(spec), [data]) == spec


def test_the_training_script_holds_the_spec_and_is_python(tmp_path):
    spec = RunSpec().with_changes({"data.paths": ("C:\\new\\a.h5ad",), **CHANGES, "note": "three ''' quotes and a \\"})
    script = train_script(spec, "runs/a")
    text = next(node.value.value for node in ast.parse(script).body if isinstance(node, ast.Assign))
    assert from_toml(text) == spec
    assert "execute(from_toml(SPEC), 'runs/a')" in script


def test_figure_options_come_through_the_command_line():
    options = FigureOptions(columns=("batch", "gene:CD3E"), width_mm=85, legend=False, font="Arial", colours={"T cell": "#FF0000"})
    words = shlex.split(export_command("my run", "out.h5ad", denoised=True, figures={"embedding": "a b.pdf"}, options=options))
    assert words[:7] == ["cellweave", "export", "my run", "--h5ad", "out.h5ad", "--denoised", "--figure"]
    assert figure_options(options_of(words, "--colour-by"), options_of(words, "--figure-set")) == options
    assert shlex.split(export_command("r", "out.h5mu"))[3:] == ["--h5mu", "out.h5mu"]
    assert resume_command("my run") == "cellweave resume 'my run'"


def test_the_scripts_run(tmp_path):
    table = tmp_path / "counts.csv"
    table.write_text("cell,g1,g2,g3\n" + "\n".join(f"c{i},{i % 3},{i % 5},1" for i in range(12)) + "\n")
    run = make_run(tmp_path / "run", [table], [12])
    script = tmp_path / "figure.py"
    script.write_text(figure_script(run.path, "losses", tmp_path / "losses.svg", FigureOptions(theme="dark", terms=("kl_z",))))
    script.write_text(script.read_text() + export_script(run.path, tmp_path / "out.h5ad").partition("\n\n")[2])
    subprocess.run([sys.executable, str(script)], check=True, cwd=tmp_path)
    assert "KL of the latent" in (tmp_path / "losses.svg").read_text()
    assert (tmp_path / "out.h5ad").stat().st_size > 1000
