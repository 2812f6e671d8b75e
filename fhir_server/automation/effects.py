"""From what a round decided to what is committed: through the same preparation as a client's write, with provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from fhir_server.auth.principal import Principal
from fhir_server.automation.chart import Chart
from fhir_server.automation.ledger import Account, Slot
from fhir_server.automation.proposals import EPISODES, Trail
from fhir_server.automation.provenance import of_tags, provenance, provenance_id, section, tags_provenance_id
from fhir_server.automation.reconcile import Change, closed_by_person, realize
from fhir_server.automation.rounds import Outcome
from fhir_server.automation.rulebook import Rulebook
from fhir_server.automation.vocabulary import DEVICE
from fhir_server.errors import FhirError
from fhir_server.interactions.context import Context, Server
from fhir_server.interactions.write import prepare
from fhir_server.model.resource import Resource
from fhir_server.model.resource import load_stored as load
from fhir_server.search.records import THROUGH
from fhir_server.store.protocol import Cause, Key, Put, Stored


class Again(Exception):
    """The round rests on something that is no longer so, or on a rule whose result cannot be stored; run it again."""

    def __init__(self, *, closed: Sequence[Slot] = (), failed: Mapping[str, str] | None = None) -> None:
        super().__init__("the round has to be run again")
        self.closed = tuple(closed)  # a person is done with these
        self.failed = dict(failed or {})  # rule url → why


@dataclass(slots=True)
class Effects:
    puts: list[Put] = field(default_factory=list)
    written: list[tuple[str, str]] = field(default_factory=list)  # (rule url, resource type) of each derived resource


def keys(outcome: Outcome, account: Account) -> list[Key]:
    """What has to be read before the effects can be prepared: not what we wrote ourselves, nor what cannot be there."""
    found: list[Key] = []
    for change in outcome.changes:
        if not change.fresh or account.suspect:
            found.append(change.key)
            found.append(("Provenance", provenance_id(outcome.patient, change.slot.key, change.n)))
    if outcome.retagged and (outcome.explained or account.suspect):
        found.append(("Provenance", tags_provenance_id(outcome.patient)))
    if account.suspect:
        return [*found, *outcome.interpreted]
    return [key for key in found if key not in account.written]


def effects(
    server: Server, book: Rulebook, outcome: Outcome, chart: Chart, current: Mapping[Key, Stored], now: int
) -> Effects:
    """The Puts of one patient. Raises Again."""
    writer = _Writer(server, book, outcome, current, now)
    for change in outcome.changes:
        writer.change(change)
    if writer.closed:
        raise Again(closed=writer.closed)
    writer.finish()
    for key, rule in outcome.interpreted.items():
        reading = chart.get(key)
        if reading is None or reading.stored is None:
            continue
        newest = current.get(key, reading.stored)
        if (
            newest.version <= reading.stored.version
        ):  # else told of again, or late: a version that was replaced is let be
            writer.put(reading.resource, reading.stored, rule, checked=True)
    if outcome.tagged is not None:
        reading = chart.get(("Patient", outcome.patient))
        if reading is not None and reading.stored is not None:
            # Nobody's tags changed where a client's write left them out: then they are put back.
            writer.put(outcome.tagged, reading.stored, outcome.retagged[-1] if outcome.retagged else "", checked=True)
    if outcome.retagged:
        writer.tags_provenance(outcome.retagged)
    if writer.failed:
        raise Again(failed=writer.failed)
    return writer.effects


class _Writer:
    def __init__(
        self, server: Server, book: Rulebook, outcome: Outcome, current: Mapping[Key, Stored], now: int
    ) -> None:
        self._server, self._book, self._outcome, self._current, self._now = server, book, outcome, current, now
        self.effects = Effects()
        self._made: dict[Key, tuple[Resource, Change]] = {}
        self.closed: list[Slot] = []
        self.failed: dict[str, str] = {}

    def change(self, change: Change) -> None:
        """One step further for one resource; several steps of a batch end in one version."""
        slot, key = change.slot, change.key
        if key in self._made:
            existing: Resource | None = self._made[key][0]
        else:
            stored = self._current.get(key)
            existing = load(stored.raw) if stored is not None and not stored.deleted else None
            if stored is not None and key[0] in EPISODES and closed_by_person(slot, existing):
                status = str((existing or {}).get("status", "deleted"))
                focus = str((existing or {}).get("focus", {}).get("reference", slot.focus))
                self.closed.append(structs.replace(slot, state="closed", status=status, focus=focus))
                return
        resource = realize(change, existing, self._now, self._outcome.patient)
        if resource is not None:
            self._made[key] = ({**resource, "id": key[1]}, change)

    def finish(self) -> None:
        """The versions, each with its Provenance."""
        for key, (resource, change) in self._made.items():
            slot = change.slot
            proposal = change.proposal
            if self.put(resource, self._current.get(key), slot.rule, change.rule):
                self.effects.written.append((slot.rule, key[0]))
            elif proposal is None or not proposal.label:  # a person had labelled it already, but not its Provenance
                continue
            decision = self._outcome.decisions.get(slot.rule)
            trails: list[Trail] = [proposal.trail] if proposal is not None and proposal.trail is not None else []
            if proposal is None and decision is not None:
                trails = decision.trails
            sources = proposal.sources if proposal is not None else (decision.sources if decision is not None else ())
            label = proposal.label if proposal is not None else decision.label if decision is not None else ""
            self._provenance(
                provenance_id(self._outcome.patient, slot.key, change.n), "/".join(key), slot.rule, change.rule,
                sources, trails, proposal is None, label,
            )  # fmt: skip

    def tags_provenance(self, rules: Sequence[str]) -> None:
        sections = []
        for rule in rules:
            decision = self._outcome.decisions[rule]
            if decision.tags:
                known = self._book.by_url.get(rule)
                id = known.id if known is not None else ""
                sections.append(section(decision.canonical, id, self._event(rule), decision.sources, decision.trails))
        stored = self._current.get(("Provenance", tags_provenance_id(self._outcome.patient)))
        existing = load(stored.raw) if stored is not None and not stored.deleted else None
        gone = [rule for rule in rules if not self._outcome.decisions[rule].tags]
        resource = of_tags(self._outcome.patient, sections, existing, gone, self._now, self._outcome.label)
        self.put(resource, stored, rules[-1], checked=True)

    def _provenance(
        self, id: str, target: str, rule: str, canonical: str, sources: Sequence[str], trails: Sequence[Trail],
        withdrawn: bool, label: str,
    ) -> None:  # fmt: skip
        known = self._book.by_url.get(rule)
        resource = provenance(
            id, target=target, rule=canonical, rule_id=known.id if known is not None else "",
            event=self._event(rule), sources=sources, trails=trails, now=self._now, withdrawn=withdrawn, label=label,
        )  # fmt: skip
        self.put(resource, self._current.get(("Provenance", id)), rule, canonical, checked=True)

    def _event(self, rule: str) -> str:
        woken = self._outcome.woken.get(rule)
        return woken.event.id if woken is not None and woken.event is not None else "time"

    def put(
        self, resource: Resource, previous: Stored | None, rule: str, canonical: str = "", *, checked: bool = False
    ) -> bool:
        """Prepared as any write; false where nothing would change. A resource that is refused is its rule's failure.

        `checked`: what it says is the engine's own, not a rule's: a Provenance, or codings of content that was checked
        when it was published, added to a resource that was checked when it was written.
        """
        woken = self._outcome.woken.get(rule)
        event = woken.event if woken is not None else None
        chain = (*event.cause.chain, event.id) if event is not None else ()
        known = self._book.by_url.get(rule)
        cause = Cause(chain, canonical or (known.canonical if known is not None else rule), DEVICE)
        context = Context(Principal.automation(), self._server.settings.public_url, cause=cause)
        try:
            put, _ = prepare(
                self._server, context, resource, str(resource["id"]), previous, interaction="update", checked=checked,
                about=(self._outcome.patient,) if resource["resourceType"] in THROUGH else (),
            )  # fmt: skip
        except FhirError as error:
            self.failed[rule] = f"{resource['resourceType']}: " + "; ".join(one.diagnostics for one in error.issues)
            return False
        if put is None:
            return False
        if self._book.deaf(put.stored.resource_type, cause):
            put = replace(put, quiet=True)
        self.effects.puts.append(put)
        return True
