"""A checkpoint that was cut short or altered is refused in words, never unpickled, and the one before it serves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cellweave.core.errors import RunFolderError
from cellweave.core.training import checkpoint as store


def some_checkpoint(value: float) -> store.Checkpoint:
    return store.Checkpoint({"model/w": torch.full((30,), value), "rng/cpu": torch.get_rng_state()}, {"epoch": int(value)})


def test_round_trip(tmp_path: Path) -> None:
    store.save_last(tmp_path, some_checkpoint(1))
    store.save_last(tmp_path, some_checkpoint(2))
    loaded, warning = store.load_last(tmp_path)
    assert not warning and loaded.state == {"epoch": 2} and torch.equal(loaded.part("model")["w"], torch.full((30,), 2.0))
    assert store.load_checkpoint(tmp_path / store.PREVIOUS).state == {"epoch": 1}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9, 0.999])
def test_cut_short(tmp_path: Path, share: float) -> None:
    store.save_last(tmp_path, some_checkpoint(1))
    path = tmp_path / store.LAST
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(RunFolderError, match="damaged"):
        store.load_checkpoint(path)


@pytest.mark.parametrize("place", [0.2, 0.5, 0.75, 0.99])
def test_one_altered_byte(tmp_path: Path, place: float) -> None:
    store.save_last(tmp_path, some_checkpoint(1))
    path = tmp_path / store.LAST
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunFolderError, match="damaged"):
        store.load_checkpoint(path)


def test_the_checkpoint_before_a_damaged_one_serves_and_that_is_said(tmp_path: Path) -> None:
    store.save_last(tmp_path, some_checkpoint(1))
    store.save_last(tmp_path, some_checkpoint(2))
    (tmp_path / store.LAST).write_bytes(b"\x80\x04not a checkpoint")
    loaded, warning = store.load_last(tmp_path)
    assert loaded.state == {"epoch": 1} and "before it" in warning


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    import pickle  # noqa: TID251  (to show that such a file is refused)

    class Trap:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / store.LAST).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RunFolderError):
        store.load_last(tmp_path)
    assert not (tmp_path / "sprung").exists()


def test_none_at_all(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no checkpoint"):
        store.load_last(tmp_path)
