"""The pytest plug-in: one test for each rule, check and dtype.

It is no part of the package, because importing `handgrad` imports JAX, and a project's
conftest.py may want to set JAX's environment variables first.
"""

import pytest

MARKER = (
    "check_rules(*cases): makes one test of the function for each of these "
    "handgrad.testing.RuleCase, each of its checks and dtypes; the function takes the "
    "fixture `rule_check` and calls it"
)


def pytest_configure(config: pytest.Config) -> None:
    """Makes the marker known."""
    config.addinivalue_line("markers", MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each case, check and dtype."""
    marker = metafunc.definition.get_closest_marker("check_rules")
    if marker is None:
        return
    if "rule_check" not in metafunc.fixturenames:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: a test marked check_rules must take "
            "the fixture rule_check"
        )
    from handgrad.testing.cases import rule_checks

    listed = rule_checks(marker.args)
    metafunc.parametrize("rule_check", listed, ids=map(str, listed))


@pytest.fixture
def check_rule():
    """The function `handgrad.testing.check_rule`."""
    from handgrad.testing import check_rule

    return check_rule
