"""Every code block of the kernels' README runs, in order, as a reader would type them."""

import re

from conftest import REPOSITORY


def test_the_code_of_the_readme_runs():
  text = (REPOSITORY / "pallas_kernels" / "README.md").read_text()
  names: dict = {}
  for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
    exec(compile(block, "README.md", "exec"), names)
  assert names["out"].shape == (2, 200, 2, 25)
  assert all(names["gradients"][name].any() for name in ("time", "position"))
