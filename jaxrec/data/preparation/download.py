"""The official files of the data sets, fetched once into a cache: checked, resumable, complete or absent."""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import os
import pathlib
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
import zlib
from collections.abc import Callable

_BLOCK = 1 << 20
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_MCAULEY = "https://mcauleylab.ucsd.edu/public_datasets/data"
_ZENODO = "https://zenodo.org/records/10439422/files"
_AUTOCDSR = "88486a2b17cad3fe9b40c0c5db685ff89375ee24"


@dataclasses.dataclass(frozen=True)
class Remote:
  """A file on the net. `checksum` is "md5:…" or "sha256:…" as its publisher states it, None where there is none;
  `inside` is the folder of an archive that holds the data."""

  url: str
  checksum: str | None = None
  inside: str = ""


_FIXED = {
  "movielens-100k": Remote(f"{_GROUPLENS}/ml-100k.zip", "md5:0e33842e24a9c977be4e0107933c0723", "ml-100k"),
  "movielens-1m": Remote(f"{_GROUPLENS}/ml-1m.zip", "md5:c4d9eecfca2ab87c1945afe126590906", "ml-1m"),
  "movielens-20m": Remote(f"{_GROUPLENS}/ml-20m.zip", "md5:cd245b17a1ae2cc31bb14903e1204af3", "ml-20m"),
  "movielens-25m": Remote(f"{_GROUPLENS}/ml-25m.zip", "md5:6b51fb2759a8657d3bfcbfc42b592ada", "ml-25m"),
  "movielens-32m": Remote(f"{_GROUPLENS}/ml-32m.zip", "md5:d472be332d4daa821edc399621853b57", "ml-32m"),
  "kuairand-csv": Remote(f"{_ZENODO}/KuaiRand-1K.tar.gz", "md5:6b0b9c8222d67fcd4c676218edca3f1f", "KuaiRand-1K/data"),
  "kuairand-1k": Remote(
    f"https://github.com/snap-research/AutoCDSR/archive/{_AUTOCDSR}.tar.gz", None, f"AutoCDSR-{_AUTOCDSR}/data"
  ),
}
_NAMED = {
  ("amazon-ratings", "2014"): f"{_SNAP}/ratings_{{name}}.csv",
  ("amazon-ratings", "2018"): f"{_MCAULEY}/amazon_v2/categoryFilesSmall/{{name}}.csv",
  ("amazon-ratings", "2023"): f"{_MCAULEY}/amazon_2023/benchmark/0core/rating_only/{{name}}.csv.gz",
  ("amazon-reviews", "2014"): f"{_SNAP}/reviews_{{name}}_5.json.gz",
  ("amazon-reviews", "2018"): f"{_MCAULEY}/amazon_v2/categoryFilesSmall/{{name}}_5.json.gz",
  ("amazon-reviews", "2023"): f"{_MCAULEY}/amazon_2023/raw/review_categories/{{name}}.jsonl.gz",
  ("amazon-5core", None): "https://raw.githubusercontent.com/RUCAIBox/CIKM2020-S3Rec/master/data/{name}.txt",
}
_BY_HAND = {
  "taobao": "needs a login: get UserBehavior.csv.zip at https://tianchi.aliyun.com/dataset/649 and unpack it",
  "tmall": "needs a login: get data_format1.zip at https://tianchi.aliyun.com/dataset/42 and unpack it",
  "abxi": "is linked from https://github.com/DiMarzioBian/ABXI: get *_preprocessed.txt and map_item*.txt",
  "table": "is your own file",
}


def fetch(
  source: str,
  *,
  name: str | None = None,
  edition: str | None = None,
  cache: str | os.PathLike | None = None,
  report: Callable[[str], None] | None = None,
) -> pathlib.Path:
  """Returns the file or folder with the raw data of a source, downloaded and unpacked unless the cache has it.

  Args:
    source: a source name.
    name: of Amazon's files, the category as the publisher writes it ("Beauty"; the default of the 5-core lists).
    edition: of Amazon's ratings and reviews: "2014", "2018" or "2023".
    cache: the folder to keep files in; None = $JAXREC_CACHE, else ~/.cache/jaxrec.

  Raises:
    ValueError: the source cannot be fetched without a person; damaged files.
    ConnectionError: the file's home cannot be reached; the message says what to do.
  """
  remote = locate(source, name, edition)
  folder = pathlib.Path(cache or cache_root()) / source
  file = folder / (edition or "") / urllib.parse.urlparse(remote.url).path.rsplit("/", 1)[1]
  if not remote.inside:
    return download(remote.url, file, checksum=remote.checksum, report=report)
  unpacked = folder / "unpacked"
  if not unpacked.is_dir():
    unpack(download(remote.url, file, checksum=remote.checksum, report=report), unpacked)
  return unpacked / remote.inside


def cache_root() -> pathlib.Path:
  """Returns the folder for downloads and prepared data: $JAXREC_CACHE, by default ~/.cache/jaxrec."""
  return pathlib.Path(os.environ.get("JAXREC_CACHE") or pathlib.Path.home() / ".cache" / "jaxrec")


