"""Build the documents as a site: every page, and an API reference made from the docstrings by pdoc.

    python docs/site.py build/site

Exits with an error that lists them if links between pages or to places in pages lead nowhere.
"""

from __future__ import annotations

import html
import pkgutil
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pdoc
from pdoc.render_helpers import to_html

import mqc
import mqc.backends
import mqc.passes
import mqc.plugin

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
_LINK = re.compile(r'href="([^":#]*)(#[^"]*)?"')
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0; display: flex; color: #1b1f24; background: #fff }
nav { flex: 0 0 13rem; padding: 1rem; background: #f4f6f8; min-height: 100vh } nav a { display: block }
main { padding: 1rem 2rem; max-width: 60rem; min-width: 0 } a { color: #0b57a4; text-decoration: none }
pre { background: #f4f6f8; padding: .7rem; overflow-x: auto } code { font-size: .9em }
table { border-collapse: collapse; display: block; overflow-x: auto }
td, th { border: 1px solid #d5dae0; padding: .2rem .5rem; vertical-align: top }
@media (max-width: 50rem) { body { display: block } nav { min-height: 0 } }
@media (prefers-color-scheme: dark) {
  body { color: #dde3ea; background: #14181d } nav, pre { background: #1d232a } a { color: #7db8f0 }
  td, th { border-color: #3a434d } }
"""


def build(out: Path) -> list[str]:
    """Write the site into a folder, which is replaced; the links that lead nowhere."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "style.css").write_text(_STYLE, encoding="utf-8")
    names = {page: "index.html" if page.name == "README.md" else f"{page.stem}.html" for page in PAGES}
    titles = {name: _title(page) for page, name in names.items()}
    listed = "".join(f'<a href="{name}">{title}</a>' for name, title in titles.items())
    for page, name in names.items():
        text = page.read_text(encoding="utf-8")
        body = _with_links(to_html(text), page, names, out)
        (out / name).write_text(
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{titles[name]} · mqc</title>'
            '<meta name="viewport" content="width=device-width"><link rel="stylesheet" href="style.css">'
            f'<nav>{listed}<a href="api/index.html">API reference</a></nav><main>{body}</main></html>',
            encoding="utf-8",
        )
    for module in (mqc, mqc.plugin):  # pdoc shows what stands there, and some names come on first use
        for name in module.__all__:
            setattr(module, name, getattr(module, name))
    pdoc.render.configure(docformat="markdown", footer_text="mqc", show_source=False)
    pdoc.pdoc(*_modules(), output_directory=out / "api")
    return dead_links(out)


def _modules() -> list[str]:
    """What stands directly in `mqc`, which pdoc would not find behind its `__all__`; it finds the rest."""
    inside = [m.name for m in pkgutil.iter_modules(mqc.__path__, "mqc.") if m.name != "mqc.__main__"]
    return ["mqc", *inside, "mqc.passes", "mqc.backends"]


def _title(page: Path) -> str:
    return html.escape(page.read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# "))


def _with_links(body: str, page: Path, names: dict[Path, str], out: Path) -> str:
    """The HTML of a page with links to pages of the site; other files that it links to are copied there."""

    def target(link: re.Match[str]) -> str:
        file = (page.parent / link[1]).resolve() if link[1] else page
        if file not in names and file.is_file():
            copy = out / "files" / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            return f'href="files/{file.relative_to(ROOT)}"'
        name = names.get(file, link[1]) if link[1] else ""
        return f'href="{name}{link[2] or ""}"'

    return re.sub(_LINK, target, body)


class _Links(HTMLParser):
    """The links of a page, and the places in it that links can name."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.links.add(value)
            elif name in ("id", "name") and value:
                self.places.add(value)


def dead_links(folder: Path) -> list[str]:
    """`page: link` of each link within a site that leads to no file, or to no place in its page.

    Places are asked for in the pages only: pdoc also links to members that it does not show.
    """
    pages = {path: _Links(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    dead = []
    for path, found in pages.items():
        for link in sorted(found.links):
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            known = pages[target].places if target in pages and path.parent == folder else None
            place = unquote(parts.fragment)
            if not target.is_file() or (place and known is not None and place not in known):
                dead.append(f"{path.relative_to(folder)}: {link}")
    return dead


if __name__ == "__main__":
    nowhere = build(Path(sys.argv[1]).resolve())
    if nowhere:
        raise SystemExit("links that lead nowhere:\n" + "\n".join(nowhere))
