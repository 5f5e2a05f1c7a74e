"""What one looks at: loss curves, embeddings, figures. Each view is a widget that stands by itself.

The views are loaded when they are first asked for, so that the window can show before pyqtgraph is read.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cellweave.app.views.columns import ColumnData
    from cellweave.app.views.embedding import EmbeddingView
    from cellweave.app.views.figuredialog import FigureDialog
    from cellweave.app.views.lossview import LossView

_HOMES = {"ColumnData": "columns", "EmbeddingView": "embedding", "FigureDialog": "figuredialog", "LossView": "lossview"}

__all__ = ["ColumnData", "EmbeddingView", "FigureDialog", "LossView"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"cellweave.app.views.{_HOMES[name]}"), name)
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)
