"""Images between pycontain and its peers: registries with and without TLS and passwords, and archives."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pycontain import AuthError, Container, Engine, Image, PullError
from pycontain.oci import ContainerConfig
from tests.support import peers
from tests.support.peers import PASSWORD, PASSWORDS, USER, Served
from tests.support.roots import make_root

pytestmark = pytest.mark.xdist_group("exchange")
LAYERS = 20
SAID = "one of twenty\n"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Return an image of twenty layers with whiteouts and replaced files."""
    top = tmp_path_factory.mktemp("image")
    made = Image.from_rootfs(make_root(top / "root"), copy=True)
    config = ContainerConfig(env=("PATH=/bin", "A=b"), command=("cat", "/said"), labels={"pyc": "test"})
    for number in range(1, LAYERS):
        with Container(made) as container:
            script = (
                f"echo {number} > /layer-{number}; rm -f /layer-{number - 3}; echo 'one of twenty' > /said"
            )
            container.exec(script, shell=True, check=True)
            made = container.commit(config=config)
    assert len(made.layers) == LAYERS
    return made.tag("pyc/twenty:made")


@pytest.fixture(scope="module", params=["plain", "tls"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Provide a registry in plain HTTP, and one with TLS and a password."""
    secure = request.param == "tls"
    directory = tmp_path_factory.mktemp("registry")
    with peers.registry(directory, tls=secure, htpasswd=PASSWORDS if secure else None) as one:
        yield one


@pytest.fixture
def access(served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Served:
    """Configure access to the registry: as insecure, or by its CA and a credentials file."""
    if served.authority is None:
        monkeypatch.setenv("PYCONTAIN_INSECURE_REGISTRIES", served.name)
        return served
    monkeypatch.setenv("SSL_CERT_FILE", str(served.authority))
    import base64

    secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {served.name: {"auth": secret}}}))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    return served


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Engine]:
    """Provide a store that has nothing yet."""
    with Engine(tmp_path / "elsewhere", ahead=0) as engine:
        yield engine


@pytest.fixture
def short() -> Iterator[Path]:
    """Provide a directory with a short path, since socket paths of the peers are limited."""
    with tempfile.TemporaryDirectory(prefix="pyc-") as directory:
        yield Path(directory)


def _tls(served: Served, word: str) -> list[str]:
    return [f"--{word}-tls-verify=false"] if served.authority is None else []


def test_push_and_pull_keep_the_digest(image: Image, access: Served, elsewhere: Engine) -> None:
    name = f"{access.name}/pyc/twenty:1"
    assert image.push(name) == image.digest
    pulled = Image.pull(name, engine=elsewhere)
    assert (pulled.digest, pulled.config) == (image.digest, image.config)
    with Container(pulled, Image.DEFAULT, engine=elsewhere) as container:
        assert container.wait(10) == 0
        assert b"".join(container.logs()).decode() == SAID
    assert elsewhere.fsck() == []


def test_second_repository_mounts_and_second_image_costs_one_layer(
    image: Image, access: Served, elsewhere: Engine
) -> None:
    image.push(f"{access.name}/pyc/first:1")
    seen: list[int] = []
    image.push(f"{access.name}/pyc/second:1", progress=lambda progress: seen.append(progress.done))
    with Container(image) as container:
        container.exec("echo more > /more", shell=True, check=True)
        more = container.commit()
    more.push(f"{access.name}/pyc/first:2")
    Image.pull(f"{access.name}/pyc/first:1", engine=elsewhere)
    totals = set()
    Image.pull(
        f"{access.name}/pyc/first:2", engine=elsewhere, progress=lambda progress: totals.add(progress.total)
    )
    assert max(totals) == more.layers[-1].size


def test_strangers_are_not_let_in(image: Image, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_AUTH_FILE", os.devnull + "-none")
    if served.authority is None:
        with pytest.raises(PullError, match=r"no trusted connection|does not answer"):
            Image.pull(f"{served.name}/pyc/twenty:1")
        return
    with pytest.raises(PullError, match="no trusted connection"):
        Image.pull(f"{served.name}/pyc/twenty:1", auth=(USER, PASSWORD))
    monkeypatch.setenv("SSL_CERT_FILE", str(served.authority))
    for auth in (None, (USER, "wrong")):
        with pytest.raises(AuthError):
            Image.pull(f"{served.name}/pyc/twenty:1", auth=auth)


def test_push_and_pull_interoperate_with_skopeo(
    image: Image, access: Served, tmp_path: Path, elsewhere: Engine
) -> None:
    peers.needs("skopeo")
    image.push(f"{access.name}/pyc/skopeo:1")
    trusted = {"SSL_CERT_FILE": str(access.authority)} if access.authority else {}
    source = f"docker://{access.name}/pyc/skopeo:1"
    peers.run("skopeo", "copy", *_tls(access, "src"), source, f"oci:{tmp_path}/there:x", env=trusted)
    assert Image.from_oci_layout(tmp_path / "there", engine=elsewhere).digest == image.digest
    target = f"docker://{access.name}/pyc/back:1"
    peers.run("skopeo", "copy", *_tls(access, "dest"), f"oci:{tmp_path}/there:x", target, env=trusted)
    assert Image.pull(f"{access.name}/pyc/back:1", engine=elsewhere).digest == image.digest


def test_docker_media_types_and_zstd_from_skopeo(
    image: Image, access: Served, tmp_path: Path, elsewhere: Engine
) -> None:
    peers.needs("skopeo")
    image.save(tmp_path / "image.tar")
    trusted = {"SSL_CERT_FILE": str(access.authority)} if access.authority else {}
    source = f"oci-archive:{tmp_path}/image.tar"
    for name, options in (
        ("v2s2", ["--format", "v2s2"]),
        ("zstd", ["--dest-compress-format", "zstd", "--format", "oci"]),
    ):
        target = f"docker://{access.name}/pyc/{name}:1"
        peers.run("skopeo", "copy", *options, *_tls(access, "dest"), source, target, env=trusted)
        pulled = Image.pull(f"{access.name}/pyc/{name}:1", engine=elsewhere)
        assert pulled.config.diff_ids == image.config.diff_ids
        with Container(pulled, engine=elsewhere) as container:
            assert container.exec(["cat", "/said"]).stdout == SAID


def test_index_gives_each_platform_its_own(
    image: Image, access: Served, tmp_path: Path, elsewhere: Engine
) -> None:
    """An index by hand, of two manifests that differ in their configuration."""
    from attrs import evolve

    from pycontain._registry.client import Registry
    from pycontain._registry.endpoint import RegistryEndpoint
    from pycontain.errors import PushError
    from pycontain.oci import Descriptor, MediaType, Platform
    from pycontain.oci.document import compact

    entries = []
    for text in ("linux/amd64", "linux/arm64", "linux/arm/v7"):
        with Container(image) as container:
            made = container.commit(config=evolve(image.config.container, labels={"for": text}))
        digest = made.push(f"{access.name}/pyc/multi:{text.replace('/', '-')}")
        assert made.manifest is not None
        one = Descriptor(
            media_type=made.manifest.media_type,
            digest=digest,
            size=len(made.manifest.raw),
            platform=Platform.parse(text),
        )
        entries.append(one.document())
    raw = compact({"schemaVersion": 2, "mediaType": MediaType.OCI_INDEX, "manifests": entries})
    with Registry(RegistryEndpoint.of(access.name), "pyc/multi", push=True, error=PushError) as registry:
        registry.put_manifest("all", raw, MediaType.OCI_INDEX)
    for text in ("linux/amd64", "linux/arm64", "linux/arm/v7"):
        pulled = Image.pull(f"{access.name}/pyc/multi:all", text, engine=elsewhere)
        assert pulled.labels == {"for": text}
    with pytest.raises(Exception, match="is not available for linux/riscv64"):
        Image.pull(f"{access.name}/pyc/multi:all", "riscv64", engine=elsewhere)


def test_docker_pulls_loads_and_saves(image: Image, access: Served, elsewhere: Engine, short: Path) -> None:
    name = f"{access.name}/pyc/docker:1"
    image.push(name)
    with peers.docker(short / "d", access.authority) as docker:
        if access.authority is not None:
            peers.run(*docker, "login", "-u", USER, "--password-stdin", access.name, data=PASSWORD.encode())
        peers.run(*docker, "pull", "-q", name)
        command = ["run", "--rm", "--network=none", name]
        ran = subprocess.run([*docker, *command], capture_output=True, text=True, check=False)
        if ran.returncode == 0:
            assert ran.stdout == SAID
        peers.run(*docker, "save", "-o", f"{short}/saved.tar", name)
        (loaded,) = Image.load(f"{short}/saved.tar", engine=elsewhere)
        assert loaded.name == name
        assert loaded.config.diff_ids == image.config.diff_ids
        peers.run(*docker, "rmi", "-f", name)
        named = image.tag("pyc/for-docker:1")
        named.save(f"{short}/ours.tar", "docker")
        named.remove()
        assert "pyc/for-docker:1" in peers.run(*docker, "load", "-i", f"{short}/ours.tar")
        shown = json.loads(peers.run(*docker, "image", "inspect", "pyc/for-docker:1"))
        assert shown[0]["RootFS"]["Layers"] == list(image.config.diff_ids)


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_podman_pulls_loads_and_saves(
    image: Image, access: Served, tmp_path: Path, form: str, elsewhere: Engine, short: Path
) -> None:
    podman = peers.podman(short)
    name = f"{access.name}/pyc/podman:1"
    image.push(name)
    trusted = {"SSL_CERT_FILE": str(access.authority)} if access.authority else {}
    verify = [] if access.authority else ["--tls-verify=false"]
    peers.run(*podman, "pull", "-q", *verify, name, env=trusted)
    peers.run(*podman, "save", "-q", "--format", form, "-o", tmp_path / "saved.tar", name)
    (loaded,) = Image.load(tmp_path / "saved.tar", engine=elsewhere)
    assert loaded.config.diff_ids == image.config.diff_ids
    with Container(loaded, engine=elsewhere) as container:
        assert container.exec(["cat", "/said"]).stdout == SAID
    named = image.tag("localhost/pyc/for-podman:1")
    named.save(tmp_path / "ours.tar")
    named.remove()
    peers.run(*podman, "load", "-q", "-i", tmp_path / "ours.tar")
    shown = json.loads(peers.run(*podman, "image", "inspect", "localhost/pyc/for-podman:1"))
    assert shown[0]["RootFS"]["Layers"] == list(image.config.diff_ids)
