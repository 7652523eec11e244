"""Files and servers that mean harm: bombs, numbers without end, links, pages instead of data."""

import contextlib
import hashlib
import io
import os
import tarfile
import time
import tracemalloc
import zipfile

import jax
import numpy as np
import pytest
from raw_files import field, packed, shards, write
from test_download import CONTENT, MD5, server  # noqa: F401

from jaxrec import parallel
from jaxrec.data.preparation import archives, download
from jaxrec.data.preparation.prepare import prepare
from jaxrec.data.sources import file_blocks
from jaxrec.data.sources.crc32c import masked_crc
from jaxrec.data.sources.tfrecord import varints


@pytest.fixture(autouse=True)
def little_is_free(monkeypatch):
  monkeypatch.setattr(file_blocks, "_FREE_BYTES", 1 << 20)
  monkeypatch.setattr(download.time, "sleep", lambda _: None)


def sealed(example):
  """The record of an example with right checksums."""
  size = len(example).to_bytes(8, "little")
  checksums = [int(crc).to_bytes(4, "little") for crc in masked_crc([size, example])]
  return size + checksums[0] + example + checksums[1]


@pytest.mark.parametrize(
  "source, name",
  [("table", "a.csv.gz"), ("amazon-reviews", "r.json.gz"), ("kuairand-1k", "training/partition_0.tfrecord.gz")],
)
def test_a_gzip_bomb_is_refused(tmp_path, source, name):
  write(tmp_path, {name: b"1,1,1\n" * 1_000_000})
  raw = tmp_path if source == "kuairand-1k" else tmp_path / name
  with pytest.raises(ValueError, match=r"\.gz: (unpacks to more than 200 times its size|line 1: not a JSON)"):
    prepare(source, raw)


def test_a_file_with_many_like_rows_that_is_no_bomb_is_read(tmp_path):
  text = "user,item,timestamp\n" + "".join(f"{i % 97},{i % 89},{i}\n" for i in range(200_000))
  assert prepare("table", write(tmp_path, {"a.csv.gz": text}) / "a.csv.gz").num_events == 200_000


def test_one_long_record_among_short_ones_takes_memory_for_its_bytes_only():
  records = [bytes(50_000), *[b"abc" * 10] * 20_000]
  tracemalloc.start()
  masked_crc(records)
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 40 * sum(map(len, records))


def test_checksums_are_those_of_a_byte_by_byte_computation():
  rng = np.random.default_rng(0)
  records = [rng.bytes(int(length)) for length in (0, 1, 4, 59, 60, 61, 63, 64, 65, 128, 1000, 5000)]
  assert masked_crc(records).tolist() == [_masked_crc_of(record) for record in records]
  assert masked_crc([]).tolist() == []


def _masked_crc_of(record):
  crc = 0xFFFFFFFF
  for byte in record:
    crc ^= byte
    for _ in range(8):
      crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
  crc ^= 0xFFFFFFFF
  return (((crc >> 15) | (crc << 17 & 0xFFFFFFFF)) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize(
  "example",
  [
    b"\x80" * 400_000 + b"\x01",
    field(1, field(1, field(1, b"sequence_data") + field(2, field(3, field(1, b"\x80" * 50))))),
  ],
)
def test_a_varint_without_end_is_refused_at_once(tmp_path, example):
  start = time.process_time()
  with pytest.raises(ValueError, match="record 1: is not a tf.train.Example .*varint"):
    prepare("kuairand-1k", shards(tmp_path, training=sealed(example)))
  assert time.process_time() - start < 1


def test_varints_of_one_byte_take_memory_for_their_values_only():
  data = np.frombuffer(packed([5] * 500_000), np.uint8)
  tracemalloc.start()
  assert varints(data).tolist()[:2] == [5, 5]
  peak = tracemalloc.get_traced_memory()[1]
  tracemalloc.stop()
  assert peak < 40 * len(data)
  with pytest.raises(ValueError, match="longer than 10 bytes"):
    varints(np.array([0x80] * 10 + [1], np.uint8))


def test_an_archive_bomb_is_refused_and_leaves_nothing(tmp_path):
  with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("a/b", bytes(5 << 20))
  with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
    entry = tarfile.TarInfo("a/b")
    entry.size = 5 << 20
    archive.addfile(entry, io.BytesIO(bytes(entry.size)))
  for name in ("a.zip", "b.tar.gz"):
    with pytest.raises(ValueError, match=rf"{name}: cannot be unpacked .*more than 200 times"):
      download.unpack(tmp_path / name, tmp_path / "out")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "b.tar.gz"]


