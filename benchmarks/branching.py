"""Snapshot, fork and rollback: costs by size, and between the tests of a real database."""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import plot
from pycontain import Container, Engine, Image, Security, Snapshot, Volume

_BAR = 0.010
_FILL = """
import os
for directory in range(100):
    os.makedirs(f"/big/{directory}", exist_ok=True)
for number in range(FILES):
    with open(f"/big/{number % 100}/{number}", "wb") as file:
        file.write(os.urandom(64) * (SIZE // FILES // 64))
"""
_SIZES = ((1 << 20, 20), (64 << 20, 2000), (256 << 20, 5000), (1 << 30, 20000))
_POSTGRES = "/usr/lib/postgresql/15/bin"


def _timed(job: Callable[[], object]) -> float:
    begun = time.perf_counter()
    job()
    return time.perf_counter() - begun


def _at_size(engine: Engine, size: int, files: int, rounds: int) -> dict[str, object]:
    """Return medians; each snapshot is of a container that has just written all of the data."""
    seals, forks, rollbacks = [], [], []
    for _ in range(rounds):
        with Container(engine=engine, memory="2G") as one:
            script = _FILL.replace("FILES", str(files)).replace("SIZE", str(size))
            one.exec(["python3", "-c", script], check=True)
            made: list[Snapshot] = []
            seals.append(_timed(lambda one=one, made=made: made.append(one.snapshot())))  # type: ignore[misc]
            if made[0].kind != "sealed":
                raise RuntimeError("an idle container was not sealed")
            others: list[Container] = []
            forks.append(_timed(lambda one=one, others=others: others.extend(one.fork(1))))  # type: ignore[misc]
            count = others[0].exec("find /big -type f | wc -l", shell=True, check=True).stdout
            if int(count) != files:
                raise RuntimeError(f"a fork has {count} of {files} files")
            others[0].remove()
            one.exec("rm -rf /big/1", shell=True, check=True)
            rollbacks.append(_timed(lambda one=one, made=made: one.rollback(made[0])))  # type: ignore[misc]
            made[0].remove()
        engine.settle()
    row: dict[str, object] = {"job": "snapshot by size", "bytes": size, "files": files, "bar": _BAR}
    for name, taken in (("snapshot", seals), ("fork", forks), ("rollback", rollbacks)):
        row[name] = statistics.median(taken)
    row["met"] = max(statistics.median(seals), statistics.median(forks)) <= _BAR
    print(
        f"{size >> 20:5} MB {files:6} files: snapshot {statistics.median(seals) * 1e3:6.2f} ms"
        f"  fork {statistics.median(forks) * 1e3:6.2f} ms"
        f"  rollback {statistics.median(rollbacks) * 1e3:6.2f} ms"
        f"  bar {_BAR * 1e3:.0f} ms  {'met' if row['met'] else 'MISSED'}"
    )
    return row


def _side_by_side(engine: Engine, count: int) -> dict[str, object]:
    with Container(engine=engine, memory="64M") as one:
        one.exec("echo base > /state", shell=True, check=True)
        forks: list[Container] = []
        taken = _timed(lambda: forks.extend(one.fork(count)))
        for at, fork in enumerate(forks):
            fork.exec(f"echo {at} >> /state", shell=True, check=True)
        seen = [fork.exec("cat /state", shell=True, check=True).stdout.split() for fork in forks]
        for fork in forks:
            fork.remove()
    apart = seen == [["base", str(at)] for at in range(count)]
    print(f"{count} forks side by side: {taken:.3f} s, {taken / count * 1e3:.2f} ms each, apart: {apart}")
    return {"job": "forks side by side", "count": count, "seconds": taken, "met": apart}


def _debian(top: Path) -> Path:
    """Return a Debian tree with PostgreSQL; PYC_BENCH_POSTGRES names an existing one."""
    given = os.environ.get("PYC_BENCH_POSTGRES")
    if given:
        return Path(given)
    tree = top / "postgres"
    command = ["debootstrap", "--variant=minbase", "--include=postgresql", "bookworm", str(tree)]
    subprocess.run(
        command,
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
    )
    return tree


def _sql(container: Container, statement: str) -> str:
    command = [f"{_POSTGRES}/psql", "-h", "/tmp", "-d", "postgres", "-tAc", statement]
    return str(container.exec(command, user="postgres", check=True).stdout).strip()


def _postgres(engine: Engine, tree: Path, rounds: int) -> dict[str, object]:
    """Measure rollbacks between tests that each destroy a table."""
    image = Image.from_rootfs(tree)
    start = f"{_POSTGRES}/pg_ctl -D /srv/db -w -l /srv/log -o '-k /tmp -h \"\"' start >/dev/null"
    with Container(image, engine=engine, memory="1G", security=Security.DOCKER) as one:
        one.exec("mkdir -p /srv && chown postgres /srv", shell=True, check=True)
        one.exec([f"{_POSTGRES}/initdb", "-D", "/srv/db"], user="postgres", check=True)
        one.exec(start, shell=True, user="postgres", check=True)
        _sql(one, "CREATE TABLE t AS SELECT n, md5(n::text) AS word FROM generate_series(1, 10000) AS n")
        wanted = _sql(one, "SELECT count(*), md5(string_agg(word, '' ORDER BY n)) FROM t")
        one.exec([f"{_POSTGRES}/pg_ctl", "-D", "/srv/db", "-w", "stop"], user="postgres", check=True)
        snapshot = one.snapshot()
        backs, whole = [], []
        one.exec(start, shell=True, user="postgres", check=True)
        for _ in range(rounds):
            _sql(one, "DELETE FROM t WHERE n % 2 = 0; CREATE TABLE u (x int)")
            begun = time.perf_counter()
            backs.append(_timed(lambda: one.rollback(snapshot)))
            one.exec(start, shell=True, user="postgres", check=True)
            found = _sql(one, "SELECT count(*), md5(string_agg(word, '' ORDER BY n)) FROM t")
            whole.append(time.perf_counter() - begun)
            if found != wanted or _sql(one, "SELECT to_regclass('u') IS NULL") != "t":
                raise RuntimeError(f"the data is not as it was: {found} != {wanted}")
        snapshot.remove()
    back, all_of_it = statistics.median(backs), statistics.median(whole)
    print(
        f"PostgreSQL, {rounds} rollbacks, data as at the snapshot each time: {back * 1e3:.1f} ms each,"
        f" {all_of_it * 1e3:.0f} ms until it has started again and answered"
    )
    return {
        "job": "rollback of PostgreSQL",
        "rounds": rounds,
        "rollback": back,
        "until_answered": all_of_it,
        "met": True,
    }


def branching(quick: bool) -> list[dict[str, object]]:
    """Measure snapshot, fork and rollback by size, a hundred forks, and PostgreSQL between tests."""
    with tempfile.TemporaryDirectory(prefix="pyc-branching-") as place:
        top = Path(place)
        with Engine(top / "store") as engine:
            with Container(engine=engine) as warm:  # records and modules are there
                warm.snapshot().remove()
            sizes = _SIZES[:2] if quick else _SIZES
            rows = [_at_size(engine, size, files, 2 if quick else 7) for size, files in sizes]
            plot.lines(rows)
            rows.append(_side_by_side(engine, 20 if quick else 100))
            if not quick:
                rows.append(_postgres(engine, _debian(top), 100))
            Volume.prune(all=True, engine=engine)
    return rows
