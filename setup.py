"""List the packages and their data for `pip install .`; everything else is in pyproject.toml.

pyproject.toml alone cannot find packages and also map a folder to another name: experiments/ is installed as walt_pl/experiments, since
`experiments` would be too general a name among the packages of a Python.
"""

from setuptools import find_packages, setup

EXPERIMENTS = "walt_pl.experiments"

setup(
    packages=[*find_packages(include=["walt_pl", "walt_pl.*", "stages", "stages.*", "datamodules", "datamodules.*"]), EXPERIMENTS],
    package_dir={EXPERIMENTS: "experiments"},
    package_data={"walt_pl": ["py.typed"], "walt_pl.report": ["page.html.j2", "page.css"], EXPERIMENTS: ["**/*.yaml"]},
)
