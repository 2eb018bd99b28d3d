"""Builds the package from settings.ini, which holds its name, version and requirements."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).resolve().parent
config = ConfigParser()
config.read(here / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]
readme = here / "README.md"

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    author=settings["author"],
    url=settings["git_url"],
    keywords=settings["keywords"],
    license=settings["license"].upper(),
    python_requires=">=" + settings["min_python"],
    packages=find_packages(include=[settings["lib_path"], settings["lib_path"] + ".*"]),
    package_data={settings["lib_path"]: ["weights/*.safetensors"]},
    install_requires=settings["requirements"].split(),
    extras_require={"dev": settings["dev_requirements"].split()},
    entry_points={"console_scripts": settings["console_scripts"].split()},
)