def test_empty_and_encrypted_archives_are_refused(tmp_path):
  (tmp_path / "empty.zip").write_bytes(b"PK\x05\x06" + bytes(18))
  with zipfile.ZipFile(tmp_path / "locked.zip", "w") as archive:
    archive.writestr("a", "hello")
  data = bytearray((tmp_path / "locked.zip").read_bytes())
  data[6] |= 1
  data[data.find(b"PK\x01\x02") + 8] |= 1
  (tmp_path / "locked.zip").write_bytes(data)
  for name in ("empty", "locked"):
    with pytest.raises(ValueError, match=rf"{name}\.zip: cannot be unpacked"):
      download.unpack(tmp_path / f"{name}.zip", tmp_path / "out")


def test_a_changed_file_in_an_unpacked_folder_is_found(tmp_path):
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
    archive.writestr("a/b.csv", "hello")
  folder = archives.unpack(tmp_path / "a.zip", tmp_path / "out")
  archives.check_unpacked(folder)
  (folder / "a" / "b.csv").write_text("hallo")
  with pytest.raises(ValueError, match=r"b\.csv: is not as it was unpacked"):
    archives.check_unpacked(folder)
  (folder / "a" / "b.csv").unlink()
  with pytest.raises(ValueError, match="out: is not as it was unpacked"):
    archives.check_unpacked(folder)


def test_a_page_instead_of_data_is_refused(server, tmp_path):  # noqa: F811
  server.content = b"<html>Please log in</html>"
  with pytest.raises(ValueError, match="the server sends an HTML page"):
    download.download(server.url, tmp_path / "data.bin")


def test_without_a_checksum_a_warning_comes_and_later_files_must_be_equal(server, tmp_path, caplog):  # noqa: F811
  path = download.download(server.url, tmp_path / "data.bin")
  assert "has no published checksum" in caplog.text
  assert hashlib.sha256(CONTENT).hexdigest() in caplog.text
  assert download.download(server.url, path) == path
  path.write_bytes(CONTENT[:-1])
  with pytest.raises(ValueError, match=r"data\.bin: sha256 is .*the file in the cache is damaged or was changed"):
    download.download(server.url, path)


def test_a_cached_file_is_compared_with_its_checksum(server, tmp_path):  # noqa: F811
  (tmp_path / "data.bin").write_bytes(b"something else")
  with pytest.raises(ValueError, match=r"data\.bin: md5 is .*, needs .*in the cache"):
    download.download(server.url, tmp_path / "data.bin", checksum=MD5)


@pytest.mark.parametrize("ending", [".part", ".part.version"])
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_links_in_the_cache_are_not_followed(server, tmp_path, ending, kind):  # noqa: F811
  victim = tmp_path / "victim"
  victim.write_text("precious")
  (os.symlink if kind == "symbolic" else os.link)(victim, tmp_path / f"data.bin{ending}")
  with contextlib.suppress(ValueError):  # A version is taken away, a part is refused.
    download.download(server.url, tmp_path / "data.bin")
  assert (tmp_path / "data.bin").exists() == (ending != ".part")
  assert victim.read_text() == "precious"


@pytest.mark.parametrize("length, message", [("abc", "Content-Length: 'abc'"), (None, "states no length")])
def test_a_body_whose_end_cannot_be_known_is_refused(server, tmp_path, monkeypatch, length, message):  # noqa: F811
  handler, send = server.RequestHandlerClass, server.RequestHandlerClass.send_header

  def send_header(self, name, value):
    if name != "Content-Length" or length is not None:
      send(self, name, length if name == "Content-Length" else value)

  monkeypatch.setattr(handler, "send_header", send_header)
  with pytest.raises(ValueError, match=message):
    download.download(server.url, tmp_path / "data.bin")


def test_a_file_larger_than_the_disk_is_refused(server, tmp_path, monkeypatch):  # noqa: F811
  monkeypatch.setattr(download.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
  with pytest.raises(ValueError, match="has 10240 bytes, but .* has 1000 bytes free"):
    download.download(server.url, tmp_path / "data.bin")


def test_only_http_is_fetched_and_https_stays_encrypted(tmp_path):
  with pytest.raises(ValueError, match="needs an address that begins with https://"):
    download.download("file:///etc/hostname", tmp_path / "a")
  request = download.urllib.request.Request("https://example.org/a")
  with pytest.raises(ValueError, match="redirects to http://example.org/b, which is not encrypted"):
    download._Redirects().redirect_request(request, None, 302, "", {}, "http://example.org/b")


@pytest.mark.parametrize("name", ["..", "a/b", "a%2f..", "a?b", ""])
def test_a_category_cannot_name_another_address(name):
  with pytest.raises(ValueError, match="give a category"):
    download.locate("amazon-ratings", name, "2018")


def test_the_coordinator_listens_on_the_address_it_was_given(monkeypatch):
  calls = []
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: False)
  monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments, **options: calls.append(options))
  parallel.initialize("127.0.0.1:1234", 2, 0)
  monkeypatch.setenv("JAX_COORDINATOR_BIND_ADDRESS", "10.0.0.1:1234")
  parallel.initialize("service:1234", 2, 0)
  assert [call["coordinator_bind_address"] for call in calls] == ["127.0.0.1:1234", "10.0.0.1:1234"]
