"""What MkDocs is told beyond mkdocs.yml, so that one set of pages reads on GitHub and as a site.

README and its like lie outside of docs/: they become pages beside those of docs/, and links between the two lead there.
A link to any other file outside of docs/ stays as it is, and the strict build refuses it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[1]
OUTSIDE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff")
LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s#]+)")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name headings as GitHub does; MkDocs's own names differ where signs stand between words."""
    config.mdx_configs["toc"]["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside of docs/."""
    for name in OUTSIDE:
        files.append(File.generated(config, name, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Turn links between docs/ and what lies outside into those of the site."""
    here = page.file.src_uri if page.file.src_uri in OUTSIDE else f"docs/{page.file.src_uri}"

    def of_site(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), found[1]))
        if not target.startswith("docs/") and target not in OUTSIDE:
            return found[1]
        return posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(of_site, markdown)
