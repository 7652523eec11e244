"""Quotation marks, separators, encodings and line ends of delimited text."""

import time

import numpy as np
import pytest
from raw_files import KUAIRAND_HEAD, ML1M_MOVIES, ML1M_RATINGS, TAOBAO, TMALL_HEAD, read, rows, write

from jaxrec.data.preparation.prepare import reader_parameters
from jaxrec.data.sources import reading, records

PLAYS = 'u1\ta1\tPlain\t10\nu2\ta5\t"45\t12\nu2\ta4\tEnd\t31\nu2\ta6\t72"\t32\n'


def table(tmp_path, text, name="a.csv", **options):
  return read("table", write(tmp_path, {name: text}) / name, **options)


@pytest.mark.parametrize("chunk_bytes", [40, 1 << 20])
def test_marks_inside_a_field_are_text(tmp_path, monkeypatch, chunk_bytes):
  monkeypatch.setattr(reading, "CHUNK_BYTES", chunk_bytes)
  text = 'user,item,timestamp,title\nu1,i1,10,12" Remixes\nu1,i2,20,"a, ""b"""\nu2,i3,10,7" Single\nu2,i4,20,a"b"\n'
  log = table(tmp_path, text, title="title")
  assert rows(log, "user", "item") == [("u1", "i1"), ("u1", "i2"), ("u2", "i3"), ("u2", "i4")]
  assert log.items["title"].to_list() == ['12" Remixes', 'a, "b"', '7" Single', 'a"b"']


def test_marks_that_would_swallow_lines_are_refused_and_can_be_text(tmp_path):
  options = {"header": False, "names": "user,item,artist,timestamp", "separator": "\\t"}
  with pytest.raises(ValueError, match=r"a\.csv: line 2: a quotation mark opens a field that ends 2 line\(s\) below"):
    table(tmp_path, PLAYS, **options)
  assert rows(table(tmp_path, PLAYS, quote="", **options), "item") == [("a1",), ("a5",), ("a4",), ("a6",)]


def test_line_breaks_inside_quoted_fields_are_counted_in_a_warning(tmp_path, caplog):
  options = {"header": False, "names": "user,item,artist,timestamp", "separator": "\\t", "quote": '"'}
  assert len(table(tmp_path, PLAYS, **options).events) == 2
  assert "2 line breaks are inside quotation marks" in caplog.text


@pytest.mark.parametrize(
  "text, message",
  [
    ('u,i,1,"A\nb"\nu,j,x2,"q"\n', "line 4: column 'timestamp' holds 'x2', needs Int64"),
    ('u,i,1,"A\nb"\nu,j,1433221332117,"q"\n', "line 4: column 'timestamp': 1433221332117 is not a time"),
    ('u,i,1,"A"\nu,j,2\n', r"line 3: 3 column\(s\) separated by ','"),
    ('u,i,1,"A"\nu,j,2,B,C\n', r"line 3: 5 column\(s\)"),
    ('u,i,1,"A"\nu,"",2,B\n', "line 3: column 'item' holds '', needs text"),
    (
      'u,i,1,A\nu,j,2,"Weird" Al\n',
      "line 3: a field begins with a quotation mark, but ' .*' follows the mark that closes it",
    ),
    ('u,i,1,"A\nb"\nu,j,2,"B\nu,k,3,C\n', "line 4: a field begins with a quotation mark, but is never closed"),
    ("u,i,1,A\n\nu,j,2,B\n", r"line 3: 1 column\(s\)"),
    ("u,i,1,A\nu,j\r,2,B\n", "line 3: holds a carriage return that ends no line"),
    ("u,i,1,A\nu,j\0,2,B\n", "line 3: holds a byte 0"),
    (b"u,i,1,A\nu,j,2,\xc9\n", r"line 3: column 'title' holds '\\xc9', which is not UTF-8"),
  ],
)
@pytest.mark.parametrize("chunk_bytes, title", [(16, "title"), (1 << 20, "title"), (1 << 20, None)])
def test_an_error_names_the_physical_line(tmp_path, monkeypatch, chunk_bytes, title, text, message):
  monkeypatch.setattr(reading, "CHUNK_BYTES", chunk_bytes)
  with pytest.raises(ValueError, match=rf"a\.csv: {message}"):
    text = text if isinstance(text, bytes) else text.encode()
    table(tmp_path, b"user,item,timestamp,title\n" + text, title=title)


