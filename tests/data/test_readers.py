"""Each file format read right, and each kind of bad line named with its place and its fix."""

import pytest

from fedlab.data import DataError, read

GOOD = {
    "u.data": "1\t10\t4\t100\n2\t10\t3\t90\n1\t20\t5\t50\n",
    "u.item": "10|Café (1995)|01-Jan-1995||url|0|1|0|0|0|1|0|0|0|0|0|0|0|0|0|0|0|0|0\n"
    "20|unknown||||1|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0|0\n",
    "ratings.csv": "userId,movieId,rating,timestamp\n1,10,4.0,100\n2,10,3.0,90\n1,20,5.0,50\n",
    "movies.csv": (
        'movieId,title,genres\n10,"Café (1995)",Action|Comedy\n20,unknown,(no genres listed)\n'
    ),
    "ratings.dat": "1::10::4::100\n2::10::3::90\n1::20::5::50\n",
    "movies.dat": "10::Café (1995)::Action|Comedy\n20::unknown::\n",
    "x.inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t10\t4\t100\n"
    "2\t10\t3\t90\n1\t20\t5\t50\n",
    "x.item": "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
    "10\tCafé\t1995\tAction Comedy\n20\tunknown\tunknown\tunknown\n",
}
PAIRS = [
    ("u.data", "u.item"),
    ("ratings.csv", "movies.csv"),
    ("ratings.dat", "movies.dat"),
    ("x.inter", "x.item"),
]


def write(folder, pair, **changed):
    for name in pair:
        text = changed.get(name.replace(".", "_"), GOOD[name])
        latin = name in ("u.item", "movies.dat", "u.data", "ratings.dat")
        (folder / name).write_text(text, encoding="latin-1" if latin else "utf-8")
    return folder


@pytest.mark.parametrize("pair", PAIRS)
def test_the_same_ratings_from_each_format(tmp_path, pair):
    ratings = read(write(tmp_path, pair))
    catalogue = ratings.catalogue
    assert (catalogue.user_ids, catalogue.item_ids) == (("1", "2"), ("10", "20"))
    assert (catalogue.titles, catalogue.years.tolist()) == (("Café", "unknown"), [1995, 0])
    assert catalogue.genre_names == ("Action", "Comedy")
    assert catalogue.genres.tolist() == [[True, True], [False, False]]
    assert ratings.users.tolist() == [0, 0, 1]  # sorted by user and time
    assert ratings.items.tolist() == [1, 0, 0]
    assert ratings.values.tolist() == [5, 4, 3]
    assert ratings.times.tolist() == [50, 100, 90]


BAD = [
    (
        "u_data",
        "1\t10\t4\t100\n1\t20\tgood\t5\n",
        r"u\.data:2: rating='good' is not a finite number",
    ),
    ("u_data", "1\t10\tnan\t100\n", r"u\.data:1: rating='nan'"),
    ("u_data", "1\t10\t4\t100\n2\t20\t4\n", r"u\.data:2: 3 fields where 4 are needed"),
    (
        "u_data",
        "1\t10\t4\t100\n1\t10\t5\t200\n",
        r"u\.data:2: user '1' rated item '10' already at u\.data:1",
    ),
    ("u_data", "1\t99\t4\t100\n", r"u\.data:1: item='99' is not in the items file"),
    ("u_data", "1\t10\t4\tsoon\n", r"u\.data:1: time='soon'"),
    ("u_data", "", r"u\.data: no ratings"),
    (
        "u_item",
        GOOD["u.item"] + GOOD["u.item"],
        r"u\.item:3: item='10' stands already at u\.item:1",
    ),
    ("ratings_csv", "userId,movieId,timestamp\n1,10,100\n", r"ratings\.csv:1: no column 'rating'"),
    ("ratings_csv", "", r"ratings\.csv:1: no column 'userId'"),
    ("movies_csv", "movieId,title\n10,A\n", r"movies\.csv:1: no column 'genres'"),
    ("x_inter", "user_id:token\titem_id:token\n1\t10\n", r"x\.inter:1: no column 'rating'"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_a_bad_line_is_named(tmp_path, name, text, message):
    pair = next(p for p in PAIRS if name.replace("_", ".") in p)
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, pair, **{name: text}))


def test_a_folder_without_a_dataset_is_explained(tmp_path):
    with pytest.raises(DataError, match=r"holds no known dataset; expected one of: u\.data"):
        read(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        read(tmp_path / "missing")
    (tmp_path / "u.data").write_text(GOOD["u.data"])
    with pytest.raises(DataError, match=r"u\.data needs its u\.item beside it"):
        read(tmp_path)


def test_a_file_in_another_encoding_names_its_line(tmp_path):
    (tmp_path / "movies.csv").write_bytes("movieId,title,genres\n1,Amélie (2001),Drama\n".encode())
    rows = b"userId,movieId,rating,timestamp\n1,1,4.0,5\n1,\xe4,4.0,6\n"
    (tmp_path / "ratings.csv").write_bytes(rows)
    with pytest.raises(DataError, match=r"ratings.csv:3: b'\\xe4' is not utf-8; save the file as"):
        read(tmp_path)
