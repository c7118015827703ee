"""The check of calls and includes between the C sources."""

from __future__ import annotations

from pathlib import Path

from tests.native import calls

ONE = """#include "two.h"

int
pc_one (void)
{
  return pc_two ();
}
"""
TWO = """static int
pc_one (void)
{
  return 1;
}

int
pc_two (void)
{
  /* pc_one () of the other file is not called */
  return pc_one ();
}
"""


def _tree(top: Path, **files: str) -> Path:
    for name in ("include", "helper/one", "helper/two", "agent", "ext", "shared"):
        (top / name).mkdir(parents=True)
    for name, text in {"one": ONE, "two": TWO, **files}.items():
        (top / "helper" / name / f"{name}.c").write_text(text)
    (top / "include" / "two.h").write_text("int pc_two (void);\n")
    return top


def test_the_sources_have_no_circle_and_no_foreign_include() -> None:
    assert calls.problems(calls.NATIVE) == []
    # The graph is not empty: known calls are in it.
    graph = calls.call_graph(calls.NATIVE, calls.PROGRAMS["helper"])
    assert "helper/spawn/child.c" in graph["helper/spawn/clone.c"]
    assert "shared/wire.c" in graph["helper/cleanup/remove.c"]


def test_a_static_function_of_the_same_name_is_no_call(tmp_path: Path) -> None:
    assert calls.problems(_tree(tmp_path)) == []


def test_a_circle_is_reported(tmp_path: Path) -> None:
    tree = _tree(
        tmp_path, two=TWO.replace("static int\npc_one", "int\npc_other").replace("return 1", "return 2")
    )
    (found,) = calls.problems(tree)
    assert found.endswith("helper/one/one.c, helper/two/two.c")


def test_an_include_of_another_subject_is_reported(tmp_path: Path) -> None:
    tree = _tree(tmp_path, one=ONE.replace("two.h", "../two/two.h"))
    assert calls.problems(tree) == ["helper/one/one.c includes ../two/two.h"]
    tree = _tree(tmp_path / "other", one=ONE.replace("two.h", "three.h"))
    assert calls.problems(tree) == ["helper/one/one.c includes three.h"]
