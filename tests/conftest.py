"""What every test relies on: a CPU, a compilation cache, checked shapes, and where data and golden files are."""

import gc
import importlib.metadata
import os
import sys
import types
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
MOST_MAPPINGS = 25_000  # A module may add as many again.
DATA_DIR = Path(os.environ.pop("JAXREC_DATA", REPOSITORY.parent / "shared" / "data"))  # Programs would read it too.
PYTHON_PATH = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests")])  # Of the programs that tests start.

# Before the first import of jax, and inherited by the subprocesses that tests start.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(REPOSITORY / ".cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")  # Programs of tests are many and small.
os.environ.setdefault("MPLBACKEND", "agg")
# Most of the time goes into compiling programs that run once or twice. Values differ by rounding only.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
AS_USERS_COMPILE = {}  # Options of a program whose very instructions are looked at.
COMPILER = ["--xla_cpu_parallel_codegen_split_count=1"]  # A small program in one piece: a sixth less time of compiling.
if importlib.metadata.version("jaxlib").startswith("0.10."):  # Half the time of compiling; later versions have no flag.
  COMPILER.append("--xla_cpu_use_fusion_emitters=false")
  AS_USERS_COMPILE["xla_cpu_use_fusion_emitters"] = True
os.environ.setdefault("XLA_FLAGS", " ".join(COMPILER))

import flax.struct  # noqa: E402
import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402
from absl import flags  # noqa: E402


def pytest_addoption(parser):
  """Adds the folders that lie beside the project."""
  parser.addoption(
    "--golden-dir",
    type=Path,
    help="folder of reference outputs (default: ../shared/golden and ../shared/cases/golden); an absent one is skipped",
  )
  parser.addoption(
    "--data-dir",
    type=Path,
    default=DATA_DIR,
    help="folder of real data sets (default: $JAXREC_DATA, else ../shared/data); where it is absent their tests skip",
  )


def golden_folders(config) -> list[Path]:
  """The folders of golden files, whether they exist or not; a relative one starts at the repository."""
  given = config.getoption("--golden-dir")
  shared = REPOSITORY.parent / "shared"
  return [REPOSITORY / given] if given else [shared / "golden", shared / "cases" / "golden"]


@pytest.fixture(scope="session")
def data_dir(request) -> Path:
  """The folder that holds ml-1m/, kuairand-1k/, ..."""
  return existing_folder(request.config.getoption("--data-dir"), "--data-dir")


@pytest.fixture(autouse=True)
def shape_checks(request):
  """Switches the checks below off for a test marked `unchecked_shapes`, which wants to see our own error."""
  unchecked = request.node.get_closest_marker("unchecked_shapes") is not None
  jaxtyping.config.update("jaxtyping_disable", unchecked)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
  """Runs in this process draw no curves.png, which takes a fifth of the time of such small ones."""
  if "jaxrec.train.loop" in sys.modules:
    nothing = types.SimpleNamespace(plot=lambda *arguments: None)
    monkeypatch.setattr(sys.modules["jaxrec.train.loop"], "curves", nothing)


@pytest.fixture(autouse=True, scope="module")
def few_mappings():
  """Frees compiled programs before a process reaches the kernel's limit of memory mappings, where compilers abort.

  Each program takes a few mappings, a process may have 65,530 of them, and a test run compiles thousands of programs.
  """
  yield
  maps = Path("/proc/self/maps")
  if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPPINGS:
    jax.clear_caches()
    gc.collect()


def pytest_collection_finish():
  """Lets the garbage collector pass by what lives as long as the process: it takes a twentieth of the time else."""
  gc.collect()
  gc.freeze()
  gc.set_threshold(200_000, 50, 100)


@pytest.fixture
def optimized(monkeypatch):
  """Compiles as users do, in this process and in those that the test starts."""
  monkeypatch.delenv("JAX_DISABLE_MOST_OPTIMIZATIONS", raising=False)
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def call(monkeypatch, capsys):
  """Returns a function that calls a program with flags and returns its standard output."""

  def run(program, *arguments):
    argv = getattr(program, "rewrite_arguments", list)([program.__name__, *arguments])
    monkeypatch.setattr("sys.argv", argv)  # Overrides of a config are looked for there.
    values = flags.FlagValues()
    program.define_flags(values)
    values(argv)
    monkeypatch.setattr(program, "FLAGS", values)
    program.main(argv[:1])
    return capsys.readouterr().out

  return run


def xla_flags(num_devices: int) -> str:
  """The variable XLA_FLAGS of a program with this many simulated devices."""
  return f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={num_devices}"


def existing_folder(path: Path, option: str) -> Path:
  """Returns `path`, or skips the test that asked for it."""
  if not path.is_dir():
    pytest.skip(f"no folder {path}; name one with {option}")
  return path


def check_shapes_at_run_time():
  """Checks every annotation of our packages on every call: `Float[Array, "B N M"]` is then a promise.

  Pytree classes are exempt: JAX rebuilds them with shapes, specs, batched arrays or None as leaves.
  """
  flax.struct.dataclass = unchecked(flax.struct.dataclass)
  jax.tree_util.register_dataclass = unchecked(jax.tree_util.register_dataclass)
  checker = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
  jaxtyping.install_import_hook(["jaxrec", "pallas_kernels"], checker)


def unchecked(make_dataclass):
  """Wraps a class decorator so that the classes it makes are left alone by the import hook."""

  def wrapper(cls=None, *fields, **options):
    if cls is None:
      return lambda cls: wrapper(cls, *fields, **options)
    made = make_dataclass(cls, *fields, **options)
    made.__no_type_check__ = True
    return made

  return wrapper


check_shapes_at_run_time()
