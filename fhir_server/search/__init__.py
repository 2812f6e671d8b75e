"""How resources are found: parse → plan → execute → page. https://hl7.org/fhir/R4/search.html"""
