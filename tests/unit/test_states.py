"""States of a container: permitted transitions, and the table in the documentation."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from pycontain._runtime.state import TRANSITIONS, ContainerState, StateMachine
from pycontain.errors import StateError

DOCUMENT = Path(__file__).parents[2] / "docs" / "explanation" / "states.md"

ROUTES = {
    ContainerState.CREATED: [],
    ContainerState.STARTING: ["starting"],
    ContainerState.RUNNING: ["starting", "running"],
    ContainerState.PAUSED: ["starting", "running", "paused"],
    ContainerState.STOPPING: ["starting", "running", "stopping"],
    ContainerState.EXITED: ["starting", "exited"],
    ContainerState.REMOVED: ["removed"],
}


def _in(state: ContainerState) -> StateMachine:
    machine = StateMachine()
    for name in ROUTES[state]:
        machine.change(ContainerState(name))
    return machine


@pytest.mark.parametrize(("state", "to"), list(itertools.permutations(ContainerState, 2)))
def test_only_transitions_of_the_table_are_permitted(state: ContainerState, to: ContainerState) -> None:
    machine = _in(state)
    if to in TRANSITIONS[state]:
        machine.change(to)
        assert machine.current is to
    else:
        with pytest.raises(StateError, match=f"that is {state} cannot become {to}"):
            machine.change(to)
        assert machine.current is state


@pytest.mark.parametrize("state", list(ContainerState))
def test_a_change_to_the_current_state_is_a_no_op(state: ContainerState) -> None:
    machine = _in(state)
    machine.change(state)
    assert machine.current is state


def test_the_documentation_has_the_same_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", DOCUMENT.read_text(), re.M)
    assert sorted(rows) == sorted((str(state), str(to)) for state in TRANSITIONS for to in TRANSITIONS[state])
