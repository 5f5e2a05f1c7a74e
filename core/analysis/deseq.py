"""DESeq2's model and Wald test on sums over samples, through PyDESeq2: here, or in a process that can be ended."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

#: What the test gives for each feature, in our names, and PyDESeq2's.
RESULTS = {"mean": "baseMean", "lfc": "log2FoldChange", "lfc_se": "lfcSE", "statistic": "stat", "p_value": "pvalue", "p_adjusted": "padj"}


def fit(counts: np.ndarray, table: pd.DataFrame, design: str, alpha: float) -> pd.DataFrame:
    """Fit the model and test the first group against the second.

    Parameters
    ----------
    counts
        Whole numbers ``(n_samples, n_features)``.
    table
        One row a sample: ``group`` (``"first"`` or ``"second"``), and the covariates that ``design`` names.
    design
        Formula of the model.
    alpha
        Rate of false calls that independent filtering aims at.

    Returns
    -------
    pandas.DataFrame
        One row a feature, in order, with the columns of :data:`RESULTS`.
    """
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.default_inference import DefaultInference
    from pydeseq2.ds import DeseqStats

    names = [str(number) for number in range(len(counts))]
    wide = pd.DataFrame(counts, index=names, columns=[str(number) for number in range(counts.shape[1])])
    # In this process: worker processes cost more than they save here.
    inference = DefaultInference(n_cpus=1)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        dds = DeseqDataSet(counts=wide, metadata=table.set_axis(names), design=design, inference=inference, quiet=True)
        dds.deseq2()
        stats = DeseqStats(dds, contrast=["group", "first", "second"], alpha=alpha, inference=inference, quiet=True)
        stats.summary()
    found = stats.results_df.loc[list(wide.columns)]
    return pd.DataFrame({name: found[theirs].to_numpy(dtype=np.float64) for name, theirs in RESULTS.items()})


def fit_apart(counts: np.ndarray, table: pd.DataFrame, design: str, alpha: float, cancelled: Callable[[], bool]) -> pd.DataFrame:
    """Do :func:`fit` in a process of its own, which is ended where somebody cancels: PyDESeq2 itself does not ask.

    Parameters
    ----------
    counts, table, design, alpha
        As in :func:`fit`.
    cancelled
        Asked ten times a second.

    Raises
    ------
    Cancelled
        Where it said yes.
    AnalysisError
        Where the fit failed, or its process ended.
    """
    from cellweave.core.analysis.process import AnalysisProcess

    with tempfile.TemporaryDirectory(prefix="cellweave-pseudobulk-", ignore_cleanup_errors=True) as folder:
        given, out = Path(folder) / "counts.npy", Path(folder) / "results.npy"
        np.save(given, counts)
        columns = {str(name): table[name].tolist() for name in table}
        with AnalysisProcess() as process:
            process.run("deseq2", cancelled=cancelled, counts=str(given), table=columns, design=design, alpha=alpha, out=str(out))
        return pd.DataFrame(np.load(out, allow_pickle=False), columns=list(RESULTS))


def deseq2_task(arguments: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
    """Do :func:`fit` in the analysis process: ``counts`` (path), ``table`` (values by column), ``design``, ``alpha`` -> ``out``."""
    progress(None, "fitting")
    found = fit(np.load(arguments["counts"], allow_pickle=False), pd.DataFrame(arguments["table"]), str(arguments["design"]), float(arguments["alpha"]))
    np.save(arguments["out"], found.to_numpy())
    return {"n_features": len(found)}
