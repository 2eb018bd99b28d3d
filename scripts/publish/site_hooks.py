"""What MkDocs is told about this project: the home page is nbs/index.ipynb, the reference is made
from the library.

MkDocs calls the functions named `on_...`; mkdocs.yml beside this file names it.
"""

import importlib
import inspect
import posixpath
import re

from bs4 import BeautifulSoup
from mkdocs.structure.files import File
from nbdev.showdoc import BasicMarkdownRenderer, show_doc

from scripts.project import ROOT, SETTINGS
from scripts.publish.build_readme import LINK, index

FOR_TOOLS = re.compile(r"^(#\||# @title)")  # lines of code cells that are not for readers
MODULES = sorted(
    path.stem
    for path in (ROOT / "cifar_cam_lib").glob("[a-z]*.py")
    if "__all__ = []" not in path.read_text(encoding="utf-8")  # such as `course`
)


# No column for "In [ ]:", which takes a fifth of a phone's width.
STYLE = ".jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser { display: none !important }\n"


def address():
    "The public address of the repository."
    return SETTINGS["git_url"], SETTINGS["doc_host"] + SETTINGS["doc_baseurl"] + "/"


def on_config(config):
    "Fill in the addresses."
    repository, config.site_url = address()
    config.repo_url, config.repo_name = repository, "GitHub"
    config.extra_css.append("site.css")
    config.site_description = (
        "Train a ResNet-18 on CIFAR-10, and see with Grad-CAM which pixels led to its mistakes."
    )
    return config


def outside(text, folder):
    "Links that leave nbs/ go to the repository."

    def replace(match):
        target = posixpath.normpath(posixpath.join("nbs", folder, match[2]))
        return match[1] + (
            match[2] if target.startswith("nbs/") else f"{address()[0]}/blob/main/{target}"
        )

    return LINK.sub(replace, text)


def home():
    "All of the index, as markdown: what README.md shows and what it leaves out."
    readme, rest, _ = index()
    return f"{readme}\n{rest}"


def on_files(files, config):
    "Add the home page, the style and the reference."
    files.remove(files.get_file_from_path("index.ipynb"))
    files.append(File.generated(config, "index.md", content=home()))
    files.append(File.generated(config, "site.css", content=STYLE))
    for module in MODULES:
        files.append(File.generated(config, f"api/{module}.md", content=reference(module)))
    return files


def on_page_markdown(markdown, page, config, files):
    "Pages in Markdown. Sections of notebooks are linked by GitHub's names; here in small letters."
    markdown = re.sub(r"\.ipynb#[\w-]+", lambda link: link[0].lower(), markdown)
    return outside(markdown, posixpath.dirname(page.file.src_uri)).replace(
        "(index.ipynb)", "(index.md)"
    )


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
    "Give pictures their words, drop the lines for nbdev and Colab, and fold what is titled away."
    code, copy = cell.find("pre"), cell.find(class_="clipboard-copy-txt")
    if words := re.search(r'^#\| fig-alt: "(.+)"$', copy.get_text(), flags=re.MULTILINE):
        for picture in cell.parent.find_all("img"):
            picture["alt"] = words[1]
    title = re.search(r"^# @title (Solution|Drawing)", copy.get_text(), flags=re.MULTILINE)
    for comment in code.find_all("span", class_="c1", string=FOR_TOOLS):
        comment.replace_with("")
    copy.string = re.sub(rf"{FOR_TOOLS.pattern}.*\n?", "", copy.get_text(), flags=re.MULTILINE)
    for text in code.find_all(string=re.compile(r"^\n+")):
        if not text.find_previous_sibling(lambda other: other.get_text()):
            text.replace_with(text.lstrip("\n"))
    if not copy.get_text().strip():
        cell.parent.decompose()
    elif title:
        summary = soup.new_tag("summary")
        summary.string = f"{title[1]}, in code"
        drawing = title[1] == "Drawing"  # which itself is shown
        folded = cell.select_one(".jp-Cell-inputWrapper") if drawing else cell.parent
        folded.wrap(soup.new_tag("details", attrs={"class": "solution"})).insert(0, summary)


def as_page(link):
    "Where a link to a notebook or a page in Markdown leads on the site."
    if ":" in link:
        return link
    name, hash_, anchor = link.partition("#")
    name = re.sub(r"\.(ipynb|md)$", ".html", re.sub(r"README\.md$", "index.html", name))
    return name + hash_ + (anchor.lower() if name else anchor)


def reference(module):
    "The page of a module: each public function and class with its signature and docstring."
    library = importlib.import_module(f"cifar_cam_lib.{module}")
    parts = [f"# cifar_cam_lib.{module}", inspect.getdoc(library)]
    for name in getattr(library, "__all__", []):
        thing = getattr(library, name)
        if inspect.isfunction(thing) or inspect.isclass(thing):
            parts += entries(name, thing)
    return "\n\n".join(parts) + "\n"


def entries(name, thing):
    "Markdown of a function, or of a class and its public methods, as nbdev writes it."
    yield show_doc(thing, BasicMarkdownRenderer, name, title_level=2)._repr_markdown_()
    if hasattr(thing, "model_fields"):  # nbdev doesn't read the comments of pydantic's fields
        fields = inspect.cleandoc(inspect.getsource(thing).split('"""')[2].partition("    @")[0])
        yield f"```python\n{fields}\n```"
    for method, function in vars(thing).items() if inspect.isclass(thing) else []:
        documented = inspect.isfunction(function) and inspect.getdoc(function)
        if documented and not method.startswith("_"):
            title = f"{name}.{method}"
            yield show_doc(function, BasicMarkdownRenderer, title)._repr_markdown_()
