"""Lessons are copied as they come, and nothing that is there is overwritten."""

from pathlib import Path

import pytest

from fedlab.__main__ import main
from fedlab.core import ParameterError
from fedlab.course.lessons import LESSONS, copy_lessons, lesson_files

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def test_lessons_come_with_their_solutions(tmp_path):
    new, kept = copy_lessons(tmp_path / "a" / "b")
    assert kept == []
    assert new == lesson_files()
    assert {path.name for path in NOTEBOOKS.glob("*.ipynb")} < set(new)
    for name in new:
        assert (tmp_path / "a" / "b" / name).read_bytes() == (NOTEBOOKS / name).read_bytes()


def test_what_is_changed_stays_and_what_is_gone_comes_again(tmp_path, capsys):
    copy_lessons(tmp_path)
    (tmp_path / "02_fedavg.ipynb").write_text("mine")
    (tmp_path / "solutions" / "lesson_01.py").unlink()
    assert main(["lab", str(tmp_path), "--no-open"]) == 0
    said = capsys.readouterr().out
    assert f"Copied to {tmp_path}: 1 of" in said
    assert "left as they are: 02_fedavg.ipynb. To have one as it comes, rename yours" in said
    assert (tmp_path / "02_fedavg.ipynb").read_text() == "mine"
    assert main(["lab", str(tmp_path), "--no-open"]) == 0
    assert "Copied" not in capsys.readouterr().out


def test_the_lessons_themselves_are_a_folder_like_others(capsys):
    assert main(["lab", str(LESSONS), "--no-open"]) == 0
    assert capsys.readouterr().out == f"All files in {LESSONS} are as they come.\n"


def test_a_file_is_no_folder(tmp_path, capsys):
    (tmp_path / "file").touch()
    with pytest.raises(ParameterError, match="this is a file; name a folder"):
        copy_lessons(tmp_path / "file")
    assert main(["app", str(tmp_path / "file")]) == 2
    assert "folder=" in capsys.readouterr().err