def test_one_long_and_one_short_row_do_not_make_up_for_each_other(tmp_path):
  with pytest.raises(ValueError, match=r"line 3: 3 column\(s\)"):
    table(tmp_path, "user,item,timestamp,x\nu,i,1,x\nu,i,2\nu,i,3,x,x\n")


@pytest.mark.parametrize("separator", ["::", "||", ", ", "§", "\t|\t"])
@pytest.mark.parametrize("quoted", [False, True])
def test_separators_of_several_characters_work_with_a_header_and_with_marks(tmp_path, separator, quoted):
  mark = '"' if quoted else ""
  lines = [["user", "item", "timestamp"], ["u1", f"{mark}i:|,1{mark}", "10"], ["u2", "i2", "20"]]
  log = table(tmp_path, "".join(separator.join(line) + "\n" for line in lines), separator=separator)
  assert rows(log, "user", "item", "timestamp") == [("u1", "i:|,1", 10), ("u2", "i2", 20)]


def test_a_separator_of_several_characters_may_be_quoted(tmp_path):
  log = table(tmp_path, 'user::item::timestamp\nu::"a::b"::3\n', separator="::")
  assert rows(log, "item") == [("a::b",)]


@pytest.mark.parametrize("separator", ["", '"', "a\n"])
def test_a_separator_that_separates_nothing_is_refused(tmp_path, separator):
  with pytest.raises(ValueError, match="separator=.* must be one or more characters"):
    table(tmp_path, "user,item,timestamp\nu,i,1\n", separator=separator)


def test_a_single_colon_does_not_separate(tmp_path):
  ratings = ML1M_RATINGS.replace("3::978302109", "3::97:302109")
  raw = write(tmp_path, {"ratings.dat": ratings, "movies.dat": ML1M_MOVIES})
  with pytest.raises(ValueError, match=r"ratings\.dat: line 2: column 'timestamp' holds '97:302109', needs Int64"):
    read("movielens-1m", raw)


@pytest.mark.parametrize("end", ["\r", "\r\n", "\n"])
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_lines_end_in_any_of_three_ways(tmp_path, end, name):
  text = end.join(["user,item,timestamp,title", "u1,i1,10,A", 'u2,i2,20,"B"', ""])
  log = table(tmp_path, text, name, title="title")
  assert rows(log, "user", "item", "timestamp") == [("u1", "i1", 10), ("u2", "i2", 20)]
  assert log.items["title"].to_list() == ["A", "B"]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "utf-8-sig"])
@pytest.mark.parametrize("chunk_bytes", [7, 1 << 20])
def test_other_encodings_are_read(tmp_path, monkeypatch, encoding, chunk_bytes):
  monkeypatch.setattr(reading, "CHUNK_BYTES", chunk_bytes)
  monkeypatch.setattr(reading, "_MAX_CHUNKS_PER_LINE", 20)
  text = "user,item,timestamp\nJosé,café,10\nZoë,naïf,20\n".encode(encoding)
  assert rows(table(tmp_path, text, encoding=encoding), "user", "item") == [("José", "café"), ("Zoë", "naïf")]


def test_text_in_another_encoding_is_named_with_line_and_column(tmp_path):
  text = b'"User-ID";"ISBN"\n"27";"3499\xdc6"\n"28";"7"\n'
  options = {"user": "User-ID", "item": "ISBN", "timestamp": None, "separator": ";"}
  with pytest.raises(
    ValueError, match=r"line 2: column 'ISBN' holds '3499\\xdc6', which is not UTF-8; give the encoding"
  ):
    table(tmp_path, text, **options)
  assert rows(table(tmp_path, text, encoding="latin-1", **options), "item") == [("3499Ü6",), ("7",)]


@pytest.mark.parametrize(
  "options, message",
  [
    ({"encoding": "utf-9"}, "encoding='utf-9' is not known"),
    ({"encoding": "zlib"}, "encoding='zlib' is not known"),
    ({"quote": "'"}, 'quote="\'" is not known'),
    ({"encoding": "ascii"}, "line 1: the text is not ascii"),
  ],
)
def test_unknown_formats_are_named(tmp_path, options, message):
  with pytest.raises(ValueError, match=message):
    table(tmp_path, "user,item,timestamp\né,i,1\n", **options)


def test_utf16_is_recognised(tmp_path):
  with pytest.raises(ValueError, match=r"a\.csv: line 1: begins with the mark of UTF-16; give encoding='utf-16'"):
    table(tmp_path, "user,item,timestamp\nu,i,1\n".encode("utf-16"))


