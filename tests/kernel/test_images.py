"""Images of the store: import, tag, run, diff, commit, export and remove."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import (
    Conflict,
    Container,
    Engine,
    Image,
    ImageError,
    InvalidReference,
    NotFound,
    Security,
    Volume,
    WorkdirError,
)
from pycontain.oci import ContainerConfig
from tests.support.trees import difference, listing


@pytest.fixture
def image(root: Path, engine: Engine) -> Iterator[Image]:
    """Provide busybox as an image of the store, and check that the store is empty afterwards."""
    yield Image.from_rootfs(root, copy=True, tag="pyc/box:1")
    for one in Image.list():
        one.remove(force=True)
    engine.sweep()
    assert engine.fsck() == []
    assert os.listdir(engine._session.store.layers) == os.listdir(engine._session.store.partial) == []
    assert os.listdir(os.path.join(engine._session.store.blobs, "sha256")) == []


def _file(name: str, text: str, **fields: int) -> tuple[tarfile.TarInfo, io.BytesIO]:
    member = tarfile.TarInfo(name)
    member.size = len(text)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, io.BytesIO(text.encode())


def _configured(image: Image, config: ContainerConfig) -> Image:
    """Return the image with another configuration and nothing else."""
    with Container(image) as container:
        return container.commit(config=config)


def test_imported_directory_is_unchanged(image: Image, root: Path, engine: Engine) -> None:
    (path,) = image.directories
    assert (
        difference(
            listing(path, owners=engine._session.store.owners),
            listing(root, owners=engine._session.store.owners),
        )
        == {}
    )
    assert image.layers[0].size == os.path.getsize(engine._session.store.blob_path(image.layers[0].digest))
    assert image.size > 1 << 20


def test_import_of_the_same_tree_is_the_same_image(image: Image, root: Path) -> None:
    assert Image.from_rootfs(root, copy=True).digest == image.digest


def test_image_is_found_by_name_digest_and_id(image: Image) -> None:
    assert image.digest is not None
    assert image.manifest is not None
    config = image.manifest.config.digest
    names = ("pyc/box:1", "docker.io/pyc/box:1", image.digest, image.digest.hex[:12], config, config.hex[:8])
    for name in (*names, f"pyc/box@{image.digest}"):
        assert Image.get(name).manifest == image.manifest
    for name in ("pyc/box", "pyc/box:2", "f" * 12):
        with pytest.raises(NotFound):
            Image.get(name)
    with pytest.raises(InvalidReference):
        Image.get("Not An Image")


def test_container_runs_from_a_name(image: Image) -> None:
    with Container("pyc/box:1") as container:
        assert container.exec(["cat", "/etc/group"]).stdout.startswith("root:x:0:")


def test_names_move_and_the_last_one_takes_the_image_along(image: Image) -> None:
    other = image.tag("pyc/other")
    assert other.tags == ("docker.io/pyc/box:1", "docker.io/pyc/other:latest")
    image.remove()
    assert Image.get("pyc/other").digest == image.digest
    other.remove()
    assert Image.list() == []
    with pytest.raises(NotFound):
        other.remove()


def test_image_of_a_live_container_stays(image: Image) -> None:
    with Container(image) as container:
        with pytest.raises(Conflict):
            image.remove()
        assert container.exec(["true"]).returncode == 0
    image.remove()


def test_layers_in_use_outlive_their_image(image: Image, engine: Engine) -> None:
    with Container(image) as container:
        engine._session.store.remove_image(
            image.manifest.digest if image.manifest else image.layers[0].digest
        )
        engine.sweep()
        assert container.exec(["cat", "/etc/passwd"]).returncode == 0
    assert engine.sweep().layers == 1


def test_configuration_is_the_default_of_containers(image: Image, engine: Engine) -> None:
    many = engine._session.features.privileged or bool(engine._session.sub_ids)
    config = ContainerConfig(
        user="bob" if many else "root",
        env=("PATH=/bin", "GREETING=hello world", "EMPTY="),
        entrypoint=("/bin/echo", "from"),
        command=("the image",),
        workdir="/tmp",
        labels={"a": "b", "c": "d"},
        stop_signal="SIGQUIT",
    )
    made = _configured(image, config)
    assert made.config.container == config
    assert made.stop_signal == signal.SIGQUIT
    with Container(made, labels={"c": "e"}) as container:
        shown = container.exec("id -u; pwd; echo $GREETING-$EMPTY-", shell=True).stdout
        assert shown == f"{1000 if many else 0}\n/tmp\nhello world--\n"
        assert container.spec.labels == {"a": "b", "c": "e"}
    for command, said in ((Image.DEFAULT, "from the image\n"), (["the caller"], "from the caller\n")):
        with Container(made, command) as container:
            assert container.wait(10) == 0
            assert b"".join(container.logs()).decode() == said


def test_image_without_a_command_has_no_default(image: Image) -> None:
    with pytest.raises(ValueError, match="has no command"):
        Container(image, Image.DEFAULT)


def test_stop_sends_the_images_signal(image: Image) -> None:
    made = _configured(image, ContainerConfig(env=("PATH=/bin",), stop_signal="USR1"))
    trap = "trap 'echo caught; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
    with Container(made, ["sh", "-c", trap]) as container:
        said = container.logs(follow=True)
        assert b"ready" in next(said)
        container.stop(5)
        assert container.wait(1) == 3


def test_declared_volumes_are_writable_in_a_read_only_container(image: Image) -> None:
    made = _configured(image, ContainerConfig(env=("PATH=/bin",), volumes=("/data", "/proc", "..", "/")))
    with Container(made, read_only=True) as container:
        assert container.exec("echo x > /data/f && cat /data/f", shell=True).stdout == "x\n"
        assert container.exec("echo x > /etc/f", shell=True).returncode != 0


def test_missing_working_directory_of_an_image_is_made(image: Image) -> None:
    """Like podman: the directory belongs to the container's user and its parents to root."""
    made = _configured(image, ContainerConfig(env=("PATH=/bin",), workdir="/srv/app", user="1000:1000"))
    for options in ({}, {"read_only": True}, {"workdir": "/elsewhere/deep"}):
        with Container(made, user=0 if _single() else None, **options) as one:
            place = options.get("workdir", "/srv/app")
            shown = one.exec(["sh", "-c", f"pwd; stat -c '%a %u %g' {place} /srv 2>/dev/null"]).stdout
            ids = "0 0" if _single() else "1000 1000"
            assert shown.splitlines()[:2] == [place, f"755 {ids}"]
    with Container(made, user=0) as one, pytest.raises(WorkdirError):
        one.exec(["true"], workdir="/absent")


