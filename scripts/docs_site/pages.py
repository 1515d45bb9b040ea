"""Hooks of MkDocs: pages of the top folder, links between files of the repository, colours of code, the search's index.

`mkdocs.yml` names this file. https://www.mkdocs.org/user-guide/configuration/#hooks
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pygments.formatters import HtmlFormatter

ROOT = Path(__file__).resolve().parents[2]

TOP_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting_vulnerabilities.md",  # security.html and SECURITY.html are one file on some disks
    "CHANGELOG.md": "changelog.md",
}
"""The pages outside of docs/, and what they are called in the site."""

STYLES = {"css/code_light.css": "default", "css/code_dark.css": "github-dark"}
"""The style sheets of code, and their styles of Pygments."""

FENCED = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)\s#]+)(#[^)\s]*)?\)")
NAMED_PAGE = re.compile(r"(?<!\[)`((?:docs/)?\w+\.md)`")
COMMANDS = re.compile(r"((?:\A|^[^\s\-*+\d].*)\n\n)(?=    (?:orpo|pip|scripts/)\b)", re.MULTILINE)


def heading_anchor(heading: str, separator: str) -> str:
    """Return the anchor of a heading as GitHub makes it, so that a link to it works in both places."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def on_config(config: MkDocsConfig, **_: object) -> None:
    """Set the function that makes anchors, which YAML cannot name."""
    config.mdx_configs["toc"] = {"slugify": heading_anchor}


def on_files(files: Files, config: MkDocsConfig, **_: object) -> None:
    """Add the pages of the top folder and the style sheets of code."""
    for name, page in TOP_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for sheet, style in STYLES.items():
        rules = HtmlFormatter(style=style).get_style_defs(".codehilite")
        files.append(File.generated(config, sheet, content=rules))


def site_page(path: str) -> str | None:
    """Return what the site calls a file of the repository, or None if it is not part of the site."""
    return TOP_PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """Let links lead to pages of the site, make links of names of pages, and colour indented commands as such."""
    folder = "" if page.file.generated_by else Path(config.docs_dir).name

    def rewrite(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[2]))
        if place := site_page(path):
            return f"[{match[1]}]({place}{match[3] or ''})"
        return match[1] if (ROOT / path).exists() else match[0]  # the site does not hold the source

    def link(match: re.Match[str]) -> str:
        place = site_page(match[1])
        return f"[{match[0]}]({place})" if place else match[0]

    def change(prose: str) -> str:
        return COMMANDS.sub(r"\1    :::bash\n", NAMED_PAGE.sub(link, LINK.sub(rewrite, prose)))

    return "".join(part if part.startswith("```") else change(part) for part in FENCED.split(markdown))


def on_post_build(config: MkDocsConfig, **_: object) -> None:
    """Write the index of the search as a script, which a page that is opened as a file may load."""
    folder = Path(config.site_dir, "search")
    index = (folder / "search_index.json").read_text(encoding="utf-8")
    (folder / "search_index.js").write_text(f"const searchIndex = {index};\n", encoding="utf-8")
