"""What MkDocs is told about this project: its address, and the pages that are made, not kept.

MkDocs calls the functions named `on_...`; mkdocs.yml beside this file names it. site_home.py makes
the pages from nbs/index.ipynb, site_pages.py the HTML of all pages, and site_links.py looks at the
links in the end.
"""

import importlib
import inspect
import posixpath
import re

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File
from nbdev.showdoc import BasicMarkdownRenderer, show_doc

from scripts.project import ROOT, SETTINGS
from scripts.publish import site_home
from scripts.publish.site_links import dead_links
from scripts.publish.site_pages import address, finished, outside

MODULES = sorted(
    path.stem
    for path in (ROOT / "cifar_cam_lib").glob("[a-z]*.py")
    if "__all__ = []" not in path.read_text(encoding="utf-8")  # such as `course`
)

KEPT_ELSEWHERE = {  # files of the site that are not in nbs/
    "site.css": ROOT / "scripts" / "publish" / "site.css",
    "try/cifar10.safetensors": ROOT / "cifar_cam_lib" / "weights" / "cifar10.safetensors",
}


def on_config(config):
    "Fill in the addresses."
    config.repo_url, config.repo_name = address(), "GitHub"
    config.site_url = SETTINGS["doc_host"] + SETTINGS["doc_baseurl"] + "/"
    config.extra_css.append("site.css")
    config.site_description = (
        "Train a ResNet-18 on CIFAR-10, and see with Grad-CAM which pixels led to its mistakes."
    )
    return config


def on_files(files, config):
    "Add the home page and its like, the style, the weights of the page `try`, and the reference."
    files.remove(files.get_file_from_path("index.ipynb"))
    for name, path in KEPT_ELSEWHERE.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    made = {
        "index.md": site_home.home(),
        "results.md": site_home.results(),
        "setup.md": site_home.setup(),
        **{f"api/{module}.md": reference(module) for module in MODULES},
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown, page, config, files):
    "Pages in Markdown. Sections of notebooks are linked by GitHub's names; here in small letters."
    markdown = re.sub(r"\.ipynb#[\w-]+", lambda link: link[0].lower(), markdown)
    return outside(markdown, posixpath.dirname(page.file.src_uri)).replace(
        "(index.ipynb)", "(index.md)"
    )


def on_page_content(html, page, config, files):
    "Every page, as HTML."
    return finished(html, page.file.src_uri, files, config)


def on_post_page(output, page, config):
    "No reader's browser asks GitHub how many stars there are, and the search says what it is."
    output = output.replace(' data-md-component="source"', "")
    return output.replace(' role="dialog">', ' role="dialog" aria-label="Search">')


def on_post_build(config):
    "A link that leads nowhere fails the build; MkDocs itself looks at pages in Markdown only."
    if dead := dead_links(config.site_dir):
        raise PluginError("these links lead nowhere:\n" + "\n".join(dead))


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
