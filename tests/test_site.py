"""The site of `make docs`: links lead somewhere, pictures have words, no browser complains."""

import functools
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
import yaml
from bs4 import BeautifulSoup
from mkdocs.exceptions import PluginError

from scripts.project import ROOT, SETTINGS
from scripts.publish import site_hooks

MKDOCS = ROOT / "scripts" / "publish" / "mkdocs.yml"
DESKTOP, PHONE = {"width": 1300, "height": 900}, {"width": 390, "height": 844}
MADE = {"index.md", "results.md", "setup.md"}  # from the index


class Page(HTMLParser):
    """What a page links to, what it can be linked at, and its pictures."""

    def __init__(self, path):
        super().__init__()
        self.path, self.links, self.anchors, self.pictures = path, [], set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")}
        if tag == "a" and attributes.get("href"):
            self.links.append(attributes["href"])
        if tag == "img":
            self.pictures.append(attributes)
            self.links.append(attributes["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--quiet",
        "--config-file",
        MKDOCS,
        "--site-dir",
        folder,
    ]
    built = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def test_every_notebook_and_page_is_on_the_site(pages, site):
    sources = [
        path.relative_to(ROOT / "nbs")
        for kind in ("*.ipynb", "*.md")
        for path in (ROOT / "nbs").rglob(kind)
    ]
    expected = {
        path.with_name(path.name.replace("README", "index")).with_suffix(".html")
        for path in sources
        if ".ipynb_checkpoints" not in path.parts
    }
    modules = {
        Path("api", path.name).with_suffix(".html")
        for path in (ROOT / "cifar_cam_lib").glob("[a-z]*.py")
        if path.stem not in ("course", "processes")  # which have nothing public
    }
    made = {Path(name).with_suffix(".html") for name in MADE}
    ours = {path.relative_to(ROOT / "nbs") for path in (ROOT / "nbs").rglob("*.html")}
    assert expected | modules | made | ours == {path.relative_to(site) for path in pages}


def test_quarto_is_told_of_the_same_pages_in_the_same_order():
    material = yaml.safe_load(MKDOCS.read_text(encoding="utf-8"))["nav"]
    website = yaml.safe_load((ROOT / "nbs" / "_quarto.yml").read_text(encoding="utf-8"))["website"]
    quarto = website["sidebar"]["contents"]
    sections = {
        name: pages
        for part in material
        for name, pages in part.items()
        if name not in ("Home", "Library")
    }
    files = {
        name: [file for page in pages for file in page.values() if file not in MADE]
        for name, pages in sections.items()
    }
    assert quarto == [
        "index.ipynb",
        *({"section": name, "contents": names} for name, names in files.items()),
    ]


def test_links_lead_to_pages_and_sections(pages):
    repository = SETTINGS["git_url"]
    dead = []
    for path, page in pages.items():
        for link in page.links:
            name, _, anchor = unquote(link).partition("#")
            if name.startswith(f"{repository}/blob/main/"):
                found = (ROOT / name.removeprefix(f"{repository}/blob/main/")).exists()
            elif re.match(r"[a-z]+:", name):
                found = True  # other sites are not asked
            else:
                target = (path.parent / name).resolve() if name else path
                target = target / "index.html" if target.is_dir() else target
                found = target.exists() and (
                    not anchor or target not in pages or anchor in pages[target].anchors
                )
            if not found:
                dead.append(f"{path.name}: {link}")
    assert dead == [], "\n".join(dead)


def test_every_picture_has_the_words_of_its_notebook(pages):
    pictures = [
        (path.name, picture.get("alt")) for path, page in pages.items() for picture in page.pictures
    ]
    assert [name for name, words in pictures if not words or "No description" in words] == []
    sources = [
        cell.source
        for path in (ROOT / "nbs").rglob("*.ipynb")
        for cell in nbformat.read(path, as_version=4).cells
    ]
    directives = {
        words
        for source in sources
        for words in re.findall(r'^#\| fig-alt: "(.+)"$', source, flags=re.MULTILINE)
    }
    assert len(directives) > 40 and directives - {words for _, words in pictures} == set()


def test_directives_are_not_shown_and_solutions_are_folded(pages):
    notebooks = {path.stem for path in (ROOT / "nbs").rglob("*.ipynb")}
    for path in pages:
        text = path.read_text(encoding="utf-8")
        code = '<span class="c1">#|'
        assert path.stem not in notebooks or path.stem == "index" or code not in text, path.name
        assert ('<details class="solution">' in text) == bool(
            re.match(r"\d\d|appendix", path.name)
        ), path.name


def test_a_drawing_is_shown_and_its_code_is_folded_away(site):
    soup = BeautifulSoup((site / "02_model.html").read_text(encoding="utf-8"), "html.parser")
    folds = [fold for fold in soup.find_all("details") if "Drawing" in fold.summary.get_text()]
    assert len(folds) > 5
    for fold in folds:
        assert fold.find("pre") and not fold.find("img")
        assert fold.find_parent(class_="cell").find("img")


def test_every_page_with_its_pictures_is_below_a_megabyte_and_a_half(pages, site):
    sizes = {}
    for path, page in pages.items():
        pictures = {(path.parent / picture["src"]).resolve() for picture in page.pictures}
        sizes[path] = sum(file.stat().st_size for file in (path, *pictures))
    assert {path: size for path, size in sizes.items() if size > 1_500_000} == {}
    assert any((site / "pictures").iterdir())


def test_pictures_are_files_with_their_size_and_all_but_the_first_can_wait(pages):
    for path, page in pages.items():
        for place, picture in enumerate(page.pictures):
            assert {"width", "height"} <= set(picture), f"{path.name}: {picture['alt']}"
            assert picture["width"].isdigit() and picture["height"].isdigit()
            assert not picture["src"].startswith("data:") and ("loading" in picture) == (place > 0)


def test_every_card_has_a_picture_a_question_and_minutes_and_leads_to_its_chapter(site):
    soup = BeautifulSoup((site / "index.html").read_text(encoding="utf-8"), "html.parser")
    chapters, levels = soup.select("ol.cards")
    names = sorted(path.stem for path in (ROOT / "nbs").glob("[0-9]*.ipynb"))
    cards = chapters.select("li.card")
    assert [card.h3.a["href"] for card in cards] == [f"{name}.html" for name in names]
    for name, card in zip(names, cards):
        question, minutes = (part.get_text() for part in card.find_all("p"))
        assert question.endswith("?") and card.img["alt"], name
        text = (site / f"{name}.html").read_text(encoding="utf-8")
        assert card.img["src"] in text, "the picture is one of the chapter's own"
        assert f"<strong>It takes</strong> about {minutes} to read the core" in text
    for card in levels.select("li.card"):
        text = (site / card.h3.a["href"]).read_text(encoding="utf-8")
        assert card.h3.get_text() in text and card.find(class_="minutes").get_text() in text
    assert len(levels.select("li.card")) == 3
    assert soup.select_one("a.md-button")["href"] == "levels/1_all_in_one.html"


@pytest.mark.parametrize("link", ["away.html", "there.html#away", "#away", "away.png"])
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path, link):
    (tmp_path / "here.html").write_text(f'<p id="top"><a class="x" href="{link}">to</a></p>')
    (tmp_path / "there.html").write_text('<h2 id="part"></h2><a href="here.html#top">back</a>')
    config = type("Config", (), {"site_dir": tmp_path})
    with pytest.raises(PluginError, match=f"here.html: {link}$"):
        site_hooks.on_post_build(config)
    (tmp_path / "here.html").write_text('<p id="top"><a href="there.html#part">to</a></p>')
    site_hooks.on_post_build(config)


