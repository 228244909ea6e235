"""What pyproject.toml cannot say: the folder notebooks is fedlab/course/notebooks in a wheel."""

import sys

from setuptools import find_namespace_packages, setup

LESSONS = "fedlab.course.notebooks"
packages = find_namespace_packages(include=["fedlab*"])

if "editable_wheel" in sys.argv:
    # This folder joins Python's path, whole. Without it a folder that is called fedlab, say the
    # one that this project was cloned to, would be taken for the package by who stands beside it.
    setup(packages=packages, package_dir={"": "."})
else:
    setup(packages=[*packages, LESSONS, f"{LESSONS}.solutions"], package_dir={LESSONS: "notebooks"})
