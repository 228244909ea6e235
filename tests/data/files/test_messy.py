"""Tables as exports leave them: ids with gaps, names of rows, padding, days apart from hours."""

import datetime
import json

import numpy as np
import polars as pl
import pytest
from layouts import rows_of, write

from fedlab.core import ParameterError
from fedlab.data import DataError, described, from_arrays, from_frame, read, read_asked, read_split

AFTERNOON = 978_307_200 + 13 * 3600 + 45 * 60  # 2001-01-01 13:45


def table(folder, text, **how):
    """What is read of a file with this text."""
    write(folder, {"r.csv": text})
    return read(folder / "r.csv", **how)


def test_whole_numbers_with_and_without_a_point_are_the_same_ids(tmp_path):
    found = table(tmp_path, "user,item\n12,7.0\n12.0,8.0\n3,7.0\n")
    assert found.catalogue.user_ids == ("3", "12")
    assert found.catalogue.item_ids == ("7", "8")
    assert "users are whole numbers, some written as 12.0: read as 12" in found.notes
    late = "user,item\n" + "5,1\n" * 300 + "5.0,2\n"  # beyond the rows that are looked at first
    assert table(tmp_path, late).catalogue.user_ids == ("5",)


@pytest.mark.parametrize("other", ["x1", "012", "2.5"])
def test_ids_with_a_point_stay_where_others_are_no_whole_numbers(other, tmp_path):
    found = table(tmp_path, f"user,item\n12,7\n12.0,8\n{other},7\n")
    assert set(found.catalogue.user_ids) == {"12", "12.0", other}
    assert "'12.0' and '12' are two users" in found.notes


def test_items_of_a_table_are_found_by_the_same_ids(tmp_path):
    write(tmp_path, {"items.csv": "item,title\n7.0,Tea\n,Gone\n8.0,Cup\n"})
    found = table(tmp_path, "user,item\n1,7\n1,8\n", items=tmp_path / "items.csv", missing="drop")
    assert found.catalogue.titles == ("Tea", "Cup")
    assert "items.csv: 1 rows are left out, which have no item (1)" in found.notes
    with pytest.raises(DataError, match=r"items\.csv:3: 'item' is missing; .* missing='drop'"):
        table(tmp_path, "user,item\n1,7\n1,8\n", items=tmp_path / "items.csv")
    write(tmp_path, {"items.csv": "item,title\n7,Tea\n,Gone\n7.0,Cup\n"})
    with pytest.raises(DataError, match=r"items\.csv:4: 'item' is '7\.0'; .* at items\.csv:2"):
        table(tmp_path, "user,item\n1,7\n", items=tmp_path / "items.csv", missing="drop")


@pytest.mark.parametrize(
    "word", ["", '""', "NA", "N/A", "#N/A", "<NA>", "NaN", "nan", "NaT", "null", "NULL", "None"]
)
@pytest.mark.parametrize("role", ["user", "item", "rating", "time"])
def test_a_field_that_holds_nothing_is_refused_or_left_out(role, word, tmp_path):
    names = ("user", "item", "rating", "time")
    row = ["2", "8", "5", "978300761"]
    row[names.index(role)] = word
    text = f"{','.join(names)}\n1,7,4,978300760\n{','.join(row)}\n1,8,3,978300762\n"
    with pytest.raises(DataError, match=rf"r\.csv:3: '{role}' is .* rows with missing='drop'"):
        table(tmp_path, text)
    found = table(tmp_path, text, missing="drop")
    assert rows_of(found) == [("1", "7"), ("1", "8")]
    assert (found.values.tolist(), found.times.tolist()) == ([4, 3], [978300760, 978300762])
    assert f"r.csv: 1 rows are left out, which have no {role} (1)" in described(found)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("user,item,rating\na,7,2\nb,9,3\n,,\n,,\n", 2),
        ("user\titem\r\na\t7\r\nb\t9\r\n\t\r\n\r\n", 1),
        ("user,item,price\na,7,2\nb,9,3\n,,5\n", 1),  # a sum below the table
        ("user,item,rating\na,7,2\nb,9,3\n\n\r\n\n", 0),  # blank lines are no rows
    ],
)
def test_rows_of_nothing_at_the_end_are_counted(tmp_path, text, count):
    found = table(tmp_path, text)
    assert rows_of(found) == [("a", "7"), ("b", "9")]
    note = f"r.csv: {count} rows at its end are left out, which have nothing"
    assert [n.startswith(note) for n in found.notes if "left out" in n] == [True] * bool(count)


