"""Tables as people have them, each read in one line, with no column renamed by hand."""

import gzip
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from layouts import CLICKS, CSV, DATES, LAYOUTS, ROWS, WITHOUT_TIMES, lines, rows_of, write

from fedlab.core import ParameterError
from fedlab.data import DataError, asked_for, described, from_arrays, from_frame, read, read_split


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_with_ratings_and_times(name, tmp_path):
    files, path = LAYOUTS[name]
    write(tmp_path, files)
    found = read(tmp_path / path)
    assert rows_of(found) == sorted(row[:2] for row in ROWS)
    assert found.values.tolist() == [4, 3, 5]
    assert found.times.tolist() == [row[3] for row in ROWS]
    assert found.notes


@pytest.mark.parametrize("name", WITHOUT_TIMES)
def test_a_layout_without_times(name, tmp_path):
    files, path = WITHOUT_TIMES[name]
    write(tmp_path, files)
    found = read(tmp_path / path)
    assert rows_of(found) == sorted(row[:2] for row in ROWS)
    assert found.values.tolist() == [4, 3, 5]
    with pytest.raises(DataError, match="these data have no times; name their column"):
        _ = found.times


@pytest.mark.parametrize("name", CLICKS)
def test_a_layout_of_clicks(name, tmp_path):
    files, path = CLICKS[name]
    write(tmp_path, files)
    found = read(tmp_path / path)
    assert rows_of(found) == sorted(row[:2] for row in ROWS)
    assert not found.columns
    with pytest.raises(DataError, match="these data have no ratings"):
        _ = found.values


def test_a_pair_of_base_and_test(tmp_path):
    more = [*ROWS, ("1", "8", 2, 978300700)]
    write(
        tmp_path, {"u1.base": lines("\t", more), "u1.test": lines("\t", [("2", "9", 1, 978300799)])}
    )
    split = read_split(tmp_path / "u1.base", tmp_path / "u1.test")
    assert [len(part) for part in (split.train, split.validation, split.test)] == [2, 2, 1]
    assert split.train.catalogue.item_ids == ("7", "8", "9", "10")
    assert rows_of(split.validation) == [("1", "10"), ("2", "7")]  # the last of each
    same = read_split(tmp_path / "u1.base", tmp_path / "u1.test", time=False)
    assert rows_of(same.test) == [("2", "9")]
    assert len(same.validation) == 2
    with pytest.raises(
        DataError, match="u1\\.test:1: field 2 is '9'; its user met it in an earlier part"
    ):
        read_split(tmp_path / "u1.test", tmp_path / "u1.test")


def test_parquet_and_frames_and_arrays(tmp_path):
    frame = pl.DataFrame(
        {
            "customer": [1, 2, 2],
            "sku": ["10", "10", "7"],
            "stars": [4.0, 3.0, 5.0],
            "day": pl.Series([*DATES[:2], "2000-12-31 22:12:42"]).str.to_datetime(),
        }
    )
    frame.write_parquet(tmp_path / "shop.parquet")
    for found in (read(tmp_path / "shop.parquet"), read(tmp_path), from_frame(frame)):
        assert rows_of(found) == sorted(row[:2] for row in ROWS)
        assert found.values.tolist() == [4, 3, 5]
        assert found.times.tolist() == [row[3] for row in ROWS]
    columns = list(zip(*ROWS, strict=True))
    found = from_arrays(columns[0], np.array(columns[1]), torch.tensor(columns[2]), columns[3])
    assert rows_of(found) == sorted(row[:2] for row in ROWS)
    assert found.times.tolist() == [row[3] for row in ROWS]


class Pandas:
    """As much of a frame of pandas as is asked for: columns, and what they hold."""

    def __init__(self, **columns):
        self.held = {name: np.array(column, dtype=object) for name, column in columns.items()}
        self.columns = list(columns)

    def __getitem__(self, name):
        return self.held[name]


def test_a_frame_that_is_none_of_polars():
    frame = Pandas(user=["a", "b", "b"], item=[7, 7, 9], rating=[1.0, 2.0, 3.0])
    titles = Pandas(item=[7, 9], name=["Tea", float("nan")], category=["Food|Drink", "Cups"])
    found = from_frame(frame, items=titles)
    assert rows_of(found) == [("a", "7"), ("b", "7"), ("b", "9")]
    assert found.catalogue.titles == ("Tea", "9")
    assert found.catalogue.category_names == ("Cups", "Drink", "Food")
    frame.held["user"][1] = float("nan")
    with pytest.raises(DataError, match="the frame, row 1: 'user' is missing"):
        from_frame(frame)
    with pytest.raises(DataError, match="frame=list: give a frame of pandas or polars"):
        from_frame([1, 2])


