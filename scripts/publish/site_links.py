"""Looks at the links of the built site: each leads to a file, and to a section that's there."""

import re
from html import unescape
from pathlib import Path
from urllib.parse import unquote

TARGET = re.compile(r"""<(?:a|img|link|script)\s[^>]*?\b(?:href|src)="([^"]*)\"""")
NAME = re.compile(r"""<[a-z][^>]*?\s(?:id|name)="([^"]+)\"""")


def dead_links(
    site,  # folder of the built site
):
    "The links that lead nowhere, each with its page; other sites are not asked."
    texts = {path.resolve(): path.read_text("utf-8") for path in Path(site).rglob("*.html")}
    names = {path: set(NAME.findall(text)) for path, text in texts.items()}
    dead = []
    for path, text in texts.items():
        for link in map(unescape, TARGET.findall(text)):
            if re.match(r"[a-z]+:|/", link):
                continue
            name, _, section = unquote(link).partition("#")
            target = (path.parent / name).resolve() if name else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or section and section not in names.get(target, {section}):
                dead.append(f"{path.name}: {link}")
    return dead
