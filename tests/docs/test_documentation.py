"""What the documentation says is so: settings, commands, links, paths."""

from __future__ import annotations

import argparse
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from fhir_server.cli import COMMANDS, parser_of
from fhir_server.settings import Settings

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "docker").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def rows(page: Path) -> list[list[str]]:
    """The cells of every table row."""
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in text(page).splitlines() if line[:1] == "|"
    ]


def test_every_setting_is_on_its_page_as_it_is() -> None:
    written = {row[0].strip("`"): row for row in rows(ROOT / "docs" / "settings.md") if row[0].startswith("`--")}
    expected = {}
    for field in fields(Settings):
        option = "--" + field.name.replace("_", "-")
        default = "~/.local/share/fhir-server" if field.default is MISSING else field.default
        if isinstance(default, bool):
            default = "yes" if default else "no"
        shown = f"`{default}`" if default != "" else "none"
        expected[option] = [f"`{option}`", f"`FHIR_{field.name.upper()}`", shown, field.metadata["help"]]
    missing = [
        "| " + " | ".join(expected[option]) + " |" for option in expected if written.get(option) != expected[option]
    ]
    assert not missing, "docs/settings.md needs these rows:\n" + "\n".join(missing)
    assert list(written) == list(expected), "docs/settings.md has rows that are not settings, or in another order"


def test_every_command_has_its_heading() -> None:
    headings = re.findall(r"^## (\S+)$", text(ROOT / "docs" / "cli.md"), re.MULTILINE)
    assert headings == list(COMMANDS)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("serve", "demo")])
def test_every_option_of_a_command_is_described(command: str) -> None:
    """Settings have a page of their own; --server and --token are described there, too."""
    page = text(ROOT / "docs" / "cli.md")
    section = page.split(f"\n## {command}\n", 1)[1].split("\n## ", 1)[0]
    parser = parser_of(command)
    options = {option for action in parser._actions for option in action.option_strings if option.startswith("--")}
    missing = {option for option in options - {"--help", "--server", "--token"} if f"`{option}" not in section}
    missing = {option for option in missing if f"{option} " not in section}
    assert not missing, f"docs/cli.md, {command}"
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            assert all(f"fhir-server {command} {name}" in section for name in action.choices), f"docs/cli.md, {command}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(FENCE.sub("", text(page))):
        target, _, anchor = link.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as forges make them."""
    found = re.findall(r"^#+ (.*)$", FENCE.sub("", text(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in found}


def test_what_the_readme_names_is_there() -> None:
    """Paths in the tree and in the table "I want to change …"."""
    rooms = "fhir_server|resources|profiles|terminology|docs|docker|tests"
    named = set(re.findall(rf"`((?:{rooms})/[\w./-]*)…?`", text(ROOT / "README.md")))
    assert len(named) > 8
    # Git keeps no empty folder: what the table offers as a place to add to may not be there yet.
    offered = {"profiles/search-parameters/"}
    assert sorted(path for path in named - offered if not (ROOT / path).exists()) == []


def test_names_in_the_readme_are_names_in_the_code() -> None:
    code = "\n".join(text(path) for path in (ROOT / "fhir_server").rglob("*.py"))
    named = re.findall(r"`([A-Z][A-Z_]{4,})`", text(ROOT / "README.md"))
    assert len(named) >= 3
    assert sorted(name for name in set(named) if not re.search(rf"^{name}\b", code, re.MULTILINE)) == []


def test_decisions_are_listed_and_complete() -> None:
    folder = ROOT / "docs" / "decisions"
    pages = sorted(page.name for page in folder.glob("[0-9]*.md"))
    assert len(pages) > 1
    index = text(folder / "README.md")
    for page in pages:
        assert f"({page})" in index or f"[{page}]({page})" in index, page
        body = text(folder / page)
        assert body.startswith(f"# {page[:4]}: ") or page.startswith("0000"), page
        for heading in ("Context", "Decision", "Consequences", "Verified"):
            assert f"\n## {heading}\n" in body, f"{page} lacks {heading}"
