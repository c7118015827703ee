"""The names, values and layouts that Python has of the protocol are those of the C headers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pycontain._kernel import file_server, native, protocol
from pycontain._python import fork_server

INCLUDE = Path(__file__).parent.parent.parent / "src" / "_native" / "include"


def _enumerators(header: str, prefix: str) -> dict[str, int]:
    """Return the names with a prefix in the enumerations and macros of a header, and their values.

    Nothing of the extension is used, so a name that ffi.cdef lacks is found.
    """
    text = re.sub(r"/\*.*?\*/", "", (INCLUDE / header).read_text(), flags=re.DOTALL)
    found = {
        name: int(value) for name, value in re.findall(rf"#define {prefix}(\w+) (\d+)u?\s*$", text, re.M)
    }
    for body in re.findall(r"enum\s*\w*\s*\{([^#}]*)\}", text):
        following = 0
        for item in filter(None, (part.strip() for part in body.split(","))):
            name, _, value = (part.strip() for part in item.partition("="))
            if value:
                one, _, shift = value.partition("<<")
                following = int(one) << int(shift or 0)
            if name.startswith(prefix) and not name.endswith("_COUNT"):
                found[name.removeprefix(prefix)] = following
            following += 1
    return found


def _members(kind: Any) -> dict[str, int]:
    return {name: int(value) for name, value in vars(kind).items() if name.isupper()}


@pytest.mark.parametrize(
    ("kind", "header", "prefix", "others"),
    [
        (protocol.RequestKind, "protocol.h", "PC_REQUEST_", {"IN_MEMFD", "AFTER"}),
        (protocol.RecordKind, "protocol.h", "PC_RECORD_", set()),
        (protocol.OpKind, "plan.h", "PC_OP_", set(_members(protocol.OpFlag))),
        (protocol.OpFlag, "plan.h", "PC_OP_", set(_members(protocol.OpKind))),
        (protocol.PlanFlag, "plan.h", "PC_PLAN_", set()),
        (protocol.SecurityFlag, "plan.h", "PC_SECURITY_", set()),
        (protocol.ExecFlag, "plan.h", "PC_EXEC_", set()),
        (protocol.UnpackFlag, "layer.h", "PC_UNPACK_", {"ROOT_OPAQUE", "CROSSES"}),
        (protocol.PackFlag, "layer.h", "PC_PACK_", set()),
        (file_server.Verb, "files.h", "PC_FILE_", {"SET_OWNER", "SET_MODE", "SET_TIMES", "GROUPS_MOST"}),
        (protocol.RelayKind, "relay.h", "PC_RELAY_", set()),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_names_and_values_are_those_of_the_header(
    kind: Any, header: str, prefix: str, others: set[str]
) -> None:
    declared = _enumerators(header, prefix)
    assert declared.keys() >= others
    assert _members(kind) == {name: value for name, value in declared.items() if name not in others}


def test_request_kinds_are_distinct() -> None:
    declared = _enumerators("protocol.h", "PC_REQUEST_")
    kinds = [declared[kind.name] for kind in protocol.RequestKind]
    assert len(kinds) == len(set(kinds))


def test_structure_takes_sizes_and_offsets_of_the_compiler() -> None:
    packer = protocol.structure("pc_unpack_report", "problem error flags implied entries bytes skipped name")
    assert packer.size == native.ffi.sizeof("struct pc_unpack_report")
    report = native.ffi.from_buffer("struct pc_unpack_report *", packer.pack(1, -2, 3, 4, 5, 6, 7, b"name"))
    assert (report.problem, report.error, report.skipped) == (1, -2, 7)
    assert native.ffi.string(report.name) == b"name"


def test_structure_packs_zeros_for_padding() -> None:
    packed = protocol.structure("pc_rlimit", "resource soft hard").pack(7, 10, 20)
    limit = native.ffi.from_buffer("struct pc_rlimit *", packed)
    assert (limit.resource, limit.pad, limit.soft, limit.hard) == (7, 0, 10, 20)


@pytest.mark.parametrize("fields", ["resource hard soft", "resource soft", "resource soft hard more"])
def test_structure_refuses_fields_that_the_header_does_not_declare(fields: str) -> None:
    with pytest.raises(RuntimeError, match="struct pc_rlimit must have the fields"):
        protocol.structure("pc_rlimit", fields)


def test_every_stage_of_a_launchers_start_has_a_name() -> None:
    text = (INCLUDE / "steps.h").read_text()
    stages = re.findall(r'X \(\w+, "([^"]+)"\)', text[text.index("#define PC_STAGES") :])
    assert stages[0] == "none"
    assert [protocol.stage_name(at) for at in range(len(stages))] == stages
    assert protocol.stage_name(len(stages)) == f"stage {len(stages)}"
    assert protocol.stage_name(-1) == "stage -1"


def test_fork_server_has_the_values_of_the_protocol() -> None:
    """The fork server runs inside, without this package, so it has to repeat what it sends."""
    kinds = {name: getattr(fork_server, name) for name in ("FAILED", "STARTED", "EXITED")}
    assert kinds == {name: int(protocol.RecordKind[name]) for name in kinds}
    packed = native.ffi.from_buffer("struct pc_record *", fork_server.record(fork_server.FAILED, 5, 12))
    assert native.record_of(packed) == native.Record(
        kind=protocol.RecordKind.FAILED,
        step=0,
        errno=12,
        op=-1,
        value=5,
        flags=0,
        cpu_user=0,
        cpu_system=0,
        peak_rss=0,
        read=0,
        written=0,
    )
    assert fork_server.RECORD.size == native.ffi.sizeof("struct pc_record")
