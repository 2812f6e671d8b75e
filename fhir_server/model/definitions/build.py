"""Turns the official R4 package into the tables beside this file. https://hl7.org/fhir/R4/downloads.html

`python -m fhir_server.model.definitions.build hl7.fhir.r4.core-4.0.1.tgz` writes `r4/*.json`. The same package gives
the same bytes. What is kept are facts (names, types, cardinalities, codes, rules, expressions), no descriptions. One
line of a file is one type, value set or parameter, so that two packages differ line by line.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Json = dict[str, Any]

STRUCTURE = "http://hl7.org/fhir/StructureDefinition/"
# Nested elements carry their own children: their type is a definition of its own, named by its path.
NESTED = ("BackboneElement", "Element")
# The package spells these as FHIRPath system types; these are the types the pages of R4 give them.
# In a compartment: the resource that the compartment is named after. It has no search parameter.
OWN = ["{def}"]
LANGUAGES = "http://hl7.org/fhir/ValueSet/all-languages"
SYSTEM_TYPES = {"Resource.id": "id", "Element.id": "string", "Extension.url": "uri"}


def read(package: Path) -> dict[str, list[Json]]:
    """The package's resources by type, each list in the order of canonical URL or id."""
    found: dict[str, list[Json]] = {}
    with tarfile.open(package) as archive:
        for member in archive:
            name = Path(member.name)
            file = archive.extractfile(member)
            if name.parent.name != "package" or name.suffix != ".json" or file is None:
                continue
            resource = json.load(file)
            if "resourceType" in resource:
                found.setdefault(resource["resourceType"], []).append(resource)
    for resources in found.values():
        resources.sort(key=lambda item: (item.get("url", ""), item["id"]))
    return found


