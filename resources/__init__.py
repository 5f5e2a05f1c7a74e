"""Icons, presets, themes and the example that ship with the program."""
