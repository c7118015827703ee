"""Manifests, indexes and configurations: parsing of untrusted JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pycontain.errors import ImageError
from pycontain.oci import Digest, ImageConfig, Index, Manifest, MediaType, Platform, parse_manifest
from pycontain.oci.document import CONFIG_MOST, MANIFEST_MOST, compact, parse_list
from pycontain.oci.manifest import ENTRIES_MOST, LAYERS_MOST, Descriptor

SHA = "sha256:" + "0a" * 32
CONFIG = {"mediaType": MediaType.OCI_CONFIG, "digest": SHA, "size": 7}
LAYER = {"mediaType": MediaType.OCI_LAYER + "+gzip", "digest": SHA, "size": 1 << 40}
ENTRY = {
    "mediaType": MediaType.OCI_MANIFEST,
    "digest": SHA,
    "size": 9,
    "platform": {"os": "linux", "architecture": "arm"},
}
MANIFEST: dict[str, Any] = {
    "schemaVersion": 2,
    "mediaType": MediaType.OCI_MANIFEST,
    "config": CONFIG,
    "layers": [LAYER],
}
INDEX: dict[str, Any] = {"schemaVersion": 2, "mediaType": MediaType.OCI_INDEX, "manifests": [ENTRY]}
IMAGE: dict[str, Any] = {
    "os": "linux",
    "architecture": "arm64",
    "config": {"Env": ["A=b"], "Cmd": ["sh"], "Healthcheck": {"Test": ["NONE"], "Interval": 30_000_000_000}},
    "rootfs": {"type": "layers", "diff_ids": [SHA]},
    "history": [{"created_by": "x"}],
}


def _parse_config(raw: bytes) -> ImageConfig:
    return ImageConfig.parse(raw)


PARSERS: dict[str, Callable[[bytes], object]] = {
    "manifest": parse_manifest,
    "config": _parse_config,
    "list": lambda raw: parse_list(raw, "the list", 100),
}


def _raw(document: object) -> bytes:
    return json.dumps(document).encode()


def test_a_manifest() -> None:
    manifest = parse_manifest(_raw(MANIFEST))
    assert isinstance(manifest, Manifest)
    assert manifest.digest == Digest.of(_raw(MANIFEST))
    assert (manifest.config.size, manifest.layers[0].size) == (7, 1 << 40)
    made = Manifest.make(manifest.media_type, manifest.config, manifest.layers)
    assert parse_manifest(made.raw) == made


def test_an_index() -> None:
    index = parse_manifest(_raw(INDEX))
    assert isinstance(index, Index)
    assert index.manifests[0].platform == Platform("linux", "arm", "v7")
    assert index.manifests[0].document()["platform"] == {
        "os": "linux",
        "architecture": "arm",
        "variant": "v7",
    }


_TYPES = (MediaType.OCI_MANIFEST, MediaType.DOCKER_MANIFEST, MediaType.OCI_INDEX, MediaType.DOCKER_LIST)
_VAGUE = (None, "", "application/json", "text/plain; charset=utf-8", "application/octet-stream")


@pytest.mark.parametrize(
    "media_type", [*_VAGUE, *_TYPES, "application/vnd.oci.image.MANIFEST.v1+json; x=y", "text/html"]
)
@pytest.mark.parametrize("said", [None, "", *_TYPES, "text/html"])
@pytest.mark.parametrize("document", [MANIFEST, INDEX])
def test_media_type_and_content_must_agree(
    document: dict[str, Any], said: str | None, media_type: str | None
) -> None:
    """CVE-2021-41190: a manifest must not be read as an index, or an index as a manifest."""
    is_index = document is INDEX
    called = (media_type or "").partition(";")[0].lower()
    names = {name for name in (said, called) if name and name not in _VAGUE and name != "text/plain"}
    fitting = MediaType.INDEXES if is_index else MediaType.MANIFESTS
    raw = _raw({**document, "mediaType": said})
    if len(names) < 2 and names <= fitting:
        kind = Index if is_index else Manifest
        assert isinstance(parse_manifest(raw, media_type), kind)
    else:
        with pytest.raises(ImageError):
            parse_manifest(raw, media_type)


@pytest.mark.parametrize(
    "document",
    [
        {**MANIFEST, "manifests": [ENTRY]},
        {**MANIFEST, "manifests": []},
        {**INDEX, "config": CONFIG},
        {**INDEX, "layers": []},
        {"schemaVersion": 2},
        {**MANIFEST, "schemaVersion": 1},
        {**MANIFEST, "schemaVersion": 3},
        {**MANIFEST, "schemaVersion": True},
        {**MANIFEST, "schemaVersion": 2.0},
        {**MANIFEST, "schemaVersion": "2"},
        {**MANIFEST, "schemaVersion": None},
        {**MANIFEST, "config": None},
        {**MANIFEST, "config": {**CONFIG, "mediaType": "application/vnd.cncf.helm.config.v1+json"}},
        {**MANIFEST, "config": {**CONFIG, "digest": "../../etc/passwd"}},
        {**MANIFEST, "layers": {}},
        {**MANIFEST, "layers": [None]},
        {**MANIFEST, "layers": [LAYER] * (LAYERS_MOST + 1)},
        {**MANIFEST, "layers": [{**LAYER, "size": -1}]},
        {**MANIFEST, "layers": [{**LAYER, "size": 1 << 63}]},
        {**MANIFEST, "layers": [{**LAYER, "size": 1.5}]},
        {**MANIFEST, "layers": [{**LAYER, "size": False}]},
        {**MANIFEST, "layers": [{**LAYER, "size": None}]},
        {**MANIFEST, "layers": [{**LAYER, "digest": None}]},
        {**MANIFEST, "layers": [{**LAYER, "urls": [1]}]},
        {**MANIFEST, "layers": [{**LAYER, "annotations": {"a": 1}}]},
        {**MANIFEST, "layers": [{**LAYER, "mediaType": "application/octet-stream"}]},
        {**MANIFEST, "annotations": []},
        {**INDEX, "manifests": "x"},
        {**INDEX, "manifests": [ENTRY] * (ENTRIES_MOST + 1)},
        {**INDEX, "manifests": [{**ENTRY, "platform": "linux/amd64"}]},
        {**INDEX, "manifests": [{**ENTRY, "platform": {"os": 1}}]},
        [],
        [MANIFEST],
        None,
        2,
        "manifest",
    ],
)
def test_documents_of_unknown_kind(document: object) -> None:
    with pytest.raises(ImageError):
        parse_manifest(_raw(document))


@pytest.mark.parametrize("parser", PARSERS)
@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"\xff",
        b"\xef\xbb\xbf{}",
        b'{"schemaVersion": 2, "config": {}, "config": {}}',
        b'[{"a": 1, "a": 1}]',
        b'{"schemaVersion": NaN}',
        b'{"schemaVersion": Infinity}',
        b'[{"a": -Infinity}]',
        b'{"schemaVersion": 1e999}',
        b'{"schemaVersion": ' + b"9" * 100_000 + b"}",
        b'{"schemaVersion": 2, "mediaType": "\\ud800"}',
        b'{"a": "\\udfff\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"schemaVersion":' + b"[" * 900 + b"]" * 900 + b"}",
        b"{}" + b" " * MANIFEST_MOST + b" " * CONFIG_MOST,
        '{"schemaVersion": 2}'.encode("utf-16"),
    ],
    ids=lambda raw: repr(raw[:24]),
)
def test_invalid_documents(parser: str, raw: bytes) -> None:
    with pytest.raises(ImageError) as caught:
        PARSERS[parser](raw)
    assert len(str(caught.value)) < 1000


def test_names_twice_are_found_at_once() -> None:
    names = [f'"{number}":0' for number in range(300_000)]
    raw = ("{" + ",".join([*names, '"x":1', '"x":2']) + "}").encode()
    assert len(raw) < MANIFEST_MOST
    before = time.process_time()
    with pytest.raises(ImageError, match="'x' twice"):
        parse_manifest(raw)
    assert time.process_time() - before < 20


@pytest.mark.parametrize("depth", range(880, 1000, 3))
def test_any_depth(depth: int) -> None:
    """Near what the interpreter allows, where reading succeeds and printing may not."""
    for value in (b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth):
        with pytest.raises(ImageError):
            parse_manifest(b'{"schemaVersion":' + value + b"}")


_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [2, SHA, *MediaType.LAYERS, *MediaType.CONFIGS, *_TYPES, "layers", "linux", "\ud800", "a\0b"]
    ),
)
_JSON = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths to every part of a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in _places(part, (*path, key)))]


def _changed(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(document) if isinstance(document, dict) else list(document)
    copy[path[0]] = _changed(document[path[0]], path[1:], value)
    return copy


def _tried(raw: bytes) -> None:
    for parser in PARSERS.values():
        try:
            result = parser(raw)
        except ImageError:
            continue
        if isinstance(result, ImageConfig):
            _written_again(result)
        if isinstance(result, Index):
            for wanted in (Platform(), Platform("linux", "arm", "v7")):
                try:
                    result.choose(wanted)
                except ImageError:
                    continue
        if isinstance(result, Index | Manifest):
            parts = result.manifests if isinstance(result, Index) else (result.config, *result.layers)
            for part in parts:
                assert isinstance(part, Descriptor)
                compact(part.document())


def _written_again(config: ImageConfig) -> None:
    written = config.written()
    again = ImageConfig.parse(written.raw)
    assert again.written().raw == written.raw
    assert again.diff_ids == config.diff_ids
    assert again.platform == config.platform
    assert again.container.environment == config.container.environment
    assert sorted(again.container.volumes) == sorted(config.container.volumes)
    assert again.history == config.history


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([MANIFEST, INDEX, IMAGE]), st.data())
def test_a_document_changed_anywhere(document: Any, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(_places(document)))
    _tried(json.dumps(_changed(document, path, data.draw(_JSON))).encode())


@given(_JSON)
def test_any_document(value: object) -> None:
    _tried(json.dumps(value).encode())


@given(st.binary())
def test_any_bytes(raw: bytes) -> None:
    _tried(raw)


@given(st.sampled_from([MANIFEST, INDEX, IMAGE]), st.data())
def test_any_damage(document: Any, data: st.DataObject) -> None:
    raw = bytearray(_raw(document))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    _tried(bytes(raw))


_WORDS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=10), max_size=4
)


@given(
    _WORDS,
    st.dictionaries(st.text(max_size=8), st.text(max_size=8)).filter(str),
    st.one_of(st.integers(0, 1 << 52), st.just((1 << 63) - 1)),
)
def test_configuration_round_trip(words: list[str], labels: dict[str, str], pause: int) -> None:
    names: dict[str, object] = {word: {} for word in words}
    container = {
        "User": "1000",
        "Env": words,
        "Entrypoint": words,
        "Cmd": words,
        "WorkingDir": "/w",
        "Volumes": names,
        "ExposedPorts": names,
        "Labels": {
            str(at): value.encode(errors="ignore").decode() for at, value in enumerate(labels.values())
        },
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": words, "Interval": pause, "Retries": 3},
        "Shell": words,
        "OnBuild": words,
    }
    document = {**IMAGE, "config": container, "created": "2020-01-01T00:00:00Z", "author": "a"}
    config = ImageConfig.parse(_raw(document))
    _written_again(config)
    again = ImageConfig.parse(config.written().raw)
    assert (again.container.entrypoint, again.container.command) == (tuple(words), tuple(words))
    assert again.container.labels == config.container.labels
    assert (again.created, again.author) == (config.created, config.author)


@pytest.mark.parametrize("field", ["Env", "Entrypoint", "Cmd"])
def test_no_nul_gets_into_a_container(field: str) -> None:
    with pytest.raises(ImageError, match="NUL"):
        ImageConfig.parse(_raw({**IMAGE, "config": {field: ["a\0b"]}}))


@pytest.mark.parametrize(
    "rootfs", [None, {}, {"type": "x", "diff_ids": []}, {"type": "layers", "diff_ids": ["x"]},
               {"type": "layers", "diff_ids": [SHA] * (LAYERS_MOST + 1)}]
)  # fmt: skip
def test_invalid_configurations(rootfs: object) -> None:
    with pytest.raises(ImageError):
        ImageConfig.parse(_raw({**IMAGE, "rootfs": rootfs}))


def test_chain_ids() -> None:
    """The lowest is its diff id; each further one hashes what is below it and its own (config.md)."""
    first, second = "sha256:" + "1" * 64, "sha256:" + "2" * 64
    config = ImageConfig.parse(
        _raw({**IMAGE, "rootfs": {"type": "layers", "diff_ids": [first, second, first]}})
    )
    chain = config.chain_ids
    assert chain[0] == first
    assert chain[1] == Digest.of(f"{first} {second}".encode())
    assert chain[2] == Digest.of(f"{chain[1]} {first}".encode())


@pytest.mark.parametrize("unit", ["{}", "[]", "1"])
def test_document_that_takes_many_times_its_size_is_refused(unit: str) -> None:
    raw = ('{"a":[' + ",".join([unit] * ((6 << 20) // (len(unit) + 1))) + "]}").encode()
    with pytest.raises(ImageError, match="more than 100000 lists and objects"):
        ImageConfig.parse(raw)
