"""The HTML of the site's pages: cells without JupyterLab's frames, pictures as files, links.

mkdocs-jupyter puts half a megabyte of JupyterLab's style, and every picture, into each page. Here a
notebook becomes what Material makes of Markdown, so that one style, site.css, serves all pages.
"""

import base64
import hashlib
import posixpath
import re
import struct
from copy import copy

from bs4 import BeautifulSoup
from mkdocs.structure.files import File, InclusionLevel

from scripts.project import SETTINGS
from scripts.publish.build_readme import LINK

FOR_TOOLS = re.compile(r"^(#\||# @title)")  # lines of code cells that are not for readers
INLINED = "data:image/png;base64,"


def address():
    "The public address of the repository."
    return SETTINGS["git_url"]


def finished(html, source, files, config):
    "The HTML of a page as the reader gets it; `source` is the page's file, as seen from nbs/."
    folder, notebook = posixpath.dirname(source), source.endswith(".ipynb")
    start = html.index('<div class="jupyter-wrapper">') if notebook else 0  # before: styles
    soup = BeautifulSoup(html[start:], "html.parser")
    if notebook:
        show_cells(soup)
        for link in soup.find_all("a", href=True):
            link["href"] = as_page(link["href"])
    for badge in soup.select('img[src$="/colab-badge.svg"]'):  # a picture from elsewhere
        badge.parent["class"] = "colab"
        badge.replace_with("Open in Colab")
    for place, picture in enumerate(soup.find_all("img", src=True)):
        show_picture(picture, folder, files, config)
        if place:
            picture["loading"] = "lazy"
    html = str(soup)
    return outside(html, folder) if notebook else html


def show_cells(soup):
    "Text and code without the frames around them."
    for cell in soup.find_all(class_="jp-MarkdownCell"):
        for code in cell.select("div.highlight > pre"):
            code.parent.replace_with(block(copy(code), "highlight", soup))
        cell.replace_with(*list(cell.find(class_="jp-MarkdownOutput").contents))
    for cell in soup.select("div.jp-CodeCell > div.jp-CodeCell"):
        show_code(cell.parent, soup)
    for link in soup.find_all("a", class_="anchor-link"):
        link["class"], link["title"] = "headerlink", "Permanent link"


def show_code(cell, soup):
    "A cell's code and outputs; without lines for tools, and what is titled away is folded."
    source, code = cell.find(class_="clipboard-copy-txt").get_text(), cell.find("pre").extract()
    outputs = [show_output(output, soup) for output in cell.find_all(class_="jp-OutputArea-output")]
    if words := re.search(r'^#\| fig-alt: "(.+)"$', source, flags=re.MULTILINE):
        for picture in cell.find_all("img"):
            picture["alt"] = words[1]
    for comment in code.find_all("span", class_="c1", string=FOR_TOOLS):
        comment.replace_with("")
    for text in code.find_all(string=re.compile(r"^\n+")):
        if not text.find_previous_sibling(lambda other: other.get_text()):
            text.replace_with(text.lstrip("\n"))
    if not code.get_text().strip():
        cell.decompose()
        return
    parts = [block(code, "highlight", soup), *outputs]
    if title := re.search(r"^# @title (Solution|Drawing)", source, flags=re.MULTILINE):
        hidden = 1 if title[1] == "Drawing" else len(parts)  # a drawing itself is shown
        parts[:hidden] = [fold(f"{title[1]}, in code", parts[:hidden], soup)]
    cell.clear()
    cell.attrs = {"class": "cell"}
    cell.extend(parts)


def show_output(output, soup):
    "What a cell printed or drew."
    output.attrs = {"class": "output"}
    for text in output.find_all("pre"):
        text.replace_with(block(copy(text), "printed no-copy", soup))
    return output


def block(code, kind, soup):
    "Text of fixed width, framed as Material frames it."
    code.name = "code"
    frame, inner = soup.new_tag("div", attrs={"class": kind}), soup.new_tag("pre")
    inner.append(code)
    frame.append(inner)
    return frame


def fold(title, parts, soup):
    "Parts under a line that opens them."
    details = soup.new_tag("details", attrs={"class": "solution"})
    summary = soup.new_tag("summary")
    summary.string = title
    details.extend([summary, *parts])
    return details


def show_picture(picture, folder, files, config):
    "Give a picture its size, and if it is written into the page, a file of its own."
    if picture["src"].startswith(INLINED):
        content = base64.b64decode(picture["src"].removeprefix(INLINED))
        picture["src"] = posixpath.relpath(keep(content, files, config), folder or ".")
    file = files.get_file_from_path(posixpath.normpath(posixpath.join(folder, picture["src"])))
    picture["width"], picture["height"] = size_of(file.content_bytes)


def size_of(
    content,  # of a PNG, or of an SVG that has a viewBox
):
    "Width and height of a picture."
    if content.startswith(b"\x89PNG"):
        return struct.unpack(">II", content[16:24])
    return tuple(map(int, re.search(rb'viewBox="0 0 (\d+) (\d+)"', content).groups()))


def keep(content, files, config):
    "The name of the file for a picture, which is added to the site if it's new."
    name = f"pictures/{hashlib.sha256(content).hexdigest()[:16]}.png"
    if not files.get_file_from_path(name):
        included = {"content": content, "inclusion": InclusionLevel.INCLUDED}
        files.append(File.generated(config, name, **included))
    return name


def outside(text, folder):
    "Links that leave nbs/ go to the repository."

    def replace(match):
        target = posixpath.normpath(posixpath.join("nbs", folder, match[2]))
        return match[1] + (
            match[2] if target.startswith("nbs/") else f"{address()}/blob/main/{target}"
        )

    return LINK.sub(replace, text)


def as_page(link):
    "Where a link to a notebook or a page in Markdown leads on the site."
    if ":" in link:
        return link
    name, hash_, anchor = link.partition("#")
    name = re.sub(r"\.(ipynb|md)$", ".html", re.sub(r"README\.md$", "index.html", name))
    return name + hash_ + (anchor.lower() if name else anchor)
