"""The engine with several modalities: patterns, masks and blocks reach the minibatches; resuming is to the bit."""

from __future__ import annotations

from dataclasses import replace

import mosaic_toy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mosaic_toy import MosaicModel, mosaic_study

from cellweave.core.errors import DataError
from cellweave.core.runs.folder import RunFolder
from cellweave.core.runs.journal import Journal
from cellweave.core.spec import RunSpec
from cellweave.core.training.control import RunControl
from cellweave.core.training.data import prepare
from cellweave.core.training.estimate import cells_per_epoch, estimate, stream_sizes
from cellweave.core.training.loop import Trainer
from cellweave.core.training.objective import StepMeans
from cellweave.core.training.position import pack, unpack
from cellweave.core.training.preview import Preview
from cellweave.core.training.results import write_latents
from cellweave.core.training.sources import Loader, pattern_batches

CPU = torch.device("cpu")
SIZES = {("a", ("rna",)): 60, ("b", ("adt",)): 25, ("c", ("rna", "adt")): 41, ("c", ("rna",)): 7}


@pytest.fixture
def spec(monkeypatch):
    mosaic_toy.register(monkeypatch)
    tree = {
        "model": {"kind": "toy_mosaic"}, "covariates": {"batch": "batch"},
        "training": {"max_epochs": 3, "kl_warmup_epochs": 1, "batch_size": 16, "threads": 1, "preview_every": 0, "checkpoint_every": 1},
    }  # fmt: skip
    return RunSpec.model_validate(tree)


def trainer(folder, spec, study, events=None):
    data = prepare(spec, study)
    run = RunFolder.open(folder) if (folder / "spec.toml").exists() else RunFolder.create(folder, spec)
    torch.manual_seed(0)
    journal = Journal(run, None if events is None else events.append)
    return Trainer(spec, MosaicModel(data.context(spec)), Loader(data, CPU, resident=False), journal, RunControl())


