"""What pyproject.toml cannot say: the folder notebooks is fedlab/course/notebooks in a wheel."""

from setuptools import find_namespace_packages, setup

LESSONS = "fedlab.course.notebooks"

setup(
    packages=[*find_namespace_packages(include=["fedlab*"]), LESSONS, f"{LESSONS}.solutions"],
    package_dir={LESSONS: "notebooks"},
)
