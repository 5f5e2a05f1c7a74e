"""How the program starts: quickly, with what it was given, or with one sentence on why it cannot."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cellweave.app.__main__ import main

HEAVY = ("torch", "scanpy", "umap", "matplotlib", "anndata", "mudata", "numba", "sklearn", "pyqtgraph", "pandas", "h5py", "scipy")

FIRST_PAINT = """
import sys
from cellweave.app.__main__ import make_application
app = make_application()
from cellweave.app import theme
from cellweave.app.state.session import Session
theme.apply(app, "light")
from cellweave.app.window import MainWindow
window = MainWindow(Session(), warm=False)
window.restore()
window.show()
assert not window.grab().isNull()
print(",".join(name for name in {heavy} if name in sys.modules))
window.close()
"""


def environment(home, **more):
    own = {key: value for key, value in os.environ.items() if key not in {"DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"}}
    return {**own, "CELLWEAVE_HOME": str(home), **more}


def test_nothing_heavy_is_loaded_before_the_first_paint(home):
    code = FIRST_PAINT.replace("{heavy}", repr(HEAVY))
    result = subprocess.run([sys.executable, "-c", code], env=environment(home, QT_QPA_PLATFORM="offscreen"), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux may lack a screen")
def test_without_a_screen_one_sentence_names_the_way_out(home):
    result = subprocess.run([sys.executable, "-m", "cellweave.app"], env=environment(home), capture_output=True, text=True, check=False)
    assert result.returncode == 4
    assert "QT_QPA_PLATFORM=offscreen" in result.stderr
    assert "cellweave train" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_command_goes_to_the_command_line_without_qt(home):
    code = "import sys; from cellweave.app.__main__ import main; code = main(['presets']); print(code, 'qtpy' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], env=environment(home), capture_output=True, text=True, check=False)
    assert result.stdout.strip().endswith("0 False"), result.stdout + result.stderr


def test_a_screenshot_of_the_example(home, tmp_path, example_file):
    from PIL import Image

    out = tmp_path / "shot.png"
    command = [sys.executable, "-m", "cellweave.app", "--screenshot", str(out), "--open", str(example_file), "--theme", "dark", "--size", "1280x720"]
    result = subprocess.run(command, env=environment(home), capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not home.exists()  # the person's settings are left alone
    with Image.open(out) as picture:
        assert picture.size == (1280, 720)
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 200


def test_a_screenshot_of_nothing_is_refused_in_a_sentence(home, tmp_path, capsys):
    assert main(["--screenshot", str(tmp_path / "x.png"), "--open", str(tmp_path / "gone")]) == 2
    assert "There is no file or folder" in capsys.readouterr().err


def test_the_program_opens_what_it_was_given_and_ends_quietly(home, example_file):
    code = f"""
import sys
from qtpy.QtCore import QTimer
from cellweave.app import window as shell
restore = shell.MainWindow.restore
def then(self, **how):
    restore(self, **how)
    timer = QTimer(self)
    timer.timeout.connect(lambda: self.session.checked_spec is not None and self.close())
    timer.start(50)
shell.MainWindow.restore = then
from cellweave.app.__main__ import main
sys.exit(main([{str(example_file)!r}]))
"""
    command, own = [sys.executable, "-c", code], environment(home, QT_QPA_PLATFORM="offscreen")
    result = subprocess.run(command, env=own, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert str(example_file) in (home / "settings.json").read_text()
    assert "loaded 1600 cells" in (home / "log.txt").read_text()
