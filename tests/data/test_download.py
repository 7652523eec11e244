"""Downloads from a local server that can break off, change its file, or be gone."""

import contextlib
import hashlib
import http.server
import io
import re
import tarfile
import threading
import zipfile

import pytest
from raw_files import ML1M_MOVIES, ML1M_RATINGS

from jaxrec.data.preparation import download
from jaxrec.data.preparation.prepare import prepare

CONTENT = bytes(range(256)) * 40
MD5 = "md5:" + hashlib.md5(CONTENT).hexdigest()


class Server(http.server.ThreadingHTTPServer):
  """Serves `content` at every path, at most `break_after` bytes per response; records the Range headers."""

  daemon_threads = True

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.content, self.tag, self.break_after, self.status = CONTENT, '"v1"', None, None
    self.ranges, self.resumable = [], True

  @property
  def url(self):
    return f"http://127.0.0.1:{self.server_port}/data.bin"


class Handler(http.server.BaseHTTPRequestHandler):
  """Supports Range and If-Range."""

  def do_GET(self):
    server = self.server
    server.ranges.append(self.headers.get("Range"))
    if server.status:
      return self.send_error(server.status)
    start, body = 0, server.content
    if self.headers.get("Range") and server.resumable and self.headers.get("If-Range") == server.tag:
      start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"]).group(1))
      if start >= len(body):
        return self.send_error(416)
      self.send_response(206)
      self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
    else:
      self.send_response(200)
    self.send_header("Content-Length", str(len(body) - start))
    self.send_header("ETag", server.tag)
    self.end_headers()
    self.wfile.write(body[start : None if server.break_after is None else start + server.break_after])

  def log_message(self, *_):
    pass


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
  monkeypatch.setattr(download.time, "sleep", lambda _: None)


@pytest.fixture
def server():
  with Server() as running:
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield running
    running.shutdown()


def names(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_and_checked_and_nothing_else_stays(server, tmp_path):
  path = download.download(server.url, tmp_path / "data.bin", checksum=MD5)
  assert path.read_bytes() == CONTENT
  assert names(tmp_path) == ["data.bin"]


def test_a_file_that_is_there_is_not_fetched_again(server, tmp_path):
  for _ in range(2):
    download.download(server.url, tmp_path / "data.bin")
  assert len(server.ranges) == 1


def test_a_broken_download_resumes(server, tmp_path):
  server.break_after = 4000
  path = download.download(server.url, tmp_path / "data.bin", checksum=MD5)
  assert path.read_bytes() == CONTENT
  assert server.ranges == [None, "bytes=4000-", "bytes=8000-"]


def test_a_later_call_resumes_too(server, tmp_path):
  server.break_after = 4000
  with pytest.raises(ConnectionError, match="the connection ended early"):
    download.download(server.url, tmp_path / "data.bin", tries=1)
  assert names(tmp_path) == ["data.bin.part", "data.bin.part.version"]
  server.break_after = None
  download.download(server.url, tmp_path / "data.bin", checksum=MD5)
  assert server.ranges == [None, "bytes=4000-"]
  assert names(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("change", ["version", "no ranges"])
def test_a_part_that_cannot_be_resumed_is_fetched_again(server, tmp_path, change):
  server.break_after = 4000
  with contextlib.suppress(ConnectionError):
    download.download(server.url, tmp_path / "data.bin", tries=1)
  server.break_after = None
  if change == "version":
    server.tag, server.content = '"v2"', CONTENT[::-1]
  else:
    server.resumable = False
  assert download.download(server.url, tmp_path / "data.bin").read_bytes() == server.content


def test_a_part_that_the_server_cannot_resume_is_fetched_again(server, tmp_path):
  (tmp_path / "data.bin.part").write_bytes(CONTENT)
  (tmp_path / "data.bin.part.version").write_text('"v1"')
  assert download.download(server.url, tmp_path / "data.bin", checksum=MD5).read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing(server, tmp_path):
  with pytest.raises(ValueError, match="md5 is [0-9a-f]{32}, needs 00: .*it was removed"):
    download.download(server.url, tmp_path / "data.bin", checksum="md5:00")
  assert names(tmp_path) == []


def test_a_missing_file_is_not_retried(server, tmp_path):
  server.status = 404
  with pytest.raises(ValueError, match="the server responds 404 .*pass raw="):
    download.download(server.url, tmp_path / "data.bin")
  assert len(server.ranges) == 1


def test_a_server_error_is_retried(server, tmp_path):
  server.status = 503
  with pytest.raises(ConnectionError, match="503"):
    download.download(server.url, tmp_path / "data.bin", tries=3)
  assert len(server.ranges) == 3


def test_offline_the_message_says_what_to_do(server, tmp_path):
  url = server.url
  server.shutdown()
  server.server_close()
  with pytest.raises(ConnectionError, match=r"is this machine offline\? Get http://127.* pass raw= \(--raw\)"):
    download.download(url, tmp_path / "data.bin", tries=1)


@pytest.mark.parametrize(
  "source, message", [("taobao", "needs a login"), ("tmall", "needs a login"), ("table", "your own file")]
)
def test_a_manual_download_is_explained(source, message):
  with pytest.raises(ValueError, match=f"{message}.*pass raw="):
    prepare(source)


@pytest.mark.parametrize(
  "source, options, message",
  [
    ("amazon-ratings", {}, "2014, 2018, 2023"),
    ("amazon-ratings", {"edition": "2018"}, "give a category"),
    ("merge", {}, "no known address"),
  ],
)
def test_a_download_without_category_or_edition_is_refused(source, options, message):
  with pytest.raises(ValueError, match=message):
    download.locate(source, **options)


def test_every_source_with_files_has_an_address_or_a_reason():
  from jaxrec.data.sources import SOURCES

  for source in SOURCES:
    if source in download._MANUAL:
      continue
    remote = download.locate(source, "Beauty", "2018" if source in ("amazon-ratings", "amazon-reviews") else None)
    assert remote.url.startswith("https://")


def test_without_raw_the_official_archive_is_fetched_unpacked_and_read(server, tmp_path, monkeypatch):
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, "w") as archive:
    archive.writestr("ml-1m/ratings.dat", ML1M_RATINGS)
    archive.writestr("ml-1m/movies.dat", ML1M_MOVIES)
  server.content = packed.getvalue()
  checksum = "sha256:" + hashlib.sha256(server.content).hexdigest()
  monkeypatch.setitem(download._FIXED, "movielens-1m", download.Remote(server.url, checksum, "ml-1m"))
  monkeypatch.setenv("JAXREC_CACHE", str(tmp_path / "cache"))
  assert [prepare("movielens-1m").num_events for _ in range(2)] == [3, 3]
  assert len(server.ranges) == 1
  assert names(tmp_path / "cache" / "movielens-1m") == ["data.bin", "unpacked"]


def test_a_damaged_archive_leaves_no_folder(tmp_path):
  packed = tmp_path / "a.tar.gz"
  with tarfile.open(packed, "w:gz") as archive:
    entry = tarfile.TarInfo("a/b")
    entry.size = 100_000
    archive.addfile(entry, io.BytesIO(bytes(i * i % 251 for i in range(100_000))))
  packed.write_bytes(packed.read_bytes()[:-200])
  with pytest.raises(ValueError, match=r"a\.tar\.gz: cannot be unpacked"):
    download.unpack(packed, tmp_path / "out")
  assert names(tmp_path) == ["a.tar.gz"]
