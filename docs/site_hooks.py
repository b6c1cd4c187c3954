"""Takes pages of the repository's root into the site, and makes the links between all pages work there."""

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", **{name: name for name in ("RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md")}}
"""Files of the root, and the pages of the site that they are."""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^):#]+)(#[^)]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root; the site's front page is `docs/index.md`."""
    for name, page in PAGES.items():
        if name == page:
            files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Rewrite the links of a page, which are those that work in the repository."""
    uri = page.file.src_uri
    folder = ROOT if uri in PAGES else (ROOT / "docs" / uri).parent

    def rewrite(link: re.Match[str]) -> str:
        text, target, anchor = link.groups("")
        path = Path(os.path.normpath(folder / target))
        if not path.exists():
            return link.group()  # MkDocs complains
        if path.is_relative_to(ROOT / "docs"):
            page = path.relative_to(ROOT / "docs").as_posix()
        else:
            page = PAGES.get(path.name, "")
        if files.get_file_from_path(page) is None:
            return text  # code, or results: they are in the repository only
        return f"[{text}]({os.path.relpath(page, Path(uri).parent)}{anchor})"

    return LINK.sub(rewrite, markdown)