@pytest.mark.parametrize(
    ("how", "values"), [("last", [4, 2]), ("first", [5, 2]), ("mean", [3, 2]), ("sum", [9, 2])]
)
def test_which_of_several_events_counts(how, values, tmp_path):
    """By time, not by place: the row of time 3 stands first."""
    rows = [("a", "x", 4, 300), ("a", "x", 5, 100), ("a", "x", 0, 200), ("a", "y", 2, 400)]
    write(tmp_path, {"r.csv": "user,item,rating,time\n" + lines(",", rows)})
    found = read(tmp_path / "r.csv", duplicates=how)
    assert found.values.tolist() == values
    assert any("2 rows repeat a pair" in note for note in found.notes)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("978300760000", 978300760),
        ("978300760000000", 978300760),
        ("978300760000000000", 978300760),
        ("978300760.25", 978300760),
        ("2001-01-01", 978307200),
        ("2001-01-01T00:00", 978307200),
        ("2001-01-01 00:00:00 UTC", 978307200),
        ("2001-01-01T00:00:00.000000Z", 978307200),
        ("2001-01-01 02:00:00+02", 978307200),
        ("2000-12-31 19:00 -0500", 978307200),
        ("2001-01-01 05:30:00.5+05:30", 978307200),
    ],
)
def test_how_times_are_written(text, seconds, tmp_path):
    write(tmp_path, {"r.csv": f"user,item,time\n1,2,{text}\n"})
    assert read(tmp_path / "r.csv").times.tolist() == [seconds]


def test_a_format_of_times_is_taken_as_it_is_said(tmp_path):
    write(tmp_path, {"r.csv": "user,item,day\na,b,03/02/2001\n"})
    with pytest.raises(DataError, match=r"r\.csv:2: 'day' is '03/02/2001'; no time; say how"):
        read(tmp_path / "r.csv")
    third = read(tmp_path / "r.csv", time_format="%d/%m/%Y")
    assert third.times.tolist() == [981158400]
    assert "times" not in read(tmp_path / "r.csv", time=False).columns


def test_columns_by_name_and_by_place(tmp_path):
    write(tmp_path, {"r.csv": "who,what,when\na,b,5\n", "bare.csv": "b,a,5\n"})
    assert read(tmp_path / "r.csv", user="who", item="what", time="when").times.tolist() == [5]
    found = read(tmp_path / "bare.csv", user=1, item=0, rating=2)
    assert (found.catalogue.user_ids, found.values.tolist()) == (("a",), [5])


def test_ids_in_the_order_of_numbers_where_they_are_numbers(tmp_path):
    write(tmp_path, {"r.csv": "user,item\n10,a\n9,b\n01,a\n1,c\n"})
    found = read(tmp_path / "r.csv")
    assert found.catalogue.user_ids == ("01", "1", "9", "10")
    assert found.catalogue.item_ids == ("a", "b", "c")


def test_quotes_with_line_breaks_and_marks_of_unicode(tmp_path):
    text = 'user,item,rating,note\r\n1,7,3,"two\r\nlines, one field"\r\n2,7,x,\r\n'
    write(tmp_path, {"r.csv": b"\xef\xbb\xbf" + text.encode()})
    with pytest.raises(DataError, match=r"r\.csv:4: 'rating' is 'x'; no rating"):
        read(tmp_path / "r.csv")
    write(tmp_path, {"r.csv": text.replace(",x,", ",4,").encode("utf-16")})
    assert read(tmp_path / "r.csv").values.tolist() == [3, 4]


def test_a_path_with_its_arguments_is_one_text(tmp_path):
    write(
        tmp_path, {"till.csv": "buyer;code;at\na;7;5\n", "goods.csv": "code,label\n7,Tea & milk\n"}
    )
    text = f"{tmp_path}/till.csv?user=buyer&item=1&time=at&items={tmp_path}/goods.csv"
    path, how = asked_for(f"{text}&items.item=code&items.title=label")
    assert how["item_columns"] == {"item": "code", "title": "label"}
    assert read(path, **how).catalogue.titles == ("Tea & milk",)
    assert asked_for("a.csv?user=a%26b&time=False&separator=%3B") == (
        Path("a.csv"),
        {"user": "a&b", "time": False, "separator": ";"},
    )
    write(tmp_path, {"odd?user=1.csv": CSV})
    assert asked_for(f"{tmp_path}/odd?user=1.csv") == (tmp_path / "odd?user=1.csv", {})
    for bad in ("usr=a", "user", "items.colour=c"):
        with pytest.raises(ParameterError, match=f"{bad!r} is no argument; write NAME=VALUE"):
            asked_for(f"till.csv?{bad}")