def test_rows_of_nothing_are_counted_beside_those_left_out_and_in_a_table_of_items(tmp_path):
    (tmp_path / "items.csv").write_text("item,title\n7,Tea\n9,Cup\n,\n,\n,\n")
    text = "user,item\na,7\n,7\nb,9\n,\n"
    found = table(tmp_path, text, missing="drop", items=tmp_path / "items.csv")
    assert rows_of(found) == [("a", "7"), ("b", "9")]
    told = [note.partition(" are left out")[0] for note in found.notes if "left out" in note]
    assert told == ["r.csv: 1 rows at its end", "r.csv: 1 rows", "items.csv: 3 rows at its end"]
    with pytest.raises(DataError, match=r"r\.csv:3: 'user' is missing"):  # not at the end
        table(tmp_path, text)
    with pytest.raises(DataError, match=r"r\.csv: no rows in it"):
        table(tmp_path, "user,item\n,\n,\n")


def test_what_is_left_out_is_counted_and_lines_are_those_of_the_file(tmp_path):
    text = "user,item,rating\nNA,7,1\na,,NA\na,7,2\nb,9,3\n"
    found = table(tmp_path, text, missing="drop")
    note = "2 rows are left out, which have no user (1) or no item (1) or no rating (1)"
    assert f"r.csv: {note}" in found.notes
    whole = "user,item,rating\na,7,2\n"
    assert not any("left out" in n for n in table(tmp_path, whole, missing="drop").notes)
    with pytest.raises(DataError, match=r"r\.csv: no rows in it"):
        table(tmp_path, "user,item\nNA,7\nNA,8\n", missing="drop")
    with pytest.raises(ParameterError, match="missing='keep': choose one of refuse, drop"):
        table(tmp_path, whole, missing="keep")


DAYS = ["2024-01-01", "2024-02-31", "yesterday", "2024-01-04", "", "1812-01-01", "2024-01-07"]


def test_impossible_times_and_ratings_are_left_out_and_counted_as_well(tmp_path):
    rows = "".join(f"u{k % 3},{k},{'good' if k == 3 else k},{day}\n" for k, day in enumerate(DAYS))
    text = "user,item,rating,time\n" + rows
    found = table(tmp_path, text, missing="drop")
    assert {item for _, item in rows_of(found)} == {"0", "6"}
    why = "a rating that is none (1) or no time (1) or a time that is none (3)"
    assert f"r.csv: 5 rows are left out, which have {why}" in found.notes
    assert len(table(tmp_path, text, missing="drop", time=False)) == 6


def test_a_column_that_is_read_wrongly_is_no_reason_to_leave_out_its_rows(tmp_path):
    rows = "".join(f"a,{k},{day}/2/2024\n" for k, day in enumerate((1, 2, 31, 30)))
    with pytest.raises(DataError, match=r"r\.csv:2: .*\(4 bad lines: 2, 3, 4, 5\).*say how it is"):
        table(tmp_path, "user,item,time\n" + rows, missing="drop")
    with pytest.raises(DataError, match=r"r\.csv:4: .*\(2 bad lines: 4, 5\); not as") as caught:
        table(tmp_path, "user,item,time\n" + rows, missing="drop", time_format="%d/%m/%Y")
    assert "missing='drop'" not in str(caught.value)


