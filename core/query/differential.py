"""Differential expression between groups of cells, from posterior samples (specification of scVI, section 8)."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from cellweave.core.query import de_stats
from cellweave.core.query.decoding import Target, decoding_of
from cellweave.core.query.groups import MIN_CELLS, Comparison, by_cells, by_column, checked, mean_counts, raw_statistics
from cellweave.core.query.importance import importance_draws
from cellweave.core.query.latent import Cells, latent_mean
from cellweave.core.query.sampling import room_for
from cellweave.core.query.trained_run import QueryError, TrainedRun
from cellweave.core.wording import counted

#: Features compared at a time.
FEATURES = 512
#: Effective latents below which importance weights are mentioned.
FEW = 100
OWN = -1  # "batch" of samples decoded as each cell's own


@dataclass(frozen=True)
class DifferentialOptions:
    """How groups are compared; the names are those of scvi-tools.

    Attributes
    ----------
    mode
        ``"change"``: how probable is a log2 fold change of at least ``delta``; ``"vanilla"``: how probable is it that one expresses more.
    delta
        Smallest log2 fold change that counts; None estimates it from a mixture of three normals.
    test_mode
        ``"three"`` or ``"two"`` sides; see :func:`cellweave.core.query.de_stats.change`.
    pseudocount
        Added to the expressions; None estimates it from features that are not expressed.
    threshold_counts
        Mean count below which a feature counts as not expressed.
    batch_correction
        Decode each cell as every batch in turn, and compare within batches, instead of decoding it as its own.
    batches1, batches2
        Batches to decode the groups as; None for all. Only with ``batch_correction``.
    n_samples
        Samples of each group, shared among the batches.
    use_permutation
        Compare ``m_permutation`` pairs drawn from the samples with replacement, instead of each sample with its counterpart.
    m_permutation
        Number of such pairs.
    weights
        ``"uniform"``, or ``"importance"``: cells are drawn so that their posteriors fit the whole group.
    fdr_target
        Expected share of false calls among the features called.
    intervals
        Levels of credible intervals of the fold change.
    all_stats
        Whether to add what the raw counts say.
    filter_outlier_cells
        Whether to leave out cells whose latent is far from their group's.
    seed
        Determines every draw.
    """

    mode: Literal["vanilla", "change"] = "change"
    delta: float | None = 0.25
    test_mode: de_stats.TestMode = "three"
    pseudocount: float | None = None
    threshold_counts: float = 0.01
    batch_correction: bool = False
    batches1: Sequence[str] | None = None
    batches2: Sequence[str] | None = None
    n_samples: int = 5000
    use_permutation: bool = False
    m_permutation: int = 10_000
    weights: Literal["uniform", "importance"] = "uniform"
    fdr_target: float = 0.05
    intervals: Sequence[float] = ()
    all_stats: bool = True
    filter_outlier_cells: bool = False
    seed: int = 0

    def check(self) -> None:
        """Refuse values that mean nothing, or that the others would make idle.

        Raises
        ------
        QueryError
            One sentence on the first of them.
        """
        bad = {
            f"The mode '{self.mode}' is not known: choose 'change' or 'vanilla'.": self.mode not in {"vanilla", "change"},
            f"The test mode '{self.test_mode}' is not known: choose 'three' or 'two'.": self.test_mode not in {"two", "three"},
            f"The weights '{self.weights}' are not known: choose 'uniform' or 'importance'.": self.weights not in {"uniform", "importance"},
            "delta must not be negative.": self.delta is not None and self.delta < 0,
            "The pseudocount must be above 0.": self.pseudocount is not None and self.pseudocount <= 0,
            "The target of false calls lies between 0 and 1.": not 0 < self.fdr_target < 1,
            "The levels of credible intervals lie between 0 and 1.": any(not 0 < level < 1 for level in self.intervals),
            "At least 2 samples are needed.": self.n_samples < 2 or self.m_permutation < 2,
            "Batches to decode as are named, but batch_correction is off.": not self.batch_correction and bool(self.batches1 or self.batches2),
            "Credible intervals are of fold changes, which the vanilla mode has none of.": self.mode == "vanilla" and bool(self.intervals),
        }
        for sentence, wrong in bad.items():
            if wrong:
                raise QueryError(sentence, "Change it and ask again.")


@dataclass(frozen=True)
class Samples:
    """Sampled expression of one group.

    Attributes
    ----------
    scale
        Shares ``(n_samples, n_features)``.
    batch
        Code of the batch each was decoded as, -1 for each cell's own, ``(n_samples,)``.
    """

    scale: np.ndarray
    batch: np.ndarray


def differential_by_column(
    run: TrainedRun,
    groupby: str,
    group1: str | list[str] | None = None,
    group2: str | None = None,
    *,
    within: Cells = None,
    options: DifferentialOptions | None = None,
) -> pd.DataFrame:
    """Compare levels of a column.

    Parameters
    ----------
    run
        An open run of scVI's kind.
    groupby, group1, group2, within
        As in :func:`cellweave.core.query.groups.by_column`.
    options
        None for the defaults.

    Returns
    -------
    pandas.DataFrame
        As :func:`differential`, the comparisons under one another.
    """
    comparisons = by_column(run, groupby, group1, group2, within)
    tables = [differential(run, comparison, options) for comparison in comparisons]
    if len(tables) == 1:
        return tables[0]
    notes = [f"{table.attrs['comparison']}: {note}" for table in tables for note in table.attrs["notes"]]
    for table in tables:
        table.attrs = {}  # pandas compares them when it joins tables
    joined = pd.concat(tables)
    joined.attrs = {"notes": notes}
    return joined


def differential_by_cells(
    run: TrainedRun, cells1: Cells, cells2: Cells = None, *, names: tuple[str, str] = ("group 1", "group 2"), options: DifferentialOptions | None = None
) -> pd.DataFrame:
    """Compare two chosen groups of cells, rows or masks; see :func:`differential`."""
    return differential(run, by_cells(run, cells1, cells2, names), options)


def differential(run: TrainedRun, comparison: Comparison, options: DifferentialOptions | None = None) -> pd.DataFrame:
    """Compare two groups of cells.

    Parameters
    ----------
    run
        An open run, of scVI's kind or ambient-regularised; of several modalities its ``modality`` is compared.
    comparison
        The groups.
    options
        None for the defaults.

    Returns
    -------
    pandas.DataFrame
        One row a feature, the most telling first. Mode ``"change"``: ``proba_de``, ``proba_not_de``, ``bayes_factor``, ``scale1``,
        ``scale2``, ``pseudocounts``, ``delta``, ``lfc_*`` and ``is_de_fdr_TARGET``; mode ``"vanilla"``: ``proba_m1``, ``proba_m2``,
        ``bayes_factor``, ``scale1``, ``scale2``. Then the raw statistics, and ``comparison``, ``group1``, ``group2``. What a person
        should know is in ``attrs["notes"]``.

    Raises
    ------
    QueryError
        Where the model or the cells cannot answer.
    """
    options = options or DifferentialOptions()
    options.check()
    if options.all_stats:
        run.require_counts("the statistics of raw counts (switch all_stats off)")
    if options.mode == "change" and options.pseudocount is None:
        run.require_counts("estimating the pseudocount (give one)")
    notes: list[str] = []
    if options.filter_outlier_cells:
        comparison = _without_outliers(run, comparison, options.seed, notes)
    counts = run.counts.counts
    with tempfile.TemporaryDirectory() as folder:
        generator, rng = run.generator(options.seed), np.random.default_rng([options.seed, 23])
        both = [
            _sample(run, rows, names, options, generator, rng, Path(folder) / name, notes)
            for name, rows, names in (("1", comparison.rows1, options.batches1), ("2", comparison.rows2, options.batches2))
        ]
        pairs = _pairs(both[0].batch, both[1].batch, options, rng, notes)
        looked_at = options.all_stats or (options.mode == "change" and options.pseudocount is None)
        measured = _measured(run, comparison) if looked_at else comparison
        columns = _columns(both, pairs, measured, counts, options)
        del both  # memory maps must be closed before their files can go
    if options.all_stats:
        columns |= raw_statistics(counts, measured)
    key = "proba_de" if options.mode == "change" else "bayes_factor"
    if options.mode == "change":
        columns[f"is_de_fdr_{options.fdr_target}"] = de_stats.tagged(np.asarray(columns["proba_de"]), options.fdr_target)
    columns |= {"comparison": f"{comparison.name1} vs {comparison.name2}", "group1": comparison.name1, "group2": comparison.name2}
    table = de_stats.as_table(columns, run.features, key)
    table.attrs = {"notes": notes, "comparison": f"{comparison.name1} vs {comparison.name2}"}
    return table


def _without_outliers(run: TrainedRun, comparison: Comparison, seed: int, notes: list[str]) -> Comparison:
    """Leave out cells far from their group's latents, by a robust covariance."""
    from sklearn.covariance import EllipticEnvelope

    kept = []
    for name, rows in ((comparison.name1, comparison.rows1), (comparison.name2, comparison.rows2)):
        try:
            inside = EllipticEnvelope(random_state=seed).fit_predict(latent_mean(run, rows)) == 1
        except ValueError:
            notes.append(f"The spread of '{name}' could not be estimated, so none of its cells was left out as an outlier.")
            inside = np.ones(len(rows), dtype=bool)
        kept.append(rows[inside])
    return checked(Comparison(comparison.name1, comparison.name2, *kept))


