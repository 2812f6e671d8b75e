"""FIB-4: index of liver fibrosis from age, transaminases and platelets.

Sterling RK et al., Hepatology 2006;43:1317-1325, doi:10.1002/hep.21178.
"""

from __future__ import annotations

from math import sqrt

from fhir_server.automation.risk.inputs import Inputs, number


def fib_4(inputs: Inputs) -> float:
    """Index without unit. AST and ALT in U/L, platelets in 10*9/L."""
    return number(inputs, "age") * number(inputs, "ast") / (number(inputs, "plt_1e9") * sqrt(number(inputs, "alt")))