@pytest.mark.parametrize("first", ["", "\n", "# made by hand\n"])
def test_the_first_bad_lines_are_named_at_once_with_how_many_there_are(first, tmp_path):
    days = ["2024-01-01" if k % 2 else "2024-13-01" for k in range(14)]
    rows = "".join(f"a,{k},{day}\n" for k, day in enumerate(days))
    at = 2 + first.count("\n")
    lines = ", ".join(str(at + k) for k in (0, 2, 4, 6, 8))
    with pytest.raises(DataError, match=rf"r\.csv:{at}: .*\(7 bad lines: {lines}, \.\.\.\)"):
        table(tmp_path, f"{first}user,item,time\n{rows}")
    long = "".join(f"a,{k}{',x,y' * (k % 300 == 299)}\n" for k in range(900))
    with pytest.raises(DataError, match=r"r\.csv:301: 4 fields .*\(3 bad lines: 301, 601, 901\)"):
        table(tmp_path, "user,item\n" + long)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("day of purchase", "2024-01-0{k}"),
        ("bought", "31/12/202{k}"),
        ("bought", "170406720{k}"),
        ("bought", "170406720{k}000"),
    ],
)
def test_times_of_another_name_are_told_of(name, text, tmp_path):
    rows = "".join(f"a,{k},{text.format(k=k)},{4006381333930 + k},{k}.5\n" for k in range(1, 9))
    whole = f"user,item,{name},ean13,price\n{rows}"
    (note,) = (n for n in table(tmp_path, whole).notes if "may be times" in n)
    assert note == f"r.csv: {name!r} may be times, but none are read; say time={name!r}"
    (told,) = (n for n in read_asked(f"{tmp_path}/r.csv").notes if "may be times" in n)
    assert told.endswith(f"; behind the file's name: '{tmp_path}/r.csv?time={name}'")
    assert not any("may be times" in n for n in table(tmp_path, whole, time=False).notes)
    timed = "user,item,time,sent on\na,7,2024-01-01,2024-01-02\n"
    assert not any("may be times" in n for n in table(tmp_path, timed).notes)


@pytest.mark.parametrize("lines", [True, False])
def test_objects_of_json_are_rows(lines, tmp_path):
    rows = [
        {"user_id": f"u{k % 2}", "sku": k, "time": f"2024-01-0{k}T05:00:00Z", "stars": k}
        for k in (1, 2, 3)
    ]
    text = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1)
    found = table(tmp_path, text)
    assert rows_of(found) == [("u0", "2"), ("u1", "1"), ("u1", "3")]
    assert found.values.tolist() == [2, 1, 3]
    assert "r.csv: JSON" in found.notes


def test_german_headings_are_known(tmp_path):
    text = "Kunde;Artikelnr;Bewertung;Datum\nK1;7;4,5;31.01.2024\nK2;7;3,0;01.02.2024\n"
    found = table(tmp_path, text)
    assert (found.values.tolist(), len(found.times)) == ([4.5, 3.0], 2)


def test_a_session_is_a_user_only_where_there_is_no_other(tmp_path):
    found = table(tmp_path, "session_id,user_id,item_id\ns1,ann,7\ns2,ann,8\n")
    assert found.catalogue.user_ids == ("ann",)
    assert "r.csv: user from 'user_id', item from 'item_id'; not used: 'session_id'" in found.notes
    alone = table(tmp_path, "session_id,item_id\ns1,7\ns2,8\n")
    assert alone.catalogue.user_ids == ("s1", "s2")


def test_a_split_leaves_rows_out_of_the_file_that_they_are_in(tmp_path):
    base, test = "user,item\n1,5\nNA,6\n1,7\n1,8\n", "user,item\nNA,9\n1,9\n"
    write(tmp_path, {"a.base": base, "a.test": test})
    split = read_split(tmp_path / "a.base", tmp_path / "a.test", missing="drop")
    assert rows_of(split.test) == [("1", "9")]
    assert len(split.train) + len(split.validation) == 3
    with pytest.raises(DataError, match=r"a\.base:3: 'user' is 'NA'"):
        read_split(tmp_path / "a.base", tmp_path / "a.test")


