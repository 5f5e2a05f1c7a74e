"""Every action of the window, declared as data: menus, shortcuts, palette and tooltips are built from this list.

``needs`` names the conditions that must hold (see ``flows.status``); where one does not, the action is greyed
and its palette entry says why.
"""

from __future__ import annotations

from dataclasses import dataclass

from cellweave.app.views.declared import VIEWS, ViewInfo

FILE, EDIT, VIEW, RUN, ANALYSE, WINDOW, HELP = "File", "Edit", "View", "Run", "Analyse", "Window", "Help"
MENUS = (FILE, EDIT, VIEW, RUN, ANALYSE, WINDOW, HELP)

REASONS = {
    "study": "Open data first.",
    "ready": "The data are not ready to train on: see the checks under Data and Covariates.",
    "training": "No run is training now.",
    "paused": "The run is not paused.",
    "running": "No run is training, or it is paused.",
    "run": "Select or open a run first.",
    "files": "Open a run whose folder is there.",
    "finished": "Open a finished run first.",
    "embedding": "There is no embedding yet.",
    "asked": "Open a run whose training has ended first.",
    "losses": "There are no losses yet.",
    "resumable": "Select a run that has a checkpoint and does not train.",
    "trash": "No run was deleted.",
    "file": "The spec names no file yet.",
    "selection": "Select cells on the embedding first.",
    **{f"view:{info.name}": info.why_not for info in VIEWS if info.place == "model"},
}


@dataclass(frozen=True)
class ActionInfo:
    """One action.

    Attributes
    ----------
    id
        Stable identifier, also the key of a rebound shortcut.
    text
        Text in menus and in the palette; an ampersand marks the mnemonic.
    menu
        Menu it appears in.
    call
        Dotted name, from the window, of the method that it calls.
    icon
        Name of a line icon, or empty.
    shortcut
        Default keys in Qt's portable form, or empty.
    tip
        One sentence for the tooltip.
    needs
        Conditions that must hold.
    checkable
        Whether it is a switch.
    gap
        Whether a separator comes before it.
    group
        Name of an exclusive group for switches of which one is on.
    """

    id: str
    text: str
    menu: str
    call: str
    icon: str = ""
    shortcut: str = ""
    tip: str = ""
    needs: tuple[str, ...] = ()
    checkable: bool = False
    gap: bool = False
    group: str = ""

    @property
    def label(self) -> str:
        """The text without mnemonic and dots."""
        return self.text.replace("&", "").removesuffix("…")


def _show(info: ViewInfo, *, gap: bool = False) -> ActionInfo:
    """Return the action that brings a view to the front."""
    needs = (f"view:{info.name}",) if info.place == "model" else ()
    return ActionInfo(f"view.{info.name}", info.title, VIEW, f"shell.show_{info.name}", info.icon, info.key, info.tip, needs, gap=gap)


