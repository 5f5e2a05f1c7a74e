"""The training step of MIDAS that is written out equals the traced one: terms, gradients, optimiser, many steps."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from mosaic_toy import mosaic_study
from torch import Tensor

from cellweave.core.models.base import StepContext
from cellweave.core.models.midas_network import MidasNetwork
from cellweave.core.models.midas_written import WrittenStep
from cellweave.core.nn import compiled_call, midas_layers
from cellweave.core.nn.step_program import Space
from cellweave.core.runs.folder import RunFolder
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec
from cellweave.core.training.compiled_adam import CompiledAdam
from cellweave.core.training.control import RunControl
from cellweave.core.training.data import prepare
from cellweave.core.training.loop import Trainer
from cellweave.core.training.sources import Loader
from cellweave.core.training.tools import seed_everything

pytestmark = pytest.mark.skipif(compiled_call.compiled() is None, reason="numba cannot be used here")
CPU = torch.device("cpu")
SMALL = {
    "model.kind": "midas", "covariates.batch": "batch", "model.n_latent": 6, "model.shared_encoder": "32, 16", "model.shared_decoder": "16, 32",
    "model.discriminator": "16, 8", "training.batch_size": 24, "training.max_epochs": 2, "training.threads": 1, "training.preview_every": 0,
    "training.learning_rate": 1e-3, "training.validation_share": 0.0, "training.early_stopping": False,
}  # fmt: skip
SIZES = {("a", ("rna",)): 40, ("b", ("adt",)): 30, ("c", ("rna", "adt")): 40}
CHANGES: dict[str, dict[str, object]] = {
    "plain": {},
    "the batch is never told": {"model.batch_expert": False},
    "the batch is left out": {"model.batch_drop": 1.0},
    "no batch at all": {"covariates.batch": None},
    "no discriminators": {"losses.weights.discriminators": 0.0},
    "discriminators that only watch": {"losses.weights.adversarial": 0.0},
    "a traced likelihood with parameters": {"model.distribution.rna": "nb", "model.distribution.adt": "gaussian"},
    "bernoulli": {"model.distribution.adt": "bernoulli"},
    "one layer each": {"model.shared_encoder": "32", "model.shared_decoder": "32", "model.batch_encoder": "8", "model.discriminator": "8"},
    "three layers": {"model.shared_encoder": "32, 24, 16", "model.discriminator": "16, 12, 8", "model.batch_decoder": "8, 8, 8"},
}


def made(folder: Path, study=None, **changes: object) -> Trainer:
    spec = RunSpec().with_changes({**SMALL, **changes})
    data = prepare(spec, study or mosaic_study(SIZES, n_features={"rna": 30, "adt": 8}))
    seed_everything(0, 0, "build")
    model = spec.family.build(data.context(spec))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():  # gains of 1 and biases of 0 would hide a mistake
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    run = RunFolder.create(folder, spec)
    return Trainer(spec, model.train(), Loader(data, CPU, resident=False), Journal(run, None), RunControl())


def mosaic_in_blocks():
    study = mosaic_study({("a", ("rna", "atac")): 40, ("b", ("rna",)): 40}, n_features={"rna": 20, "atac": 24})
    study.modalities["atac"].var.index = [f"chr{1 + k % 3}:{100 * k}-{100 * k + 50}" for k in range(24)]
    return study


def streams(one: Trainer) -> list[np.ndarray]:
    codes = one.loader.data.streams[one.train_rows]
    return [one.train_rows[codes == code][:24] for code in np.unique(codes)]


def step(one: Trainer, rows: np.ndarray, *, learn: bool = True) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
    """Terms and gradients of one step on freshly seeded draws, with discriminators that learn or stay."""
    torch.manual_seed(2)  # the batch is told
    batch, context = one.loader.minibatch(rows), StepContext(training=True, weights=one.objective.weights)
    if learn:
        one.model.before_step(batch, context, {name: optimizer for name, (optimizer, auxiliary) in one.optimizers.items() if auxiliary})
    one.model.zero_grad(set_to_none=True)
    terms = one.model.loss_terms(batch, context)
    # Each cell and term another factor, so that what is summed up too early shows.
    factor = torch.Generator().manual_seed(4)
    sum((terms[name] * torch.rand(terms[name].shape, generator=factor)).sum() for name in sorted(terms)).backward()
    return {name: value.detach().clone() for name, value in terms.items()}, {
        name: None if p.grad is None else p.grad.clone() for name, p in one.model.named_parameters()
    }


def both_ways(folder: Path, monkeypatch: pytest.MonkeyPatch, rows_of: int, study=None, **changes: object) -> list:
    found = []
    for how in ("written", "traced"):
        with monkeypatch.context() as patch:
            if how == "traced":
                patch.setattr(WrittenStep, "serves", staticmethod(lambda *_: False))
            one = made(folder / how, study() if study else None, **changes)
            found.append(step(one, streams(one)[rows_of]))
            assert (one.model._written is not None) == (how == "written")
    return found


def same(found: list, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    (terms, grads), (plain_terms, plain_grads) = found
    assert set(terms) == set(plain_terms)
    for name, value in terms.items():
        torch.testing.assert_close(value, plain_terms[name], rtol=rtol, atol=1e-4)
    for name, plain in plain_grads.items():
        ours = grads[name]
        if plain is None:
            assert ours is None, name
            continue
        assert ours is not None, name
        scale = float(plain.abs().max())
        torch.testing.assert_close(ours, plain, rtol=10 * rtol, atol=atol + rtol * scale, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("stream", [0, 1, 2], ids=["rna", "adt", "both"])
@pytest.mark.parametrize("name", list(CHANGES))
def test_terms_and_gradients_are_those_of_the_traced_step(tmp_path, monkeypatch, name, stream):
    """Also with dropout, since both leave out what one seed from torch's generator decides."""
    if name == "no batch at all":
        stream = min(stream, 1)
    same(both_ways(tmp_path, monkeypatch, stream, **CHANGES[name]))


