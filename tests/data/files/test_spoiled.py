"""Files that were spoiled at random are read, or refused by name."""

from reading import fuzz, layouts


def test_spoiled_files_are_read_or_refused(capsys):
    bad, taken = fuzz(150)
    assert bad == 0, capsys.readouterr().out
    assert 10 < taken < 140


def test_all_layouts_of_the_benchmark_are_read_right():
    right, every = layouts()
    assert right == every >= 20
