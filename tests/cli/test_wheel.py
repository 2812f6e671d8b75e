"""The wheel stands on its own: installed and run away from the checkout, definitions and content inside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds what pip would put into site-packages."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def words(installed: Path, *arguments: str) -> list[str]:
    program = "import fhir_server, sys; assert fhir_server.__file__.startswith(sys.argv[1]), fhir_server.__file__;"
    program += "from fhir_server.cli import main; sys.exit(main(sys.argv[2:]))"
    return [sys.executable, "-c", program, str(installed), *arguments]


def test_content_is_inside(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    checked = subprocess.run(
        words(installed, "content", "check"), cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    files = [
        path for name in ("resources", "profiles", "terminology") for path in (ROOT / name).rglob("*") if path.is_file()
    ]
    inside = [path for path in (installed / "fhir_server" / "content").rglob("*") if path.is_file()]
    assert len(inside) == len(files) > 20
    assert "content: 0 resources" not in checked.stdout
    assert checked.stdout.startswith("content: "), checked.stderr


def test_it_serves(installed: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(installed), "XDG_DATA_HOME": str(tmp_path / "home")}
    served = subprocess.Popen(
        words(installed, "serve", "--port", "0", "--open"),
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert served.stdout
        line = served.stdout.readline()
        assert line.startswith("ready on ")
        base = line.split()[-1]
        assert (
            httpx.put(f"{base}/Patient/w", json={"resourceType": "Patient", "id": "w"}, timeout=20).status_code == 201
        )
        assert (tmp_path / "home" / "fhir-server" / "mongo").is_dir()
    finally:
        served.send_signal(signal.SIGTERM)
        assert served.wait(30) == 0
        if served.stdout:
            served.stdout.close()