def test_what_is_said_of_data(tmp_path):
    write(tmp_path, {"ratings.dat": lines("::"), "movies.dat": "10::Heat (1995)::Crime\n3::Up::\n"})
    said = described(read(tmp_path))
    assert "3 interactions of 2 users with 3 items (50.00 % of all pairs)" in said
    assert "from 2000-12-31 to 2000-12-31" in said
    assert "1 items are not in the table of items" in said
    assert "1 items that nobody met stay in the catalogue" in said
    assert "no times: what is held out is drawn at random" in described(from_arrays([1], [2]))


def test_blank_lines_before_a_table_are_nothing_and_lines_are_counted(tmp_path):
    write(tmp_path, {"r.csv": "\n\r\n" + CSV})
    assert read(tmp_path / "r.csv").values.tolist() == [4, 3, 5]
    write(tmp_path, {"r.csv": "\n\n" + CSV + "3,4,five,6\n"})
    with pytest.raises(DataError, match=r"r\.csv:7: 'rating' is 'five'"):
        read(tmp_path / "r.csv")


def test_blank_lines_between_rows_are_nothing_and_lines_are_counted(tmp_path):
    apart = CSV.replace("\n", "\r\n\r\n")  # as csv.writer writes to a text file on Windows
    write(tmp_path, {"r.csv": apart})
    assert read(tmp_path / "r.csv").values.tolist() == [4, 3, 5]
    write(tmp_path, {"r.csv": "\n" + apart + "3,4,five,6\n"})
    with pytest.raises(DataError, match=r"r\.csv:10: 'rating' is 'five'"):
        read(tmp_path / "r.csv")


def test_a_separator_as_one_types_it(tmp_path):
    write(tmp_path, {"r.txt": lines("||"), "t.txt": "a b\tc d\n"})
    assert read(tmp_path / "r.txt", separator="||").values.tolist() == [4, 3, 5]
    for name in ("\t", "\\t", "tab"):
        assert rows_of(read(tmp_path / "t.txt", separator=name)) == [("a b", "c d")]


GERMAN = "Kunde;Artikel;Bewertung;Datum\nZoë;7;4,5;31.12.2000\nAnn;7;3;1.1.2001\n"


@pytest.mark.parametrize(
    ("text", "how", "values", "times"),
    [
        (
            GERMAN.encode("latin-1"),
            {"user": "Kunde", "item": "Artikel", "rating": "Bewertung", "time": "Datum"},
            [3, 4.5],
            [978307200, 978220800],
        ),
        ("sep=;\nuser;item;rating\na;7;1\nb;7;2\n", {}, [1, 2], None),
        ("# from the till\nuser,item,rating\na,7,1\nb,7,2\n", {}, [1, 2], None),
        ("user,item,rating\ra,7,1\rb,7,2\r", {}, [1, 2], None),
        ("user,item,rating\r\r\na,7,1\r\r\nb,7,2\r\r\n", {}, [1, 2], None),
        ("a, 7, 1\nb, 7, 2\n", {}, [1, 2], None),
        ('"user"\t"item"\t"rating"\n"a"\t"one ""7"""\t"1"\n"b"\t"8"\t"2"\n', {}, [1, 2], None),
        ("5,1,10\n5,2,20\n6,1,30\n", {"user": 0, "item": 1, "rating": 2}, [10, 20, 30], None),
        (
            "user,item,day\na,7,20001231\nb,7,20010101\n",
            {"time": "day"},
            None,
            [978220800, 978307200],
        ),
    ],
)
def test_tables_as_newcomers_have_them(text, how, values, times, tmp_path):
    write(tmp_path, {"r.csv": text})
    found = read(tmp_path / "r.csv", **how)
    assert '"' not in "".join(found.catalogue.user_ids)
    assert values is None or found.values.tolist() == values
    assert times is None or found.times.tolist() == times


@pytest.mark.parametrize("name", ["purchased_at", "InvoiceDate", "order date", "EVENT_TIME"])
def test_a_time_is_found_by_a_word_of_its_name(name, tmp_path):
    write(tmp_path, {"r.csv": f"User-ID,ISBN,Book-Rating,format,{name}\na,7,4,x,2000-12-31\n"})
    found = read(tmp_path / "r.csv")
    assert (found.values.tolist(), found.times.tolist()) == ([4], [978220800])
    assert f"rating from 'Book-Rating', time from {name!r}; not used: 'format'" in described(found)


