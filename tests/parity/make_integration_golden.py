"""Make the reference numbers of the integration metrics with scib-metrics.

    PEER_PYTHON tests/parity/make_integration_golden.py        with scib-metrics 0.5 installed; writes integration_golden.npz beside this script

The embedding has 900 cells of four labels and three batches: label 3 is not in batch 2, batch 1 is shifted by less than the labels are apart.
Every label is large enough for 100 diffusion components, because scib-metrics lets a small label lower that number for the labels after it.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scib_metrics
from scib_metrics.nearest_neighbors import NeighborsResults
from sklearn.neighbors import NearestNeighbors

OUT = Path(__file__).with_name("integration_golden.npz")


def main() -> None:
    rng = np.random.default_rng(7)
    labels = np.repeat(np.arange(4), [300, 250, 200, 150])
    batch = rng.choice(3, len(labels), p=[0.5, 0.3, 0.2])
    batch[(labels == 3) & (batch == 2)] = 0
    centres = rng.normal(scale=2.0, size=(4, 6))
    shift = np.array([[0.0] * 6, [1.2, 0, 0, 0, 0, 0], [0, 0.6, 0, 0, 0, 0]])
    points = (centres[labels] + shift[batch] + rng.normal(size=(len(labels), 6))).astype(np.float32)
    before = (centres[labels] + 3 * shift[batch] + rng.normal(size=(len(labels), 6))).astype(np.float32)
    distances, indices = NearestNeighbors(n_neighbors=90, algorithm="brute").fit(points).kneighbors(points)
    near = NeighborsResults(indices=indices.astype(np.int32), distances=distances.astype(np.float32))
    clusters = scib_metrics.nmi_ari_cluster_labels_leiden(near.subset_neighbors(15), labels)
    found = {
        "ilisi": scib_metrics.ilisi_knn(near, batch),
        "clisi": scib_metrics.clisi_knn(near, labels),
        "kbet": scib_metrics.kbet_per_label(near.subset_neighbors(50), batch, labels),
        "kbet_all": scib_metrics.kbet(near.subset_neighbors(50), batch)[0],
        "silhouette_label": scib_metrics.silhouette_label(points, labels),
        "silhouette_batch": scib_metrics.silhouette_batch(points, labels, batch),
        "bras": scib_metrics.bras(points, labels, batch),
        "isolated_labels": scib_metrics.isolated_labels(points, labels, batch),
        "graph_connectivity": scib_metrics.graph_connectivity(near.subset_neighbors(15), labels),
        "pcr": scib_metrics.pcr_comparison(before, points, batch, categorical=True),
        "nmi": clusters["nmi"],
        "ari": clusters["ari"],
    }
    about = {"scib-metrics": version("scib-metrics"), "values": {name: float(value) for name, value in found.items()}}
    np.savez_compressed(
        OUT, points=points, before=before, labels=labels.astype(np.int8), batch=batch.astype(np.int8),
        lisi=scib_metrics.lisi_knn(near, batch), about=np.array(json.dumps(about)),
    )  # fmt: skip
    print(json.dumps(about, indent=1))  # noqa: T201  (a script for the terminal)


if __name__ == "__main__":
    main()
