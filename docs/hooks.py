"""Pages of the site whose text lies outside docs/, and links between them and the pages in docs/."""

import base64
import json
import re
from collections.abc import Iterator
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

NOTEBOOKS = {f"notebooks/{path.name}": f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
SOURCES = {page: source for source, page in {**OUTSIDE, **NOTEBOOKS}.items()}

_LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(?=[)#])")


def on_files(files: Files, config: MkDocsConfig) -> None:
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    for source, page in NOTEBOOKS.items():
        pictures: dict[str, bytes] = {}
        text = "\n\n".join(_parts(json.loads((ROOT / source).read_text()), page.removesuffix(".md"), pictures))
        files.append(File.generated(config, page, content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, name, content=content))


def _parts(notebook: dict, page: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """Yield the cells of a notebook and what they put out, in Markdown; its pictures are put into ``pictures``."""
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        yield text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", ())})
            if "image/png" in data:
                name = f"{page}_{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode("".join(data["image/png"]))
                yield f"![Figure {len(pictures)}]({PurePosixPath(name).name})"
            elif "text/markdown" in data:
                yield "".join(data["text/markdown"])
            else:
                yield f"```text\n{''.join(data['text/plain']).rstrip()}\n```"
    yield f"*This page is `{page}.ipynb`, and as text `{page}.py`.*"


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Return the text with every link to a file of the repository made one to its page."""
    here = page.file.src_uri
    source = SOURCES.get(here, f"docs/{here}")

    def moved(link: re.Match[str]) -> str:
        target = normpath(str(PurePosixPath(source).parent / link[1]))
        at = {**OUTSIDE, **NOTEBOOKS, "README.md": "index.md"}.get(target, target.removeprefix("docs/"))
        return relpath(at, PurePosixPath(here).parent)

    return _LINK.sub(moved, markdown)
