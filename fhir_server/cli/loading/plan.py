"""What is in the files, and in which order it has to go. Nothing is sent here, and no content is kept in memory.

A step is one Bundle, or all single resources of one type. A step waits for the steps that hold what it refers to:
literal references (`Patient/1`), conditional references (`Practitioner?identifier=…`) and resources that another
bundle brings along first. Circles are cut where the fewest references are left open.
"""

from __future__ import annotations

import heapq
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from fhir_server.cli.loading import sources
from fhir_server.cli.loading.sources import REFERENCE, Unreadable

# Where nothing else decides: what others refer to most comes first.
FIRST = ("Organization", "Location", "Practitioner", "PractitionerRole", "Medication", "Patient", "Encounter")
_LITERAL = re.compile(r"([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/.*)?\Z")
_CONDITIONAL = re.compile(r"([A-Z][A-Za-z]+)\?(.*)\Z")
SAMPLE_LINES = 200  # of an NDJSON file; enough to see which types it refers to


@dataclass(slots=True, eq=False)
class Step:
    """`path` for a Bundle; `resource_type` and `parts` (files of single resources) otherwise."""

    name: str
    resources: int = 0
    path: Path | None = None
    resource_type: str = ""
    parts: list[Path] = field(default_factory=list)
    holds_patient: bool = False
    waits_for: set[Step] = field(default_factory=set)

    @property
    def order(self) -> tuple[int, int, str]:
        """Among steps that may go: shared things before patients, then by name."""
        rank = FIRST.index(self.resource_type) if self.resource_type in FIRST else len(FIRST)
        return (int(self.holds_patient), rank if self.resource_type else 0, self.name)


@dataclass(slots=True)
class Plan:
    steps: list[Step]
    owners: dict[str, Step]  # "Type/id" → the bundle that sends it, for what occurs in more than one
    unreadable: list[tuple[str, str]]  # (file, reason)

    @property
    def resources(self) -> int:
        return sum(step.resources for step in self.steps)


@dataclass(slots=True)
class _Found:
    """Everything one scan saw of one step."""

    keys: set[str] = field(default_factory=set)
    offered: set[str] = field(default_factory=set)  # keys a bundle creates unless they are there
    identified: set[str] = field(default_factory=set)  # "Type?system|value"
    references: set[str] = field(default_factory=set)


def plan(paths: list[Path]) -> Plan:
    """Reads every file once."""
    found: dict[Step, _Found] = {}
    loose: dict[str, Step] = {}
    unreadable: list[tuple[str, str]] = []
    for path in sources.files(paths):
        try:
            if sources.is_lines(path):
                _scan_lines(path, loose, found)
            else:
                _scan_file(path, loose, found)
        except (Unreadable, OSError, EOFError) as error:
            unreadable.append((str(path), str(error)))
    steps = sorted(found, key=lambda step: step.order)
    owners = _owners(steps, found)
    _connect(steps, found, owners)
    return Plan(_cut_circles(steps), owners, unreadable)


def _scan_file(path: Path, loose: dict[str, Step], found: dict[Step, _Found]) -> None:
    raw = sources.read(path)
    head = sources.head(raw)
    if head.resource_type != "Bundle":
        _scan_loose(path, head, raw, loose, found)
        return
    bundle = sources.bundle(raw)
    if bundle.type in ("document", "message"):
        _scan_loose(path, head, raw, loose, found)
        return
    seen = _Found(references={match.decode("utf-8", "replace") for match in REFERENCE.findall(raw)})
    step = Step(str(path), resources=len(bundle.entry), path=path)
    for entry in bundle.entry:
        resource = bytes(entry.resource)
        if not resource:
            continue
        inner = sources.head(resource)
        key = f"{inner.resource_type}/{sources.id_of(inner, resource, entry.full_url)}"
        seen.keys.add(key)
        if creates(entry):
            seen.offered.add(key)
        if inner.resource_type == "Patient":
            step.holds_patient = True
        for identifier in sources.identifiers(inner):
            seen.identified.add(f"{inner.resource_type}?{identifier}")
    found[step] = seen


def creates(entry: sources.Entry) -> bool:
    """Whether the entry asks for a creation that we may turn into "create unless it is there"."""
    request = entry.request
    if request is None:
        return False
    return (request.method == "POST" and not request.if_none_exist) or (
        request.method == "PUT" and request.if_none_match == "*" and "?" not in request.url
    )


