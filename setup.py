"""Builds the package from settings.ini, which holds its name, version and requirements."""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
config = ConfigParser()
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
readme = here / "README.md"
address = f"{settings['git_url']}/blob/{settings['branch']}/"


def on_any_page(markdown):
    """The same with whole addresses, because a package's page has no folders beside it."""
    pictures = address.replace("/blob/", "/raw/")
    markdown = re.sub(r"(!\[[^]]*\]\()(?![a-z]+:|#)", rf"\g<1>{pictures}", markdown)
    return re.sub(r"(\]\()(?![a-z]+:|#)", rf"\g<1>{address}", markdown)


setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=on_any_page(readme.read_text(encoding="utf-8")) if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=settings["author"],
    url=settings["git_url"],
    project_urls={
        "Documentation": settings["doc_host"] + settings["doc_baseurl"],
        "Source": settings["git_url"],
        "Issues": settings["git_url"] + "/issues",
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: " + settings["audience"],
        "Intended Audience :: Science/Research",
        "Natural Language :: " + settings["language"],
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Topic :: Education",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    keywords=settings["keywords"],
    license=settings["license"].upper(),
    python_requires=">=" + settings["min_python"],
    packages=find_packages(include=[settings["lib_path"], settings["lib_path"] + ".*"]),
    package_data={settings["lib_path"]: ["weights/*.safetensors", "py.typed"]},
    install_requires=settings["requirements"].split(),
    extras_require={"dev": settings["dev_requirements"].split()},
    entry_points={
        "console_scripts": settings["console_scripts"].split(),
        "nbdev": [f"{settings['lib_path']}={settings['lib_path']}._modidx:d"],
    },
)
