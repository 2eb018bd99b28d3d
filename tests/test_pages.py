"""The pages beside the notebooks: links, sections, terms, error texts and commands are there."""

import ast
import functools
import posixpath
import re

import nbformat
import pytest

from scripts.project import ROOT

NBS = ROOT / "nbs"
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in NBS.rglob("*.md") if ".ipynb_checkpoints" not in path.parts),
]
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)


@functools.cache  # the notebooks are large
def text_of(path, kinds=("markdown", "code")):
    """The text of a page; of a notebook, the sources of its cells of these kinds."""
    if path.suffix == ".ipynb":
        return "\n\n".join(
            cell.source
            for cell in nbformat.read(path, as_version=4).cells
            if cell.cell_type in kinds
        )
    return path.read_text(encoding="utf-8")


def headings(path):
    """The headings of a page or a notebook."""
    return re.findall(
        r"^#+ (.+?)\s*$",
        re.sub(r"```.*?```", "", text_of(path, ("markdown",)), flags=re.DOTALL),
        flags=re.MULTILINE,
    )


def anchor_of(heading):
    """What stands behind the # of a link to a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(path):
    """What may stand behind the # of a link to a page."""
    return set(map(anchor_of, headings(path)))


def entries(page):
    """The entries of a page, by the text of their headings of the third level."""
    parts = re.split(r"^### (.+)$", text_of(NBS / page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2]))


def library_texts():
    """The strings of the library, joined if they are written on several lines.

    What is filled in is written as ….
    """
    for path in (ROOT / "cifar_cam_lib").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_sections(page):
    text = text_of(page)
    links = [
        link
        for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", text))
        if not re.match(r"[a-z]+:", link)
    ]
    assert links
    for link in links:
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), f"{link} leads nowhere"
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), (
            f"{link} names no heading"
        )
    for name, section in re.findall(r'\]\(([^)\s]+\.ipynb)\), "([^"]+)"', text):
        assert section in headings(page.parent / name), f"{name} has no section {section!r}"


def test_the_glossary_is_in_order_and_its_terms_are_in_the_notebooks_that_it_names():
    glossary = entries("glossary.md")
    assert list(glossary) == sorted(glossary, key=str.casefold) and len(glossary) > 60
    for term, entry in glossary.items():
        notebooks = re.findall(r"\]\(([\w/]+\.ipynb)\)", entry)
        words = " ".join(text_of(NBS / name) for name in notebooks).replace("_", " ")
        assert re.search(rf"(?<!\w){re.escape(term)}", " ".join(words.split()), re.IGNORECASE), (
            f"{term} is not in {notebooks}"
        )


def test_the_terms_of_the_glossary_are_linked_from_the_notebooks_that_explain_them():
    missing = []
    for term, entry in entries("glossary.md").items():
        name = re.findall(r"\]\(([\w/]+\.ipynb)\)", entry)[0]
        if (
            f"{posixpath.relpath('glossary.md', posixpath.dirname(name) or '.')}#{anchor_of(term)})"
            not in text_of(NBS / name, ("markdown",))
        ):
            missing.append(f"{name}: {term}")
    assert missing == []


def test_error_texts_are_those_of_the_library():
    texts, quoted = set(library_texts()), []
    for heading, entry in entries("troubleshooting.md").items():
        if re.search(r"^\*(Raised|Printed) by the library[.:]\*", entry, re.MULTILINE):
            quoted += re.findall(r"^(?:### |\| )`([^`]+)`", f"### {heading}{entry}", re.MULTILINE)
    assert len(quoted) > 50
    assert [quote for quote in quoted if not any(quote in text for text in texts)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_are_targets_of_the_makefile(page):
    targets = set(
        re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    commands = {
        name
        for piece in CODE.findall(text_of(page))
        for name in re.findall(r"\bmake ([a-z]+)", piece)
    }
    assert {"setup", "test"} <= targets and commands <= targets
