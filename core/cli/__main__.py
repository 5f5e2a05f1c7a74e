"""``python -m cellweave.core.cli``: the command line where the window's packages are not wanted."""

from __future__ import annotations

import sys

from cellweave.core.cli import main

if __name__ == "__main__":
    sys.exit(main())
