"""Package metadata and dependencies; tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
CUDA = ["jax[cuda13]"]
DOCS = ["myst-parser>=5.0", "pydata-sphinx-theme>=0.24", "sphinx>=9.0"]
EXPORT = ["flatbuffers"]
PLOTS = ["matplotlib"]
HUB = ["huggingface_hub>=1.0"]
SERVING = ["fastapi>=0.165", "prometheus_client", "uvicorn"]
SPARK = ["pandas>=2.2.0", "pyarrow>=18.0.0", "pyspark>=4.0.0"]  # And Java 17.
STORES = ["gcsfs>=2024.2.0", "s3fs>=2024.2.0"]
TENSORBOARD = ["tensorboardX"]
NOTEBOOKS = [*PLOTS, "equinox>=0.13", "ipykernel", "jupytext", "nbclient", "nbformat"]
WANDB = ["wandb>=0.20"]
MLFLOW = ["mlflow-skinny>=3.0"]
COMPILERS = ["jax[tpu,cuda13-local]", "nvidia-cuda-nvcc"]  # of programs for devices that are not there
TEST = [*EXPORT, *PLOTS, *SERVING, *TENSORBOARD, "beartype", "httpx", "hypothesis", "pytest", "pytest-xdist", "ruff"]

setup(
  name="jaxrec",
  version=re.search(r'__version__ = "(.+)"', (HERE / "jaxrec" / "__init__.py").read_text())[1],
  description="Sequential recommendation across domains in JAX: models, kernels, data pipelines and experiments.",
  long_description=(HERE / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  license="Apache-2.0",
  python_requires=">=3.11.5",  # Before it `re` misreads possessive groups, and with them quoted fields.
  entry_points={"console_scripts": ["jaxrec = jaxrec.cli.__main__:main"]},
  packages=find_packages(include=["jaxrec*", "pallas_kernels*"]),
  package_data={"jaxrec": ["py.typed", "serving/server/page.html"], "pallas_kernels": ["py.typed"]},
  install_requires=[  # tests/test_oldest_versions.py installs exactly these.
    "absl-py>=2.1.0",
    "flax>=0.12.7",
    "grain>=0.2.12",
    "jax>=0.10.2",
    "jaxtyping>=0.3.6",
    "ml_collections>=1.1.0",
    "numpy>=2.0.0",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.11.22",
    "polars>=1.36.1",
    "tqdm>=4.66.3",
  ],
  extras_require={
    "docs": DOCS,
    "export": EXPORT,
    "plots": PLOTS,
    "serving": SERVING,
    "spark": SPARK,
    "stores": STORES,
    "tensorboard": TENSORBOARD,
    "wandb": WANDB,
    "mlflow": MLFLOW,
    "hub": HUB,
    "notebooks": NOTEBOOKS,
    "test": TEST,
    "tpu": ["jax[tpu]"],
    "cuda13": CUDA,
    "gpu": CUDA,  # The name of before.
    "compilers": COMPILERS,
  },
  classifiers=[
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Typing :: Typed",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
  ],
)