class Types:
    """StructureDefinition → rows of `types.json`."""

    def __init__(self, structures: list[Json]) -> None:
        self.base = {d["type"]: d for d in structures if d.get("derivation") != "constraint" and d["kind"] != "logical"}
        self.profiled = {d["url"]: d for d in structures}
        self.rows: dict[str, Json] = {}
        self.bindings: set[str] = set()

    def build(self) -> dict[str, Json]:
        for name in sorted(self.base):
            self._type(self.base[name])
        return {name: self.rows[name] for name in sorted(self.rows)}

    def _type(self, structure: Json) -> None:
        name, elements = structure["type"], structure["snapshot"]["element"]
        base = structure.get("baseDefinition", "").removeprefix(STRUCTURE)
        row: Json = {"base": base, "kind": structure["kind"]}
        if structure["abstract"]:
            row["abstract"] = True
        if structure["kind"] == "primitive-type":
            value = next(e for e in elements if e["path"] == f"{name}.value")
            regex = [x["valueString"] for x in value["type"][0].get("extension", []) if x["url"] == STRUCTURE + "regex"]
            if regex:
                row["regex"] = regex[0]
        row["invariants"] = self._invariants(elements[0], self._inherited(base))
        row["elements"] = self._children(name, elements, base)
        self.rows[name] = row
        parents = {e["path"].rpartition(".")[0] for e in elements}
        for element in elements[1:]:
            if element["path"] in parents:
                self.rows[element["path"]] = self._nested(element, elements)

    def _nested(self, element: Json, elements: list[Json]) -> Json:
        (kind,) = (t["code"] for t in element["type"])
        if kind not in NESTED:
            raise ValueError(f"{element['path']} has children but is a {kind}")
        return {
            "base": kind,
            "kind": "backbone",
            "invariants": self._invariants(element, self._inherited(kind)),
            "elements": self._children(element["path"], elements, kind),
        }

    def _children(self, path: str, elements: list[Json], base: str) -> list[Any]:
        inherited = self._names(base)
        parents = {e["path"].rpartition(".")[0] for e in elements}
        rows = []
        for element in elements:
            parent, _, name = element["path"].rpartition(".")
            if parent != path or (name in inherited and self.base[base]["kind"] != "primitive-type"):
                continue
            if self.base.get(path, {}).get("kind") == "primitive-type":
                continue  # id and extension are Element's; value is the JSON value itself
            rows.append(self._row(name, element, element["path"] in parents))
        return rows

    def _row(self, name: str, element: Json, nested: bool) -> list[Any]:
        """[name, min, max, types, targets, binding, flags, invariants]; trailing empty cells are left out."""
        path = element["path"]
        if nested:
            types = [path]
        elif "contentReference" in element:
            types = [element["contentReference"].removeprefix("#")]
        else:
            types = [SYSTEM_TYPES.get(path, t["code"]) for t in element["type"]]
            if any("/" in t for t in types):
                raise ValueError(f"{path} is of no FHIR type: {types}")
        targets = {self._target(p) for t in element.get("type", []) for p in t.get("targetProfile", [])}
        if targets & {"Resource", "DomainResource"}:
            targets = set()
        binding = element.get("binding", {})
        required = binding["valueSet"].partition("|")[0] if binding.get("strength") == "required" else ""
        if any(x.get("valueCanonical") == LANGUAGES for x in binding.get("extension", [])) and types == ["code"]:
            required = LANGUAGES  # the binding itself is only preferred, but its widest value set is this one
        if required:
            self.bindings.add(required)
        flags = ("s" if element.get("isSummary") else "") + ("m" if element.get("isModifier") else "")
        invariants = []
        if not nested:
            known = [key for t in types for key in self._inherited(t)] + self._inherited("Element")
            invariants = self._invariants(element, known)
            for profile in sorted({p for t in element.get("type", []) for p in t.get("profile", [])}):
                if profile in self.profiled:
                    invariants += self._invariants(self.profiled[profile]["snapshot"]["element"][0], known)
        largest = None if element["max"] == "*" else int(element["max"])
        cells = [name, element["min"], largest, " ".join(types), " ".join(sorted(targets)), required, flags, invariants]
        while cells[-1] in ("", []):
            cells.pop()
        return cells

    def _target(self, profile: str) -> str:
        structure = self.profiled.get(profile)
        name = structure["type"] if structure else profile.removeprefix(STRUCTURE)
        return str(name)

    def _names(self, base: str) -> set[str]:
        structure = self.base.get(base)
        return {e["path"].rpartition(".")[2] for e in structure["snapshot"]["element"][1:]} if structure else set()

    def _inherited(self, base: str) -> list[str]:
        structure = self.base.get(base)
        return [c["expression"] for c in structure["snapshot"]["element"][0].get("constraint", [])] if structure else []

    @staticmethod
    def _invariants(element: Json, known: list[str]) -> list[list[str]]:
        rules = (c for c in element.get("constraint", []) if c["expression"] not in known)
        return [[c["key"], c["severity"], c["human"], c["expression"]] for c in rules]


class Terms:
    """ValueSet + CodeSystem → {value set: {system: codes}}; None where the package does not hold all codes."""

    def __init__(self, systems: list[Json], sets: list[Json]) -> None:
        self.systems = {s["url"]: s for s in systems if s.get("content") == "complete"}
        self.sets = {s["url"]: s for s in sets}

    def expand(self, url: str) -> dict[str, list[str]] | None:
        value_set = self.sets.get(url)
        if value_set is None:
            return None
        codes: dict[str, set[str]] = {}
        for include in value_set["compose"]["include"]:
            system = include.get("system", "")
            if include.get("filter") or include.get("valueSet"):
                return None
            if "concept" in include:
                found = {c["code"] for c in include["concept"]}
            elif system in self.systems:
                found = set(self._codes(self.systems[system].get("concept", [])))
            else:
                return None
            codes.setdefault(system, set()).update(found)
        if "exclude" in value_set["compose"]:
            return None
        return {system: sorted(codes[system]) for system in sorted(codes)}

    def _codes(self, concepts: list[Json]) -> Iterator[str]:
        for concept in concepts:
            yield concept["code"]
            yield from self._codes(concept.get("concept", []))