def test_what_is_assumed_and_what_is_odd_is_said(tmp_path):
    write(tmp_path, {"r.csv": "visitorid,event,itemid,at\n1,view,7,5\n2,buy,7,6\n3,buy,9,7\n"})
    said = described(read(tmp_path / "r.csv", time="at"))
    assert "user from 'visitorid', item from 'itemid', time from 'at'; not used: 'event'" in said
    assert "every user has one row: is the column of users another?" in said
    assert "all times lie in 1970: say time_format=... if they are dates" in said
    assert repr(read(tmp_path / "r.csv")) == "<3 interactions of 3 users with 2 items, times>"
    write(tmp_path, {"w.csv": "user,item\na,Prix € 0\nb,“x”\n".encode("cp1252")})
    found = read(tmp_path / "w.csv")
    assert set(found.catalogue.item_ids) == {"Prix € 0", "“x”"}
    assert "w.csv: read as Windows-1252" in found.notes


def test_frames_without_rows_or_with_lists_are_refused(tmp_path):
    empty = pl.DataFrame({"user": [], "item": []}, schema={"user": pl.Int64, "item": pl.Int64})
    empty.write_parquet(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"empty\.parquet: no rows in it"):
        read(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match=r"the frame, row 0: 'item' is .*; a list or an object"):
        from_frame(pl.DataFrame({"user": [1], "item": [[1, 2]]}))
    with pytest.raises(ParameterError, match="path=None: give a path, as a text"):
        read(None)
    with pytest.raises(ParameterError, match="item=False: interactions need both"):
        from_frame(pl.DataFrame({"user": [1], "item": [2]}), item=False)
    with pytest.raises(ParameterError, match="user=False: interactions need both"):
        read_split("a", "b", user=False)


