"""Loading, in three steps: `sources` finds and reads files, `plan` orders what is in them, `sender` sends it.

What makes it safe to run again: a resource that a Bundle wants created keeps its own id and is sent as "create unless it
is there" (`PUT` with `ifNoneMatch: *`); a single resource or an NDJSON line is sent as `PUT`, which changes nothing
when nothing differs. A resource that several bundles bring along is sent once, from the first of them.
"""
