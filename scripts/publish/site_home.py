"""The pages of the site that are made from nbs/index.ipynb: home, results, set-up.

README.md shows that notebook as one text. Here home.html invites: it gets the claim and the table
of chapters from there, minutes and pictures from the notebooks themselves.
"""

import re
from string import Template

import markdown
import nbformat

from scripts.project import ROOT
from scripts.publish.build_levels import NOTEBOOKS
from scripts.publish.build_readme import index
from scripts.publish.site_pages import INLINED

NBS = ROOT / "nbs"
# The picture on each chapter's card, by the cell that drew it
PICTURES = {
    "01_data.ipynb": "10eb415a",
    "02_model.ipynb": "d67dc589",
    "03_training.ipynb": "d681ee5b",
    "04_evaluation.ipynb": "27be814f",
    "05_gradcam.ipynb": "b34ea25e",
    "06_main.ipynb": "15432f86",
    "07_trust.ipynb": "c7d00005",
    "08_fast.ipynb": "82575230",
    "09_recipe.ipynb": "7ac3ee0f",
    "10_your_own.ipynb": "3be15694",
}
ROW = re.compile(r"^\| \[(.+?)\]\((\w+\.ipynb)\) \| (.+?) \| (\d*) ", re.MULTILINE)


def sections():
    "The parts of the index by their headings; what comes before the first has the name ''."
    parts = re.split(r"^## (.+)$", "\n".join(index()[:2]), flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2]))


def inline(text):
    "A line of Markdown as HTML without a paragraph around it."
    return markdown.markdown(text).removeprefix("<p>").removesuffix("</p>")


def home():
    "The home page."
    first, course = sections()[""], sections()["The course"]
    rows = ROW.findall(course)
    return Template((ROOT / "scripts" / "publish" / "home.html").read_text("utf-8")).substitute(
        claim=inline(re.search(r"^> (.+)$", first, re.MULTILINE)[1]),
        picture=first_picture(first),
        path=first_picture(course),
        chapters="\n".join(chapter(*row) for row in rows if row[1] in PICTURES),
        appendices="\n".join(
            f'<li><a href="{page(file)}">{title}</a> {inline(question)}</li>'
            for title, file, question, _ in rows
            if file not in PICTURES
        ),
        levels="\n".join(map(level, NOTEBOOKS)),
        three=first_picture((NBS / "levels" / "README.md").read_text("utf-8")).replace("../", ""),
        start=minutes("levels/1_all_in_one.ipynb"),
        whom=inline(re.search(r"^\*\*For whom\?\*\* (.+)$", course, re.MULTILINE)[1]),
        routes=linked(
            markdown.markdown("\n".join(re.findall(r"^- \*\*.+$", course, re.MULTILINE)))
        ),
    )


def first_picture(text):
    "The first picture of a section."
    return inline(re.search(r"^!\[.+$", text, re.MULTILINE)[0])


def page(file):
    "Where a notebook is on the site."
    return file.replace(".ipynb", ".html")


def linked(html):
    "The same with links to the pages of the site."
    return re.sub(r'href="(\w+\.ipynb)"', lambda link: f'href="{page(link[1])}"', html)


def chapter(title, file, question, core):
    "The card of a chapter."
    return f"""<li class="card">
{saved_picture(file)}
<h3><a href="{page(file)}">{title}</a></h3>
<p>{inline(question)}</p>
<p class="minutes">{core} minutes</p>
</li>"""


def level(name):
    "The card of a level, from its title, the line below it, and its time."
    file = f"levels/{name}.ipynb"
    text = nbformat.read(NBS / file, as_version=4).cells[0].source
    title, line = re.search(r"^# (.+)\n+> (.+)$", text, re.MULTILINE).groups()
    return f"""<li class="card">
<h3><a href="{page(file)}">{title}</a></h3>
<p>{inline(line)}</p>
<p class="minutes">{minutes(file)}</p>
</li>"""


def minutes(file):
    "How long a notebook takes to read, in its own words."
    cells = nbformat.read(NBS / file, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.search(r"\*\*It takes\*\* (?:about )?(.+?)(?: to read|[,.;])", text)[1]


def saved_picture(file):
    "The picture of a chapter's card as it's saved in the chapter, with its words."
    cells = nbformat.read(NBS / file, as_version=4).cells
    cell = next(cell for cell in cells if cell.id == PICTURES[file])
    words = re.search(r'^#\| fig-alt: "(.+)"$', cell.source, re.MULTILINE)[1]
    content = next(o.data["image/png"] for o in cell.outputs if "image/png" in o.get("data", {}))
    return f'<img alt="{words}" src="{INLINED}{content.strip()}">'


def results():
    "The page of results."
    return "# Results\n" + sections()["Results"].replace("\n### ", "\n## ")


def setup():
    "The page on installing and on the command line."
    parts, first = sections(), sections()[""]
    names = ("What you get", "Set-up", "The command line", "License", "Credit")
    start = first[re.search(r"^> .+$", first, re.MULTILINE).end() :]  # below the claim
    return "# Set-up and commands\n" + start + "".join(f"## {n}\n{parts[n]}" for n in names)