def _scan_loose(path: Path, head: sources.Head, raw: bytes, loose: dict[str, Step], found: dict[Step, _Found]) -> None:
    step = _loose_step(head.resource_type, loose, found)
    if not step.parts or step.parts[-1] != path:
        step.parts.append(path)
    step.resources += 1
    _note(step, head, raw, found[step])


def _scan_lines(path: Path, loose: dict[str, Step], found: dict[Step, _Found]) -> None:
    """The type of the first line is the file's place in the order; its lines may be of any type."""
    step: Step | None = None
    count = 0
    with sources.open_file(path) as file:
        for line in file:
            if not line.strip():
                continue
            count += 1
            if count > SAMPLE_LINES:
                continue
            try:
                head = sources.head(line)
            except Unreadable:
                continue  # named when it is to be sent
            if step is None:
                step = _loose_step(head.resource_type, loose, found)
                step.parts.append(path)
            _note(step, head, line, found[step])
    if count and step is None:
        raise Unreadable("no line of it is a resource")
    if step is not None:
        step.resources += count


def _loose_step(resource_type: str, loose: dict[str, Step], found: dict[Step, _Found]) -> Step:
    if resource_type not in loose:
        step = Step(f"{resource_type} resources", resource_type=resource_type)
        loose[resource_type] = step
        found[step] = _Found()
    return loose[resource_type]


def _note(step: Step, head: sources.Head, raw: bytes, seen: _Found) -> None:
    seen.keys.add(f"{head.resource_type}/{head.id}")
    seen.references.update(match.decode("utf-8", "replace") for match in REFERENCE.findall(raw))
    seen.identified.update(f"{head.resource_type}?{item}" for item in sources.identifiers(head))
    step.holds_patient |= head.resource_type == "Patient"


def _owners(steps: list[Step], found: dict[Step, _Found]) -> dict[str, Step]:
    times = Counter(key for step in steps for key in found[step].offered)
    owners: dict[str, Step] = {}
    for step in steps:
        for key in found[step].offered:
            if times[key] > 1:
                owners.setdefault(key, step)
    return owners


def _connect(steps: list[Step], found: dict[Step, _Found], owners: dict[str, Step]) -> None:
    holder: dict[str, Step] = {}
    by_type: dict[str, set[Step]] = defaultdict(set)
    for step in steps:
        for key in (*found[step].keys, *found[step].identified):
            holder.setdefault(key, step)
        if step.resource_type:
            by_type[step.resource_type].add(step)
    for step in steps:
        seen = found[step]
        for reference in _targets(seen.references, by_type):
            if isinstance(reference, Step):
                step.waits_for.add(reference)
            elif reference in holder and reference not in seen.keys and reference not in seen.identified:
                step.waits_for.add(holder[reference])
        step.waits_for.update(owners[key] for key in seen.offered if key in owners)
        step.waits_for.discard(step)


def _targets(references: set[str], by_type: dict[str, set[Step]]) -> Iterator[str | Step]:
    """Keys a step refers to; for what NDJSON files hold (only sampled), the step of the type."""
    for reference in references:
        literal = _LITERAL.match(reference)
        if literal:
            yield f"{literal[1]}/{literal[2]}"
            yield from by_type.get(literal[1], ())
            continue
        conditional = _CONDITIONAL.match(reference)
        if conditional:
            for pair in conditional[2].split("&"):
                name, _, value = pair.partition("=")
                if name == "identifier":
                    yield f"{conditional[1]}?{unquote(value)}"
            yield from by_type.get(conditional[1], ())


def _cut_circles(steps: list[Step]) -> list[Step]:
    """The steps in an order in which each waits only for earlier ones; in a circle the one with least to wait for goes first."""
    blocks: dict[Step, list[Step]] = defaultdict(list)
    left: dict[Step, int] = {}
    for step in steps:
        left[step] = len(step.waits_for)
        for other in step.waits_for:
            blocks[other].append(step)
    number = {step: place for place, step in enumerate(steps)}
    ready = [(step.order, number[step], step) for step in steps if not step.waits_for]
    heapq.heapify(ready)
    ordered: list[Step] = []
    while left:
        if ready:
            step = heapq.heappop(ready)[2]
        else:
            step = min(left, key=lambda candidate: (left[candidate], candidate.order))
            step.waits_for -= left.keys()
        if left.pop(step, None) is None:
            continue
        ordered.append(step)
        for other in blocks[step]:
            if other in left:
                left[other] -= 1
                if left[other] == 0:
                    heapq.heappush(ready, (other.order, number[other], other))
    return ordered
