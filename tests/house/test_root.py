"""The top level of the repository holds what it should hold, and nothing that a test or a command left behind."""

import subprocess

import pytest
from sources import ROOT

FOLDERS = {".ci", "benchmarks", "docs", "kernels", "notebooks", "tests", "tinyvit"}
FILES = {".gitignore", "LICENSE", "MANIFEST.in", "CITATION.cff", "pyproject.toml", "setup.py"}
PAGES = {"CHANGELOG.md", "CONTRIBUTING.md", "README.md", "SECURITY.md"}


def test_the_top_level_has_no_other_files() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout: Git does not know which files belong to it")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {name.split("/")[0] for name in listed.splitlines()} <= FOLDERS | FILES | PAGES
