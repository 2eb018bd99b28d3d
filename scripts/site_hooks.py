"""What MkDocs is told about this project: the home page is README.md, the reference is made from the library.

MkDocs calls the functions named `on_...`; scripts/mkdocs.yml names this file.
"""

import importlib
import inspect
import posixpath
import re
from configparser import ConfigParser
from pathlib import Path

from build_readme import LINK
from bs4 import BeautifulSoup
from fastcore.docments import docments
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parent.parent
FOR_TOOLS = re.compile(r"^(#\||# @title Solution)")  # lines of code cells that are not for readers
MODULES = sorted(path.stem for path in (ROOT / "cifar_cam_lib").glob("[a-z]*.py"))


def address():
    "The public address of the repository."
    settings = ConfigParser()
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    return settings["DEFAULT"]["git_url"], settings["DEFAULT"]["doc_host"] + settings["DEFAULT"]["doc_baseurl"] + "/"


def on_config(config):
    "Fill in the addresses."
    repository, config.site_url = address()
    config.repo_url, config.repo_name = repository, "GitHub"
    config.site_description = "Train a ResNet-18 on CIFAR-10, and see with Grad-CAM which pixels led to its mistakes."
    return config


def outside(text, folder):
    "Links that leave nbs/ go to the repository."
    def replace(match):
        target = posixpath.normpath(posixpath.join("nbs", folder, match[2]))
        return match[1] + (match[2] if target.startswith("nbs/") else f"{address()[0]}/blob/main/{target}")

    return LINK.sub(replace, text)


def home():
    "README.md, with its links as seen from nbs/."
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return LINK.sub(lambda match: match[1] + posixpath.relpath(match[2], "nbs"), text)


def on_files(files, config):
    "Add the home page and the reference."
    files.remove(files.get_file_from_path("index.ipynb"))
    files.append(File.generated(config, "index.md", content=home()))
    for module in MODULES:
        files.append(File.generated(config, f"api/{module}.md", content=reference(module)))
    return files


def on_page_markdown(markdown, page, config, files):
    "Pages in Markdown. Notebooks' sections are linked as GitHub and JupyterLab name them; here all are in small letters."
    markdown = re.sub(r"\.ipynb#[\w-]+", lambda link: link[0].lower(), markdown)
    return outside(markdown, posixpath.dirname(page.file.src_uri)).replace("(index.ipynb)", "(index.md)")


def on_page_content(html, page, config, files):
    "Pages in notebooks, which come as HTML."
    if page.file.src_uri.endswith(".ipynb"):
        soup = BeautifulSoup(html, "html.parser")
        for cell in soup.select("div.jp-CodeCell > div.jp-CodeCell"):
            show_code(cell, soup)
        for link in soup.find_all("a", href=True):
            link["href"] = as_page(link["href"])
        html = outside(str(soup), posixpath.dirname(page.file.src_uri))
    return html


def on_post_page(output, page, config):
    "No reader's browser asks GitHub how many stars there are."
    return output.replace(' data-md-component="source"', "")


def show_code(cell, soup):
    "Give the pictures their words, take away the lines that are for nbdev and Colab, and fold the code of a solution away."
    code, copy = cell.find("pre"), cell.find(class_="clipboard-copy-txt")
    if words := re.search(r'^#\| fig-alt: "(.+)"$', copy.get_text(), flags=re.MULTILINE):
        for picture in cell.parent.find_all("img"):
            picture["alt"] = words[1]
    solution = "# @title Solution" in copy.get_text()
    for comment in code.find_all("span", class_="c1", string=FOR_TOOLS):
        comment.replace_with("")
    copy.string = re.sub(rf"{FOR_TOOLS.pattern}.*\n?", "", copy.get_text(), flags=re.MULTILINE)
    for text in code.find_all(string=re.compile(r"^\n+")):
        if not text.find_previous_sibling(lambda other: other.get_text()):
            text.replace_with(text.lstrip("\n"))
    if not copy.get_text().strip():
        cell.parent.decompose()
    elif solution:
        summary = soup.new_tag("summary")
        summary.string = "Solution, in code"
        cell.parent.wrap(soup.new_tag("details", attrs={"class": "solution"})).insert(0, summary)


def as_page(link):
    "Where a link to a notebook or a page in Markdown leads on the site."
    if ":" in link:
        return link
    name, hash_, anchor = link.partition("#")
    name = re.sub(r"\.(ipynb|md)$", ".html", re.sub(r"README\.md$", "index.html", name))
    return name + hash_ + (anchor.lower() if name else anchor)


def reference(module):
    "The page of a module: each public name with its signature, its docstring, and a line for each parameter."
    library = importlib.import_module(f"cifar_cam_lib.{module}")
    parts = [f"# cifar_cam_lib.{module}", inspect.getdoc(library).splitlines()[0]]
    for name in library.__all__:
        thing = getattr(library, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            parts += entry(name, thing)
    return "\n\n".join(parts) + "\n"


def entry(name, thing):
    "Markdown of one function, or of a class with its public methods."
    yield f"## `{name}`"
    yield inspect.getdoc(thing) or ""
    yield parameters(thing)
    if inspect.isclass(thing):
        for method, function in vars(thing).items():
            if inspect.isfunction(function) and not method.startswith("_") and inspect.getdoc(function):
                yield f"### `{name}.{method}`"
                yield inspect.getdoc(function)
                yield parameters(function)


def parameters(thing):
    "The table of the parameters and of what is returned, from the comments of the signature."
    rows = []
    for name, about in docments(thing, full=True, returns=True).items():
        if name in ("self", "args", "kwargs") or (name == "return" and about.anno is inspect.Parameter.empty):
            continue
        kind = "" if about.anno is inspect.Parameter.empty else f"`{inspect.formatannotation(about.anno)}`".replace("|", "\\|")
        default = "" if about.get("default", inspect.Parameter.empty) is inspect.Parameter.empty else f"`{about.default!r}`".replace("|", "\\|")
        rows.append(f"| {'*returns*' if name == 'return' else f'`{name}`'} | {kind} | {default} | {about.docment or ''} |")
    return "\n".join(["| | type | default | |", "|---|---|---|---|", *rows]) if rows else ""
