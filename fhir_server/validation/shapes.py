"""A profile's elements as a tree: children by name, slices by their discriminators. https://hl7.org/fhir/R4/profiling.html"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(slots=True)
class Node:
    """What a profile says about one element, or one slice of it."""

    name: str = ""  # as the profile writes it: "component", "value[x]", "valueQuantity"
    slice_name: str = ""
    min: int = 0
    max: int | None = None  # None: nothing said, or "*"
    types: tuple[Json, ...] = ()
    fixed: Any = None
    pattern: Any = None
    binding: str = ""  # value set of a required binding
    constraints: tuple[Json, ...] = ()
    discriminators: tuple[Json, ...] = ()
    closed: bool = False
    children: dict[str, Node] = field(default_factory=dict)
    slices: dict[str, Node] = field(default_factory=dict)

    def take(self, element: Json) -> None:
        self.min = element.get("min", self.min)
        if "max" in element:
            self.max = None if element["max"] == "*" else int(element["max"])
        self.types = tuple(element.get("type", self.types))
        for key, value in element.items():
            if key.startswith("fixed"):
                self.fixed = value
            elif key.startswith("pattern"):
                self.pattern = value
        if element.get("binding", {}).get("strength") == "required":
            self.binding = element["binding"].get("valueSet", "")
        self.constraints = tuple(element.get("constraint", self.constraints))
        if "slicing" in element:
            self.discriminators = tuple(element["slicing"].get("discriminator", ()))
            self.closed = element["slicing"].get("rules") == "closed"

    @property
    def profiles(self) -> tuple[str, ...]:
        """Profiles one of which the value itself must follow."""
        return tuple(url for t in self.types for url in t.get("profile", ()))

    def at(self, path: str) -> Iterator[Node]:
        """Every node a discriminator's path reaches, through children and the slices on the way."""
        step, _, rest = path.partition(".")
        if step in ("$this", ""):
            yield self
            return
        for node in (self, *self.slices.values()):
            child = node.children.get(step) or node.children.get(step + "[x]")
            if child is not None:
                for found in (child, *child.slices.values()):
                    yield from found.at(rest or "$this")


def tree(structure: Json) -> Node:
    """A StructureDefinition's snapshot, or its differential where it has none. Elements come in the order of their paths."""
    elements = (structure.get("snapshot") or structure.get("differential") or {}).get("element", [])
    root = Node(structure["type"])
    open_nodes: dict[str, Node] = {structure["type"]: root}
    for element in elements:
        path = element["path"]
        if path == structure["type"]:
            root.take(element)
            root.min = 0
            continue
        node = _place(path, open_nodes)
        for deeper in [p for p in open_nodes if p.startswith(path + ".")]:
            del open_nodes[deeper]
        if "sliceName" in element:
            base = open_nodes.get(path + "*", node)
            open_nodes[path + "*"] = base
            node = base.slices.setdefault(element["sliceName"], Node(base.name, element["sliceName"]))
            open_nodes[path] = node
        elif path + "*" in open_nodes:
            node = open_nodes[path] = open_nodes.pop(path + "*")
        node.take(element)
    return root


def _place(path: str, open_nodes: dict[str, Node]) -> Node:
    """The node of a path; parents that the profile says nothing about are made on the way."""
    node = open_nodes.get(path)
    if node is None:
        parent, _, name = path.rpartition(".")
        node = _place(parent, open_nodes).children.setdefault(name, Node(name))
        open_nodes[path] = node
    return node
