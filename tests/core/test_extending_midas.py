"""What docs/extending.md says, done: a modality of the spec file, and two of a plug-in, trained under MIDAS to the export."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from types import SimpleNamespace

import anndata
import mudata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cellweave.core import plugins
from cellweave.core.nn import distributions as registry
from cellweave.core.query.mosaic import mosaic_values
from cellweave.core.query.mosaic_files import write_mosaic
from cellweave.core.query.opened import open_run
from cellweave.core.runs.events import EpochDone
from cellweave.core.runs.execute import execute
from cellweave.core.spec import RunSpec, modalities
from cellweave.core.study.checks import Level
from cellweave.core.study.load import load_study
from cellweave.core.study.preflight import preflight

TEXT = (Path(__file__).parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
SMALL = {
    "covariates.batch": "batch", "training.max_epochs": 4, "training.batch_size": 32, "training.learning_rate": 1e-3, "training.threads": 1,
    "training.preview_every": 0, "model.shared_encoder": "32, 16", "model.shared_decoder": "16, 32", "model.block_encoder.histone": "8, 4",
    "model.block_decoder.histone": "4, 8", "analysis.umap": False, "analysis.clusters": False, "analysis.baseline": False, "analysis.scores": False,
}  # fmt: skip


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """What a test registers is forgotten after it."""
    for module, name in ((registry, "_DISTRIBUTIONS"), (registry, "_TRANSFORMS"), (modalities, "_KINDS")):
        monkeypatch.setattr(module, name, dict(getattr(module, name)))


def mosaic(folder: Path, names: tuple[str, ...]) -> Path:
    """RNA everywhere, the other modalities in the second batch only."""
    rng, parts = np.random.default_rng(1), {}
    cells = [f"cell{number}" for number in range(120)]
    batch = np.repeat(["a", "b"], 60)
    for name in ("rna", *names):
        rows = slice(None) if name == "rna" else slice(60, None)
        n_cells = len(cells[rows])
        values = (rng.normal(0, 3, (n_cells, 12)) if name == "signal" else rng.poisson(0.8, (n_cells, 24))).astype(np.float32)
        features = [f"chr{1 + k % 3}:{100 * k}-{100 * k + 50}" for k in range(24)] if name == "histone" else [f"{name}{k}" for k in range(values.shape[1])]
        parts[name] = anndata.AnnData(sparse.csr_matrix(values), pd.DataFrame({"batch": batch[rows]}, index=cells[rows]), pd.DataFrame(index=features))
    path = folder / "mosaic.h5mu"
    mudata.MuData(parts).write_h5mu(path)
    return path


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_modality_of_the_spec_file(tmp_path):
    tree = tomllib.loads(blocks("toml")[0])
    spec = RunSpec.model_validate({**tree, "covariates": {"batch": "batch"}})
    labels = {term.name: term.label for term in spec.terms()}
    assert labels["reconstruction_histone"] == "Reconstruction of histone"
    spec = spec.with_changes({**SMALL, "data.paths": (str(mosaic(tmp_path, ("histone",))),)})
    events: list = []
    execute(spec, tmp_path / "run", listener=events.append)
    last = [event for event in events if isinstance(event, EpochDone)][-1]
    assert last.train["reconstruction_histone"] > 0
    assert last.weights["reconstruction_histone"] == 2.0
    run = open_run(tmp_path / "run")
    assert [info.blocks for info in run.model.infos if info.name == "histone"] == [(8, 8, 8)]
    values = mosaic_values(run)["histone"]
    assert values.shape == (120, 24)
    assert 0 <= values.min() <= values.max() <= 1


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_modalities_of_a_plug_in(tmp_path, monkeypatch):
    made: dict = {}
    exec(blocks("python")[0], made)  # noqa: S102  (the docs' own example)
    groups = tomllib.loads(blocks("toml")[1])["project"]["entry-points"]
    entries = {
        group: [SimpleNamespace(name=name, value=value, load=lambda value=value: made[value.partition(":")[2]]) for name, value in own.items()]
        for group, own in groups.items()
    }
    monkeypatch.setattr(plugins, "entry_points", lambda group: entries.get(group, []))
    for cached in (registry._load_transforms, modalities._load):
        cached.cache_clear()
    try:
        spec = RunSpec().with_changes({"model.kind": "midas"})
        labels = {term.name: term.label for term in spec.terms()}
        assert labels["reconstruction_histone"] == "Reconstruction of H3K27me3"
        assert labels["reconstruction_signal"] == "Reconstruction of Signal"
        path = mosaic(tmp_path, ("histone", "signal"))
        spec = spec.with_changes({**SMALL, "data.paths": (str(path),), "analysis.imputed": True})
        events: list = []
        execute(spec, tmp_path / "run", listener=events.append)
        last = [event for event in events if isinstance(event, EpochDone)][-1]
        assert {"reconstruction_rna", "reconstruction_histone", "reconstruction_signal"} <= set(last.train)
        run = open_run(tmp_path / "run")
        assert run.model.values["signal"].transform.name == "asinh"
        assert "values.signal.extra.log_sd" in run.model.state_dict()
        whole = mudata.read_h5mu(write_mosaic(run, tmp_path / "imputed.h5mu"))
        assert set(whole.mod) == {"rna", "histone", "signal"}
        signal = whole["signal"].X
        assert np.isfinite(signal).all()
        assert signal.min() < 0
        batch = run.loader.minibatch(np.arange(120))
        eta = run.model.decode(run.model.see(batch, draw=False, told=True).joint.mean, ["signal"])["signal"]
        np.testing.assert_allclose(signal, eta.sinh().detach().numpy(), rtol=1e-3, atol=1e-4)  # the registered inverse, not another
    finally:
        for cached in (registry._load_transforms, modalities._load):
            cached.cache_clear()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("family", ["midas", "vaeit"])
def test_a_modality_that_is_no_counts_is_offered_as_real_numbers(tmp_path, family):
    path = mosaic(tmp_path, ("signal",))
    settings = {key: value for key, value in SMALL.items() if not key.startswith("model." if family == "vaeit" else "model.block")}
    spec = RunSpec().with_changes({"model.kind": family, **settings, "training.max_epochs": 1, "data.paths": (str(path),)})
    study = load_study(spec.data)
    assert set(study.modalities) == {"rna"}
    check = next(one for one in preflight(spec, study) if one.id == "modality-left-out")
    assert check.level is Level.WARN
    (fix,) = [one for one in check.fixes if one.label == "Take signal as real numbers"]
    mended = spec.with_changes(fix.changes)
    found = load_study(mended.data)
    assert set(found.modalities) == {"rna", "signal"}
    assert found.modalities["signal"].counts.min() < 0
    assert not [one for one in preflight(mended, found) if one.level is Level.FAIL]
    events: list = []
    execute(mended, tmp_path / "run", listener=events.append)
    last = [event for event in events if isinstance(event, EpochDone)][-1]
    assert all(np.isfinite(value) for value in last.train.values())
    assert [name for name in last.train if name.endswith("_signal")]
