"""The algebra of masks: missing, seen and hidden entries, whatever is drawn."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cellweave.core.nn.hiding import HIDDEN, MISSING, SEEN, Observed, draw_hiding, nothing_hidden

SIZES = {"rna": 7, "adt": 4, "atac": 5}


@st.composite
def mosaics(draw):
    """A mosaic of one to three modalities, some with patterns of features."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = list(SIZES)[: draw(st.integers(1, 3))]
    n_cells, observed, patterns = draw(st.integers(1, 30)), {}, {}
    group = rng.integers(0, 2, n_cells)
    for name in names:
        measured = torch.from_numpy(rng.random(n_cells) < draw(st.floats(0, 1)))
        features = None
        if draw(st.booleans()):
            patterns[name] = torch.from_numpy(rng.random((2, SIZES[name])) < 0.6)
            features = patterns[name][torch.from_numpy(group)]
        observed[name] = Observed(measured, features, SIZES[name])
    return observed, patterns, draw(st.floats(0, 0.95)), draw(st.integers(0, 1000))


def _draw(case):
    observed, patterns, p_features, seed = case
    shares = torch.ones(len(observed)) / len(observed)
    one = next(iter(observed))
    return draw_hiding(
        observed, shares, p_features, patterns=patterns if one in patterns else None, pattern_shares=torch.tensor([0.5, 0.5]),
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(mosaics())
def test_hidden_and_seen_part_what_was_observed_and_missing_stays_missing(case):
    observed, hiding = case[0], _draw(case)
    for name, known in observed.items():
        hidden, mask, codes = hiding.of_cells(name, known), known.mask, hiding.codes(name, known)
        assert not (hidden & ~mask).any()
        assert torch.equal(codes == HIDDEN, hidden)
        assert torch.equal(codes == MISSING, ~mask)
        assert torch.equal(codes == SEEN, mask & ~hidden)
        assert torch.equal(known.rows(torch.arange(len(mask))), mask)


@settings(max_examples=150, deadline=None)
@given(mosaics())
def test_a_whole_modality_is_hidden_only_where_another_one_was_observed(case):
    observed, hiding = case[0], _draw(case)
    whole = torch.stack([hiding.whole[name] for name in observed])
    has = torch.stack([known.any for known in observed.values()])
    assert (whole.sum(0) <= 1).all()
    assert not (whole & ~has).any()
    assert (has.sum(0)[whole.any(0)] > 1).all()


@settings(max_examples=60, deadline=None)
@given(mosaics())
def test_the_same_seed_hides_the_same_and_nothing_hidden_hides_nothing(case):
    observed, one, two = case[0], _draw(case), _draw(case)
    for name, known in observed.items():
        assert torch.equal(one.of_cells(name, known), two.of_cells(name, known))
        assert not nothing_hidden(observed).of_cells(name, known).any()


def _all(n_cells: int, names: list[str], size: int) -> dict[str, Observed]:
    return {name: Observed(torch.ones(n_cells, dtype=torch.bool), None, size) for name in names}


def test_half_of_the_cells_lose_features_by_chance_at_the_given_share():
    observed = _all(4000, ["rna", "adt"], 50)
    hiding = draw_hiding(observed, torch.tensor([0.5, 0.5]), 0.3, generator=torch.Generator().manual_seed(1))
    assert abs(len(hiding.cells) / 4000 - 0.5) < 0.03
    assert abs(hiding.scattered["rna"].float().mean() - 0.3) < 0.01
    assert abs(hiding.whole["rna"].float().mean() - 0.5) < 0.03


def test_every_cell_of_two_modalities_loses_one_by_the_shares():
    hiding = draw_hiding(_all(4000, ["rna", "adt"], 3), torch.tensor([0.9, 0.1]), 0.0, generator=torch.Generator().manual_seed(1))
    assert (hiding.whole["rna"] ^ hiding.whole["adt"]).all()
    assert abs(hiding.whole["adt"].float().mean() - 0.1) < 0.02
    assert len(hiding.cells) == 0


def test_a_single_modality_takes_the_missing_pattern_of_another_cell():
    patterns = {"adt": torch.tensor([[True, True, True], [True, False, True]])}
    observed = {"adt": Observed(torch.ones(500, dtype=torch.bool), patterns["adt"][torch.zeros(500, dtype=torch.int64)], 3)}
    hiding = draw_hiding(observed, torch.ones(1), 0.0, patterns=patterns, pattern_shares=torch.tensor([0.25, 0.75]), generator=torch.Generator().manual_seed(2))
    hidden = hiding.of_cells("adt", observed["adt"])
    assert not hidden[:, [0, 2]].any()
    assert abs(hidden[:, 1].float().mean() - 0.75) < 0.06
