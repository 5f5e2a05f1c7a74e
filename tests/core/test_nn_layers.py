import math

import pytest
import torch
from torch import nn

from cellweave.core.nn.layers import CategoricalLinear, Decoder, Encoder, FCLayers


def _one_hot(codes, levels):
    return torch.cat([torch.eye(n)[codes[:, i]] for i, n in enumerate(levels) if n > 1], 1)


@pytest.mark.parametrize("levels", [(3,), (1,), (3, 1, 4), (2, 5)])
def test_look_ups_equal_one_hots_after_the_features(levels):
    torch.manual_seed(0)
    layer = CategoricalLinear(5, 7, levels)
    x = torch.randn(6, 5)
    codes = torch.stack([torch.randint(n, (6,)) for n in levels], 1)
    found = layer(x, codes)
    wide, hot = layer.weight, x
    if layer.level_weight is not None:
        wide, hot = torch.cat([layer.weight, layer.level_weight.t()], 1), torch.cat([x, _one_hot(codes, levels)], 1)
    torch.testing.assert_close(found, hot @ wide.t() + layer.bias, rtol=1e-5, atol=1e-6)


def test_a_column_with_one_level_adds_nothing():
    layer = CategoricalLinear(5, 7, (1, 1))
    assert layer.level_weight is None
    x = torch.randn(3, 5)
    assert torch.equal(layer(x), layer(x, torch.zeros(3, 2, dtype=torch.int64)))


def test_codes_that_are_needed_are_asked_for():
    with pytest.raises(ValueError, match="2 categorical"):
        CategoricalLinear(5, 7, (3, 2))(torch.randn(3, 5))


def test_weights_start_within_the_bound_of_the_wide_matrix():
    torch.manual_seed(0)
    layer = CategoricalLinear(60, 500, (4,))
    bound = 1 / math.sqrt(64)
    for parameter in layer.parameters():
        assert parameter.abs().max() <= bound
        assert parameter.abs().max() > 0.95 * bound
        assert abs(parameter.mean()) < 0.1 * bound


def test_the_order_within_a_layer():
    (layer,) = FCLayers(4, 6, n_layers=1, dropout_rate=0.5, layer_norm=True).layers
    torch.manual_seed(0)
    x = torch.randn(20, 4)
    with torch.no_grad():
        layer.batch_norm.weight.uniform_(0.5, 2)
        layer.batch_norm.bias.normal_()
    torch.manual_seed(1)
    found = layer(x, None)
    linear = x @ layer.linear.weight.t() + layer.linear.bias
    normal = (linear - linear.mean(0)) / torch.sqrt(linear.var(0, unbiased=False) + 1e-3)
    normal = normal * layer.batch_norm.weight + layer.batch_norm.bias
    normal = (normal - normal.mean(1, keepdim=True)) / torch.sqrt(normal.var(1, keepdim=True, unbiased=False) + 1e-5)
    torch.manual_seed(1)
    expected = nn.functional.dropout(torch.relu(normal), 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.batch_norm.running_mean, 0.01 * linear.mean(0), rtol=1e-4, atol=1e-6)


def test_norms_activation_and_dropout_may_be_absent():
    (layer,) = FCLayers(4, 6, dropout_rate=0.0, batch_norm=False, bias=False, activation=None).layers
    assert layer.batch_norm is layer.layer_norm is layer.activation is layer.dropout is layer.linear.bias is None
    x = torch.randn(3, 4)
    torch.testing.assert_close(layer(x, None), x @ layer.linear.weight.t())


@pytest.mark.parametrize("inject", [True, False])
def test_covariates_reach_every_layer_or_the_first(inject):
    stack = FCLayers(4, 6, (3, 2), n_layers=3, n_hidden=5, inject=inject)
    assert [layer.linear.level_weight is not None for layer in stack.layers] == [True, inject, inject]
    assert [tuple(layer.linear.weight.shape) for layer in stack.layers] == [(5, 4), (5, 5), (6, 5)]


@pytest.mark.parametrize(("activation", "function"), [("exp", torch.exp), ("softplus", nn.functional.softplus)])
def test_the_encoder_gives_mean_and_variance(activation, function):
    encoder = Encoder(5, 2, n_hidden=4, var_activation=activation).eval()
    x = torch.randn(3, 5)
    mean, var = encoder(x)
    hidden = encoder.hidden(x)
    torch.testing.assert_close(mean, encoder.mean(hidden))
    torch.testing.assert_close(var, function(encoder.var(hidden)) + 1e-4)


def test_the_encoder_drops_out_on_every_layer_and_the_decoder_nowhere():
    encoder, decoder = Encoder(5, 2, n_layers=3, dropout_rate=0.3), Decoder(2, 5, n_layers=3)
    assert sum(isinstance(module, nn.Dropout) for module in encoder.modules()) == 3
    assert not any(isinstance(module, nn.Dropout) for module in decoder.modules())


@pytest.mark.parametrize("dispersion", [True, False])
@pytest.mark.parametrize("zeros", [True, False])
def test_the_decoder_has_the_heads_that_are_read(dispersion, zeros):
    decoder = Decoder(2, 5, (3,), n_hidden=4, dispersion=dispersion, zeros=zeros)
    out = decoder(torch.randn(6, 2), torch.randint(3, (6, 1)))
    assert out.scale.shape == (6, 5)
    assert (out.dispersion is not None, out.zero is not None) == (dispersion, zeros)
    sum(value.sum() for value in out if value is not None).backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_heads_come_back_in_full_precision_from_mixed_precision():
    encoder, decoder = Encoder(5, 2), Decoder(2, 5, zeros=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, var = encoder(torch.randn(4, 5))
        out = decoder(mean)
    assert mean.dtype == var.dtype == out.scale.dtype == out.zero.dtype == torch.float32
