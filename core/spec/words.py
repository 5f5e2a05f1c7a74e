"""What the values of choices are called in forms and tables; spec files and the command line keep the values themselves.

Most fit into a field of a narrow form, which has room for some sixteen letters.
"""

from __future__ import annotations

from collections.abc import Mapping

from cellweave.core.spec.optimisers import OPTIMISERS

LIKELIHOODS: Mapping[str, str] = {
    "nb": "negative binomial", "zinb": "zero-inflated NB", "poisson": "Poisson", "normal": "normal", "gaussian": "Gaussian", "bernoulli": "Bernoulli",
}  # fmt: skip
ACTIVATIONS: Mapping[str, str] = {
    "relu": "ReLU", "leaky_relu": "leaky ReLU", "elu": "ELU", "gelu": "GELU", "silu": "SiLU", "mish": "Mish", "tanh": "tanh", "sigmoid": "sigmoid",
    "softplus": "softplus", "exp": "exponential", "none": "none (linear)",
}  # fmt: skip
NORMS: Mapping[str, str] = {"ln": "layer norm", "bn": "batch norm", "none": "none"}
PLACES: Mapping[str, str] = {"encoder": "encoder", "decoder": "decoder", "both": "both", "none": "nowhere"}
LATENTS: Mapping[str, str] = {"normal": "normal", "ln": "logistic normal"}
DISPERSIONS: Mapping[str, str] = {
    "gene": "per gene", "gene-batch": "gene × batch", "gene-label": "gene × label", "gene-cell": "gene × cell",
}  # fmt: skip
FEATURE_DISPERSIONS: Mapping[str, str] = {"gene": "per feature", "gene-batch": "feature × level"}
BATCHES_AS: Mapping[str, str] = {"one-hot": "one-hot columns", "embedding": "learned vector"}
MMD_MODES: Mapping[str, str] = {"normal": "all pairs of cells", "fast": "linear time"}
MMD_KERNELS: Mapping[str, str] = {
    "unit": "width 1", "dimension": "by dimensions", "median": "median distance", "multiscale": "five widths", "widths": "19 fixed widths",
}  # fmt: skip
MMD_PAIRS: Mapping[str, str] = {"sequential": "in sequence", "all": "all pairs", "one_vs_rest": "one to the rest"}
COMBINED: Mapping[str, str] = {"product": "product", "sum": "sum"}
DRAWN_FOR: Mapping[str, str] = {"cell": "for each cell", "group": "for each group"}
POWERS: Mapping[str, str] = {"inverse_sqrt": "1 / square root", "sqrt": "square root"}
DISPERSION_STARTS: Mapping[str, str] = {"prior": "prior mean", "data": "from counts"}
DECODER_STARTS: Mapping[str, str] = {"mean": "mean counts", "topN": "highest counts", "none": "random"}
DECODERS: Mapping[str, str] = {"expected_RNA": "expression", "burst_frequency_size": "bursts"}
SPARSITY_PRIORS: Mapping[str, str] = {"none": "none", "gamma": "Gamma prior"}
JOINT_LATENTS: Mapping[str, str] = {"concatenation": "side by side", "weighted_mean": "weighted mean", "single_encoder": "one encoder"}
WEIGHTS_OF: Mapping[str, str] = {"equal": "equal", "universal": "by modality", "cell": "by cell"}
SCALE_PRIORS: Mapping[str, str] = {"none": "none", "lognormal": "log-normal", "lognormal_mc": "log-normal (MC)", "gamma": "Gamma"}
HIDDEN_BY: Mapping[str, str] = {"proportional": "by size", "uniform": "equally often"}
NORMALISED: Mapping[str, str] = {"log1p": "log(1 + x)", "binary": "0 or 1", "none": "as they are"}
OPTIMISER_WORDS: Mapping[str, str] = {name: made.torch for name, made in OPTIMISERS.items()}
DEVICES: Mapping[str, str] = {"auto": "automatic", "cpu": "CPU", "cuda": "GPU (CUDA)", "mps": "Apple GPU (MPS)"}
PRECISIONS: Mapping[str, str] = {"auto": "automatic", "32": "32 bits", "bf16": "bfloat16"}
SOURCES: Mapping[str, str] = {"auto": "automatic", "memory": "main memory", "device": "memory of the device", "disk": "cache on disk"}
JOINS: Mapping[str, str] = {"intersection": "all files have", "union": "any file has"}
SAME_CELLS: Mapping[str, str] = {"automatic": "automatic", "joined": "always joined", "apart": "kept apart"}
FEATURES: Mapping[str, str] = {"all": "all", "variable": "most variable", "list": "from a file"}
METRIC_WORDS: Mapping[str, str] = {
    "ilisi": "iLISI", "kbet": "kBET", "silhouette_batch": "batch silhouette", "graph_connectivity": "graph connectivity", "pcr": "PCR comparison",
    "bras": "BRAS", "clisi": "cLISI", "silhouette_label": "label silhouette", "isolated_labels": "isolated labels", "isolated_f1": "isolated labels F1",
    "nmi": "Leiden NMI", "ari": "Leiden ARI",
}  # fmt: skip
COVARIATES_KEPT: Mapping[str, str] = {"kept": "kept", "categories": "without categories", "scaling": "without scaling", "all": "without both"}
REFERENCE_LEVELS: Mapping[str, str] = {"zero": "nothing", "mean": "mean of the levels", "reference": "most frequent level"}
THEMES: Mapping[str, str] = {"light": "light", "dark": "dark"}
LAYOUTS: Mapping[str, str] = {"umap": "UMAP", "baseline": "baseline", "joint": "with the reference"}
COLOUR_MAPS: Mapping[str, str] = {"viridis": "viridis", "cividis": "cividis", "magma": "magma"}
ATTRIBUTIONS: Mapping[str, str] = {
    "total": "total attribution", "own": "own attribution", "other": "attribution to others", "frobenius": "norm of the Jacobian",
    "own_share": "share of own latents",
}  # fmt: skip
COMPARED_BY: Mapping[str, str] = {"model": "the model", "pseudobulk": "sums of samples"}
COMPARISONS: Mapping[str, str] = {"change": "fold change", "vanilla": "higher expression"}
SIDES: Mapping[str, str] = {"three": "up, down, neither", "two": "changed or not"}
CELLS_DRAWN: Mapping[str, str] = {"uniform": "all alike", "importance": "by importance"}
POSTERIORS: Mapping[str, str] = {"mean": "mean", "sample": "one draw", "distribution": "mean, variance"}
CORRELATIONS: Mapping[str, str] = {"spearman": "Spearman (ranks)", "pearson": "Pearson (values)"}
SCALES: Mapping[str, str] = {"counts": "counts", "training": "scale of training"}
VALUES: Mapping[str, str] = {"expected": "expected", "drawn": "drawn counts"}


def distribution_words() -> dict[str, str]:
    """Return what the distributions are called, those of plug-ins by their titles."""
    from cellweave.core.nn.distributions import distributions

    return {name: LIKELIHOODS.get(name, made.title) for name, made in distributions().items()}


def transform_words() -> dict[str, str]:
    """Return what the transforms are called, those of plug-ins by their titles."""
    from cellweave.core.nn.distributions import transforms

    known = {"none": "none", "binarize": "0 or 1", "sqrt": "square root"}
    return {name: known.get(name, made.title) for name, made in transforms().items()}