@torch.no_grad()
def _sample(
    run: TrainedRun,
    rows: np.ndarray,
    batches: Sequence[str] | None,
    options: DifferentialOptions,
    generator: torch.Generator,
    rng: np.random.Generator,
    path: Path,
    notes: list[str],
) -> Samples:
    """Draw latents of a group with replacement and decode them, batch by batch where the batch is corrected for."""
    codes: list[int | None] = [None]
    if options.batch_correction:
        codes = run.batch_codes(batches if batches else run.batches)
    each, decoding = max(2, options.n_samples // len(codes)), decoding_of(run)
    scale = room_for((each * len(codes), len(run.features)), path)
    for number, code in enumerate(codes):
        if options.weights == "importance":
            chosen, latents, effective = importance_draws(run, rows, each, code, seed=options.seed, generator=generator, rng=rng)
            if effective < FEW:
                notes.append(
                    f"The importance weights of a group rest on about {counted(max(1, round(effective)), 'latent')}, so its probabilities "
                    "are overconfident."
                )
        else:
            chosen = rng.choice(rows, size=each, replace=True)
            latents = decoding.draws(chosen, generator)
        for where, batch in run.minibatches(chosen, with_counts=False):
            # The share of each feature does not depend on the library size.
            shares = decoding.decoded(batch, latents[where], Target(code), scale=1.0, library=None)
            scale[number * each + where.start : number * each + where.stop] = shares.cpu().numpy()
    return Samples(scale, np.repeat([OWN if code is None else code for code in codes], each))


def _measured(run: TrainedRun, comparison: Comparison) -> Comparison:
    """Return the cells of a comparison in which the modality was measured, for what its raw counts say.

    Raises
    ------
    QueryError
        Where a group has too few of them.
    """
    known = run.counts.measured
    if known.all():
        return comparison
    rows = [group[known[group]] for group in (comparison.rows1, comparison.rows2)]
    for name, group in zip((comparison.name1, comparison.name2), rows, strict=True):
        if len(group) < MIN_CELLS:
            raise QueryError(
                f"{run.modality_name} was measured in {counted(len(group), 'cell')} of '{name}', so its raw counts say nothing of the group.",
                "Switch all_stats off and give a pseudocount, or choose other groups.",
            )
    return Comparison(comparison.name1, comparison.name2, *rows)


def _pairs(
    batch1: np.ndarray, batch2: np.ndarray, options: DifferentialOptions, rng: np.random.Generator, notes: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return which samples are compared, as rows of both groups."""
    first, second = set(batch1.tolist()), set(batch2.tolist())
    if first == second:
        found = [
            _match(np.flatnonzero(batch1 == code), np.flatnonzero(batch2 == code), options, options.m_permutation // len(first), rng)
            for code in sorted(first)
        ]
        return np.concatenate([one for one, _ in found]), np.concatenate([two for _, two in found])
    if first & second:
        notes.append(
            "The batches of the two groups overlap without being the same, so samples are not compared within batches and the batch effect is "
            "not wholly taken out."
        )
    # No counterpart in the same batch: the order of the batches must not decide who meets whom.
    return _match(rng.permutation(len(batch1)), rng.permutation(len(batch2)), options, options.m_permutation, rng)


def _match(rows1: np.ndarray, rows2: np.ndarray, options: DifferentialOptions, n_pairs: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if options.use_permutation:
        n_pairs = max(2, n_pairs)
        return rng.choice(rows1, n_pairs), rng.choice(rows2, n_pairs)
    shortest = min(len(rows1), len(rows2))
    return rows1[:shortest], rows2[:shortest]


def _columns(
    samples: list[Samples], pairs: tuple[np.ndarray, np.ndarray], comparison: Comparison, counts: sparse.csr_matrix, options: DifferentialOptions
) -> dict[str, np.ndarray | float | str]:
    """Compare the samples, some features at a time, so that no second array of their size is made."""
    n_features = samples[0].scale.shape[1]
    blocks = [slice(start, min(start + FEATURES, n_features)) for start in range(0, n_features, FEATURES)]

    def paired(block: slice) -> tuple[np.ndarray, np.ndarray]:
        one, two = (_rows(np.asarray(each.scale[:, block]), rows) for each, rows in zip(samples, pairs, strict=True))
        return one, two

    scales = {f"scale{number}": np.concatenate([each.scale[:, b].mean(0, dtype=np.float64) for b in blocks]) for number, each in enumerate(samples, 1)}
    if options.mode == "vanilla":
        return _joined([de_stats.vanilla(*paired(block)) for block in blocks]) | scales
    pseudocount = options.pseudocount
    if pseudocount is None:
        largest = [np.concatenate([_rows(each.scale[:, b], rows).max(0) for b in blocks]) for each, rows in zip(samples, pairs, strict=True)]
        silent = [mean_counts(counts, rows) < options.threshold_counts for rows in (comparison.rows1, comparison.rows2)]
        pseudocount = de_stats.pseudocount_of(largest[0], largest[1], silent[0], silent[1])
    delta = options.delta
    if delta is None:
        means = [de_stats.log_fold_change(*paired(block), pseudocount).mean(0) for block in blocks]
        delta = de_stats.delta_of(np.concatenate(means), options.seed)
    found = [
        de_stats.change(*paired(block), pseudocount=pseudocount, delta=delta, test_mode=options.test_mode, intervals=options.intervals)
        for block in blocks
    ]
    joined = _joined(found)
    head = {name: joined.pop(name) for name in ("proba_de", "proba_not_de", "bayes_factor")}
    return {**head, **scales, "pseudocounts": pseudocount, "delta": delta, **joined}


def _rows(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return some rows; all of them in their order without a copy."""
    return values if len(rows) == len(values) and np.array_equal(rows, np.arange(len(rows))) else values[rows]


def _joined(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray | float | str]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
