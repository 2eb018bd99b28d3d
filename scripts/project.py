"""Where the project is and what settings.ini says of it, for all scripts and tests."""

from configparser import ConfigParser
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_parser = ConfigParser()
_parser.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = _parser["DEFAULT"]  # name, version, public address, requirements
