"""Every example in a docstring is run, and shows what it says."""

import doctest
import importlib
from pathlib import Path

import pytest

import fedlab

HOUSE = Path(fedlab.__file__).parent
MODULES = sorted(
    ".".join(("fedlab", *path.relative_to(HOUSE).with_suffix("").parts))
    for path in HOUSE.rglob("*.py")
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name.removesuffix(".__init__"))
    failed, _ = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert failed == 0
