"""What the columns of a comparison of groups are called, and what they say."""

from __future__ import annotations

from collections.abc import Sequence

from cellweave.app.views.tables import TableColumn

C = TableColumn
KNOWN = {
    column.name: column
    for column in (
        C("lfc_mean", "Fold change", "Posterior mean of the log2 fold change; above 0 is higher in group 1.", "number"),
        C("lfc", "Fold change", "log2 fold change; above 0 is higher in group 1.", "number"),
        C("proba_de", "P(changed)", "Probability that the log2 fold change is at least delta.", "share"),
        C("bayes_factor", "Bayes factor", "Natural logarithm of the odds; above 3 is strong evidence.", "number"),
        C("p_adjusted", "Adjusted p", "p-value adjusted after Benjamini and Hochberg.", "p"),
        C("lfc_median", "Median change", "Posterior median of the log2 fold change.", "number"),
        C("lfc_std", "SD of change", "Posterior standard deviation of the log2 fold change.", "number"),
        C("lfc_min", "Smallest change", "Smallest sampled log2 fold change.", "number"),
        C("lfc_max", "Largest change", "Largest sampled log2 fold change.", "number"),
        C("lfc_se", "SE of change", "Standard error of the log2 fold change.", "number"),
        C("proba_not_de", "P(unchanged)", "1 minus the probability of a change.", "p"),
        C("proba_m1", "P(higher in 1)", "Probability that group 1 expresses more.", "share"),
        C("proba_m2", "P(higher in 2)", "Probability that group 2 expresses more.", "share"),
        C("statistic", "Wald", "Wald statistic.", "number"),
        C("p_value", "p", "p-value of the Wald test, not adjusted.", "p"),
        C("mean", "Mean count", "Mean of the normalised counts over the samples.", "number"),
        C("scale1", "Share in 1", "Mean share of the gene among all counts, group 1, as the model decodes it.", "p"),
        C("scale2", "Share in 2", "Mean share of the gene among all counts, group 2, as the model decodes it.", "p"),
        C("raw_mean1", "Raw mean 1", "Mean raw count in group 1.", "number"),
        C("raw_mean2", "Raw mean 2", "Mean raw count in group 2.", "number"),
        C("non_zeros_proportion1", "Expressing 1", "Share of the cells of group 1 with at least one count.", "share"),
        C("non_zeros_proportion2", "Expressing 2", "Share of the cells of group 2 with at least one count.", "share"),
        C("raw_normalized_mean1", "Normalised mean 1", "Mean of the counts of group 1 scaled to 10,000 a cell.", "number"),
        C("raw_normalized_mean2", "Normalised mean 2", "Mean of the counts of group 2 scaled to 10,000 a cell.", "number"),
        C("pseudocounts", "Pseudocount", "Added to the expressions before the ratio was taken.", "p"),
        C("delta", "Delta", "The smallest log2 fold change that counts.", "number"),
    )
}
LEFT_OUT = {"comparison", "group1", "group2"}


def statistic_columns(names: Sequence[str]) -> list[TableColumn]:
    """Return the columns of a comparison: the gene, whether it is called, then the statistics, those that matter most first."""
    flags = [name for name in names if name.startswith("is_de_fdr_")]
    called = [TableColumn(name, "Called", f"Called different at a share of false calls of {name.removeprefix('is_de_fdr_')}.", "flag") for name in flags]
    first = [column for name, column in KNOWN.items() if name in names]
    rest = [TableColumn(name, name.replace("_", " "), name, "number") for name in names if name not in KNOWN and name not in LEFT_OUT and name not in flags]
    lead = [column for column in first if column.name in ("lfc_mean", "lfc")]
    return [TableColumn("feature", "Gene", "Name of the feature."), *lead, *called, *(column for column in first if column not in lead), *rest]


def sorted_at_first(names: Sequence[str]) -> tuple[str, bool]:
    """Return the column that a comparison is sorted by at first, and whether the largest come first."""
    for name, down in (("proba_de", True), ("p_value", False), ("bayes_factor", True)):
        if name in names:
            return name, down
    return "", True