def profile(structure: Json) -> Json:
    """What a profile of a resource adds to its base, as a StructureDefinition of the parts that can be checked."""
    keep = ("path", "sliceName", "min", "max", "slicing", "contentReference")
    elements = []
    for element in structure["differential"]["element"]:
        row = {key: element[key] for key in keep if key in element}
        row |= {key: value for key, value in element.items() if key.startswith(("fixed", "pattern"))}
        if "type" in element:
            row["type"] = [{k: v for k, v in t.items() if k != "extension"} for t in element["type"]]
        if element.get("binding", {}).get("strength") == "required":
            row["binding"] = {"strength": "required", "valueSet": element["binding"]["valueSet"].partition("|")[0]}
        if "constraint" in element:
            rules = ("key", "severity", "human", "expression")
            row["constraint"] = [{key: c[key] for key in rules} for c in element["constraint"]]
        if len(row) > 1:
            elements.append(row)
    keep = ("resourceType", "url", "name", "type", "baseDefinition", "derivation")
    return {key: structure[key] for key in keep} | {"differential": {"element": elements}}


def example(definition: Json) -> bool:
    """The package also holds examples of definitions, which define nothing: a second `subject` of Condition, …"""
    return bool(definition["id"].startswith("example"))


def search_parameter(parameter: Json) -> Json:
    keep = (
        "url",
        "code",
        "type",
        "base",
        "expression",
        "target",
        "comparator",
        "modifier",
        "multipleOr",
        "multipleAnd",
    )
    row = {key: parameter[key] for key in keep if parameter.get(key) not in (None, [])}
    if "component" in parameter:
        row["components"] = [[c["definition"], c["expression"]] for c in parameter["component"]]
    return row


def operation(definition: Json) -> Json:
    keep = ("url", "code", "resource", "system", "type", "instance", "affectsState")
    return {key: definition[key] for key in keep if key in definition}


def write(path: Path, source: Json, rows: dict[str, Any] | list[Any], **more: Any) -> None:
    def line(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

    if isinstance(rows, dict):
        body = "{\n" + ",\n".join(f"{line(key)}:{line(value)}" for key, value in rows.items()) + "\n}"
    else:
        body = "[\n" + ",\n".join(line(row) for row in rows) + "\n]"
    head = "".join(f'"{key}":{line(value)},\n' for key, value in {"source": source, **more}.items())
    path.write_text(f'{{{head}"rows":{body}}}\n', encoding="utf-8")


def build(package: Path, folder: Path) -> None:
    found = read(package)
    source = {"name": package.name, "sha256": hashlib.sha256(package.read_bytes()).hexdigest(), "licence": "CC0-1.0"}
    types = Types(found["StructureDefinition"])
    rows = types.build()
    concrete = [name for name, row in rows.items() if row["kind"] == "resource" and "abstract" not in row]
    write(folder / "types.json", source, rows, resources=concrete)
    profiles = {
        s["url"]: profile(s)
        for s in found["StructureDefinition"]
        if s["kind"] == "resource" and s.get("derivation") == "constraint"
    }
    write(folder / "profiles.json", source, profiles)
    for row in profiles.values():
        types.bindings.update(e["binding"]["valueSet"] for e in row["differential"]["element"] if "binding" in e)
    terms = Terms(found["CodeSystem"], found["ValueSet"])
    write(folder / "codes.json", source, {url: terms.expand(url) for url in sorted(types.bindings)})
    parameters = [p for p in found["SearchParameter"] if not example(p)]
    write(folder / "search-parameters.json", source, [search_parameter(p) for p in parameters])
    compartments = {
        c["code"]: {r["code"]: r["param"] for r in c["resource"] if r.get("param", OWN) != OWN}
        for c in found["CompartmentDefinition"]
        if not example(c)
    }
    write(folder / "compartments.json", source, {code: compartments[code] for code in sorted(compartments)})
    write(folder / "operations.json", source, [operation(o) for o in found["OperationDefinition"] if not example(o)])


if __name__ == "__main__":
    build(Path(sys.argv[1]), Path(__file__).parent / "r4")
