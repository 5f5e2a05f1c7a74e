"""Map the top-level folders onto the ``cellweave`` namespace.

``find_packages`` is used instead of a list in ``pyproject.toml`` because a list silently leaves out
sub-packages that somebody forgets to add; an editable install would still find them, a wheel would not.
"""

from setuptools import find_packages, setup

ROOTS = ("app", "core", "resources")

setup(
    packages=[
        f"cellweave.{name}"
        for root in ROOTS
        for name in (root, *(f"{root}.{sub}" for sub in find_packages(root)))
    ],
    package_dir={f"cellweave.{root}": root for root in ROOTS},
    package_data={
        "cellweave.app": ["py.typed"],
        "cellweave.core": ["py.typed"],
        "cellweave.resources": ["**/*"],
    },
)