def test_each_minibatch_is_of_one_batch_and_pattern_and_small_batches_are_oversampled(tmp_path, spec):
    study = mosaic_study(SIZES)
    one = trainer(tmp_path / "run", spec, study)
    one.fit()
    data = one.loader.data
    batch, code = study.obs["batch"].to_numpy(), data.patterns[0]
    steps = [rows for rows, training in one.model.seen if training]
    largest = int((np.isin(data.train, np.flatnonzero((batch == "a")))).sum())
    assert len(steps) == 3 * 4 * -(-largest // 16)
    assert all(len(rows) == 16 for rows in steps)
    for rows, _ in one.model.seen:
        assert len(set(code[rows])) == 1
    for rows in steps:
        assert len(set(batch[rows])) == 1
        assert np.isin(rows, data.train).all()
    drawn = np.concatenate(steps)
    assert set(drawn) == set(data.train)
    for first in range(0, len(steps), 4):  # a round visits every stream once
        assert len({data.streams[rows[0]] for rows in steps[first : first + 4]}) == 4


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 60), min_size=1, max_size=5), batch_size=st.integers(2, 40), n_max=st.integers(1, 80), seed=st.integers(0, 9))
def test_rounds_of_the_pattern_sampler(sizes, batch_size, n_max, seed):
    streams = np.repeat(np.arange(len(sizes)), sizes)
    rows = np.random.default_rng(seed).permutation(len(streams))
    batches = pattern_batches(rows, streams, batch_size, seed, 3, n_max=n_max)
    rounds = -(-min(max(sizes), n_max) // batch_size)
    assert len(batches) == rounds * len(sizes)
    for number in range(rounds):
        visited = batches[number * len(sizes) : (number + 1) * len(sizes)]
        assert sorted(streams[part[0]] for part in visited) == list(range(len(sizes)))
    for code, size in enumerate(sizes):
        drawn = np.concatenate([part for part in batches if streams[part[0]] == code])
        assert (streams[drawn] == code).all()
        times = np.bincount(drawn, minlength=len(streams))[streams == code]
        assert times.max() - times.min() <= 1  # no cell comes a second time before all have come once
        assert len(drawn) == rounds * batch_size
        assert size == (streams == code).sum()
    again = pattern_batches(rows, streams, batch_size, seed, 3, n_max=n_max)
    assert all(np.array_equal(one, two) for one, two in zip(batches, again, strict=True))


def test_resuming_in_the_middle_of_an_epoch_is_to_the_bit(tmp_path, spec):
    study, whole = mosaic_study(SIZES), []
    reference = trainer(tmp_path / "whole", spec, study, whole)
    reference.fit()
    first = trainer(tmp_path / "first", spec, study)
    boundary, steps = first._boundary, []

    def stop_in_the_second_epoch(number):
        steps.append(number)
        if len(steps) == 20:
            raise KeyboardInterrupt
        return boundary(number)

    first._boundary = stop_in_the_second_epoch
    with pytest.raises(KeyboardInterrupt):
        first.fit()
    assert first.at.step_in_epoch > 0
    checkpoint, events = pack(first), []
    second = trainer(tmp_path / "second", spec, study, events)
    unpack(second, checkpoint)
    second.fit()
    for name, tensor in reference.model.state_dict().items():
        assert torch.equal(tensor, second.model.state_dict()[name])
    losses = [event.train for event in whole if event.kind == "epoch"][-2:]
    assert losses == [event.train for event in events if event.kind == "epoch"][-2:]


def test_cells_are_held_out_of_every_batch_and_pattern(spec):
    data = prepare(spec, mosaic_study({("a", ("rna",)): 100, ("b", ("rna", "adt")): 20, ("b", ("adt",)): 11, ("c", ("adt",)): 4}))
    held = np.bincount(data.streams[data.validation], minlength=4)
    assert sorted(held) == [0, 1, 2, 10]
    assert len(data.train) + len(data.validation) == 135


def test_library_statistics_are_over_the_cells_in_which_a_modality_was_measured(spec):
    study = mosaic_study({("a", ("rna", "adt")): 30, ("a", ("rna",)): 30})
    context = prepare(spec, study).context(spec)
    totals = np.asarray(study.modalities["adt"].counts.sum(axis=1)).ravel()[:30]
    assert context.library_log_mean["adt"][0] == pytest.approx(np.log(np.where(totals > 0, totals, 1)).mean())


def test_masks_reach_the_minibatch_and_the_network(tmp_path, spec):
    study = mosaic_study(SIZES)
    mask = np.ones((2, 8), dtype=bool)
    mask[1, 5:] = False
    study.modalities["adt"] = replace(study.modalities["adt"], feature_mask=mask)
    study = replace(study, mask_group=(study.obs["batch"] == "c").to_numpy().astype(int))
    one = trainer(tmp_path / "run", spec, study)
    rows = np.array([3, 61, 90, 100])
    assert one.loader.minibatch(rows).mask_group.tolist() == [0, 0, 1, 1]
    info = {info.name: info for info in one.loader.data.context(spec).modalities}
    assert np.array_equal(info["adt"].feature_mask, mask)
    assert info["rna"].feature_mask is None
    one.fit()
    assert Loader(prepare(spec, mosaic_study(SIZES)), CPU, resident=False).minibatch(rows).mask_group is None


def test_results_and_previews_keep_the_order_of_cells(tmp_path, spec):
    study = mosaic_study(SIZES)
    one = trainer(tmp_path / "run", spec, study)
    paths = write_latents(tmp_path, one.model, one.loader, progress=lambda share: None, cancelled=lambda: False)
    assert np.load(paths["u"])[:, 0].tolist() == list(range(study.n_cells))
    own = np.load(paths["latent_adt"])
    assert np.array_equal(np.isnan(own).all(axis=1), ~study.modalities["adt"].measured)
    rows = np.array([2, 5, 62, 63, 90, 120, 130])
    latent = np.load(Preview(tmp_path / "preview", rows).write(one.model, one.loader, 1))
    assert np.array_equal(latent, np.load(paths["latent"])[rows])


def test_peaks_come_in_blocks_of_chromosomes(spec):
    names = ["chr10:5-9", "chr2:7-9", "chrX:1-2", "chr2:1-4", "GL000194.1:1-2", "chr10:1-3", "chrM:1-2", "chr2:9-11"]
    study = mosaic_study({("a", ("rna", "atac")): 20}, n_features={"rna": 5, "atac": 8})
    atac = study.modalities["atac"]
    atac.var.index = names
    data = prepare(spec, study)
    info = {info.name: info for info in data.context(spec).modalities}
    assert info["atac"].block_names == ("chr2", "chr10", "chrX", "chrM", "unplaced")
    assert info["atac"].blocks == (3, 2, 1, 1, 1)
    assert info["rna"].blocks == (5,)
    moved = data.modalities[1]
    assert list(moved.var.index) == ["chr2:7-9", "chr2:1-4", "chr2:9-11", "chr10:5-9", "chr10:1-3", "chrX:1-2", "chrM:1-2", "GL000194.1:1-2"]
    back = [names.index(name) for name in moved.var.index]
    assert np.array_equal(moved.counts.toarray(), atac.counts.toarray()[:, back])
    assert list(study.modalities["atac"].var.index) == names  # the study itself is as it was


def test_a_study_of_one_modality_is_prepared_as_before():
    from toy import toy_spec, toy_study

    data = prepare(toy_spec(), toy_study())
    order = np.random.RandomState(0).permutation(301)
    assert data.validation.tolist() == order[:30].tolist()
    assert data.mask_group is None
    assert not data.by_pattern
    assert data.context(toy_spec()).modalities[0].blocks == (40,)


def test_block_sizes_that_do_not_add_up_are_refused(spec):
    study = mosaic_study(SIZES)
    with pytest.raises(DataError, match=r"The blocks of RNA hold 29 features together, but 30 are used\."):
        prepare(spec.with_changes({"data.blocks.rna": "20, 9"}), study)
    sizes = prepare(spec.with_changes({"data.blocks.rna": [20, 10]}), study).context(spec).modalities[0]
    assert sizes.blocks == (20, 10)
    assert sizes.block_names == ("block 1", "block 2")


def test_metrics_have_a_row_an_epoch_and_a_resume_repeats_none(tmp_path, spec):
    one = trainer(tmp_path / "run", spec, mosaic_study(SIZES))
    one.journal.spec = spec
    one.fit()
    rows = (tmp_path / "run" / "epoch_metrics.csv").read_text().splitlines()
    assert rows[0] == "epoch,steps"
    assert [float(row.split(",")[1]) for row in rows[1:]] == [16.0, 32.0, 48.0]
    again = trainer(tmp_path / "run", spec, mosaic_study(SIZES))
    again.journal.spec = spec
    again.journal.rewind(1)
    assert (tmp_path / "run" / "epoch_metrics.csv").read_text().splitlines() == rows[:2]
    again.journal.rewind(0)
    again.fit()
    assert (tmp_path / "run" / "epoch_metrics.csv").read_text().splitlines() == rows


def test_means_over_steps_survive_a_checkpoint():
    whole, first, second = StepMeans(), StepMeans(), StepMeans()
    values = [{"a": 1.0}, {"a": 2.0, "b": 4.0}, {"a": 9.0}]
    for value in values:
        whole.add(value)
    for value in values[:2]:
        first.add(value)
    second.load(first.state())
    second.add(values[2])
    assert second.means() == whole.means() == {"a": 4.0, "b": 4.0 / 3}


def test_the_estimate_knows_how_long_an_epoch_is(tmp_path, spec):
    study = mosaic_study(SIZES)
    one = trainer(tmp_path / "run", spec, study)
    one.fit()
    sizes = stream_sizes(spec, study)
    assert sorted(sizes) == [7, 25, 41, 60]
    assert cells_per_epoch(spec, len(one.train_rows), sizes) == one.epoch_cells == 4 * 4 * 16
    short = spec.with_changes({"model.n_max": 20})
    assert cells_per_epoch(short, len(one.train_rows), sizes) == 2 * 4 * 16
    longer = estimate(spec, 133, 38, 1000, streams=sizes)
    assert longer.seconds > estimate(spec, 133, 38, 1000).seconds
    assert stream_sizes(RunSpec(), study) == ()
