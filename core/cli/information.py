"""``cellweave presets`` and ``cellweave system``."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from cellweave.core import system as machine
from cellweave.core.cli import EXIT_DONE
from cellweave.core.cli.data import Json
from cellweave.core.cli.inputs import preset_named
from cellweave.core.cli.terminal import bytes_in_words, say, say_json
from cellweave.core.spec import presets as all_presets


def register(app: typer.Typer) -> None:
    """Add the commands to the application."""
    app.command("presets")(presets)
    app.command("system")(system)


def presets(
    name: Annotated[str | None, typer.Argument(help="Show what this preset sets.", show_default=False)] = None,
    json: Json = False,
) -> int:
    """List the presets, or show one."""
    chosen = {name: preset_named(name)} if name is not None else all_presets()
    if json:
        say_json([asdict(item) for item in chosen.values()])
        return EXIT_DONE
    for item in chosen.values():
        say(f"{item.name}: {item.title}\n  {item.help}")
        if name is not None:
            say(f"  model.kind = {item.kind}")
            for path, value in item.changes.items():
                say(f"  {path} = {value}")
    return EXIT_DONE


def system(json: Json = False) -> int:
    """Show versions, devices and missing libraries."""
    versions, devices = machine.versions(), machine.devices()
    screen = machine.has_screen()
    qt = machine.qt_report(window=screen)
    if json:
        say_json({"versions": versions, "devices": [asdict(item) for item in devices], "screen": screen, "qt": asdict(qt)})
        return EXIT_DONE
    say("Devices")
    for device in devices:
        cores = f", {device.cores} cores" if device.cores else ""
        say(f"  {device.kind}: {device.name}{cores}, {bytes_in_words(device.memory_bytes)}")
    say(f"Screen: {'yes' if screen else 'none (neither DISPLAY nor WAYLAND_DISPLAY is set)'}")
    say(f"Qt: {qt.problem or f'{qt.binding} can draw'}")
    if qt.apt:
        say(f"  On Debian and Ubuntu, as root: {qt.apt}")
    say("Versions")
    for name, number in versions.items():
        say(f"  {name} {number}")
    return EXIT_DONE
