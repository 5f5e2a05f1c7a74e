"""What the command line says and how it ends, where no model is trained."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from cellweave.core.cli import COMMANDS, is_command_line, main
from cellweave.core.cli.application import build, run
from cellweave.core.cli.inputs import next_folder, run_name
from cellweave.core.cli.reporter import Bars, Lines
from cellweave.core.cli.terminal import bytes_in_words, seconds_in_words
from cellweave.core.example import EXAMPLE_SHA256, example_path
from cellweave.core.runs import events
from cellweave.core.runs.folder import RunFolder
from cellweave.core.spec import RunSpec, save_spec

EXAMPLE = str(example_path())


def outcome(capsys, *argv: str) -> tuple[int, str, str]:
    code = main([str(item) for item in argv])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_names_the_window_hands_over_are_the_commands_there_are() -> None:
    assert {command.name for command in build().registered_commands} == COMMANDS


@pytest.mark.parametrize(
    ("argv", "expected"),
    [([], False), (["cells.h5ad"], False), (["runs/first"], False), (["train", "x"], True), (["--version"], True), (["-h"], True), (["first-look"], True)],
)
def test_what_is_for_the_command_line(argv: list[str], expected: bool) -> None:
    assert is_command_line(argv) is expected


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_explains_itself(capsys, command: str) -> None:
    code, out, err = outcome(capsys, command, "--help")
    assert code == 0
    assert f"cellweave {command}" in out
    assert err == ""


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tarin"], "Did you mean 'train'?"),
        (["train"], "Missing argument"),
        (["train", "--epoch", "3", "x.h5ad"], "--epochs"),
        (["train", "absent.h5ad"], "There is no file 'absent.h5ad'"),
        (["train", "absent.toml"], "'absent.toml' cannot be read"),
        (["train", EXAMPLE, "--model", "vea"], "Did you mean 'vae'?"),
        (["train", EXAMPLE, "--preset", "scvi-default"], "Did you mean 'scvi-defaults'?"),
        (["train", EXAMPLE, "--set", "training.max_epoch=3"], "Did you mean 'training.max_epochs'?"),
        (["train", EXAMPLE, "--set", "training"], "path=value"),
        (["train", EXAMPLE, "--epochs", "none"], "--epochs"),
        (["train", EXAMPLE, "spec.toml"], "names its data itself"),
        (["inspect", "absent.h5ad"], "absent.h5ad"),
        (["resume", "absent"], "There is no folder"),
        (["export", "absent", "--h5ad", "x.h5ad"], "There is no folder"),
        (["runs", "absent"], "There is no folder"),
        (["ctl", "absent", "paus"], "Did you mean 'pause'?"),
        (["presets", "nothing-like-it"], "Known are"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, tmp_path, monkeypatch, argv: list[str], words: str) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = outcome(capsys, *argv)
    assert code == 2
    assert out == ""
    assert words in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == [], "nothing is made where nothing starts"


def test_a_fault_of_ours_is_a_sentence_too_and_its_details_are_kept(capsys, tmp_path, monkeypatch) -> None:
    def broken(*args: object) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr("cellweave.core.cli.information.all_presets", broken)
    monkeypatch.setattr("platformdirs.user_log_dir", lambda *args, **kwargs: str(tmp_path))
    code, _, err = outcome(capsys, "presets")
    assert code == 4
    assert "Traceback" not in err
    kept = next(tmp_path.glob("error-*.txt"))
    assert str(kept) in err
    assert "Traceback" in kept.read_text(encoding="utf-8")


def test_an_interrupt_is_a_cancel(capsys, monkeypatch) -> None:
    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cellweave.core.cli.information.all_presets", interrupted)
    assert run(["presets"]) == 3
    assert capsys.readouterr().err == "Cancelled.\n"


@pytest.mark.skipif(os.name == "nt", reason="pipes of a POSIX shell")
def test_a_reader_that_goes_away_is_no_failure() -> None:
    code = "import sys; sys.stdin.readline(); from cellweave.core.cli import main; sys.exit(main(['presets']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    process.stdin.write("go on\n")
    process.stdin.flush()
    said = process.stderr.read()
    assert process.wait(timeout=60) == 0
    assert said == ""


def test_inspect_as_text_and_as_json(capsys) -> None:
    code, out, _ = outcome(capsys, "inspect", EXAMPLE)
    assert code == 0
    for word in ("1,600 cells", "rna", "1,200 x 500", "adt", "1,200 x 224", "batch", "celltype"):
        assert word in out
    code, out, _ = outcome(capsys, "inspect", EXAMPLE, "--json")
    tree = json.loads(out)
    assert code == 0
    assert tree["n_cells"] == 1600
    assert {item["name"]: (item["n_cells"], item["n_features"]) for item in tree["modalities"]} == {"rna": (1200, 500), "adt": (1200, 224)}
    assert {item["name"]: item["n_levels"] for item in tree["obs_columns"]} == {"batch": 4, "celltype": 8}


def test_check_says_what_would_stop_a_run_and_how_to_mend_it(capsys) -> None:
    code, out, _ = outcome(capsys, "check", EXAMPLE, "--batch", "batch", "--labels", "celltype")
    assert code == 0
    assert "FAIL" not in out
    code, out, _ = outcome(capsys, "check", EXAMPLE, "--batch", "celltypo")
    assert code == 2
    assert out.startswith("FAIL")
    assert "--set covariates.batch=none" in out
    code, out, _ = outcome(capsys, "check", EXAMPLE, "--batch", "celltypo", "--json")
    assert code == 2
    assert {item["level"] for item in json.loads(out)} >= {"fail", "ok"}


def test_the_mend_that_check_prints_can_be_typed(capsys) -> None:
    import shlex

    code, out, _ = outcome(capsys, "check", EXAMPLE, "--batch", "celltypo")
    line = next(line for line in out.splitlines() if "mend:" in line)
    mend = shlex.split(line.partition("--set")[1] + line.partition("--set")[2])
    code, out, _ = outcome(capsys, "check", EXAMPLE, "--batch", "celltypo", *mend)
    assert code == 0, out


def test_a_spec_whose_data_were_changed_is_refused(capsys, tmp_path) -> None:
    data = tmp_path / "cells.h5mu"
    data.write_bytes(Path(EXAMPLE).read_bytes())
    spec = RunSpec().with_changes({"data.paths": str(data), "data.sha256": EXAMPLE_SHA256, "covariates.batch": "batch"})
    save_spec(spec, tmp_path / "run.toml")
    assert outcome(capsys, "check", tmp_path / "run.toml")[0] == 0
    with data.open("ab") as file:
        file.write(b"\0")
    code, _, err = outcome(capsys, "train", tmp_path / "run.toml", "--out", tmp_path / "run")
    assert code == 2
    assert "'cells.h5mu' is not the file that this spec was made for" in err
    assert not (tmp_path / "run").exists()


def test_presets_and_system(capsys) -> None:
    code, out, _ = outcome(capsys, "presets")
    assert code == 0
    assert "scvi-defaults: " in out
    code, out, _ = outcome(capsys, "presets", "scvi-defaults")
    assert "training.batch_size = 128" in out
    code, out, _ = outcome(capsys, "system", "--json")
    tree = json.loads(out)
    assert code == 0
    assert tree["versions"]["python"].startswith("3.")
    assert tree["devices"][-1]["kind"] == "cpu"
    assert tree["qt"]["binding"] in {"PyQt6", "PySide6"}


def test_names_of_run_folders(tmp_path) -> None:
    spec = RunSpec().with_changes({"data.paths": ("/data/My cells.h5ad",)})
    assert run_name(spec) == "my-cells-vae"
    assert run_name(spec.with_changes({"name": "β = 0.5 / second try"})) == "β-0-5-second-try"
    assert next_folder(spec, tmp_path).name == "my-cells-vae-01"
    (tmp_path / "my-cells-vae-01").mkdir()
    assert next_folder(spec, tmp_path).name == "my-cells-vae-02"


def test_runs_lists_also_those_that_cannot_be_read(capsys, tmp_path) -> None:
    RunFolder.create(tmp_path / "a" / "first", RunSpec().with_changes({"name": "First"}))
    RunFolder.create(tmp_path / "second", RunSpec())
    (tmp_path / "second" / "spec.toml").write_text("schema_version = 99\n")
    code, out, _ = outcome(capsys, "runs", tmp_path, "--json")
    assert code == 0
    rows = {Path(row["folder"]).name: row for row in json.loads(out)}
    assert rows["first"]["name"] == "First"
    assert rows["first"]["model"] == "vae"
    assert "later version" in rows["second"]["problem"]
    code, out, _ = outcome(capsys, "runs", tmp_path)
    assert "First" in out


EPOCH = events.EpochDone(epoch=3, max_epochs=10, train={"total": 101.25}, validation={"elbo": 99.5}, best_epoch=2)
STORY = (
    events.Progress(phase="loading data", fraction=0.5, text="reading X"),
    events.StepProgress(epoch=3, max_epochs=10, fraction=0.5, cells_per_second=12_345.0, seconds_left=61.0),
    EPOCH,
    events.Warned(text="The disk is nearly full.", mend="Free some space."),
    events.WeightChanged(term="kl_z", old=1.0, new=0.5, epoch=3),
    events.Metric(name="batch_mixing", value=0.9, baseline=0.5),
    events.Metric(name="batch_mixing", value=0.1, baseline=0.2, group="donor 7"),
)


def test_lines_tell_the_story_of_a_run(capsys) -> None:
    with Lines(every=0.0) as show:
        for event in STORY:
            show(event)
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "Loading data: reading X 50%",
        "epoch 3/10: loss 101.2, held out 99.5, best at 2, 12,345 cells/s, 1:01 left",
        "Warning: The disk is nearly full. Free some space.",
        "Weight of kl_z: 1 -> 0.5 in epoch 3",
        "batch mixing: 0.900 (before integration 0.500)",
    ]


def test_lines_are_few(capsys) -> None:
    with Lines(every=3600.0) as show:
        for epoch in range(1, 101):
            show(events.EpochDone(epoch=epoch, max_epochs=100, train={"total": 1.0}))
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["epoch 1/100", "epoch 100/100"]


def test_bars_show_epoch_loss_and_time_left() -> None:
    screen = io.StringIO()
    with Bars(Console(file=screen, force_terminal=True, width=140)) as show:
        for event in (EPOCH, STORY[1], *STORY[3:]):
            show(event)
    said = screen.getvalue()
    for word in ("Training", "3/10", "loss 101.2", "12,345 cells/s", "1:01 left", "Warning: The disk is nearly full."):
        assert word in said
    assert "donor 7" not in said


@pytest.mark.parametrize(("number", "words"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (250_000_000, "250 MB"), (2.8e12, "2.8 TB")])
def test_bytes_in_words(number: float, words: str) -> None:
    assert bytes_in_words(number) == words


@pytest.mark.parametrize(("number", "words"), [(0.4, "0:00"), (61, "1:01"), (3725, "1:02:05")])
def test_seconds_in_words(number: float, words: str) -> None:
    assert seconds_in_words(number) == words
