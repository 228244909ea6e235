"""Raises where the other project called fedlab is installed into the same folder as this one.

The package index has a project `fedlab`, and this one is `fedlab-workbench`. Both install a package
`fedlab`, so the later one overwrites files of the earlier, and removing one takes files from the
other. What pip notes beside the package tells that both are there.
"""

from pathlib import Path

HERE = Path(__file__).parents[1]
NOTED = (".dist-info", ".egg-info")  # the endings of what an installer notes about a project
FOUND = {
    path.name.partition("-")[0].lower(): path for path in HERE.iterdir() if path.suffix in NOTED
}


def _named(project: str) -> str:
    """A project and its version, as it is noted."""
    known = FOUND.get(project, Path(project))
    return " ".join(known.stem.split("-")[:2]).replace("_", "-")


if "fedlab" in FOUND:
    raise ImportError(
        f"{_named('fedlab')}, which is another project, and {_named('fedlab_workbench')} are both "
        f"installed in {HERE}, and overwrite each other's files. Remove both, then install the one "
        "that you want, here fedlab-workbench: pip uninstall -y fedlab fedlab-workbench"
    )
