"""Where everything starts: a command goes to the command line, anything else opens the window."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qtpy.QtWidgets import QApplication

    from cellweave.app.window import MainWindow

SCREENSHOT_WAIT = 120.0  # seconds until a screenshot is taken at the latest


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Parameters
    ----------
    argv
        Arguments without the program's name; None takes those of the process.

    Returns
    -------
    int
        Exit code: 0 done, 2 bad input, 3 cancelled, 4 failed.
    """
    from cellweave.core import cli

    arguments = list(sys.argv[1:] if argv is None else argv)
    window_options = {"--screenshot", "--open", "--theme", "--size"}
    if arguments and (arguments[0] in cli.COMMANDS or (arguments[0].startswith("-") and arguments[0].split("=")[0] not in window_options)):
        return cli.main(arguments)
    options = _parse(arguments)
    if options.screenshot:
        os.environ["QT_QPA_PLATFORM"] = "offscreen"
    problem = _no_screen()
    if problem:
        sys.stderr.write(problem + "\n")
        return 4
    try:
        return _screenshot(options) if options.screenshot else _window(options)
    except ImportError as error:
        return _without_qt(error)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cellweave", description="Open the window; 'cellweave --help' lists the commands of the command line.")
    parser.add_argument("paths", nargs="*", metavar="FILE|RUN_FOLDER|SPEC", help="what to open")
    parser.add_argument("--screenshot", metavar="OUT.png", help="draw the window into a file and leave")
    parser.add_argument("--open", metavar="PATH", help="what the screenshot shows", dest="opened")
    parser.add_argument("--theme", choices=("light", "dark", "system"), help="colours")
    parser.add_argument("--size", default="1440x900", metavar="WxH", help="size of the screenshot")
    options = parser.parse_args(arguments)
    if options.opened:
        options.paths.append(options.opened)
    return options


def _no_screen() -> str:
    """Return a sentence where there is no screen to show a window on."""
    from cellweave.core.system import has_screen

    if has_screen() or os.environ.get("QT_QPA_PLATFORM"):
        return ""
    return (
        "There is no screen here (neither DISPLAY nor WAYLAND_DISPLAY is set): train with 'cellweave train FILE --batch COLUMN --out DIR', "
        "or set QT_QPA_PLATFORM=offscreen to run the window unseen."
    )


def _without_qt(error: ImportError) -> int:
    """Say which system libraries Qt lacks, where that is why it could not be imported."""
    from cellweave.core.system import qt_report

    report = qt_report(window=True)
    if report.usable:
        raise error
    sys.stderr.write(f"{report.problem}{' Install them with: ' + report.apt if report.apt else ''}\n")
    return 4


def make_application() -> QApplication:
    """Return the Qt application with our name, icon and style."""
    from qtpy.QtCore import Qt
    from qtpy.QtGui import QGuiApplication
    from qtpy.QtWidgets import QApplication

    from cellweave.app import theme

    existing = QApplication.instance()
    if isinstance(existing, QApplication):
        return existing
    QGuiApplication.setHighDpiScaleFactorRoundingPolicy(Qt.HighDpiScaleFactorRoundingPolicy.PassThrough)
    app = QApplication(["cellweave"])
    app.setApplicationName("cellweave")
    app.setApplicationDisplayName("Cellweave")
    app.setDesktopFileName("cellweave")
    app.setWindowIcon(theme.program_icon())
    return app


def _window(options: argparse.Namespace) -> int:
    from qtpy.QtCore import QTimer

    from cellweave.app import theme
    from cellweave.app.state.session import Session

    app = make_application()
    session = Session()
    theme.apply(app, options.theme or session.settings.theme)
    from cellweave.app.window import MainWindow

    window = MainWindow(session)
    _log_to_file()
    _catch(window)
    window.restore(reopen=not options.paths)
    window.show()
    if options.paths:
        QTimer.singleShot(0, lambda: window.opening.open_path("\n".join(options.paths)))
    code = int(app.exec())
    theme.stop_following()
    _leave_at_once(code)
    return code


def _leave_at_once(code: int) -> None:
    """End the process where a thread did not heed its cancellation: its files are written atomically, nothing is half done."""
    from cellweave.app.workers.tasks import LEFT_BEHIND

    if LEFT_BEHIND:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _log_to_file() -> None:
    """Keep the log of the last sessions in the program's folder."""
    import logging
    from logging.handlers import RotatingFileHandler

    from cellweave.app.state import paths

    try:
        paths.home().mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(paths.log_file(), maxBytes=1_000_000, backupCount=3, encoding="utf-8")
    except OSError:
        return  # the log dock has it all the same
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger("cellweave").addHandler(handler)


def _catch(window: MainWindow) -> None:
    """Show a fault of ours in the window instead of ending the program."""
    import logging
    import traceback

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if issubclass(kind, KeyboardInterrupt):
            window.close()
            return
        details = "".join(traceback.format_exception(kind, error, trace))
        logging.getLogger("cellweave").error("%s", details)
        if isinstance(error, Exception):
            window.show_error(error, details)

    sys.excepthook = hook


def _screenshot(options: argparse.Namespace) -> int:
    """Draw the window with what was asked for, without a screen; the person's own settings are neither shown nor changed."""
    import tempfile

    try:
        width, height = (int(part) for part in options.size.lower().split("x"))
    except ValueError:
        sys.stderr.write(f"'{options.size}' is no size: write for instance --size 1440x900.\n")
        return 2
    missing = [path for path in options.paths if not Path(path).exists()]
    if missing:
        sys.stderr.write(f"There is no file or folder '{missing[0]}'.\n")
        return 2
    before = os.environ.get("CELLWEAVE_HOME")
    with tempfile.TemporaryDirectory(prefix="cellweave-", ignore_cleanup_errors=True) as home:
        os.environ["CELLWEAVE_HOME"] = home
        try:
            saved = _draw(options, width, height)
        finally:
            os.environ.pop("CELLWEAVE_HOME")
            if before is not None:
                os.environ["CELLWEAVE_HOME"] = before
    if not saved:
        sys.stderr.write(f"'{options.screenshot}' could not be written.\n")
        return 4
    return 0


def _draw(options: argparse.Namespace, width: int, height: int) -> bool:
    """Open the window, let it settle, and save a picture of it."""
    import time

    from cellweave.app import theme
    from cellweave.app.state.session import Session
    from cellweave.app.window import MainWindow

    app = make_application()
    theme.apply(app, options.theme or "light")
    window = MainWindow(Session(), warm=False)
    window.restore()
    window.resize(width, height)
    window.show()
    app.processEvents()
    if options.paths:
        window.opening.open_path("\n".join(options.paths))
        _settle(app, window, time.monotonic() + SCREENSHOT_WAIT)
    saved = window.grab().save(options.screenshot)
    window.close()
    return bool(saved)


def _settle(app: QApplication, window: MainWindow, deadline: float) -> None:
    """Let the window work until nothing is being read or drawn any more."""
    import time

    quiet = 0
    while quiet < 15 and time.monotonic() < deadline:
        app.processEvents()
        time.sleep(0.05)
        quiet = 0 if window.tasks.busy() or (window.session.study is not None and window.session.checked_spec is None) else quiet + 1


if __name__ == "__main__":
    sys.exit(main())
