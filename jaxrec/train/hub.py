"""Finished runs on a Hugging Face hub: a repository of models that holds what it takes to use, check and cite a run.

Neither side is ever half written: a push is one commit, a pull appears when all of it is there and its hashes agree.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any, Protocol, runtime_checkable

from absl import logging

from jaxrec.data.whole_folder import whole_folder
from jaxrec.train.identity import CONFIG_FILE, DATA_FILE
from jaxrec.train.model_card import CARD_FILE, model_card
from jaxrec.train.task import FINAL, SELECT

README = "README.md"  # Of the repository: the model card.
MANIFEST = "files.json"
FILES = (
  CONFIG_FILE, DATA_FILE, "summary.json", "metrics.jsonl", "changes.json", "curves.png",
  *(f"{phase}/{name}" for phase in (SELECT, FINAL) for name in ("result.json", "started_from.json")),
)  # fmt: skip
"""What is pushed in addition to card and checkpoints. `report.html` is left out because it names users."""


@runtime_checkable
class Hub(Protocol):
  """What pushing and pulling need of `huggingface_hub.HfApi`."""

  def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
    """Makes a repository of models."""
    ...

  def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, delete_patterns: list[str]) -> Any:
    """Commits a folder at once."""
    ...

  def snapshot_download(self, repo_id: str, *, revision: str | None, local_dir: str) -> str:
    """Writes the files of a revision into a folder."""
    ...


def hub() -> Hub:
  """Returns the hub of Hugging Face, with the token that its own tools keep.

  Raises:
    ValueError: huggingface_hub is not installed.
  """
  try:
    import huggingface_hub
  except ImportError as error:
    raise ValueError("huggingface_hub is not installed: pip install 'jaxrec[hub]'") from error
  return huggingface_hub.HfApi()


def push_run(workdir: str, repo: str, *, private: bool = True, api: Hub | None = None) -> list[str]:
  """Commits a finished run to a repository, which is made if it is not there, and returns its files.

  The card becomes README.md. Files of an earlier push that the run does not have are removed by the same commit.

  Args:
    workdir: of a finished run.
    repo: "owner/name".
    private: whether a new repository is private.
    api: the hub; None is that of Hugging Face.

  Raises:
    FileNotFoundError: the run is not finished.
    ValueError: huggingface_hub is not installed.
  """
  api = hub() if api is None else api
  card = model_card(workdir)
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(temporary, "run")
    names = _copy(pathlib.Path(workdir), folder)
    (folder / README).write_text(card, encoding="utf-8")
    manifest = {name: _hash(folder / name) for name in names}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    api.create_repo(repo, private=private, exist_ok=True)
    message = f"Run {os.path.basename(os.path.abspath(workdir))}"
    api.upload_folder(repo_id=repo, folder_path=str(folder), commit_message=message, delete_patterns=["*"])
  return [README, MANIFEST, *names]


def pull_run(repo: str, workdir: str, *, revision: str | None = None, api: Hub | None = None) -> list[str]:
  """Writes a run of a repository into a new folder, and returns its files.

  The folder appears when all files are there and have the hashes that were pushed. To evaluate or to serve the run, its
  data have to be where its config says; the fingerprint in data.json is compared then.

  Args:
    repo: "owner/name".
    workdir: a folder that does not exist yet.
    revision: branch, tag or commit; None is the main branch.
    api: the hub; None is that of Hugging Face.

  Raises:
    FolderExistsError: the folder exists.
    ValueError: the repository holds no run, or a file is missing, other than what was pushed, or outside of the folder.
  """
  api = hub() if api is None else api
  with whole_folder(pathlib.Path(workdir), overwrite=False) as folder, tempfile.TemporaryDirectory() as temporary:
    api.snapshot_download(repo, revision=revision, local_dir=temporary)
    source = pathlib.Path(temporary)
    names = _checked(source, repo)
    for name in names:
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.move(source / name, folder / name)
    shutil.move(source / README, folder / CARD_FILE)
  logging.info("%s: %d files of %s", workdir, len(names) + 1, repo)
  return [CARD_FILE, *names]


def _copy(workdir: pathlib.Path, folder: pathlib.Path) -> list[str]:
  """Copies what is pushed, and returns its names."""
  found = [name for name in FILES if (workdir / name).is_file()]
  for phase in (SELECT, FINAL):
    checkpoints = (workdir / phase / "checkpoints").rglob("*")
    found += sorted(path.relative_to(workdir).as_posix() for path in checkpoints if path.is_file())
  for name in found:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(workdir / name, folder / name)
  return found


def _checked(source: pathlib.Path, repo: str) -> list[str]:
  """Returns the names of the manifest, whose files are all as they were pushed."""
  if not (source / MANIFEST).is_file() or not (source / README).is_file():
    raise ValueError(
      f"{repo} holds no run of jaxrec: {MANIFEST} or {README} is missing; it is written by `jaxrec push`"
    )
  try:
    manifest = json.loads((source / MANIFEST).read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{repo}: {MANIFEST} is no JSON ({error}); push the run again") from error
  for name, digest in manifest.items():
    path = source / name
    if os.path.isabs(name) or ".." in pathlib.PurePosixPath(name).parts:
      raise ValueError(f"{repo}: {MANIFEST} names {name!r}, which is outside of the run")
    if not path.is_file() or path.is_symlink():
      raise ValueError(f"{repo}: {name} is missing; push the run again")
    if _hash(path) != digest:
      raise ValueError(f"{repo}: {name} is not what was pushed; push the run again, or pull an earlier --revision")
  return list(manifest)


def _hash(path: pathlib.Path) -> str:
  with open(path, "rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
