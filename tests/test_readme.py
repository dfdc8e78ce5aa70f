"""README can be followed: its tree is the package's, its commands parse, its Python compiles, links lead somewhere."""

from __future__ import annotations

import ast
import importlib
import re
import runpy
import shlex
from pathlib import Path

import pytest
import typer

import depthjepa
from depthjepa.cli import app
from depthjepa.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("results/*.md"), *ROOT.glob("releases/*.md")]
)
README = (ROOT / "README.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    """The contents of the fences of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The words of each line in ```bash fences, comments left out."""
    lines = [line for block in blocks(text, "bash") for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def anchor(heading: str) -> str:
    """A heading's name in an address, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower().replace("`", "")).replace(" ", "-")


def test_the_tree_is_the_package_s() -> None:
    tree = runpy.run_path(str(ROOT / "tools" / "tree.py"))["tree"]()
    assert tree in README, "README's tree is another one: python tools/tree.py --write"


def test_every_folder_of_the_package_says_what_it_is() -> None:
    for file in (ROOT / "src" / "depthjepa").rglob("__init__.py"):
        assert ast.get_docstring(ast.parse(file.read_text())), f"{file} has no docstring"


def test_commands_of_readme_are_known_with_their_options_and_keys() -> None:
    group = typer.main.get_command(app)
    found = commands(README)
    assert len(found) >= 8
    for program, name, *words in found:
        assert program == "depthjepa"
        command = group.commands[name]  # type: ignore[attr-defined]
        options = {flag for parameter in command.params for flag in parameter.opts if flag.startswith("--")}
        assert {word for word in words if word.startswith("--")} <= options, words
        if name == "train":
            load_config(words[0], [word for word in words[1:] if re.match(r"[a-z_]+\.[a-z_]+=", word)])


@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_of_readme_compiles_and_names_what_there_is(code: str) -> None:
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "depthjepa":
            assert hasattr(depthjepa, node.attr)
        if isinstance(node, ast.Import):
            assert all(importlib.util.find_spec(alias.name) for alias in node.names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        name, _, part = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{target} is not there"
        if part:
            headings = [anchor(line.lstrip("#")) for line in file.read_text().splitlines() if line.startswith("#")]
            assert part in headings, f"{target}: {file.name} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_results_that_a_page_names_are_kept(page: Path) -> None:
    for name in re.findall(r"`results/([\w.*/-]+)`", page.read_text()):
        assert list((ROOT / "results").glob(name.rstrip("/"))), f"results/{name} is not there"


def test_contributing_names_files_and_folders_that_are_there() -> None:
    """Files called `my…` are the reader's own."""
    named = re.findall(r"`((?:src|tests|tools)/[\w/.-]+)`", (ROOT / "CONTRIBUTING.md").read_text())
    there = [name for name in named if not Path(name).name.startswith("my")]
    assert len(there) > 10
    assert not [name for name in there if not (ROOT / name).exists()]
