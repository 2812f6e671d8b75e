"""A FHIR R4 server on MongoDB, with automation that acts exactly once and can say why."""

__version__ = "0.1.0"