A = ActionInfo
ACTIONS: tuple[ActionInfo, ...] = (
    A("file.open", "&Open data…", FILE, "opening.ask_files", "open", "Ctrl+O", "Open one file, or several that together are one study."),
    A("file.open_folder", "Open &folder…", FILE, "opening.ask_folder", "folder", "Ctrl+Shift+O", "Open a 10x folder, a zarr store or a run folder."),
    A("file.example", "Open the &example", FILE, "opening.open_example", "example", "", "Real cells that come with the program; works offline."),
    A("file.open_spec", "Open &spec…", FILE, "opening.ask_spec", "file", "", "Read what to do from a TOML file."),
    A("file.save_spec", "&Save spec as…", FILE, "exporting.ask_save_spec", "save", "Ctrl+S", "Write data, roles, model and training as a TOML file."),
    A("file.figure", "Export f&igure…", FILE, "exporting.figure", "figure", "Ctrl+E",
      "What the view in front shows as PNG, SVG or PDF.", ("files",), gap=True),
    A("file.h5ad", "Export &h5ad…", FILE, "exporting.h5ad", "export", "Ctrl+Shift+E",
      "The input with latent space, UMAP and clusters.", ("finished",)),
    A("file.tables", "Export &tables…", FILE, "exporting.tables", "table", "", "Losses, latent space and coordinates as CSV.", ("files",)),
    A("file.quit", "&Quit", FILE, "shell.quit", "quit", "Ctrl+Q", "Close the window.", gap=True),
    A("edit.undo", "&Undo", EDIT, "shell.undo", "undo", "Ctrl+Z", "Take back the last change of the spec."),
    A("edit.redo", "&Redo", EDIT, "shell.redo", "redo", "Ctrl+Shift+Z", "Do the change again."),
    A("edit.copy_command", "Copy as &command", EDIT, "exporting.copy_command", "copy", "Ctrl+Shift+C",
      "The command line that trains exactly this.", ("file",), gap=True),
    A("edit.copy_script", "Copy as &Python script", EDIT, "exporting.copy_script", "copy", "", "A script that trains exactly this.", ("file",)),
    A("edit.shortcuts", "&Keyboard shortcuts…", EDIT, "shell.edit_shortcuts", "keyboard", "", "Look at the keys and change them.", gap=True),
    A("view.welcome", "&Welcome", VIEW, "shell.show_welcome", "home", "Alt+1", "Ways to begin."),
    *(_show(info) for info in VIEWS if info.place == "tab"),
    *(_show(info, gap=number == 0) for number, info in enumerate(info for info in VIEWS if info.place == "model")),
    A("view.detach", "&Tear off this view", VIEW, "shell.detach", "detach", "", "Show the view in a window of its own.", gap=True),
    A("view.palette", "Search &actions…", VIEW, "shell.show_palette", "command", "Ctrl+Shift+P", "Find any action by its name.", gap=True),
    A("view.theme_system", "Theme of the &system", VIEW, "shell.theme_system", "theme", "", "Follow the desktop.", checkable=True, gap=True, group="theme"),
    A("view.theme_light", "L&ight theme", VIEW, "shell.theme_light", "", "", "Dark on light.", checkable=True, group="theme"),
    A("view.theme_dark", "&Dark theme", VIEW, "shell.theme_dark", "", "", "Light on dark.", checkable=True, group="theme"),
    A("run.train", "&Train", RUN, "training.train", "play", "Ctrl+Return", "Train the model; during another run it waits in the queue.", ("study", "ready")),
    A("run.detached", "Train &detached", RUN, "training.train_detached", "detach", "",
      "Train in a process of its own that goes on when the window is closed.", ("study", "ready")),
    A("run.pause", "&Pause", RUN, "training.pause", "pause", "Ctrl+P", "Wait at the next minibatch.", ("training",), gap=True),
    A("run.stop", "&Stop and keep", RUN, "training.stop", "stop", "Ctrl+.",
      "Stop training, go back to the best weights and compute the results.", ("training",)),
    A("run.cancel", "&Cancel…", RUN, "training.cancel", "cancel", "", "Throw the run away.", ("training",)),
    A("run.resume", "&Continue training", RUN, "runs.resume", "play", "",
      "Go on from the last checkpoint of the selected run; one that is finished is asked how many epochs longer.", ("resumable",), gap=True),
    A("run.duplicate", "D&uplicate as new", RUN, "runs.duplicate", "duplicate", "", "Begin a new run with the settings of the selected one.", ("run",)),
    A("run.rename", "Re&name…", RUN, "runs.rename", "rename", "F2", "Give the selected run another name.", ("run",)),
    A("run.overlay", "&Overlay its losses", RUN, "runs.overlay", "curves", "", "Draw the selected run's losses over those shown.", ("run",)),
    A("run.compare", "Com&pare runs", RUN, "runs.compare", "table", "", "Put the selected runs, or all, beside one another in a table.", ("run",)),
    A("run.folder", "Open run &folder", RUN, "runs.open_folder", "folder", "", "Show the run's files.", ("run",)),
    A("run.trash", "Move to t&rash", RUN, "runs.trash", "trash", "", "Move the selected run to the trash; it can be put back.", ("run",)),
    A("run.restore", "Put the last deleted run &back", RUN, "runs.restore", "undo", "", "Undo the last move to the trash.", ("trash",)),
    A("analyse.again", "&Compute the embedding again", ANALYSE, "analysing.again", "scatter", "",
      "UMAP, clusters and scores of the open run with the present settings.", ("finished",)),
    A("analyse.gene", "Colour by &gene…", ANALYSE, "watching.ask_gene", "scatter", "Ctrl+G", "Colour the embedding by the counts of a gene.", ("embedding",)),
    A("analyse.ask", "&Ask the model…", ANALYSE, "asking.ask", "model", "Ctrl+Shift+A",
      "Latent space, expression, likelihoods and more of the open run, written to a file.", ("asked",), gap=True),
    A("analyse.map", "&Map new data onto this run…", ANALYSE, "asking.map_data", "add-file", "",
      "Learn what is new in further data and keep everything else of the open run.", ("asked",)),
    A("analyse.select_none", "Select &no cells", ANALYSE, "clear_selection", "selection", "Ctrl+D", "Forget the selection.", ("selection",)),
    A("window.workflow", "&Workflow", WINDOW, "shell.toggle_workflow", "", "F6", "Show or hide the steps on the left.", checkable=True),
    A("window.runs", "&Runs", WINDOW, "shell.toggle_runs", "", "F7", "Show or hide the list of runs.", checkable=True),
    A("window.inspector", "&Selection", WINDOW, "shell.toggle_inspector", "", "F8", "Show or hide what is selected.", checkable=True),
    A("window.log", "&Log", WINDOW, "shell.toggle_log", "log", "F9", "Show or hide the log.", checkable=True),
    A("window.step1", "Step &1: Data", WINDOW, "shell.step_data", "data", "Ctrl+1", "Files, counts and features.", gap=True),
    A("window.step2", "Step &2: Covariates", WINDOW, "shell.step_covariates", "covariates", "Ctrl+2", "Which column means what."),
    A("window.step3", "Step &3: Model", WINDOW, "shell.step_model", "model", "Ctrl+3", "The model and its options."),
    A("window.step4", "Step &4: Loss weights", WINDOW, "shell.step_losses", "weights", "Ctrl+4", "The weight of every loss term."),
    A("window.step5", "Step &5: Training", WINDOW, "shell.step_training", "training", "Ctrl+5", "Epochs, minibatch, device."),
    A("window.reset", "Reset the &layout", WINDOW, "shell.reset_layout", "reset", "", "Put every dock back in its place.", gap=True),
    A("help.report", "&Report a problem…", HELP, "shell.report", "report", "", "Gather versions and log to copy; nothing is sent."),
    A("help.log_folder", "Open the program's &folder", HELP, "shell.open_home", "folder", "", "Where runs, settings and log are."),
    A("help.about", "&About Cellweave", HELP, "shell.about", "info", "", "Version and licence."),
)  # fmt: skip