BAD = {
    "no separator": (CSV, {"separator": ""}, "separator='': give a sign"),
    "a format of times that is none": (CSV, {"time_format": "%Q"}, "time_format='%Q'"),
    "a column that is not there": (
        CSV,
        {"user": "who"},
        r"user='who': r\.csv has no such column; it",
    ),
    "two that may be users": (
        "user,uid,item\n1,2,3\n",
        {},
        r"r\.csv:1: 'user' and 'uid' may both be the column of users; say user='user'",
    ),
    "no users": ("a,item\n1,2\n", {}, r"r\.csv:1: no column of users among 'a', 'item'; say user"),
    "a word for a rating": (CSV + "1,2,good,5\n", {}, r"r\.csv:5: 'rating' is 'good'; no rating"),
    "a rating far away": (CSV + "1,2,1e30,5\n", {}, r"r\.csv:5: 'rating' is '1e30'"),
    "a comma that may part thousands": (
        "user;item;rating\na;b;3,547\nb;b;1,200\n",
        {},
        r"r\.csv:2: 'rating' is '3,547' \(2 bad lines: 2, 3\); no rating; write it with a point",
    ),
    "one column for two": (CSV, {"user": 0, "item": 0}, "item=0: the same column as user"),
    "no header to speak of": (CSV, {"header": "no"}, "header='no': say True or False"),
    "a separator that is a number": (CSV, {"separator": 1}, "separator=1: give a text"),
    "no users at all": (CSV, {"user": False}, "user=False: interactions need both users and items"),
    "JSON": ('[{"user": 1}]\n', {}, r"r\.csv:1: no column of items among 'user'; say item="),
    "JSON of no objects": ("[1, 2]", {}, r"r\.csv: JSON that is no table .*; write a list of obj"),
    "JSON cut short": ('{"user": 1,', {}, r"r\.csv: JSON that is no table"),
    "JSON in JSON": (
        '{"user": 1, "item": 2, "rating": [3]}',
        {},
        r"'rating' is '\[3\]'; a list or",
    ),
    "JSON with a separator": ('{"user": 1, "item": 2}', {"separator": ","}, "r.csv is JSON, which"),
    "a workbook": (
        b"PK\x03\x04 xl/workbook.xml",
        {},
        r"r\.csv: a workbook of Excel; save the sheet",
    ),
    "no number": (CSV + "1,2,nan,5\n", {}, r"r\.csv:5: 'rating' is 'nan'"),
    "a time before 1970": (
        CSV + "1,2,3,-5\n",
        {},
        r"r\.csv:5: 'timestamp' is '-5'; before 1970 or",
    ),
    "a far time": (CSV + "1,2,3,99999999999\n", {}, r"r\.csv:5: .*before 1970 or after 2100"),
    "no user in a row": (CSV + ",2,3,4\n", {}, r"r\.csv:5: 'userId' is missing; 3 of 4 fields"),
    "more names than fields": (
        "user,item,rating,note\n1,2,3\n",
        {},
        r"r\.csv:1: 4 columns are named, and no row has more than 3 fields",
    ),
    "a row too short": (CSV + "1,2\n", {}, r"r\.csv:5: 'rating' is missing; 2 of 4 fields"),
    "a row too long": (CSV + "1,2,3,4,5\n", {}, r"r\.csv:5: 5 fields where 4 are usual"),
    "one field": ("hello\nworld\n", {}, r"r\.csv:1: 'hello' is one field; say what stands"),
    "empty": ("", {}, r"r\.csv: empty"),
    "a header alone": (CSV.splitlines()[0], {}, r"r\.csv: no rows in it"),
    "a column twice": (
        "user,user,item\n1,1,2\n",
        {},
        r"r\.csv:1: column 'user' stands there twice",
    ),
    "NUL": (CSV + "1,2\0,3,4\n", {}, r"r\.csv:5: a NUL character; if the file is UTF-16"),
    "an encoding that it is not in": (
        CSV.encode() + b"\xe4,2,3,4\n",
        {"encoding": "utf-8"},
        r"r\.csv:5: b'\\xe4' is not utf-8",
    ),
    "an encoding of no name": (CSV, {"encoding": "utf-88"}, "encoding='utf-88': Python knows none"),
    "a zip": (b"PK\x03\x04rest", {}, r"r\.csv: a zip; unpack it"),
    "half a gzip": (
        gzip.compress(CSV.encode())[:40],
        {},
        r"r\.csv: damaged, it cannot be unpacked",
    ),
    "a damaged parquet": (b"PAR1 and so on", {}, r"r\.csv: a damaged parquet file"),
    "open quotes": (CSV + '1,"2,3,4\n', {}, r"r\.csv:5: unexpected end of data; close the quotes"),
    "an inch": ("user,item,rating\n" + "a,b,3\n" * 60 + '1,5" nail,3\n', {}, r"r\.csv:62: a quote"),
    "a way that is none": (CSV, {"duplicates": "both"}, "duplicates='both': choose one of last"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_is_named_with_its_place_and_a_way_out(name, tmp_path):
    text, how, message = BAD[name]
    write(tmp_path, {"r.csv": text})
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "r.csv", **how)


def test_paths_that_are_none(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        read(tmp_path / "missing")
    with pytest.raises(DataError, match="is a folder with nothing; name the file"):
        read(tmp_path)
    write(tmp_path, {"a.csv": CSV, "b.csv": CSV})
    with pytest.raises(DataError, match=r"a folder with a\.csv, b\.csv; name the file"):
        read(tmp_path)
    with pytest.raises(DataError, match="items='nowhere': no such file"):
        read(tmp_path / "a.csv", items="nowhere")


@pytest.mark.parametrize("kind", [pl.Int8, pl.UInt8, pl.UInt32, pl.UInt64, pl.Int32, pl.Float64])
def test_ids_of_any_whole_type(kind):
    high = 2**63 + 5 if kind == pl.UInt64 else 127
    frame = pl.DataFrame({"user": pl.Series([high, 1, 0], dtype=kind), "item": [7, 7, 8]})
    found = from_frame(frame)
    assert found.catalogue.user_ids == ("0", "1", str(high))
    assert rows_of(found) == [("0", "8"), ("1", "7"), (str(high), "7")]
    if kind == pl.Int8:
        low = frame.with_columns(pl.Series("user", [127, -128, 0], dtype=kind))
        assert set(from_frame(low).catalogue.user_ids) == {"127", "-128", "0"}


def test_ids_that_grow_beyond_the_first_rows(tmp_path):
    rows = [("1", "5", 1, 2)] * 300 + [("9999999999", "x", 4.5, 3), ("01", "5", 2, 4)]
    write(tmp_path, {"r.csv": "user,item,rating,time\n" + lines(",", rows)})
    found = read(tmp_path / "r.csv")
    assert found.catalogue.user_ids == ("01", "1", "9999999999")
    assert found.catalogue.item_ids == ("5", "x")
    assert found.values.tolist() == [2, 1, 4.5]
