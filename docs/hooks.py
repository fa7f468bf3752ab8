"""Pages of the site whose text lies outside docs/, and links between them and the pages in docs/."""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
"""File of the repository → its page."""

_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> None:
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Return the text with every link to a file of the repository made one to its page."""
    here = page.file.src_uri
    source = next((file for file, at in OUTSIDE.items() if at == here), f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        target = normpath(str(PurePosixPath(source).parent / link[1]))
        at = {**OUTSIDE, "README.md": "index.md"}.get(target, target.removeprefix("docs/"))
        return relpath(at, PurePosixPath(here).parent)

    return _LINK.sub(moved, markdown)
