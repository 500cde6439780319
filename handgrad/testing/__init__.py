"""A checker for hand-written derivatives: `jax.custom_vjp` and `jax.custom_jvp`.

`check_rule(f, args)` compares a rule with the truth element by element, tries it under
every transformation, and says which usual mistake explains what is wrong. For pytest
there is the marker `check_rules`, for the shell `python -m handgrad check`.
"""

from handgrad.testing.cases import (
    RuleCase,
)
from handgrad.testing.check import (
    RuleError,
    check_rule,
)
from handgrad.testing.checks import (
    ALL,
    Result,
)
from handgrad.testing.compare import (
    Failure,
)
from handgrad.testing.report import (
    Report,
)

__all__ = ["ALL", "Failure", "Report", "Result", "RuleCase", "RuleError", "check_rule"]
