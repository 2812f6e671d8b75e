"""`fhir-server content check` refuses every kind of defect it promises to find, and names the file. docs/hooks.md, Files"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
from pathlib import Path

import pytest

from fhir_server.automation import content as rules
from fhir_server.cli import content as command
from fhir_server.model import content

FOLDERS = ("resources", "terminology", "profiles")

# (file, what is there, what stands in its place, what is said of it)
DEFECTS = [
    ("resources/follow-up/confirm-by-repeat.yaml", "status: active", "status: working", "'working' is not in"),
    (
        "resources/smoking/smoking.yaml",
        "code: former-smoker",
        "code: ex-smoker",
        "has no code 'ex-smoker' in terminology/",
    ),
    (
        "resources/lipids/lipid-classes.yaml",
        "code: '2093-3'",
        "code: '2093-4'",
        "http://loinc.org has no code '2093-4'",
    ),
    (
        "resources/blood/facts-blood.yaml",
        "valueCode: umol/L",
        "valueCode: umol per L",
        "umol per L is not a unit of UCUM",
    ),
    (
        "resources/body/waist-cn.yaml",
        "expression: '%age >= 18'",
        "expression: '%age >= '",
        "waist-cn.yaml: PlanDefinition",
    ),
    ("resources/body/bmi-cn.yaml", "%bmi >= 28", "%weight >= 28", "%weight is neither a fact"),
    ("resources/glucose/hba1c.yaml", "Library/facts-glucose|1.0.0", "Library/facts-glucose", "should name a version"),
    ("resources/kidney/ckd-stage.yaml", "facts-kidney|1.0.0", "facts-kidney|1.0.1", "another version than"),
    (
        "resources/kidney/kidney-risk.yaml",
        "collect-missing-inputs|1.0.0",
        "collect-all|1.0.0",
        "is not part of the content",
    ),
    (
        "resources/kidney/kidney-risk.yaml",
        "content, valueString: 尿白",
        "contents, valueString: 尿白",
        "%acr has no English or no",
    ),
    ("resources/risk/china-par-10y.yaml", "documentation: Waist circumference", "min: 1", "waist_cm no English or no"),
    (
        "resources/blood/cases/anaemia-cn.yaml",
        "value: '119 g/L'",
        "value: '129 g/L'",
        "anaemia-cn is missing",
    ),
    (
        "resources/yearly/cases/nbphs-yearly.yaml",
        "rule: [nbphs-yearly]",
        "rule: [diabetes-high-risk]",
        "no case names this rule",
    ),
    ("resources/metabolic-syndrome/cases/metabolic-syndrome.yaml", "    then:", "    thus:", "unknown thus"),
    ("resources/automation/automation.yaml", "id: automation", "id: automaton", "the file's name says 'automation'"),
    ("terminology/roles.yaml", "status: active", "status: [", "is not valid YAML"),
]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """One copy of the content with every defect in it, checked once."""
    root = tmp_path_factory.mktemp("content")
    for name in FOLDERS:
        shutil.copytree(content.folder(name), root / name)
    for file, before, after, _ in DEFECTS:
        path = root / file
        text = path.read_text(encoding="utf-8")
        assert before in text, (file, before)
        path.write_text(text.replace(before, after, 1), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        for module in (content, rules):
            patch.setattr(module, "folder", lambda name: root / name)
        return _run()


def _run() -> list[str]:
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
        assert command.run(argparse.Namespace(what="check")) == 1
    return errors.getvalue().splitlines()


@pytest.mark.parametrize(("file", "before", "after", "expected"), DEFECTS, ids=lambda text: text[:40])
def test_each_kind_of_defect_is_refused(said: list[str], file: str, before: str, after: str, expected: str) -> None:
    name = Path(file).name
    assert any(name in line and expected in line for line in said), [line for line in said if name in line]
