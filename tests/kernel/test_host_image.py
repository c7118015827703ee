"""The default image: this machine's programs, their files of /etc, and world-writable directories."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import Bind, Container, Engine, Image, StartError
from pycontain._rootfs.host import OWN_DIRECTORIES

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("user", ["root", "1000", "1234:5", "nobody"])
def test_home_and_start_directory_are_writable(user: str, engine: Engine) -> None:
    if user != "root" and not engine._session.features.privileged and not engine._session.sub_ids:
        pytest.skip("without sub-ids there is the one id 0")
    with Container(engine=engine, user=user) as container:
        script = "touch here && pwd && mkdir -p ~/.cache/x && touch ~/.cache/x/y && echo $HOME"
        result = container.exec(script, shell=True)
    homes = {"root": "/root", "nobody": "/nonexistent"}
    if user == "nobody":
        assert result.stdout.splitlines() == ["/workspace"]
    else:
        assert result.stdout.splitlines() == ["/workspace", homes.get(user, "/home")], result.stderr


@pytest.fixture
def unmapped(tmp_path: Path) -> Iterator[Engine]:
    """An engine whose copy of the host's files is on a file system that the kernel cannot idmap."""
    with Engine(tmp_path / "store") as engine:
        if not engine._session.features.privileged:
            pytest.skip("rootless, layers are not idmapped anyway")
        (skeleton,) = Image.host(engine=engine).directories
        (tmp_path / "empty").mkdir()
        options = f"lowerdir={skeleton}:{tmp_path / 'empty'}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "pyc-unmapped", skeleton], check=True)
        try:
            with pytest.raises(StartError, match="mount id map"):
                Container(mounts={"/x": Bind(skeleton, idmap=True)}, engine=engine).start()
            yield engine
        finally:
            subprocess.run(["umount", "-l", skeleton], check=True)


@pytest.mark.parametrize("user", ["root", "1000"])
def test_directories_are_writable_where_layers_cannot_be_idmapped(user: str, unmapped: Engine) -> None:
    script = """
    for each in /workspace /home /var/tmp /tmp; do touch $each/x && stat -c "%n %a %U" $each; done
    test -f /etc/passwd && ls /etc | wc -l
    """
    with Container(user=user, engine=unmapped) as container:
        shown = container.exec(script, shell=True)
        places = "/root/x /srv/x /opt/x /mnt/x /run/x /var/lib/x /x"
        container.exec(f"touch {places}", shell=True, user="root", check=True)
    with Container(engine=unmapped) as container:
        container.exec("rm -r /home && echo x > /workspace/x", shell=True, check=True)
    assert shown.stderr == ""
    *made, names = shown.stdout.splitlines()
    assert made == ["/workspace 777 root", "/home 1777 root", "/var/tmp 1777 root", "/tmp 1777 root"]
    assert int(names) > 3


def test_own_directories_follow_their_parents() -> None:
    """The launcher makes one component of each."""
    made = {""}
    for name, _ in OWN_DIRECTORIES:
        assert name.rpartition("/")[0] in made
        made.add(name)


@pytest.mark.parametrize(
    ("program", "source", "command", "expected"),
    [
        ("java", "A.java", "java A.java", "2"),
        ("perl", "a.pl", "perl a.pl", "2"),
        ("openssl", "a", "openssl version -d", 'OPENSSLDIR: "/usr/lib/ssl"'),
        ("fc-match", "a", "fc-match -f '%{family}' >/dev/null && echo 2", "2"),
    ],
)
def test_programs_of_the_host_find_their_configuration(
    program: str, source: str, command: str, expected: str, engine: Engine
) -> None:
    if not shutil.which(program):
        pytest.skip(f"no {program} on this host")
    text = {
        "A.java": "public class A { public static void main(String[] a) { System.out.println(1 + 1); } }",
        "a.pl": "use Net::Config; print 1 + 1;",
    }.get(source, "")
    with Container(engine=engine) as container:
        container.path(f"/workspace/{source}").write_text(text)
        result = container.exec(command, shell=True, timeout=60)
    assert (result.stdout.strip(), result.stderr) == (expected, "")


def test_added_paths_are_shown_read_only(tmp_path: Path, engine: Engine) -> None:
    tmp_path.chmod(0o755)
    tool, config = tmp_path / "tool", tmp_path / "app.conf"
    tool.mkdir()
    (tool / "run").write_text("#!/bin/sh\necho ran\n")
    (tool / "run").chmod(0o755)
    config.write_text("setting")
    image = Image.host(paths=[tool, config], engine=engine)
    with Container(image, engine=engine) as container:
        script = f"{tool}/run; cat {config}; touch {tool}/x"
        result = container.exec(script, shell=True)
    assert result.stdout == "ran\nsetting"
    assert "Read-only file system" in result.stderr
    config.write_text("changed!")
    with Container(Image.host(paths=[tool, config], engine=engine), engine=engine) as container:
        assert container.path(str(config)).read_text() == "changed!"


def test_files_that_no_package_published_are_not_shown(engine: Engine) -> None:
    """World-readable files are hidden as well, because some hold tokens."""
    with Container(engine=engine) as container:
        names = set(container.exec(["ls", "/etc"], check=True).stdout.split())
    refused = {"shadow", "gshadow", "ssh", "sudoers", "ppp", "machine-id", "fstab", "pip.conf", "npmrc"}
    assert not names & refused
    assert {"passwd", "group", "hosts", "nsswitch.conf"} <= names


def test_prune_removes_unused_copies(tmp_path: Path) -> None:
    with Engine(tmp_path) as first, Engine(tmp_path) as second:
        image = Image.host(engine=first)
        file = tmp_path / "file"
        file.touch()
        other = Image.host(paths=[file], engine=second)
        second.prune()
        assert os.path.isdir(image.directories[0])
        assert os.path.isdir(other.directories[0])
        first.close()
        second.prune()
        assert not os.path.exists(image.directories[0])
        assert os.path.isdir(other.directories[0])
        with Container(Image.host(engine=second), engine=second) as container:
            assert container.exec(["true"]).returncode == 0