class Pandas:
    """As much of a frame of pandas as is asked for, its columns as pandas types them."""

    def __init__(self, **columns):
        self.held = {name: np.array(column) for name, column in columns.items()}
        self.columns = list(columns)

    def __getitem__(self, name):
        return self.held[name]


@pytest.mark.parametrize(
    "frame",
    [
        Pandas(user=[12.0, float("nan"), 3.0], item=["a", "b", "c"]),
        pl.DataFrame({"user": [12.0, None, 3.0], "item": ["a", "b", "c"]}),
        pl.DataFrame({"user": [12.0, float("nan"), 3.0], "item": ["a", "b", "c"]}),
    ],
)
def test_a_frame_whose_whole_ids_became_floats_for_a_gap(frame):
    with pytest.raises(DataError, match=r"the frame, row 1: 'user' is .* missing='drop'"):
        from_frame(frame)
    found = from_frame(frame, missing="drop")
    assert found.catalogue.user_ids == ("3", "12")
    assert "users are whole numbers, kept as floats: 12.0 is read as 12" in found.notes


def test_frames_and_arrays_with_words_or_none_for_nothing():
    for nothing in ("NA", "None", None):
        frame = pl.DataFrame({"user": ["a", nothing], "item": [1, 2]})
        assert from_frame(frame, missing="drop").catalogue.user_ids == ("a",)
        with pytest.raises(DataError, match="the frame, row 1: 'user' is"):
            from_frame(frame)
    found = from_arrays([1, None, 3], ["a", "b", None], [1, 2, 3], missing="drop")
    assert rows_of(found) == [("1", "a")]


@pytest.mark.parametrize(
    ("option", "value"), [("separator", ","), ("header", True), ("encoding", "utf-8")]
)
def test_what_parquet_does_not_need_is_refused(option, value, tmp_path):
    pl.DataFrame({"user": [1], "item": [2]}).write_parquet(tmp_path / "r.parquet")
    with pytest.raises(
        ParameterError, match=rf"{option}=.*r\.parquet is parquet, .*; leave {option}"
    ):
        read(tmp_path / "r.parquet", **{option: value})


def test_a_format_that_no_column_is_read_by_is_refused(tmp_path):
    day = datetime.date(2001, 1, 1)
    frame = pl.DataFrame({"user": [1], "item": [2], "day": [day]})
    frame.write_parquet(tmp_path / "r.parquet")
    with pytest.raises(ParameterError, match="time_format='%Y': the column holds times, not texts"):
        read(tmp_path / "r.parquet", time_format="%Y")
    with pytest.raises(ParameterError, match="time_format='%Y': no column of times is read"):
        read(tmp_path / "r.parquet", time=False, time_format="%Y")
    texts = frame.with_columns(day=pl.lit("01/02/2001"))
    texts.write_parquet(tmp_path / "r.parquet")
    assert read(tmp_path / "r.parquet", time_format="%d/%m/%Y").times.tolist() == [980985600]


def test_other_options_that_would_do_nothing_are_refused(tmp_path):
    with pytest.raises(ParameterError, match=r"header=True: r\.csv holds lists of items"):
        table(tmp_path, "1 2 3\n4 5 6 7\n", header=True)
    with pytest.raises(ParameterError, match=r"item_columns=.*: there is no table of"):
        table(tmp_path, "user,item\n1,2\n", item_columns={"title": "x"})
    with pytest.raises(ParameterError, match=r"item_columns=.*: there is no table of"):
        from_frame(pl.DataFrame({"user": [1], "item": [2]}), item_columns={"title": "x"})


