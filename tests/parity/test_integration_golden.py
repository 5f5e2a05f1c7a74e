"""Integration metrics against scib-metrics 0.5; ``make_integration_golden.py`` says how the numbers were made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from cellweave.core.analysis import mixing
from cellweave.core.analysis.integration import METRICS, Embedding, measure
from cellweave.core.analysis.neighbours import find_neighbours


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).with_name("integration_golden.npz"), allow_pickle=False) as stored:
        found = {name: stored[name] for name in stored.files}
    found["about"] = json.loads(str(found["about"]))
    return found


@pytest.fixture(scope="module")
def measured(golden):
    embeddings = [Embedding("latent", golden["points"]), Embedding("baseline", golden["before"])]
    return measure(embeddings, batch=golden["batch"].astype(np.int64), labels=golden["labels"].astype(np.int64))


# scib-metrics has no F1 of isolated labels; it is held against its definition in test_scmib.
@pytest.mark.parametrize("name", [name for name in METRICS if name != "isolated_f1"])
def test_every_metric_is_that_of_scib_metrics(golden, measured, name):
    # The random numbers of the clusters differ between versions of igraph; everything else is exact but for float32.
    tolerance = 0.02 if name in {"nmi", "ari"} else 2e-6
    assert measured["values"]["latent"][name] == pytest.approx(golden["about"]["values"][name], abs=tolerance)
    assert not measured["notes"]


def test_lisi_of_every_cell(golden):
    near = find_neighbours(golden["points"], mixing.LISI_NEIGHBOURS - 1)
    np.testing.assert_allclose(mixing.lisi(near, golden["batch"].astype(np.int64)), golden["lisi"], atol=5e-5)


def test_kbet_over_all_cells(golden):
    near = find_neighbours(golden["points"], mixing.KBET_NEIGHBOURS - 1)
    assert mixing.kbet(near, golden["batch"].astype(np.int64)) == pytest.approx(golden["about"]["values"]["kbet_all"], abs=1e-9)
