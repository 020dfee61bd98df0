"""What a release says about itself: one version, a changelog in a known form, a citation."""

import ast
import re
import tomllib

from sources import ROOT

import tinyvit


def test_the_version_stands_in_one_place() -> None:
    """Other files read it from the package: a second copy would be forgotten."""
    files = ["setup.py", "pyproject.toml", "CITATION.cff", "docs/conf.py", "README.md", "tinyvit/cli/group.py"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", tinyvit.__version__)
    assert not [name for name in files if f'"{tinyvit.__version__}"' in (ROOT / name).read_text("utf-8")]
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8")).get("project", {})


def test_every_file_of_the_package_is_packed() -> None:
    """What no pattern of setup.py matches would be missing in a wheel, where the tests of a checkout do not look."""
    source = ast.parse((ROOT / "setup.py").read_text("utf-8"))
    (data,) = (node.value for node in ast.walk(source) if isinstance(node, ast.keyword) and node.arg == "package_data")
    patterns = ast.literal_eval(data)["tinyvit"]
    files = [path for path in (ROOT / "tinyvit").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    names = [path.relative_to(ROOT / "tinyvit") for path in files if path.suffix not in (".py", ".md")]
    assert [name for name in names if name.parts[0] == "weights"]
    assert [name for name in names if not any(name.match(pattern) for pattern in patterns)] == []


def test_the_changelog_has_the_form_of_keep_a_changelog() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version) for version in versions[1:])
    kinds = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_has_what_the_format_requires() -> None:
    keys = set(re.findall(r"^([a-z-]+):", (ROOT / "CITATION.cff").read_text("utf-8"), re.MULTILINE))
    assert keys >= {"cff-version", "message", "title", "authors"}
