"""State dicts of scvi-tools' VAE, read into and written from our network.

scvi-tools keeps the weights of features and of one-hot covariates in one matrix, dispersions as ``(n_features, n_groups)``, and makes
an encoder of the library size and three decoder heads whether or not the likelihood reads them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from cellweave.core.models.vae_network import VaeNetwork
    from cellweave.core.nn.layers import CategoricalLinear, Encoder, FCLayers


def _layers(prefix: str, stack: FCLayers) -> Iterator[tuple[str, nn.Module]]:
    for place, layer in enumerate(stack.layers):
        yield f"{prefix}.fc_layers.Layer {place}.0", layer.linear
        if layer.batch_norm is not None:
            yield f"{prefix}.fc_layers.Layer {place}.1", layer.batch_norm


def _encoder(prefix: str, encoder: Encoder) -> Iterator[tuple[str, nn.Module]]:
    yield from _layers(f"{prefix}.encoder", encoder.hidden)
    yield f"{prefix}.mean_encoder", encoder.mean
    yield f"{prefix}.var_encoder", encoder.var


def _modules(network: VaeNetwork) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over scvi-tools' name and our module, for all modules with parameters."""
    yield from _encoder("z_encoder", network.encoder)
    if network.library_encoder is not None:
        yield from _encoder("l_encoder", network.library_encoder)
    yield from _layers("decoder.px_decoder", network.decoder.hidden)
    yield "decoder.px_scale_decoder.0", network.decoder.scale
    if network.decoder.dispersion is not None:
        yield "decoder.px_r_decoder", network.decoder.dispersion
    if network.decoder.zero is not None:
        yield "decoder.px_dropout_decoder", network.decoder.zero
    if network.batch_embedding is not None:
        yield "_embeddings_dict.batch", network.batch_embedding


def _is_categorical(module: nn.Module) -> TypeGuard[CategoricalLinear]:
    return hasattr(module, "level_weight")


def _wide(module: CategoricalLinear, value: str = "data") -> Tensor:
    """Return the one wide matrix; ``value`` is ``data`` or ``grad``."""
    parts = [getattr(module.weight, value)]
    if module.level_weight is not None:
        parts.append(getattr(module.level_weight, value).t())
    return torch.cat(parts, 1)


def _tensors(module: nn.Module, value: str) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in module.named_parameters(recurse=False):
        if name == "level_weight":
            continue
        if name == "weight" and _is_categorical(module):
            yield name, _wide(module, value)
        else:
            yield name, getattr(parameter, value)


def to_scvi(network: VaeNetwork, value: str = "data") -> dict[str, Tensor]:
    """Return the network's parameters under scvi-tools' names.

    Parameters
    ----------
    network
        The network.
    value
        ``"data"`` for parameters and buffers, ``"grad"`` for gradients of parameters.

    Returns
    -------
    dict
        Parts that our network does not have (heads and encoders that nothing reads) are not in it.
    """
    found: dict[str, Tensor] = {}
    if network.log_theta is not None:
        theta = getattr(network.log_theta, value)
        found["px_r"] = theta.t() if theta.dim() == 2 else theta
    for prefix, module in _modules(network):
        found.update((f"{prefix}.{name}", tensor) for name, tensor in _tensors(module, value))
        if value == "data":
            found.update((f"{prefix}.{name}", tensor) for name, tensor in module.named_buffers(recurse=False))
    if value == "data" and network.library_encoder is not None:
        found["library_log_means"] = network.library_log_mean[None]
        found["library_log_vars"] = network.library_log_var[None]
    return {name: tensor for name, tensor in found.items() if not name.endswith("._offsets")}


def load_scvi(network: VaeNetwork, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict of scvi-tools into the network, in place.

    Parameters
    ----------
    network
        A network of the same options and sizes.
    state
        Tensors by scvi-tools' names; ``num_batches_tracked`` may be absent.

    Raises
    ------
    KeyError
        Where a tensor that the network needs is absent.
    ValueError
        Where a shape differs.
    """
    with torch.no_grad():
        for name, target in to_scvi(network).items():
            if name.endswith("num_batches_tracked") and name not in state:
                continue
            if state[name].shape != target.shape:
                message = f"{name} has shape {tuple(state[name].shape)}, the network needs {tuple(target.shape)}"
                raise ValueError(message)
        for prefix, module in _modules(network):
            for name, tensor in module.named_buffers(recurse=False):
                if f"{prefix}.{name}" in state:
                    tensor.copy_(state[f"{prefix}.{name}"])
            for name, parameter in module.named_parameters(recurse=False):
                source = state[f"{prefix}.{'weight' if name == 'level_weight' else name}"]
                if _is_categorical(module) and name == "level_weight":
                    source = source[:, module.n_in :].t()
                elif _is_categorical(module) and name == "weight":
                    source = source[:, : module.n_in]
                parameter.copy_(source)
        if network.log_theta is not None:
            network.log_theta.copy_(state["px_r"].t() if state["px_r"].dim() == 2 else state["px_r"])
        if network.library_encoder is not None:
            network.library_log_mean.copy_(state["library_log_means"][0])
            network.library_log_var.copy_(state["library_log_vars"][0])