@pytest.mark.parametrize(
    "text",
    [
        '"user" "item" "rating"\n"1" "ann" "green tea" 5\n"2" "bob" "cup" 4\n',
        '"user"\t"item"\t"rating"\n"1"\t"ann"\t"green tea"\t5\n"2"\t"bob"\t"cup"\t4\n',
        "user,item,rating\n1,ann,green tea,5\n2,bob,cup,4\n",
    ],
)
def test_names_of_rows_that_have_no_heading(text, tmp_path):
    """As R's write.table leaves them."""
    found = table(tmp_path, text)
    assert rows_of(found) == [("ann", "green tea"), ("bob", "cup")]
    assert found.values.tolist() == [5, 4]
    assert "r.csv: the first field has no heading: names of rows" in found.notes
    assert "not used: 'row name'" in described(found)


@pytest.mark.parametrize(
    "text",
    [
        "user,item,rating,\nann,tea,5,\nbob,cup,4,\n",
        "user,item,rating\nann,tea,5,\nbob,cup,4,\n",
        "ann,tea,5,\nbob,cup,4,\n",
        "ann::tea::5::\nbob::cup::4::\n",
        "user\titem\trating\t\nann\ttea\t5\t\nbob\tcup\t4\t\n",
        "user;item;rating;;;\nann;tea;5;;;\nbob;cup;4;;;\n",  # as spreadsheets write empty columns
    ],
)
def test_a_separator_at_the_end_of_each_line(text, tmp_path):
    found = table(tmp_path, text)
    assert rows_of(found) == [("ann", "tea"), ("bob", "cup")]
    assert found.values.tolist() == [5, 4]
    assert not found.columns.keys() - {"values"}
    assert "r.csv: a separator ends each line" in found.notes


def test_columns_without_a_heading_go_by_their_place(tmp_path):
    found = table(tmp_path, ",user,,item\n0,ann,x,tea\n1,bob,,cup\n")
    assert rows_of(found) == [("ann", "tea"), ("bob", "cup")]
    assert "not used: 'field 1', 'field 3'" in described(found)
    named = table(tmp_path, ",user,,item\n0,ann,x,tea\n1,bob,y,cup\n", item="field 3")
    assert rows_of(named) == [("ann", "x"), ("bob", "y")]
    more = table(tmp_path, "user;item;;\nann;tea\nbob;cup\n")  # headings of nothing
    assert rows_of(more) == [("ann", "tea"), ("bob", "cup")]
    assert "not used" not in described(more)


def test_a_line_too_long_is_still_refused(tmp_path):
    for text in ("user,item\na,b,\nc,d\n", "user,item\na,b\nc,d,e\n", "a,b,\nc,d,e,f\n"):
        with pytest.raises(DataError, match=r"r\.csv:\d: \d fields where \d are usual"):
            table(tmp_path, text)
    found = table(tmp_path, "user,item,rating,note\na,b,1,\nc,d,2,\n")  # a column of its own
    assert "not used: 'note'" in described(found)


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_columns_that_are_padded_with_spaces(ends, tmp_path):
    rows = ["user  item  rating", "  1    10  4  ", "  2     7  3"]
    found = table(tmp_path, ends.join([*rows, ""]))
    assert rows_of(found) == [("1", "10"), ("2", "7")]
    assert found.values.tolist() == [4, 3]
    assert rows_of(table(tmp_path, ends.join([*rows[1:], ""]))) == [("1", "10"), ("2", "7")]


