"""Makes `ucum.json`, the compact fact table of units, from the official ucum-essence.xml. https://ucum.org/ucum

    python -m fhir_server.terminology.build_units ucum-essence.xml

Only facts are taken: codes, factors, definitions. The table repeats the notice that the UCUM licence asks for.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from lxml import etree

TABLE = Path(__file__).with_name("ucum.json")
NAMESPACE = "{http://unitsofmeasure.org/ucum-essence}"
NOTICE = (
    "This product includes all or a portion of the UCUM table, UCUM codes, and UCUM definitions or is derived from it, "
    "subject to a license from Regenstrief Institute, Inc. and The UCUM Organization. Your use of the UCUM table, UCUM "
    "codes, UCUM definitions also is subject to this license, a copy of which is available at "
    "http://unitsofmeasure.org. The current complete UCUM table, UCUM Specification are available for download at "
    "http://unitsofmeasure.org. The UCUM table and UCUM codes are copyright (c) 1995-2009, Regenstrief Institute, Inc. "
    "and the Unified Codes for Units of Measures (UCUM) Organization. All rights reserved. THE UCUM TABLE (IN ALL "
    'FORMATS), UCUM DEFINITIONS, AND SPECIFICATION ARE PROVIDED "AS IS." ANY EXPRESS OR IMPLIED WARRANTIES ARE '
    "DISCLAIMED, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR "
    "PURPOSE."
)


def build(body: bytes) -> dict[str, Any]:
    """ucum-essence.xml → {source, version, revision, sha256, notice, prefixes, base, units}.

    `units`: code → [factor, definition, "m" if it takes prefixes, "a" arbitrary, function of a special unit or ""].
    """
    # Any: the stubs of lxml make every attribute optional, and a missing one should stop this script.
    root: Any = etree.fromstring(body, etree.XMLParser(resolve_entities=False, no_network=True))
    units: dict[str, list[str]] = {}
    for unit in root.iter(f"{NAMESPACE}unit"):
        value = unit.find(f"{NAMESPACE}value")
        function = value.find(f"{NAMESPACE}function")
        flags = ("m" if unit.get("isMetric") == "yes" else "") + ("a" if unit.get("isArbitrary") == "yes" else "")
        if function is None:
            units[unit.get("Code")] = [value.get("value"), value.get("Unit"), flags, ""]
        else:
            units[unit.get("Code")] = [function.get("value"), function.get("Unit"), flags, function.get("name")]
    return {
        "source": "ucum-essence.xml, http://unitsofmeasure.org",
        "version": root.get("version"),
        "revision": root.get("revision-date").strip("$ "),
        "sha256": hashlib.sha256(body).hexdigest(),
        "notice": NOTICE,
        "prefixes": {p.get("Code"): p.find(f"{NAMESPACE}value").get("value") for p in root.iter(f"{NAMESPACE}prefix")},
        "base": [unit.get("Code") for unit in root.iter(f"{NAMESPACE}base-unit")],
        "units": units,
    }


def dump(table: dict[str, Any]) -> str:
    """The table as JSON with one unit a line, so that a new edition of UCUM shows as a readable difference."""
    head = {key: value for key, value in table.items() if key != "units"}
    lines = ",\n".join(f"  {json.dumps(code)}: {json.dumps(row)}" for code, row in table["units"].items())
    return json.dumps(head, indent=1)[:-2] + ',\n "units": {\n' + lines + "\n }\n}\n"


if __name__ == "__main__":
    TABLE.write_text(dump(build(Path(sys.argv[1]).read_bytes())), encoding="utf-8")