def test_a_header_is_not_read_as_an_event(tmp_path):
  with pytest.raises(ValueError, match="line 1: holds the names of the columns; give header=True"):
    table(tmp_path, "user,item\nu,i\n", header=False, names="user,item", timestamp=None)


def test_a_header_may_be_quoted_and_hold_line_breaks(tmp_path):
  log = table(tmp_path, '"user","the\nitem",timestamp\nu,i,1\nu,j,x\n', item="the\nitem", timestamp=None)
  assert rows(log, "item") == [("i",), ("j",)]
  with pytest.raises(ValueError, match="line 4: column 'timestamp' holds 'x'"):
    table(tmp_path, '"user","the\nitem",timestamp\nu,i,1\nu,j,x\n', item="the\nitem")


def test_every_source_of_delimited_text_has_the_options():
  sources = [
    "movielens-100k",
    "movielens-1m",
    "movielens-20m",
    "amazon-ratings",
    "kuairand-csv",
    "taobao",
    "tmall",
    "table",
  ]
  assert [source for source in sources if not {"quote", "encoding"} <= set(reader_parameters(source))] == []


@pytest.mark.parametrize(
  "source, files",
  [
    ("taobao", {"UserBehavior.csv": TAOBAO.replace("1,2268318", '"1",2268318', 1)}),
    ("tmall", {"user_log_format1.csv": TMALL_HEAD + '"1",2,3,4,,0829,0\n'}),
    ("amazon-ratings", {"ratings_A.csv": '"1",B1,5.0,1000000000\n2,B1,5.0,1000000000\n'}),
    ("kuairand-csv", {"log_standard_a.csv": KUAIRAND_HEAD + '"1",183,0,0,1649412050158,1,1,0,0,0,0,0,0,9,0,0,0,0,4\n'}),
  ],
)
def test_every_csv_source_reads_quoted_fields_and_other_encodings(tmp_path, source, files):
  assert str(read(source, write(tmp_path, files)).events["user"][0]) == "1"
  write(tmp_path, {name: text.encode("utf-16") for name, text in files.items()})
  assert str(read(source, tmp_path, encoding="utf-16").events["user"][0]) == "1"


@pytest.mark.parametrize("line", ["u,i,1,title\n", '12" a,i,1,title\n', '"u","i",1,"t"\n'])
def test_an_unclosed_mark_is_found_in_linear_time(tmp_path, monkeypatch, line):
  monkeypatch.setattr(reading, "CHUNK_BYTES", 1 << 20)

  def seconds(count):
    raw = write(tmp_path, {"a.csv": f'user,item,timestamp,title\n{line}u,"i,2,x\n{line * count}'}) / "a.csv"
    start = time.process_time()
    with pytest.raises(ValueError, match=r"a\.csv: line 3: a field begins with a quotation mark, but"):
      read("table", raw)
    return time.process_time() - start

  seconds(100)
  small, large = min(seconds(20_000) for _ in range(3)), min(seconds(200_000) for _ in range(3))
  assert large < 40 * max(small, 0.005)


@pytest.mark.parametrize("seed", range(20))
def test_rows_are_those_of_a_reading_byte_by_byte(seed):
  rng = np.random.default_rng(seed)
  data = bytes(rng.choice(np.frombuffer(b'",\na', np.uint8), 60, p=[0.3, 0.2, 0.2, 0.3]))
  expected = _byte_by_byte(data)
  try:
    found, end = records.quotations(data, b",", is_end=True)
  except records.BadRow:
    assert expected is None
  else:
    assert end == len(data)
    ends = records.Rows(data, b",", found).ends.tolist()
    assert ends == expected


def _byte_by_byte(data):
  """The ends of the rows, or None if a mark does not close."""
  ends, at, is_start = [], 0, True
  while at < len(data):
    char = data[at : at + 1]
    if char == b'"' and is_start:
      at += 1
      while data[at : at + 2] == b'""' or data[at : at + 1] not in (b'"', b""):
        at += 2 if data[at : at + 2] == b'""' else 1
      if data[at + 1 : at + 2] not in (b",", b"\n", b"") or at >= len(data):
        return None
    elif char == b"\n":
      ends.append(at)
    is_start = char in b",\n"
    at += 1
  return ends if data.endswith(b"\n") and not (ends and ends[-1] != len(data) - 1) else [*ends, len(data)]