def test_working_directory_that_is_there_keeps_owner_and_mode(image: Image) -> None:
    with Container(image, workdir="/etc") as one:
        assert one.exec(["sh", "-c", "pwd; stat -c '%a %u' ."]).stdout == "/etc\n755 0\n"


def test_working_directory_of_pid_1_is_made(image: Image) -> None:
    with Container(image, ["sh", "-c", "pwd"], init=False, workdir="/made", env={"PATH": "/bin"}) as one:
        assert one.wait(20) == 0
        assert b"".join(one.logs()) == b"/made\n"


@pytest.mark.usefixtures("needs_idmap")
def test_declared_volumes_are_there_with_their_content(image: Image) -> None:
    """A declared volume is writable below a read-only root, and fresh for the next container."""
    made = _configured(image, ContainerConfig(env=("PATH=/bin",), volumes=("/fresh/deep", "/etc")))
    with Container(made) as one:
        assert one.exec(["sh", "-c", "test -d /fresh/deep && cat /etc/passwd"]).returncode == 0
    for _ in range(2):
        with Container(made, read_only=True) as one:
            held = len(Volume.list())
            done = one.exec(["sh", "-c", "cat /etc/passwd && test ! -e /etc/x && touch /etc/x /fresh/deep/x"])
            assert done.returncode == 0, done
            assert one.exec(["touch", "/y"]).returncode != 0
        assert len(Volume.list()) == held - 1


def _single() -> bool:
    """Return whether containers of this user have only the id 0."""
    from pycontain._objects.engine import default_engine

    return not (default_engine()._session.features.privileged or default_engine()._session.sub_ids)


def test_diff_reports_changes(needs_idmap: None, image: Image) -> None:
    with Container(image) as container:
        assert [change for change in container.diff() if change.path != "/etc"] == []
        container.exec(
            "rm /etc/group; echo x > /etc/passwd; mkdir /new; ln -s a /new/link", shell=True, check=True
        )
        changes = {change.path: change.kind for change in container.diff()}
    assert changes == {
        "/etc": "changed",
        "/etc/group": "deleted",
        "/etc/passwd": "changed",
        "/new": "added",
        "/new/link": "added",
    }


def test_commit_keeps_changes(needs_idmap: None, image: Image) -> None:
    security = Security.SANDBOX.evolve(restrict_suid_sgid=False)
    with Container(image, security=security) as container:
        container.exec(
            "rm -r /etc/group /root; mkdir /root; echo kept > /root/f; chmod 4755 /root/f",
            shell=True,
            check=True,
        )
        made = container.commit("pyc/box:2", message="why")
        assert container.exec(["true"]).returncode == 0
    assert made.history[-1].comment == "why"
    assert len(made.layers) == 2
    with Container("pyc/box:2") as container:
        assert container.exec("cat /root/f; stat -c %a /root/f; ls /etc", shell=True).stdout == (
            "kept\n4755\nhostname\nhosts\npasswd\nresolv.conf\n"
        )


