"""What the wheel and the source distribution hold, and that no other `fedlab` may be beside it."""

import email
import subprocess
import sys
import tarfile
import zipfile
from pathlib import PurePosixPath

import pytest
from built import LESSONS, ROOT, build, checkout

from fedlab.course.lessons import lesson_files


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The source distribution, of a copy of the repository."""
    folder = tmp_path_factory.mktemp("source")
    checkout(folder / "here")
    return build("sdist", folder / "here", folder)


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    """The wheel that is made of the source distribution, as an installer makes it."""
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(source) as file:
        file.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    return build("wheel", unpacked, folder)


def test_the_wheel_holds_all_of_the_package_and_little_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    house = [path for path in (ROOT / "fedlab").rglob("*") if path.is_file()]
    ours = {p.relative_to(ROOT).as_posix() for p in house if "__pycache__" not in p.parts}
    lessons = {f"{LESSONS}/{name}" for name in lesson_files()}
    kept = ROOT / "notebooks"
    assert len([n for n in lessons if n.endswith(".ipynb")]) == len([*kept.glob("*.ipynb")]) > 10
    assert len([n for n in lessons if "/lesson_" in n]) == len([*kept.glob("solutions/lesson_*")])
    kinds = {PurePosixPath(name).suffix for name in ours}
    assert kinds == {".py", ".js", ".css", ".npz", ".safetensors", ".md"}
    noted = {name for name in names if name.startswith("fedlab_workbench-")}
    assert names - noted == ours | lessons
    assert wheel.stat().st_size <= 25e6


def test_the_wheel_says_what_it_is_and_what_holds_for_its_data(wheel):
    with zipfile.ZipFile(wheel) as file:
        noted = {PurePosixPath(n).name: n for n in file.namelist() if ".dist-info/" in n}
        head = email.message_from_bytes(file.read(noted["METADATA"]))
        assert head["Name"] == "fedlab-workbench"
        assert head["License-Expression"] == "Apache-2.0 AND LicenseRef-MovieLens"
        folder = noted["METADATA"].removesuffix("METADATA") + "licenses/"
        for name in head.get_all("License-File"):
            assert file.read(folder + name) == (ROOT / name).read_bytes()
        assert head.get_all("License-File") == ["LICENSE", "fedlab/data/bundled/README.md"]
        commands = file.read(noted["entry_points.txt"]).decode().split()
    assert commands == ["[console_scripts]", "fedlab", "=", "fedlab.__main__:main"]


def test_the_source_distribution_holds_the_repository(source):
    with tarfile.open(source) as file:
        names = {m.name.partition("/")[2] for m in file.getmembers() if m.isfile()}
    ours = {path.as_posix() for path in checkout()}
    assert ours <= names
    made = {n for n in names - ours if not n.startswith("fedlab_workbench.egg-info/")}
    assert made == {"PKG-INFO", "setup.cfg"}


@pytest.mark.parametrize("ending", ["dist-info", "egg-info"])
@pytest.mark.parametrize("lines", ["import fedlab", "from fedlab.__main__ import main"])
def test_two_projects_in_one_folder_are_refused(wheel, tmp_path, ending, lines):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    (tmp_path / f"fedlab-1.3.0.{ending}").mkdir()
    if "main" in lines:  # theirs came last: its face is ours no more
        (tmp_path / "fedlab" / "__init__.py").write_text('__version__ = "1.3.0"')
    words = [sys.executable, "-c", f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n{lines}"]
    said = subprocess.run(words, capture_output=True, text=True, check=False, cwd=tmp_path).stderr
    last = said.splitlines()[-1]
    assert last.startswith("ImportError: fedlab 1.3.0, which is another project, and fedlab-")
    assert str(tmp_path) in last
    assert "pip uninstall -y fedlab fedlab-workbench" in last


def test_alone_it_is_not_refused(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as file:
        file.extractall(tmp_path)
    lines = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nimport fedlab\nprint(fedlab.load)"
    words = [sys.executable, "-W", "error", "-c", lines + "\nprint(fedlab.__file__)"]
    said = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert said.splitlines()[-1] == str(tmp_path / "fedlab" / "__init__.py")
