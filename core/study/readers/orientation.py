"""Which side of a table names cells, and which features? From how names look."""

from __future__ import annotations

import re
from collections.abc import Sequence

FEATURE = re.compile(
    r"^(ENS[A-Z]{0,4}[GTP]\d{6,}(\.\d+)?|MT-\w+|mt-\w+|RP[LS]\d+\w*|Rp[ls]\d+\w*|(anti[-_ ])?CD\d+\w*([-_. ].*)?|HLA-.+|IG[HKL]\w+|LINC\d+|"
    r"AC\d{6}\.\d+|RP11-.+|(chr)?[\dXYM]{1,2}[:_-]\d+[-_]\d+|chr\w+[:_-]\d+[-_]\d+)$"
)
CELL = re.compile(r"((^|[_.:#-])[ACGTN]{10,}|^(cell|well|barcode|sample|bc|plate)[-_. ]?\d+|^-?\d+(\.\d+)?x-?\d+(\.\d+)?$|^\d+$)", re.IGNORECASE)
GENE_LIKE = re.compile(r"^([A-Z][A-Z0-9]{1,9}(-[A-Z0-9]{1,4})?|[A-Z][a-z]{1,8}\d{0,4}[a-z]?\d?)$")
COMMON = frozenset({
    "ACTB", "GAPDH", "MALAT1", "B2M", "CD3D", "CD3E", "CD4", "CD8A", "CD14", "CD19", "CD79A", "MS4A1", "NKG7",
    "GNLY", "LYZ", "PPBP", "FCGR3A", "S100A8", "S100A9", "TMSB4X", "EEF1A1", "TUBB", "TUBA1A", "HSP90AA1", "PTPRC",
    "VIM", "FTL", "FTH1", "A1BG", "A1CF", "A2M", "A2ML1", "A4GALT", "AAAS", "SAMD11", "NOC2L", "ISG15", "HES4",
    "TP53", "MYC", "KRAS", "EGFR", "FAM138A", "OR4F5", "XIST",
})  # fmt: skip
FEATURE_TITLES = frozenset({"gene", "genes", "gene_id", "geneid", "gene_name", "gene_symbol", "symbol", "feature", "features", "protein", "peak", "ensembl"})
CELL_TITLES = frozenset({"cell", "cells", "cell_id", "cellid", "cell_name", "barcode", "barcodes", "sample", "spot"})
PROTEIN = re.compile(r"^(anti[-_ ])?(CD\d+|HLA[-_]|TCR|Ig[GMDA]|isotype|KLRG1|PD-?1|CTLA)", re.IGNORECASE)


def looks_like_features(names: Sequence[str]) -> float:
    """Return a score from -1 (names of cells) to 1 (names of features)."""
    if not names:
        return 0.0
    score = 0.0
    for name in names:
        if name.upper() in COMMON or FEATURE.match(name):
            score += 1.0
        elif CELL.search(name):
            score -= 1.0
        elif GENE_LIKE.match(name):
            score += 0.3
    if len(set(names)) < 0.7 * len(names):
        score -= 0.5 * len(names)  # features are named once; cells named by their type are not
    return score / len(names)


def rows_are_features(rows: Sequence[str], columns: Sequence[str], title: str) -> bool | None:
    """Return whether the rows of a table are features; None where the names do not tell."""
    if title.strip().lower() in FEATURE_TITLES:
        return True
    if title.strip().lower() in CELL_TITLES:
        return False
    difference = looks_like_features(rows) - looks_like_features(columns)
    return None if abs(difference) < 0.05 else difference > 0


def looks_like_proteins(names: Sequence[str]) -> bool:
    """Return whether most features are named like surface proteins."""
    return 0 < len(names) <= 600 and sum(bool(PROTEIN.match(name)) for name in names) > 0.5 * len(names)
