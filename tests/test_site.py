"""The pages as a site: built without a warning, of all pages, from this place alone; tutorials do what they say."""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from depthjepa import cost
from test_readme import FEW_SCENES, FEW_STEPS, FOLDERS, ROOT, TINY, commands, write_dino
from tiny_onnx import write_onnx
from tiny_runs import SETTINGS, Call

DOCS = ROOT / "docs"
OUTSIDE = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md"}
NOTEBOOK = DOCS / "tutorials" / "first-run.ipynb"


def pages_named(entries: Any) -> Iterator[str]:
    """The files in a navigation, in its order."""
    if isinstance(entries, str):
        yield entries
    for entry in entries.values() if isinstance(entries, dict) else entries if isinstance(entries, list) else ():
        yield from pages_named(entry)


def test_the_navigation_names_every_page_once() -> None:
    named = Counter(pages_named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert set(named) == {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} | OUTSIDE
    assert set(named.values()) == {1}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly; `--quiet` would not count warnings."""
    for needed in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not there: pip install 'depthjepa[docs]'")
    place = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr + ended.stdout
    return place


def test_the_site_fetches_nothing(site: Path) -> None:
    """Links lead anywhere; what a page loads lies beside it."""
    source = r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//"
    style = r"<link\b(?![^>]*rel=[\"']?(?:canonical|next|prev))[^>]*href=[\"']?(?:https?:)?//"
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    assert not [page.name for page in pages if re.search(f"{source}|{style}", page.read_text())]


def html_of(page: Path, site: Path) -> str:
    """What the site makes of a page, without what stands around it."""
    below = page.relative_to(DOCS if page.is_relative_to(DOCS) else ROOT)
    name = "index.html" if page.name == "README.md" else f"{page.stem}.html"
    return re.sub(r"(?s)^.*?<article|</article>.*$", "", (site / below.parent / name).read_text())


def test_pages_have_the_same_parts_on_github_and_in_the_site(site: Path) -> None:
    """Two readers of Markdown differ in lists without an empty line above, nested lists, and signs in tables."""
    markdown_it = pytest.importorskip("markdown_it")
    as_github = markdown_it.MarkdownIt("commonmark").enable("table")
    parts = ("li", "tr", "td", "pre", "code", "h1", "h2", "h3", "img")
    with_docstrings = {DOCS / "api.md", DOCS / "api-evaluation.md"}
    for page in {*DOCS.rglob("*.md"), *(ROOT / name for name in OUTSIDE)} - with_docstrings:
        there, here = as_github.render(page.read_text()), html_of(page, site)
        counted = [{part: len(re.findall(rf"<{part}[ >]", text)) for part in parts} for text in (there, here)]
        assert counted[0] == counted[1], page


def test_all_public_functions_are_in_the_api(site: Path) -> None:
    import depthjepa

    text = html_of(DOCS / "api.md", site)
    headings = set(re.findall(r'<h3 id="depthjepa[\w.]*\.(\w+)"', text))
    assert set(depthjepa.__all__) - {"evaluation"} <= headings
    of_evaluation = set(re.findall(r'<h3 id="depthjepa[\w.]*\.(\w+)"', html_of(DOCS / "api-evaluation.md", site)))
    assert set(depthjepa.evaluation.__all__) - {"Encode"} == of_evaluation


# Commands and Python of a tutorial are run one after the other in one folder. What is added to a command that begins
# so; where the page gives the key itself, the page's value counts, unless it takes long (SHORTER).
SMALL = (*TINY, *FEW_STEPS)
ADDED = {
    "train demo": (*SETTINGS, *FEW_STEPS, *FEW_SCENES),
    "train": SMALL,
    "compare": (*FEW_SCENES, "evaluation.segment_steps=4"),
    **dict.fromkeys(("probe", "show", "diagnose", "report", "predict", "teach", "convert"), ()),
}
SHORTER = {
    "train.steps=300": ("train.steps=5",),
    "data.image_size=224": ("data.image_size=112",),
    "model.size=small": ("model.width=32", "model.depth=2", "model.heads=2"),
    "init.frozen_steps=200": ("init.frozen_steps=2",),
    "init.thaw_steps=200": ("init.thaw_steps=2",),
}


def write_anything(place: Path) -> Path:
    """A small Depth Anything of random weights, as transformers saves one."""
    transformers = pytest.importorskip("transformers")
    from test_teachers_huggingface import CONFIGS

    transformers.AutoModelForDepthEstimation.from_config(CONFIGS["anything"]()).save_pretrained(place)
    return place


# What stands for the reader's own, by its name in the tutorials, beside README's.
OWN: dict[str, Callable[[Path], Path]] = {
    "NAME.onnx": write_onnx,
    "DINO_FOLDER": write_dino,
    "BACKBONE": write_dino,
    "DEPTH_ANYTHING": write_anything,
}
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))


def shortened(words: list[str]) -> list[str]:
    """The words of a command of depthjepa, without its name, with what makes it take seconds."""
    given = [each for word in words for each in SHORTER.get(word, (word,))]
    keys = {word.partition("=")[0] for word in given}
    added = next(settings for start, settings in ADDED.items() if shlex.join(words).startswith(start))
    if words[0] == "compare" and "scenes" not in words:
        added = ()
    return [*given, *(setting for setting in added if setting.partition("=")[0] not in keys)]


@pytest.fixture
def readers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the folders that README speaks of."""
    for name, make in FOLDERS.items():
        make(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cost, "matmul_rate", lambda *_, **__: 1e11)
    return tmp_path


def steps(page: Path) -> list[tuple[str, str]]:
    """The fences of a page that are run: their languages and contents."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs(page: Path, readers_folder: Path, call: Call) -> None:
    for name, make in OWN.items():
        if name in page.read_text():
            make(readers_folder / name)
    names: dict[str, Any] = {}
    for language, text in steps(page):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
            continue
        for command in commands(f"```bash\n{text}```\n"):
            assert command[0] == "depthjepa", f"{command[0]} is not run here"
            status, _, errors = call(*shortened(command[1:]))
            assert status == 0, f"{shlex.join(command)}: {errors}"


def test_tutorials_are_the_five_of_the_navigation() -> None:
    named = pages_named(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(name for name in named if name.startswith("tutorials/")) == [
        page.relative_to(DOCS).as_posix() for page in TUTORIALS
    ]
    assert all(len(steps(page)) > 2 for page in TUTORIALS)


def test_the_notebook_is_the_page_s() -> None:
    made = runpy.run_path(str(ROOT / "tools" / "notebook.py"))["notebook"]()
    assert NOTEBOOK.read_text() == made, "the page has changed: python tools/notebook.py --write"


@pytest.mark.slow
def test_the_notebook_runs(readers_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code" and cell.source.startswith("!"):
            lines = [shlex.split(line[1:]) for line in cell.source.splitlines()]
            run = [f"!{shlex.join([words[0], *shortened(words[1:])])}\nassert _exit_code == 0" for words in lines]
            cell.source = "\n".join(run)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert (readers_folder / "report.html").is_file()