@pytest.mark.parametrize(
    ("text", "how", "said"),
    [
        ("user,item,date,time\na,7,2001-01-01,13:45:00\n", {}, "'date' and 'time'"),
        ("user,item,Hour,OrderDate\na,7,13:45,01.01.2001\n", {}, "'OrderDate' and 'Hour'"),
        ("a,7,3,2001-01-01,13:45\n", {}, "field 4 and field 5"),
        ("a,7,13:45,2001-01-01\n", {"time": (3, 2)}, "field 4 and field 3"),
        ("user,item,d,h\na,7,2001-01-01,13:45\n", {"time": ("d", "h")}, "'d' and 'h'"),
        (
            "user,item,d,h\na,7,1/1/01,1:45 PM\n",
            {"time": ("d", "h"), "time_format": "%d/%m/%y %I:%M %p"},
            "'d' and 'h'",
        ),
    ],
)
def test_days_and_hours_in_two_columns(text, how, said, tmp_path):
    found = table(tmp_path, text, **how)
    assert found.times.tolist() == [AFTERNOON]
    assert f"time from {said}" in described(found)
    assert "not used" not in described(found)


def test_days_and_hours_of_frames():
    day, hour = datetime.datetime(2001, 1, 1), datetime.time(13, 45)
    for date in (day, day.date(), "2001-01-01"):
        for time in (hour, "13:45"):
            frame = pl.DataFrame({"user": [1], "item": [2], "date": [date], "time": [time]})
            assert from_frame(frame, time=("date", "time")).times.tolist() == [AFTERNOON]


def test_one_of_the_two_is_taken_where_it_is_asked_for(tmp_path):
    text = "user,item,date,time\na,7,2001-01-01,13:45:00\n"
    found = table(tmp_path, text, time="date")
    assert found.times.tolist() == [978307200]
    assert "time from 'date'; not used: 'time'" in described(found)
    assert "not used: 'date', 'time'" in described(table(tmp_path, text, time=False))
    opening = "user,item,opened,opens\na,7,2001-01-01,13:45:00\n"  # no name of a time
    assert not table(tmp_path, opening).columns


