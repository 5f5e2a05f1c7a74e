"""Where the decoder, the ambient background and the dispersions of a modality begin (specification of regularizedvi, sections 3 and 5)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from cellweave.core.models.regularised_options import RegularisedOptions
from cellweave.core.nn import hyperpriors as priors
from cellweave.core.nn.moment_start import MomentStart, burst_start, dispersion_start
from cellweave.core.nn.regularised_layers import RegularisedDecoder

BACKGROUND_NOISE = 0.01
SMALLEST_BACKGROUND = 1e-8
SMALLEST_START = 0.01


def moment_start(options: RegularisedOptions, summaries: Mapping[str, np.ndarray]) -> MomentStart | None:
    """Return the start from the moments of the counts; None where the options do not ask for it.

    Parameters
    ----------
    options
        Of the modality.
    summaries
        What :func:`cellweave.core.models.regularised_summaries.summaries` found of it.
    """
    if options.dispersion_init != "data":
        return None
    moments = (summaries["mean"], summaries["var"], float(summaries["totals"][0]), float(summaries["totals"][1]))
    share = options.dispersion_init_bio_frac
    if options.decoder_type == "burst_frequency_size":
        return burst_start(*moments, biological_share=share, sensitivity=options.library_sensitivity, intercept=options.burst_size_intercept)
    return dispersion_start(*moments, biological_share=share, sqrt=options.dispersion_prior_transform == "sqrt")


@torch.no_grad()
def start_decoder(
    decoder: RegularisedDecoder, options: RegularisedOptions, summaries: Mapping[str, np.ndarray], start: MomentStart | None
) -> None:
    """Set the biases of a decoder's heads to the mean expression, and their weights to the spread that options ask for.

    Parameters
    ----------
    decoder
        Changed in place.
    options, summaries
        As in :func:`moment_start`.
    start
        What that gave.
    """
    head = decoder.scale
    if start is not None and start.frequency_bias is not None and start.size_bias is not None:
        assert decoder.size is not None
        head.bias.copy_(floats(start.frequency_bias))
        decoder.size.bias.copy_(floats(start.size_bias))
    elif options.init_decoder_bias != "none":
        share = summaries["top_share" if options.init_decoder_bias == "topN" else "share"]
        target = np.maximum(share * expression_total(options, summaries), SMALLEST_START) * options.decoder_bias_multiplier
        head.bias.copy_(priors.softplus_inverse(torch.from_numpy(target)).float())
    if start is None:
        return
    for layer, fraction in (
        (head, options.decoder_init_variance_target_fraction),
        (decoder.size, options.burst_size_init_variance_target_fraction),
    ):
        if fraction is not None and layer is not None:
            mean = summaries["mean"]
            spread = np.clip(start.biological, mean**2 / 20.0, mean**2 / 0.01)
            layer.weight.mul_(floats(np.sqrt(3.0 * fraction * spread))[:, None])


def background_start(options: RegularisedOptions, levels: Sequence[int], n_features: int, summaries: Mapping[str, np.ndarray]) -> Tensor:
    """Return the logarithm of the ambient background, ``(sum of levels, n_features)``: a share of the mean expression, or its prior's mean."""
    shape = (sum(levels), n_features)
    if options.bg_init_gene_fraction == 0:
        start = torch.full(shape, math.log(options.background_prior_alpha / options.background_prior_beta))
    else:
        mean = floats(summaries["ambient_share"]) * expression_total(options, summaries) * options.bg_init_gene_fraction
        start = torch.log(mean.clamp(min=SMALLEST_BACKGROUND))
    return start + BACKGROUND_NOISE * torch.randn(shape)


def expression_total(options: RegularisedOptions, summaries: Mapping[str, np.ndarray]) -> float:
    """Return the size of the library to which unscaled expression adds up."""
    return float(summaries["totals"][0]) / options.library_sensitivity


def floats(values: np.ndarray) -> Tensor:
    """Return an array as a tensor of float32."""
    return torch.as_tensor(np.asarray(values, dtype=np.float32))