def test_both_schemes_of_colour_and_the_search_are_there(site):
    text = (site / "index.html").read_text(encoding="utf-8")
    assert 'data-md-color-scheme="slate"' in text and 'data-md-component="search"' in text
    assert (site / "search" / "search_index.json").stat().st_size > 100_000


@pytest.fixture(scope="module")
def address(site):
    """The site, served to this machine."""
    handler = functools.partial(SimpleHTTPRequestHandler, directory=site)
    handler.func.log_message = lambda *arguments: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def open_tab(browser, address):
    """A tab to which only the site answers."""
    tab = browser.new_page(viewport=DESKTOP)
    tab.route(re.compile(f"^(?!data:|{re.escape(address)})"), lambda route: route.abort())
    return tab


WIDE = """() => [...document.querySelectorAll('.highlight pre > code')]
    .filter(code => Math.max(...code.innerText.split('\\n').map(line => line.length)) <= 100)
    .filter(code => code.checkVisibility() && code.scrollWidth > code.clientWidth)
    .map(code => code.innerText.slice(0, 40))"""


def test_no_page_complains_or_overflows_or_asks_elsewhere_on_a_desktop_or_a_phone(
    pages, site, address, browser
):
    faults = []
    tab = open_tab(browser, address)
    tab.on(
        "console",
        lambda message: (
            faults.append(f"{tab.url}: {message.text}")
            if message.type in ("error", "warning")
            else None
        ),
    )
    tab.on("pageerror", lambda error: faults.append(f"{tab.url}: {error}"))

    def failed(request):  # a request that the next page cuts off is no error
        if "ERR_ABORTED" not in (request.failure or ""):
            faults.append(f"{tab.url}: asks for {request.url}")

    tab.on("requestfailed", failed)
    for path in pages:
        tab.goto(f"{address}/{path.relative_to(site).as_posix()}")
        tab.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
        for size in (PHONE, DESKTOP):
            tab.set_viewport_size(size)
            wide = tab.evaluate("document.scrollingElement.scrollWidth - window.innerWidth")
            if wide > 0:
                faults.append(f"{path.name} is {wide} pixels too wide at {size['width']}")
        faults += [f"{path.name}: scrolls sideways: {code}" for code in tab.evaluate(WIDE)]
    tab.close()
    assert faults == []


def test_the_search_finds_a_term_and_the_colours_change(address, browser):
    tab = open_tab(browser, address)
    tab.goto(f"{address}/index.html")
    tab.locator(".md-search__input").fill("Grad-CAM++")
    tab.locator(".md-search-result__link").first.wait_for()
    tab.keyboard.press("Escape")
    before = tab.evaluate("document.body.dataset.mdColorScheme")
    tab.locator("label[for^=__palette]:visible").click()
    assert {before, tab.evaluate("document.body.dataset.mdColorScheme")} == {"default", "slate"}
    tab.close()