@pytest.mark.parametrize("sizes", ["8, 4", "8", "8, 6, 4"])
@pytest.mark.parametrize("stream", [0, 1])
def test_blocks_of_features_too(tmp_path, monkeypatch, stream, sizes):
    back = ", ".join(reversed(sizes.split(", ")))
    changes = {"model.block_encoder.atac": sizes, "model.block_decoder.atac": back, "model.dropout_rate": 0.0}
    same(both_ways(tmp_path, monkeypatch, stream, mosaic_in_blocks, **changes))


def test_masked_features_too(tmp_path, monkeypatch):
    def masked():
        study = mosaic_study(SIZES, n_features={"rna": 30, "adt": 8})
        rna = study.modalities["rna"]
        assert rna.feature_mask is not None or hasattr(rna, "feature_mask")
        return study

    one = made(tmp_path / "probe", masked())
    mask = np.ones((2, 30), np.float32)
    mask[1, ::3] = 0
    found = []
    for how in ("written", "traced"):
        with monkeypatch.context() as patch:
            if how == "traced":
                patch.setattr(WrittenStep, "serves", staticmethod(lambda *_: False))
            one = made(tmp_path / how, masked())
            one.model.mask_rna = torch.from_numpy(mask)
            original = one.loader.minibatch

            def with_groups(rows, original=original):
                batch = original(rows)
                batch.mask_group = torch.arange(len(rows)) % 2
                return batch

            one.loader.minibatch = with_groups  # type: ignore[method-assign]
            found.append(step(one, streams(one)[2]))
    same(found)
    assert float(found[0][1]["decoders.rna.head.bias"][::3].abs().min()) > 0


@pytest.mark.parametrize("stream", [0, 2], ids=["rna", "both"])
@pytest.mark.parametrize(
    "weights",
    [{}, {"alignment": 0.0, "kl_c": 3.0}, {"adversarial": 0.0}, {"adversarial": 2.0, "discriminators": 7.0}, {"discriminators": 0.0}], ids=str,
)  # fmt: skip
def test_a_whole_step_sets_the_gradients_of_the_objective(tmp_path, monkeypatch, weights, stream):
    """As tracing does with the loss weights of the moment, also after the discriminators have learnt."""
    found = []
    for how in ("written", "traced"):
        with monkeypatch.context() as patch:
            if how == "traced":
                patch.setattr(WrittenStep, "serves", staticmethod(lambda *_: False))
            one = made(tmp_path / how)
            for name, weight in weights.items():
                one.objective.set_weight(name, weight)
            for optimizer, auxiliary in one.optimizers.values():
                if not auxiliary:  # its gradients are looked at
                    patch.setattr(optimizer, "step", lambda: None)
            torch.manual_seed(2)
            one._step(one.loader.minibatch(streams(one)[stream]))
            terms = {name: torch.tensor(value) for name, value in one.sums.means().items()}
            grads = {name: p.grad for name, p in one.model.named_parameters() if not name.startswith("discriminators")}
            found.append((terms, grads))
    same(found, rtol=1e-4)
    for name in ("adversarial", "discriminators"):
        assert (name in found[0][0]) == (weights.get("discriminators") != 0.0)


def test_two_threads_give_what_one_gives(tmp_path, monkeypatch):
    found = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(midas_layers, "WORTH_A_THREAD", 64)
        study = mosaic_study({("a", ("rna", "adt")): 300, ("b", ("rna",)): 40}, n_features={"rna": 30, "adt": 8})
        one = made(tmp_path / str(threads), study)
        rows = one.train_rows[one.loader.data.streams[one.train_rows] == 0][:200]
        found.append(step(one, rows))
    same(found)


