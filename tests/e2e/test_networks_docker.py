"""Networks compared with dockerd's, case by case: the table in docs/explanation/networks-compared.md."""

from __future__ import annotations

import pytest

from tests.support.networks_compared.compare import CASES, Outcomes, compare
from tests.support.networks_compared.page import PAGE
from tests.support.networks_compared.stage import Case

pytestmark = pytest.mark.xdist_group("networks_docker")


@pytest.fixture(scope="module")
def compared() -> tuple[Outcomes, Outcomes]:
    """Return the outcomes of dockerd and of pycontain."""
    return compare()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.title)
def test_as_docker_does_or_as_the_table_says(case: Case, compared: tuple[Outcomes, Outcomes]) -> None:
    docker, ours = (one.cases[case.title] for one in compared)
    assert (ours, docker) == (case.outcome, case.outcome if case.docker is None else case.docker)


def test_the_page_has_every_case() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    by_title = {line.split(" | ")[0].removeprefix("| "): line for line in rows}
    for one in CASES:
        assert f"| {one.outcome} | {one.docker or 'the same'} | {one.why} |" in by_title[one.title]
    assert len(CASES) >= 30
