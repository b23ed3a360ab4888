"""What the documents say is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import edgerun
from edgerun.cli.main import cli
from edgerun.kernels.formats import BY_NAME
from edgerun.kernels.kernel_code import SOURCES
from edgerun.kernels.kv_formats import OTHER_DECODE
from edgerun.models import FAMILIES

ROOT = Path(__file__).parent.parent


def test_cli_page_names_real_commands():
    import click

    text = (ROOT / "docs" / "cli.md").read_text()
    named = set(re.findall(r"`edgerun ([a-z]+)", text))
    assert isinstance(cli, click.Group)
    real = set(cli.list_commands(click.Context(cli)))
    assert named == real - {"chat"}, (named, real)


def test_ci_runs_the_readmes_test_command():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install -e '.[dev]' && .venv/bin/python -m pytest" in readme
    assert "-e '.[dev]'" in ci
    assert "-m pytest" in ci


def test_public_names_exist():
    for name in edgerun.__all__:
        assert getattr(edgerun, name) is not None


def test_every_architecture_is_named():
    page = (ROOT / "docs" / "formats.md").read_text()
    assert not [name for name in FAMILIES if f"`{name}`" not in page]


def test_every_kernel_has_its_builder():
    for name, module in SOURCES.items():
        source = (ROOT / "edgerun" / "kernels" / f"{module}.py").read_text()
        task, _, format = name.partition("_")
        one_for_all = format in BY_NAME and f"def build_{task}(isa" in source
        if name in OTHER_DECODE:
            one_for_all = "def build_attention_decode(ops: Ops, keys_format" in source
        assert one_for_all or f"def build_{name}(" in source


def test_a_file_is_read_in_one_sitting():
    long = {path.name for path in (ROOT / "edgerun").rglob("*.py") if path.read_text().count("\n") > 450}
    assert not long