def locate(source: str, name: str | None = None, edition: str | None = None) -> Remote:
  """Returns where the data of a source live.

  Raises:
    ValueError: only a person can get them, or `name` or `edition` is missing.
  """
  if source in _BY_HAND:
    raise ValueError(f"source {source!r} {_BY_HAND[source]}; then pass raw= (--raw) the file or its folder")
  if source in _FIXED:
    return _FIXED[source]
  editions = [known for where, known in _NAMED if where == source]
  if not editions:
    raise ValueError(f"source {source!r} has no known home; pass raw= (--raw)")
  if source == "amazon-5core":
    name, edition = name or "Beauty", None
  if (source, edition) not in _NAMED:
    raise ValueError(
      f"{edition=}: to download {source!r} say which: {', '.join(map(str, editions))}; or pass raw= (--raw)"
    )
  if not name or "/" in name:
    raise ValueError(f"{name=}: to download {source!r} say which category, such as name='Beauty'; or pass raw= (--raw)")
  return Remote(_NAMED[source, edition].format(name=name))


def download(
  url: str,
  path: str | os.PathLike,
  *,
  checksum: str | None = None,
  tries: int = 4,
  timeout: float = 60.0,
  wait: float = 1.0,
  report: Callable[[str], None] | None = None,
) -> pathlib.Path:
  """Returns `path`, fetched from `url` unless it is there. Until it is complete and checked it is called `<path>.part`.

  An interrupted download goes on where it stopped, now or in a later call, if the server still has the same version.

  Args:
    checksum: "md5:<hex>" or "sha256:<hex>"; None checks the length only.
    tries: how often a broken connection is taken up again.
    timeout: seconds without a byte after which a connection counts as broken.
    wait: seconds before the second try, doubled before each further one.

  Raises:
    ValueError: the checksum is wrong (the part is removed), or the server says that there is no such file.
    ConnectionError: offline, or broken `tries` times (the part is kept).
  """
  path = pathlib.Path(path)
  if path.exists():
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + ".part")
  (report or (lambda _: None))(f"downloading {url}")
  for attempt in range(tries):
    try:
      if _continue(url, part, timeout):
        break
    except urllib.error.HTTPError as error:
      if error.code < 500:
        raise ValueError(f"{url}: the server answers {error.code} {error.reason}; {_advice(url)}") from error
      problem: Exception = error
    except (OSError, http.client.HTTPException) as error:
      problem = error
    else:
      problem = ConnectionError("the connection ended early")
    if attempt == tries - 1:
      raise ConnectionError(
        f"{url}: cannot be fetched ({problem}): is this machine offline? {_advice(url)}"
      ) from problem
    time.sleep(wait * 2**attempt)
  _check_sum(part, checksum, url)
  _version_file(part).unlink(missing_ok=True)
  part.rename(path)
  return path


def unpack(archive: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder with the contents of a .zip or .tar.gz; it appears complete or not at all.

  Raises:
    ValueError: the archive is damaged or of another kind.
  """
  folder.parent.mkdir(parents=True, exist_ok=True)
  unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
  try:
    if zipfile.is_zipfile(archive):
      with zipfile.ZipFile(archive) as packed:
        packed.extractall(unfinished)
    else:
      with tarfile.open(archive) as packed:
        packed.extractall(unfinished, filter="data")
    unfinished.rename(folder)
  except (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError) as error:
    raise ValueError(f"{archive}: cannot be unpacked ({error}); remove it and try again") from error
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
  return folder


def _advice(url: str) -> str:
  return f"Get {url} on another machine or later, and pass raw= (--raw) the unpacked file or its folder"


def _continue(url: str, part: pathlib.Path, timeout: float) -> bool:
  """Appends what is missing to `part`; returns whether it is complete."""
  have = part.stat().st_size if part.exists() else 0
  version = _version_file(part)
  headers = {"User-Agent": "jaxrec"}
  if have and version.exists():
    headers |= {"Range": f"bytes={have}-", "If-Range": version.read_text()}
  try:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
      resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
      total = _total(answer, have if resumed else 0)
      mark = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
      if not resumed:
        version.unlink(missing_ok=True)
      if mark and not mark.startswith("W/"):
        version.write_text(mark)
      with open(part, "ab" if resumed else "wb") as stream:
        shutil.copyfileobj(answer, stream, _BLOCK)
        stream.flush()
        os.fsync(stream.fileno())
  except urllib.error.HTTPError as error:
    error.close()
    if error.code != 416:
      raise
    part.unlink()
    return False
  except http.client.IncompleteRead:
    return False
  return total is None or part.stat().st_size == total


def _total(answer, start: int) -> int | None:
  length = answer.headers.get("Content-Length")
  return None if length is None else start + int(length)


def _version_file(part: pathlib.Path) -> pathlib.Path:
  return part.with_name(part.name + ".version")


def _check_sum(part: pathlib.Path, checksum: str | None, url: str) -> None:
  if checksum is None:
    return
  kind, _, need = checksum.partition(":")
  if kind not in ("md5", "sha256"):
    raise ValueError(f"{checksum=} needs to begin with md5: or sha256:")
  with open(part, "rb") as stream:
    have = hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
  if have != need:
    part.unlink()
    _version_file(part).unlink(missing_ok=True)
    raise ValueError(
      f"{url}: {kind} is {have}, needs {need}: the download is damaged or the file has changed; it was removed"
    )
