"""Every Python block of the documentation runs, without a warning, and prints what stands below it."""

import contextlib
import io
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<printed>.*?)^```\n)?", re.M | re.S)


@pytest.fixture(autouse=True)
def untouched():
    """Leave torch's defaults as they were."""
    dtype, state = torch.get_default_dtype(), torch.get_rng_state()
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)
    torch.set_rng_state(state)


def pages():
    return [page for page in sorted(DOCS.glob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_code_runs(page, monkeypatch):
    text, module = page.read_text(encoding="utf-8"), ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where Dynamo looks for what the code has defined
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("code"))
        code = compile("\n" * line + block["code"], str(page), "exec")  # so that errors name the line of the page
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, vars(module))
        if block["printed"] is not None:
            assert printed.getvalue() == block["printed"]


def test_all_pages_are_in_the_navigation():
    navigation = (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in DOCS.glob("*.md") if page.name not in navigation] == []
