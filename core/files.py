"""Writing files so that a crash at any moment leaves either the old content or the new."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Write through a temporary file in the same folder and rename it into place.

    Parameters
    ----------
    path
        Where the file shall be.
    write
        Called with the temporary path, which has the same suffix; it writes the content.

    Raises
    ------
    OSError
        Where the folder cannot be written or the disk is full; the old file is untouched and no
        temporary file stays behind.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp makes it private; a run folder is shared like any other
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text_atomic(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_atomic(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def write_json_atomic(path: Path, value: Any) -> None:
    """Write JSON, atomically."""
    write_text_atomic(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def sha256_of(path: Path, progress: Callable[[float], None] | None = None) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a folder's files."""
    digest = hashlib.sha256()
    parts = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    total, done = max(1, sum(p.stat().st_size for p in parts)), 0
    for part in parts:
        if path.is_dir():
            digest.update(str(part.relative_to(path)).encode())
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
                done += len(block)
                if progress is not None:
                    progress(done / total)
    return digest.hexdigest()
