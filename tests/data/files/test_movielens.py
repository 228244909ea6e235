"""MovieLens' releases and RecBole's files with their items: titles, years, genres."""

import pytest

from fedlab.data import DataError, at_least, read

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
    assert catalogue.category_names == ("Action", "Comedy")
    assert catalogue.categories.tolist() == [[True, True], [False, False]]
    assert ratings.users.tolist() == [0, 0, 1]  # sorted by user and time
    assert ratings.items.tolist() == [1, 0, 0]
    assert ratings.values.tolist() == [5, 4, 3]
    assert ratings.times.tolist() == [50, 100, 90]


BAD = [
    ("u_data", "1\t10\t4\t100\n1\t20\tgood\t5\n", r"u\.data:2: field 3 is 'good'; no rating"),
    ("u_data", "1\t10\t4\t100\n2\t20\t4\n", r"u\.data:2: field 4 is missing; 3 of 4 fields"),
    ("u_data", "1\t10\t4\tsoon\n1\t20\t4\t5\n", r"u\.data:1: field 4 is 'soon'; no time"),
    ("u_data", "", r"u\.data: empty"),
    ("u_item", GOOD["u.item"] * 2, r"u\.item:3: field 1 is '10'; it stands already at u\.item:1"),
    (
        "ratings_csv",
        "movieId,rating\n1,10\n",
        r"ratings\.csv:1: no column of users among 'movieId'",
    ),
    ("movies_csv", "title,genres\nA,B\n", r"movies\.csv:1: no column of items among 'title'"),
]


@pytest.mark.parametrize(("name", "text", "message"), BAD)
def test_a_bad_line_is_named(tmp_path, name, text, message):
    pair = next(p for p in PAIRS if name.replace("_", ".") in p)
    with pytest.raises(DataError, match=message):
        read(write(tmp_path, pair, **{name: text}))


def test_items_that_nobody_met_stay(tmp_path):
    write(tmp_path, PAIRS[2], movies_dat=GOOD["movies.dat"] + "30::Up (2009)::Comedy\n")
    ratings = read(tmp_path)
    assert ratings.catalogue.item_ids == ("10", "20", "30")
    assert ratings.item_counts().tolist() == [2, 1, 0]
    assert at_least(ratings, items=1)[0].catalogue.item_ids == ("10", "20")