def test_commit_of_an_in_place_directory_is_self_contained(root: Path, image: Image) -> None:
    with Container(Image.from_rootfs(root)) as container:
        container.exec("echo x > /f", shell=True, check=True)
        made = container.commit()
    with Container(made) as container:
        assert container.exec(["cat", "/f"]).stdout == "x\n"


def test_commit_of_the_host_is_refused(engine: Engine) -> None:
    with Container() as container, pytest.raises(ImageError, match="used in place"):
        container.commit()


def test_export_is_an_image_again(image: Image, tmp_path: Path) -> None:
    with Container(image, mounts={"/mounted": tmp_path}) as container:
        container.exec("echo x > /f; rm /etc/group", shell=True, check=True)
        container.export(tmp_path / "all.tar")
    with tarfile.open(tmp_path / "all.tar") as archive:
        names = archive.getnames()
    assert "f" in names
    assert "etc/group" not in names
    assert [name for name in names if name.startswith(("mounted/", "proc/", "dev/"))] == []
    with Container(Image.from_rootfs(tmp_path / "all.tar")) as container:
        assert container.exec(["cat", "/f"]).stdout == "x\n"


@pytest.mark.parametrize("form", ["oci", "docker"])
def test_saved_archive_loads_as_the_same(image: Image, tmp_path: Path, form: str, engine: Engine) -> None:
    made = _configured(image, ContainerConfig(env=("A=b",)))
    made.tag("pyc/saved:1")
    for name in ("one.tar", "two.tar"):
        made.save(tmp_path / name, form)  # type: ignore[arg-type]
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    for one in Image.list():
        one.remove(force=True)
    assert engine.sweep().blobs == 0
    (loaded,) = Image.load(tmp_path / "one.tar")
    assert loaded.name == "pyc/saved:1"
    assert loaded.config == made.config
    if form == "oci":
        assert loaded.digest == made.digest
    with Container("pyc/saved:1") as container:
        assert container.exec("echo $A", shell=True).stdout == "b\n"


def test_archives_come_compressed_and_from_open_files(image: Image, tmp_path: Path) -> None:
    import bz2
    import gzip
    import lzma

    image.save(tmp_path / "plain.tar")
    data = (tmp_path / "plain.tar").read_bytes()
    for packed in (gzip.compress(data, 1), bz2.compress(data, 1), lzma.compress(data, preset=0)):
        assert Image.from_archive(io.BytesIO(packed)).digest == image.digest


def test_layout_directory_is_read_in_place(image: Image, tmp_path: Path) -> None:
    image.save(tmp_path / "image.tar")
    (tmp_path / "layout").mkdir()
    subprocess.run(["tar", "-xf", tmp_path / "image.tar", "-C", tmp_path / "layout"], check=True)
    assert Image.from_oci_layout(tmp_path / "layout").digest == image.digest
    assert Image.from_oci_layout(tmp_path / "layout", "pyc/box:1").digest == image.digest
    with pytest.raises(NotFound):
        Image.from_oci_layout(tmp_path / "layout", "pyc/box:9")


def test_scratch_is_empty(engine: Engine) -> None:
    with Container(Image.scratch()) as container, pytest.raises(NotFound):
        container.exec(["sh"])


def test_whiteouts_and_links_hide_and_show(image: Image, tmp_path: Path, engine: Engine) -> None:
    """A second layer keeps directories that it does not name."""
    with Container(image) as container:
        container.exec(
            "mkdir -m 1777 /keep; mkdir /keep/sub /full;"
            " echo 1 > /keep/sub/a; echo 2 > /keep/b; echo 3 > /full/c",
            shell=True,
            check=True,
        )
        base = container.commit("pyc/base")
    from pycontain._images.write import Written, adopt_archive, compose
    from pycontain.oci import History

    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        for entry in (
            _file("keep/sub/new", "4"),
            _file("keep/.wh.b", ""),
            _file("full/.wh..wh..opq", ""),
            _file("full/d", "5"),
        ):
            archive.addfile(*entry)
    layer.seek(0)
    assert base.manifest is not None
    with engine._session.store.leasing() as lease:
        written: Written = adopt_archive(
            engine._session.store, layer.read, lambda digest: lease.add("blob", digest)
        )
        record = compose(
            engine._session.store, (base.manifest, base.config), [written], base.config, [History()], []
        )
    with Container(record.digest) as container:
        shown = container.exec("ls /keep /keep/sub /full; stat -c %a /keep", shell=True).stdout
    assert shown == "/full:\nd\n\n/keep:\nsub\n\n/keep/sub:\na\nnew\n1777\n"
