"""Downloads of the official data sets into a cache: checksummed, resumable, complete or absent.

Downloads are not trusted: a warning names a file without a published checksum, whose SHA-256 is stored next to it; a
cached file is compared with its checksum each time; links in the cache are not followed; archives may not unpack to
more than `file_blocks.MAX_RATIO` times their size.
"""

from __future__ import annotations

import dataclasses
import http.client
import os
import pathlib
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

from absl import logging

from jaxrec.data.preparation import archives, private_files
from jaxrec.data.preparation.archives import digest, unpack
from jaxrec.data.sources import file_blocks

_BLOCK = 1 << 20
_MAX_UNSTATED_BYTES = 1 << 34  # Of a body that does not say its length.
_GROUPLENS = "https://files.grouplens.org/datasets/movielens"
_SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"
_MCAULEY = "https://mcauleylab.ucsd.edu/public_datasets/data"
_ZENODO = "https://zenodo.org/records/10439422/files"
_AUTOCDSR = "88486a2b17cad3fe9b40c0c5db685ff89375ee24"


@dataclasses.dataclass(frozen=True)
class Remote:
  """A file to download.

  url: address of the file.
  checksum: "md5:<hex>" or "sha256:<hex>" as published; None if the publisher states none.
  folder: the folder with the data in the archive; "" if the file is no archive.
  """

  url: str
  checksum: str | None = None
  folder: str = ""


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
_MANUAL = {
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
  """Returns the file or folder with the raw data of a source; downloads and unpacks it unless the cache has it.

  Args:
    source: a source name.
    name: Amazon only: the category in the publisher's spelling; the 5-core lists default to "Beauty".
    edition: Amazon ratings and reviews only: "2014", "2018" or "2023".
    cache: the folder to keep files in; None for `cache_root()`.
    report: called with a line of text before a download.

  Raises:
    ValueError: the source has to be downloaded by hand, or a file is damaged or was changed.
    ConnectionError: the server cannot be reached; the message says what to do.
  """
  remote = locate(source, name, edition)
  cached = pathlib.Path(cache or cache_root()) / source
  file = cached / (edition or "") / urllib.parse.urlparse(remote.url).path.rsplit("/", 1)[1]
  if not remote.folder:
    return download(remote.url, file, checksum=remote.checksum, report=report)
  unpacked = cached / "unpacked"
  if not unpacked.is_dir():
    unpack(download(remote.url, file, checksum=remote.checksum, report=report), unpacked)
  if not (unpacked / remote.folder).is_dir():
    raise ValueError(f"{unpacked}: has no folder {remote.folder}; remove it, and {file}, and try again")
  archives.check_unpacked(unpacked)
  return unpacked / remote.folder


def cache_root() -> pathlib.Path:
  """Returns the folder for downloads and prepared data: $JAXREC_CACHE, by default ~/.cache/jaxrec."""
  return pathlib.Path(os.environ.get("JAXREC_CACHE") or pathlib.Path.home() / ".cache" / "jaxrec")


def locate(source: str, name: str | None = None, edition: str | None = None) -> Remote:
  """Returns the address of the data of a source.

  Raises:
    ValueError: the source has to be downloaded by hand, or `name` or `edition` is missing.
  """
  if source in _MANUAL:
    raise ValueError(f"source {source!r} {_MANUAL[source]}; then pass raw= (--raw) the file or its folder")
  if source in _FIXED:
    return _FIXED[source]
  editions = [known for known_source, known in _NAMED if known_source == source]
  if not editions:
    raise ValueError(f"source {source!r} has no known address; pass raw= (--raw)")
  if source == "amazon-5core":
    name, edition = name or "Beauty", None
  if (source, edition) not in _NAMED:
    raise ValueError(
      f"{edition=}: to download {source!r} choose one of {', '.join(map(str, editions))}; or pass raw= (--raw)"
    )
  if not name or not re.fullmatch(r"[\w-]+", name):
    raise ValueError(f"{name=}: to download {source!r} give a category, such as name='Beauty'; or pass raw= (--raw)")
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
  """Returns `path`, downloaded from `url` unless it exists. Until it is complete and checked it is named `<path>.part`.

  An interrupted download resumes, in this or a later call, if the server still has the same version.

  Args:
    url: address of the file, http or https.
    path: file to write.
    checksum: "md5:<hex>" or "sha256:<hex>"; None: the SHA-256 of the first download, which is stored next to the file,
      holds for later calls.
    tries: attempts before giving up.
    timeout: seconds without a byte after which a connection counts as broken.
    wait: seconds before the second try; doubles with each further one.
    report: called with a line of text before the download.

  Raises:
    ValueError: the checksum is wrong (the part is removed), the server refuses the request or sends an HTML page, its
      answer cannot be told from one that is cut, or a link is in the way.
    ConnectionError: offline, or the connection broke `tries` times (the part is kept).
  """
  path, report = pathlib.Path(path), report or (lambda _: None)
  if not url.startswith(("https://", "http://")):
    raise ValueError(f"{url}: needs an address that begins with https:// or http://")
  if path.exists():
    _verify_cached(path, checksum)
    return path
  path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
  part = path.with_name(path.name + ".part")
  report(f"downloading {url}")
  for attempt in range(tries):
    try:
      if _resume(url, part, timeout, is_checked=checksum is not None):
        break
    except urllib.error.HTTPError as error:
      if error.code < 500:
        raise ValueError(f"{url}: the server responds {error.code} {error.reason}; {_advice(url)}") from error
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
  _accept(part, checksum, url)
  part.rename(path)
  return path


def _advice(url: str) -> str:
  return f"Get {url} on another machine or later, and pass raw= (--raw) the unpacked file or its folder"


def _resume(url: str, part: pathlib.Path, timeout: float, is_checked: bool) -> bool:
  """Appends the missing bytes to `part`; returns whether it is complete."""
  version_file = _version_file(part)
  size, version = _size(part), private_files.read_text(version_file)
  headers = {"User-Agent": "jaxrec"}
  if size and version:
    headers |= {"Range": f"bytes={size}-", "If-Range": version}
  try:
    with _opener().open(urllib.request.Request(url, headers=headers), timeout=timeout) as response:
      resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {size}-")
      total = _total_bytes(response, size if resumed else 0, url, is_checked)
      version = response.headers.get("ETag") or response.headers.get("Last-Modified")
      if not resumed:
        version_file.unlink(missing_ok=True)
      if version and not version.startswith("W/"):  # A weak ETag does not promise the same bytes.
        private_files.write_text(version_file, version)
      with private_files.open_to_write(part, append=resumed) as stream:
        _copy(response, stream, part.parent, total, url)
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
  return total is None or _size(part) == total


class _Redirects(urllib.request.HTTPRedirectHandler):
  """Follows redirects, but not from https to http."""

  def redirect_request(self, request, response, code, message, headers, new_url):
    if request.full_url.startswith("https://") and not new_url.startswith("https://"):
      raise ValueError(f"{request.full_url}: the server redirects to {new_url}, which is not encrypted")
    return super().redirect_request(request, response, code, message, headers, new_url)


def _opener() -> urllib.request.OpenerDirector:
  return urllib.request.build_opener(_Redirects)


def _size(part: pathlib.Path) -> int:
  return part.lstat().st_size if part.is_file() and not part.is_symlink() else 0


def _total_bytes(response, start: int, url: str, is_checked: bool) -> int | None:
  """Returns the size that the file will have; None if the body says itself where it ends, or a checksum will tell."""
  length = response.headers.get("Content-Length")
  if length is not None:
    if not length.strip().isdigit():
      raise ValueError(f"{url}: the server says Content-Length: {length!r}, needs a number of bytes; {_advice(url)}")
    return start + int(length)
  if not getattr(response, "chunked", False) and not is_checked:
    raise ValueError(
      f"{url}: the server states no length and the publisher no checksum, so a broken connection could not be noticed;"
      f" {_advice(url)}"
    )
  return None


def _copy(response, stream, folder: pathlib.Path, total: int | None, url: str) -> None:
  """Copies a body that fits the disk."""
  free, copied = shutil.disk_usage(folder).free, 0
  if total is not None and total - stream.tell() > free:
    raise ValueError(f"{url}: has {total} bytes, but {folder} has {free} bytes free")
  while block := response.read(_BLOCK):
    if not copied and not stream.tell() and file_blocks.is_html(block):
      raise ValueError(
        f"{url}: the server sends an HTML page, perhaps of a login or an error, not data; {_advice(url)}"
      )
    copied += len(block)
    if total is None and copied > _MAX_UNSTATED_BYTES:
      raise ValueError(f"{url}: sends more than {_MAX_UNSTATED_BYTES} bytes without saying how many will come")
    stream.write(block)


def _version_file(part: pathlib.Path) -> pathlib.Path:
  return part.with_name(part.name + ".version")


def _digest_file(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + ".sha256")


def _accept(part: pathlib.Path, checksum: str | None, url: str) -> None:
  """Compares a complete part with its checksum, or warns that there is none and keeps its SHA-256."""
  if checksum is None:
    sha256 = digest(part, "sha256")
    logging.warning("%s has no published checksum: what arrived is taken as it is, with SHA-256 %s", url, sha256)
    private_files.write_text(_digest_file(part.with_name(part.name.removesuffix(".part"))), sha256)
  elif problem := _difference(part, checksum):
    part.unlink()
    _version_file(part).unlink(missing_ok=True)
    raise ValueError(f"{url}: {problem}: the download is damaged or the file has changed; it was removed")
  _version_file(part).unlink(missing_ok=True)


def _verify_cached(path: pathlib.Path, checksum: str | None) -> None:
  kept = private_files.read_text(_digest_file(path))
  checksum = checksum or (f"sha256:{kept}" if kept else None)
  if checksum is not None and (problem := _difference(path, checksum)):
    raise ValueError(f"{path}: {problem}: the file in the cache is damaged or was changed; remove it and try again")


def _difference(path: pathlib.Path, checksum: str) -> str | None:
  kind, _, expected = checksum.partition(":")
  if kind not in ("md5", "sha256"):
    raise ValueError(f"{checksum=} must start with md5: or sha256:")
  actual = digest(path, kind)
  return None if actual == expected else f"{kind} is {actual}, needs {expected}"
