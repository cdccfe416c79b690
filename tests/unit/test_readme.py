"""The README's map of the rooms names them all."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAP = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The rooms")[2]


def test_every_room_is_on_the_map() -> None:
    core = ROOT / "calm_lightning"
    modules = {file.name for file in core.glob("*.py") if not file.name.startswith("__")}
    packages = {f"{file.parent.name}/" for file in core.glob("*/__init__.py")}
    plugins = ROOT / "plugins" / "calm_plugins"
    own = {f"{file.parent.name}/" for file in plugins.glob("*/*/__init__.py")}
    configs = {f"{folder.name}/" for folder in (ROOT / "configs").iterdir() if folder.is_dir()}
    rooms = modules | packages | own | configs
    assert not {room for room in rooms if not re.search(rf"(?<![\w/]){re.escape(room)}", MAP)}
