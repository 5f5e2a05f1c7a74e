"""The fan-out of roles, its conflicts and its checks, as one pure function that engine, checks and window share."""

from __future__ import annotations

import pytest

from cellweave.core.models.registry import family
from cellweave.core.spec.covariates import CovariateSpec
from cellweave.core.spec.roles import effective_roles, role_conflicts

AMBIENT, VAE, MULTIMODAL = family("ambient"), family("vae"), family("multimodal")


@pytest.mark.parametrize("origin", ["batch", "library"])
def test_batch_and_library_fill_three_parts(origin: str) -> None:
    found = effective_roles(CovariateSpec(**{origin: "lane"}), AMBIENT)
    parts = ("ambient", "dispersion", "library_size")
    assert all(found.columns[part] == ("lane",) for part in parts)
    assert set(found.fanned_from(origin)) == set(parts)
    assert "decoder" not in found.columns and "feature_scaling" not in found.columns


def test_feature_scaling_falls_back_to_the_decoder_but_not_the_other_way() -> None:
    found = effective_roles(CovariateSpec(decoder=("donor", "site")), AMBIENT)
    assert found.columns["feature_scaling"] == ("donor", "site") and found.source == {"feature_scaling": "decoder"}
    own = effective_roles(CovariateSpec(decoder=("donor",), feature_scaling=("kit",)), AMBIENT)
    assert own.columns["feature_scaling"] == ("kit",) and not own.source
    assert "decoder" not in effective_roles(CovariateSpec(feature_scaling=("kit",)), AMBIENT).columns


def test_another_family_has_no_fan_out() -> None:
    found = effective_roles(CovariateSpec(batch="lane", decoder=("donor",)), VAE)
    assert dict(found.columns) == {"batch": ("lane",), "decoder": ("donor",)} and not found.source
    assert role_conflicts(CovariateSpec(batch="lane", library="well"), VAE) == []


@pytest.mark.parametrize(
    ("given", "role", "columns", "words"),
    [
        ({"batch": "lane", "library": "well"}, "library", ("well",), "Batch and library both fill"),
        ({"batch": "lane", "ambient": ("kit",)}, "ambient", ("kit",), "'lane' is the batch, which fills ambient, dispersion and library size"),
        ({"batch": "lane", "dispersion": "kit"}, "dispersion", ("kit",), "so dispersion cannot be given beside it"),
        ({"library": "lane", "library_size": "kit"}, "library_size", ("kit",), "take library size away from 'kit'"),
        ({"ambient": ("kit",)}, "ambient", ("kit",), "no column for dispersion and library size"),
        ({"dispersion": "kit", "library_size": "kit"}, "dispersion", ("kit",), "no column for ambient"),
    ],
)  # fmt: skip
def test_every_conflict_is_a_sentence_at_the_column_that_causes_it(given, role, columns, words) -> None:
    found = role_conflicts(CovariateSpec(**given), AMBIENT)
    assert [(conflict.role, conflict.columns) for conflict in found] == [(role, columns)]
    assert words in found[0].text


def test_what_does_not_conflict() -> None:
    for given in ({}, {"batch": "lane", "decoder": ("donor",), "dataset": "study"}, {"ambient": ("a",), "dispersion": "b", "library_size": "c"}):
        assert role_conflicts(CovariateSpec(**given), AMBIENT) == []
    # With several modalities a part that is not named is one group.
    assert role_conflicts(CovariateSpec(ambient=("kit",)), MULTIMODAL) == []