def test_narrow_products_stay_near_and_the_kept_copies_are_the_weights(tmp_path):
    plain, narrow = made(tmp_path / "32"), made(tmp_path / "bf16", **{"training.precision": "bf16"})
    rows = streams(plain)
    for number in range(12):
        for one in (plain, narrow):
            torch.manual_seed(number)
            one._step(one.loader.minibatch(rows[number % 3]))
    for name, value in plain.sums.means().items():
        assert narrow.sums.means()[name] == pytest.approx(value, rel=0.02, abs=0.05), name
    twins = [p.narrow_twin for p in narrow.model.parameters() if getattr(p, "narrow_twin", None) is not None and p.narrow_twin.copy is not None]
    assert len(twins) >= 8
    for twin in twins:  # the optimiser wrote them; a weight that is loaded is copied anew
        assert torch.equal(twin.copy, twin.plain.bfloat16())
    state = {name: value + 0.5 for name, value in narrow.model.state_dict().items()}
    narrow.model.load_state_dict(state)
    assert all(torch.equal(twin.fresh(narrow=True), twin.plain.bfloat16()) for twin in twins)


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_a_clipped_gradient_is_seen_whole_where_products_are_narrow(tmp_path, clip):
    one = made(tmp_path / "run", **{"training.precision": "bf16", "training.gradient_clip": clip})
    one._step(one.loader.minibatch(streams(one)[2]))
    weight = one.model.shared_encoder.end.weight
    assert (weight.grad is None) == (clip == 0.0)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_compiled_optimiser_steps_like_torch_and_keeps_its_state(optimizer):
    rng = torch.Generator().manual_seed(0)
    shapes = [(40, 30), (7,), (3, 5), (2000, 40)]
    start = [torch.randn(shape, generator=rng) for shape in shapes]
    ours, theirs = ([torch.nn.Parameter(value.clone()) for value in start] for _ in range(2))
    settings = {"lr": 1e-2, "eps": 1e-8, "weight_decay": 0.1}
    make = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
    first, second = CompiledAdam([{"params": ours}], decoupled=optimizer == "adamw", **settings), make(theirs, **settings)
    for number in range(7):
        if number == 4:  # the state goes to torch and back
            second.load_state_dict(copy.deepcopy(first.state_dict()))
            again = CompiledAdam([{"params": ours}], decoupled=optimizer == "adamw", **settings)
            again.load_state_dict(first.state_dict())
            first = again
        for place, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=rng)
            a.grad, b.grad = (None, None) if (number + place) % 3 == 0 else (gradient.clone(), gradient)
        first.step()
        second.step()
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_a_number_is_not_hidden(tmp_path):
    for place in ("shared_encoder.end.weight", "shared_decoder.layers.0.linear.weight", "batch_decoder.end.bias", "decoders.rna.head.bias"):
        one = made(tmp_path / place)
        one.model.get_parameter(place).data.view(-1)[0] = float("nan")
        terms, _ = step(one, streams(one)[2], learn=False)
        assert not all(torch.isfinite(value).all() for value in terms.values()), place


def test_the_step_serves_only_where_it_computes_the_same(tmp_path):
    one = made(tmp_path / "run")
    model = one.model
    assert isinstance(model, MidasNetwork)
    whole, mixed = one.loader.minibatch(streams(one)[0]), one.loader.minibatch(np.concatenate(streams(one)))
    assert WrittenStep.serves(model, whole)
    assert not WrittenStep.serves(model, mixed)
    with torch.no_grad():
        assert not WrittenStep.serves(model, whole)
    with compiled_call.without_compiled():
        assert not WrittenStep.serves(model, whole)
    assert not WrittenStep.serves(model.double(), whole)


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_trained_network_goes_with_its_last_name(tmp_path, precision):
    """Buffers and parameters hold each other; where training is over they must let go, or runs pile up until Python looks for cycles."""
    one = made(tmp_path / "run", **{"training.precision": precision})
    one._step(one.loader.minibatch(streams(one)[0]))
    assert one.model._written is not None
    gone = weakref.ref(one.model)
    gc.collect()
    gc.disable()
    try:
        one.model.release()
        del one
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_calls_that_are_repeated_are_those_made_out_anew(tmp_path, monkeypatch, precision):
    """To the bit, with dropout, through all patterns of modalities, minibatches of two sizes, and with and without the batch or discriminators."""
    found = []
    for how in ("repeated", "anew"):
        one = made(tmp_path / how, **{"training.precision": precision, "model.batch_drop": 0.4})
        if how == "anew":
            kept = Space.run
            monkeypatch.setattr(Space, "run", lambda self, key, make, kept=kept: (self._programs.clear(), kept(self, key, make))[1])
        rows = streams(one)
        for number in range(18):
            one.objective.set_weight("adversarial", 0.0 if number in (6, 7) else 1.0)
            torch.manual_seed(number)
            one._step(one.loader.minibatch(rows[number % 3][: 24 if number % 4 else 10]))
        found.append((one.sums.means(), {name: value.clone() for name, value in one.model.state_dict().items()}, len(one.model._written.space._programs)))
    (means, state, n_kept), (plain_means, plain_state, n_plain) = found
    assert n_kept > 6 >= n_plain
    assert means == plain_means
    for name, value in plain_state.items():
        assert torch.equal(state[name], value), name