@pytest.mark.parametrize(
    ("text", "how", "message"),
    [
        (
            "user,item,day,time\na,7,1,13:45\n",
            {},
            r"r\.csv:2: 'time' is '13:45'; an hour without its day; name both .* time=\('date',",
        ),
        (
            "user,item,date,time\na,7,31/12/2000,13:45\n",
            {},
            r"'date' and 'time' is '31/12/2000 13:45'; no time; .* time_format='%d/%m/%Y %H:%M'",
        ),
        ("user,item,d,h\na,7,1,2\n", {"time": ("d", "d")}, "time=.*: twice the same column"),
        ("user,item,d,h\na,7,1,2\n", {"time": ("d",)}, "time=.*: name one column, or two"),
        ("user,item,d,h\na,7,1,2\n", {"time": ("d", "x")}, "time='x': r.csv has no such column"),
        (
            "user,item,date,time\na,7,2001-01-01,13:45\nb,7,2001-01-01\n",
            {},
            "r.csv:3: 'date' and 'time' is missing; 3 of 4 fields",
        ),
    ],
)
def test_days_and_hours_that_are_none(text, how, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        table(tmp_path, text, **how)


@pytest.mark.parametrize(
    ("text", "given", "ways"),
    [
        ("user,uid,item\n1,2,3\n", "", ["?user=user"]),
        ("Customer Email,What\na,7\n", "", ["?user=Customer Email&item=..."]),
        ("who,what\n1,2\n", "?header=True", ["?header=True&user=...&item=..."]),
        ("user,item,at\n1,2,x\n", "?user=user", ["?user=user&time=False"]),
        ("user,item,rating\n1,2,NA\n", "?rating=2", ["?rating=2&missing=drop", "?rating=False"]),
        ("user,item,day,time\na,7,1,13:45\n", "?time=time", ["?time=date,time", "?time=False"]),
        ("user,item,time\na,7,31/12/2000\n", "", ["?time_format=%d/%m/%Y", "?time=False"]),
    ],
)
def test_a_hint_says_how_an_option_is_written_in_a_text(text, given, ways, tmp_path):
    """Each is one that such a text takes, and it leads on."""
    write(tmp_path, {"r.csv": text})
    name = f"{tmp_path}/r.csv"
    with pytest.raises(DataError) as caught:
        read_asked(name + given)
    said = str(caught.value).partition("; behind the file's name: ")[2]
    assert all(repr(name + way) in said for way in ways)
    if ways[-1].endswith("False"):
        assert len(read_asked(name + ways[-1]))
    write(tmp_path, {"r.csv": "user,item\n1,2\n"})
    assert len(read_asked(name)) == 1


def test_a_hint_without_an_option_stays_as_it_is(tmp_path):
    write(tmp_path, {"r.csv": ""})
    with pytest.raises(DataError) as caught:
        read_asked(f"{tmp_path}/r.csv")
    assert "behind the file's name" not in str(caught.value)
    two = "user,item,d,h,a & b\na,7,2001-01-01,13:45,1\n"
    write(tmp_path, {"r.csv": two})
    assert read_asked(f"{tmp_path}/r.csv?time=d,h").times.tolist() == [AFTERNOON]
    assert read_asked(f"{tmp_path}/r.csv?rating=a %26 b").values.tolist() == [1]


def test_columns_that_one_has_to_have_are_proposed_and_not_guessed(tmp_path):
    text = "Order ID,Customer's Email,Product SKU,Product Name\n5,a@x.org,7,Tea\n"
    with pytest.raises(DataError) as caught:
        table(tmp_path, text)
    said = "no column of users and none of items among 'Order ID', "
    assert said in str(caught.value)
    way = """say user="Customer's Email" and item='Product SKU', by the names of columns"""
    assert str(caught.value).endswith(way)
    with pytest.raises(DataError) as caught:
        read_asked(f"{tmp_path}/r.csv")
    way = f"{tmp_path}/r.csv?user=Customer's Email&item=Product SKU"
    assert repr(way) in str(caught.value)
    assert rows_of(read_asked(way)) == [("a@x.org", "7")]


@pytest.mark.parametrize(
    ("texts", "ways"),
    [
        (["31/12/2000"], "time_format='%d/%m/%Y', or"),
        (["01/02/2000", "12/31/2000"], "time_format='%m/%d/%Y', or"),
        (["1-2-00 9:05"], "time_format='%d-%m-%y %H:%M' or time_format='%m-%d-%y %H:%M', or"),
        (["7/26/2023 22:06:00"], "time_format='%m/%d/%Y %H:%M:%S', or"),
        (["1/13/2023 1:45 PM"], "time_format='%m/%d/%Y %I:%M %p', or"),
        (["Jul 3, 2023"], "as in time_format='%d/%m/%Y %H:%M', or"),
    ],
)
def test_a_hint_says_how_times_are_written(texts, ways, tmp_path):
    rows = "".join(f'a,{k},"{text}"\n' for k, text in enumerate(texts))
    with pytest.raises(DataError) as caught:
        table(tmp_path, "user,item,time\n" + rows)
    assert f"no time; say how it is written, {ways}" in str(caught.value)
    if "as in" not in ways:
        form = ways.split("'")[1]
        found = table(tmp_path, "user,item,time\n" + rows, time_format=form)
        assert len(found.times) == len(texts)
    one_bad = "user,item,time\na,1,2000-12-31\nb,1,2000-13-31\n"
    with pytest.raises(DataError, match=r"r\.csv:3: 'time' is .*; no time; correct it, or leave"):
        table(tmp_path, one_bad)


def test_yes_and_no_are_ratings_of_one_and_none(tmp_path):
    found = table(tmp_path, "user,item,liked\na,7,TRUE\nb,7,false\n", rating="liked")
    assert found.values.tolist() == [1, 0]
    frame = pl.DataFrame({"user": ["a", "b"], "item": [7, 7], "liked": [True, False]})
    assert from_frame(frame, rating="liked").values.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"r\.csv:3: 'liked' is 'maybe'; no rating"):
        table(tmp_path, "user,item,liked\na,7,true\nb,7,maybe\n", rating="liked")
