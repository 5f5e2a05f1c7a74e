"""Every view of the window, declared as data: tabs, the Model button, actions, keys and reasons are built from this list.

A new view is one line in :data:`VIEWS` and one class (see :class:`cellweave.app.views.runview.RunView`).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from cellweave.core.spec import RunSpec

Place = Literal["tab", "model"]


@dataclass(frozen=True)
class ViewInfo:
    """One view.

    Attributes
    ----------
    name
        Stable identifier; its action is ``view.NAME``.
    title
        On the tab, in the menus and in the palette.
    icon
        Name of a line icon.
    home
        ``"module:Class"``, imported when the view is first shown.
    tip
        One sentence on what it shows.
    kinds
        Kinds of result (:data:`cellweave.core.models.declare.ResultKind`) of which the family of the shown run must give one; none: any run.
    families
        Kinds of model of which the shown run must be one; none: any. For what follows from the model itself rather than from a result.
    files
        Paths inside the run folder of which one must be there, wildcards allowed; none: no file is needed.
    place
        ``"tab"``, or ``"model"`` for the views of single models, which share the tab with the Model button.
    why_not
        What is said where the shown run lacks that; one sentence, or two.
    key
        Default keys, or empty.
    """

    name: str
    title: str
    icon: str
    home: str
    tip: str
    kinds: tuple[str, ...] = ()
    families: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    place: Place = "tab"
    why_not: str = ""
    key: str = ""

    def offered(self, spec: RunSpec | None, folder: Path | None) -> bool:
        """Return whether a run has what the view shows; without a run every view is offered, and says what it will show."""
        if spec is None:
            return True
        if not self.suits(spec):
            return False
        return not self.files or (folder is not None and any(_there(folder, pattern) for pattern in self.files))

    def suits(self, spec: RunSpec) -> bool:
        """Return whether the family of a run can have what the view shows, whatever files are there yet."""
        given = {str(result.kind) for result in spec.family.results}
        return not (self.kinds and not given & set(self.kinds)) and not (self.families and spec.model.kind not in self.families)

    def load(self) -> Any:
        """Import the class."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(module), name)


def _there(folder: Path, pattern: str) -> bool:
    return (folder / pattern).exists() if "*" not in pattern else next(folder.glob(pattern), None) is not None


V = ViewInfo
VIEWS: tuple[ViewInfo, ...] = (
    V("losses", "Losses", "curves", "cellweave.app.views.lossview:LossView", "Every loss term, train and validation.", key="Alt+2"),
    V("embedding", "Embedding", "scatter", "cellweave.app.views.embedding:EmbeddingView", "The cells, coloured by any column.", key="Alt+3"),
    V("metrics", "Metrics", "metrics", "cellweave.app.views.metrics:MetricsView", "Batch mixing and biology kept, of every run and without integration.",
      key="Alt+4"),
    V("differential", "Differential", "volcano", "cellweave.app.views.differential:DifferentialView",
      "Genes that differ between two groups of cells.", kinds=("expression",),
      why_not="Genes can be compared where the model decodes expression, which the shown run's does not.", key="Alt+6"),
    V("compare", "Compare", "table", "cellweave.app.views.compare:CompareView", "Runs beside one another: how their settings differ, and what came of them.",
      key="Alt+7"),
    V("loadings", "Loadings", "weights", "cellweave.app.views.loadings:LoadingsView", "Which genes each latent dimension of a linear decoder stands for.",
      kinds=("loadings",), place="model", why_not="The shown run has no loadings: a linear decoder has them. Train LDVAE.", key="Alt+Shift+L"),
    V("attribution", "Attribution", "attribution", "cellweave.app.views.attribution:AttributionView",
      "How far each modality depends on the latents of every modality, cell by cell.", kinds=("attribution",),
      why_not="The shown run gives no attribution: Multimodal VI does, trained on data with several modalities.", key="Alt+5"),
    V("neighbourhood", "Neighbourhood", "neighbourhood", "cellweave.app.views.neighbourhood:NeighbourhoodView",
      "Whether neighbours express the same markers, and where an integration went wrong.", place="model", key="Alt+Shift+N"),
    V("imputation", "Imputation", "imputation", "cellweave.app.views.imputation:ImputationView",
      "How well hidden values are imputed, beside the mean of each feature.", kinds=("imputation",), place="model",
      why_not="The shown run imputes nothing: scVAEIT and MIDAS do, trained on data of several modalities.", key="Alt+Shift+I"),
    V("masks", "Masks", "grid", "cellweave.app.views.maskview:MaskView", "What was measured in which cells, and what training hides of it.",
      families=("vaeit", "midas"), place="model", why_not="The shown run knows no masks: scVAEIT and MIDAS do.", key="Alt+Shift+M"),
    V("ambient", "Ambient", "droplet", "cellweave.app.views.effects:EffectsView",
      "Which genes are ambient background in which library, and what else covariates do.", kinds=("ambient", "covariate_effects"), place="model",
      why_not="The shown run knows no ambient background: Ambient-regularised VI and Multimodal VI do.", key="Alt+Shift+A"),
    V("modalities", "Modalities", "grid", "cellweave.app.views.modalities:ModalitiesView",
      "What each modality alone says of the cells of each batch, and how well they agree.", families=("midas",), files=("results/c_*.npy",), place="model",
      why_not="The shown run has no latent of single modalities: MIDAS has, trained on data with several modalities.", key="Alt+Shift+G"),
)  # fmt: skip
VIEW_NAMES = tuple(info.name for info in VIEWS)


def view_info(name: str) -> ViewInfo:
    """Return a view by its name.

    Raises
    ------
    KeyError
        Where there is none.
    """
    return next(info for info in VIEWS if info.name == name) if name in VIEW_NAMES else _unknown(name)


def _unknown(name: str) -> ViewInfo:
    message = f"there is no view '{name}'"
    raise KeyError(message)
