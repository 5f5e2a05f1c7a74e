"""Options of scVAEIT and MIDAS by modality: bounds that suit the likelihood, names that the data have."""

from __future__ import annotations

import pytest
from mosaic_toy import mosaic_study

from cellweave.core.errors import SpecError
from cellweave.core.spec import RunSpec, modalities
from cellweave.core.spec.modalities import ModalityKind
from cellweave.core.study.checks import Level
from cellweave.core.study.preflight_data import check_data


def spec_of(kind: str, **changes: object) -> RunSpec:
    return RunSpec().with_changes({"model.kind": kind}).with_changes({f"model.{name}": value for name, value in changes.items()})


@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("field", ["highest", "lowest", "modality_shares"])
def test_numbers_that_are_not_finite_are_refused(field: str, text: str) -> None:
    with pytest.raises(SpecError, match=f"'{text}' for rna is not a finite number"):
        spec_of("vaeit", **{field: {"rna": text}})


@pytest.mark.parametrize("kind", ["poisson", "nb", "zinb"])
def test_counts_have_no_mean_below_0(kind: str) -> None:
    with pytest.raises(SpecError, match=f"lowest of rna is below 0, and the mean of the {kind} likelihood"):
        spec_of("vaeit", distribution={"rna": kind}, lowest={"rna": "-1"})
    with pytest.raises(SpecError, match=r"not below model\.highest, because it is 0"):
        spec_of("vaeit", distribution={"rna": kind}, highest={"rna": "-1"})
    assert spec_of("vaeit", distribution={"rna": kind}, lowest={"rna": "0"}, highest={"rna": "9"}).model.highest == {"rna": "9"}


def test_real_numbers_may_be_below_0() -> None:
    found = spec_of("vaeit", distribution={"rna": "gaussian"}, lowest={"rna": "-3"}, highest={"rna": "-1"})
    assert found.model.lowest == {"rna": "-3"}
    with pytest.raises(SpecError, match="not below"):
        spec_of("vaeit", distribution={"rna": "gaussian"}, lowest={"rna": "-1"}, highest={"rna": "-3"})


TABLES = [
    *(("vaeit", name, "8") for name in ("block_units", "mask_units", "highest")),
    ("vaeit", "lowest", "0"), ("vaeit", "modality_shares", "1"), ("vaeit", "distribution", "nb"), ("vaeit", "normalisation", "log1p"),
    ("midas", "distribution", "nb"), ("midas", "transform", "log1p"), ("midas", "encoder_transform", "none"), ("midas", "block_encoder", "8, 32"),
    ("midas", "block_decoder", "32, 8"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "field", "value"), TABLES)
def test_an_option_of_a_modality_that_the_data_lack_is_said_before_the_run(kind: str, field: str, value: str) -> None:
    study = mosaic_study({("a", ("rna",)): 40, ("b", ("rna", "adt")): 40})

    def refused(name: str) -> list[str]:
        found = check_data(spec_of(kind, **{field: {name: value}}), study)
        return [check.text for check in found if check.id == "model-data" and check.level is Level.FAIL]

    assert refused("rna") == []
    (text,) = refused("rnaa")
    assert f"model.{field} names 'rnaa', which is no modality of these data (" in text and text.endswith("the nearest name is 'rna'.")
    (text,) = refused("methylation")
    assert text.endswith("leave it out.")


@pytest.mark.parametrize("kind", ["vaeit", "midas"])
def test_a_known_modality_that_the_data_lack_is_warned_of(kind: str) -> None:
    """Presets speak of atac and are used on data without it; what is mapped onto a reference need not have all its modalities."""
    study = mosaic_study({("a", ("rna",)): 40, ("b", ("rna", "adt")): 40})
    spec = spec_of(kind, distribution={"atac": "poisson", "rna": "nb"})

    def warned(spec: RunSpec) -> list[tuple[Level, str]]:
        return [(check.level, check.text) for check in check_data(spec, study) if check.id == "options-unused"]

    assert warned(spec) == [(Level.WARN, "model.distribution speaks of atac, which these data do not have (they have rna and adt).")]
    assert not [check for check in check_data(spec, study) if check.id == "model-data"]
    assert warned(spec.with_changes({"reference": "somewhere"})) == [] == warned(spec_of(kind, distribution={"rna": "nb"}))


def test_a_share_of_a_modality_that_the_data_lack_is_refused() -> None:
    study = mosaic_study({("a", ("rna",)): 40, ("b", ("rna", "adt")): 40})
    spec = spec_of("vaeit", modality_shares={"rna": "0.5", "atac": "0.5"})
    (text,) = [check.text for check in check_data(spec, study) if check.id == "model-data"]
    assert text == "model.modality_shares names 'atac', which is no modality of these data (rna, adt): leave it out."


def test_a_modality_of_a_plug_in_has_its_likelihood_and_its_loss_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modalities, "_KINDS", dict(modalities._KINDS))
    modalities.register_modality(ModalityKind("histone", "H3K27me3", distribution="bernoulli"))
    modalities.register_modality(ModalityKind("signal", "Signal", distribution="gaussian", encoder_transform="none"))
    spec = spec_of("vaeit")
    assert (spec.model.distribution_of("histone"), spec.model.normalisation_of("histone")) == ("bernoulli", "binary")
    assert (spec.model.distribution_of("signal"), spec.model.normalisation_of("signal")) == ("gaussian", "none")
    usual = [(spec.model.distribution_of(name), spec.model.normalisation_of(name)) for name in ("rna", "adt", "atac", "unheard")]
    assert usual == [("nb", "log1p"), ("nb", "log1p"), ("bernoulli", "binary"), ("nb", "log1p")]
    chosen = spec_of("vaeit", distribution={"histone": "poisson"})
    assert (chosen.model.distribution_of("histone"), chosen.model.normalisation_of("histone")) == ("poisson", "log1p")
    labels = {term.name: term.label for term in spec.terms()}
    assert labels["observed_histone"] == "H3K27me3 seen" and labels["hidden_signal"] == "Signal hidden" and labels["observed_rna"] == "RNA seen"
    assert spec.with_changes({"losses.weights": {"hidden_histone": 2.0}}).loss_weights()["hidden_histone"] == 2.0
