"""Registries as a client sees them: the OCI distribution specification 1.1, over :mod:`~.wire`.

A :class:`Client` is one set of connections and credentials, for any number of registries; a :class:`Remote` is one
repository at one place. What registries answer is not trusted: documents are bounded and verified against their digest
before anybody sees them.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, Self
from urllib.parse import quote

import attrs

from pycontainer.distribution.auth import Authorizer
from pycontainer.distribution.credentials import Credential, CredentialFiles
from pycontainer.distribution.download import RemoteBlob
from pycontainer.distribution.hosts import Endpoint, Registries
from pycontainer.distribution.paging import PAGE, listed, pages
from pycontainer.distribution.upload import Sent, upload
from pycontainer.distribution.wire import Answer, Body, Wire, origin_of
from pycontainer.errors import DigestMismatch, ImageError, ManifestUnknown, RegistryError
from pycontainer.names import is_digest
from pycontainer.oci.image import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    INDEX,
    MANIFEST,
    MAX_DOCUMENT,
    Descriptor,
    parse_index,
    parse_json,
)

if TYPE_CHECKING:
    from pycontainer.names import Reference

__all__ = ["Client", "RawManifest", "Remote"]

_ACCEPT = f"{MANIFEST}, {INDEX}, {DOCKER_MANIFEST}, {DOCKER_LIST}, */*;q=0.1"
_OK, _CREATED, _ACCEPTED, _NO_CONTENT, _UNAUTHORIZED, _NOT_FOUND = 200, 201, 202, 204, 401, 404
_GOOD_DELETE = (_OK, _ACCEPTED, _NO_CONTENT)
_PROBE_SECONDS = 3.0
_MIRROR_ATTEMPTS = 2  # there is another place to ask


@attrs.frozen
class RawManifest:
    """A manifest or index as the registry has it, verified.

    Attributes:
        data: its bytes.
        media_type: what the registry says it is.
        digest: of the bytes.
    """

    data: bytes = attrs.field(repr=False)
    media_type: str
    digest: str


class Client:
    """Connections to registries, and who we are there. Thread-safe; a context manager.

    Args:
        registries: how they are reached.
    """

    def __init__(self, registries: Registries) -> None:
        self.registries = registries
        self.wire = Wire(registries)
        self.files = CredentialFiles(registries.auth_file)
        self._bases: dict[Endpoint, str] = {}
        self._authorizers: dict[tuple[Endpoint, str], Authorizer] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Break what is under way in any thread, and close all connections."""
        self.wire.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def remotes(self, reference: Reference) -> tuple[Remote, ...]:
        """Return the places to read a repository from, in order: mirrors, then the registry itself."""
        places = self.registries.endpoints(reference.registry)
        return tuple(Remote(self, place, reference.repository, ("pull",)) for place in places)

    def origin(self, reference: Reference, *actions: str) -> Remote:
        """Return a repository at its registry.

        Args:
            reference: names it.
            actions: what is to be done: ``"pull"``, ``"push"``.
        """
        return Remote(self, self.registries.origin(reference.registry), reference.repository, actions or ("pull",))

    def authorizer(self, endpoint: Endpoint, repository: str) -> Authorizer:
        """Return what makes the headers that say who we are."""
        # A mirror is another party: it never gets the registry's credentials, but its own where there are any.
        name = endpoint.host if endpoint.mirror else endpoint.registry
        with self._lock:
            known = self._authorizers.get((endpoint, repository))
            if known is None:

                def find() -> Credential | None:
                    given = self.registries.credentials.get(name)
                    if given is not None:
                        return Credential(*given)
                    return self.files.find(name, repository)

                known = self._authorizers[endpoint, repository] = Authorizer(self.wire, name, find)
            return known

    def base(self, endpoint: Endpoint) -> str:
        """Return scheme and host of a place, having tried https where it may be either.

        Raises:
            RegistryError: it answers by neither.
        """
        base = self._bases.get(endpoint)
        if base is None:
            if not endpoint.verify:
                self.wire.trust(endpoint.host)
            base = self._bases[endpoint] = f"{self._scheme(endpoint)}://{endpoint.host}"
        return base

    def _scheme(self, endpoint: Endpoint) -> str:
        first = endpoint.schemes[0]
        if len(endpoint.schemes) == 1:
            return first
        action = "connect"
        failed: RegistryError | None = None
        for scheme in endpoint.schemes:
            try:
                url = f"{scheme}://{endpoint.host}/v2/"
                seconds = min(_PROBE_SECONDS, self.registries.read_timeout)
                self.wire.request("GET", url, {}, action=action, attempts=1, seconds=seconds).close()
            except RegistryError as error:
                if not error.temporary:
                    raise
                if failed is not None:
                    reason = f"by https: {failed.reason}; by http: {error.reason}"
                    raise RegistryError(action, endpoint.host, reason, temporary=True) from error
                failed = error
            else:
                return scheme
        raise AssertionError(endpoint)  # there are two schemes at most


class Remote:
    """A repository at one place.

    Args:
        client: whose connections are used.
        endpoint: the place.
        repository: path within the registry.
        actions: what is to be done, as tokens for it are scoped.
    """

    def __init__(self, client: Client, endpoint: Endpoint, repository: str, actions: Sequence[str]) -> None:
        self.client = client
        self.wire = client.wire
        self.endpoint = endpoint
        self.path = endpoint.prefix + repository
        self.name = f"{endpoint.registry}/{repository}"
        self._actions = ",".join(actions)
        self._authorizer = client.authorizer(endpoint, repository)

    def __repr__(self) -> str:
        return f"Remote({self.endpoint.host!r}, {self.path!r})"

    # ── requests ──────────────────────────────────────────────────────────────────────────────────────────────────

    def request(
        self,
        method: str,
        path: str,
        *,
        action: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        reads: Sequence[str] = (),
        actions: str = "",
    ) -> Answer:
        """Send an authorized request about this repository.

        Args:
            method: of HTTP.
            path: below the repository.
            action: what this is, for messages.
            headers: further ones.
            body: of the request.
            reads: other repositories that are read from.
            actions: instead of those of this object.

        Raises:
            RegistryError: nobody answers, or not by the rules.
        """
        url = f"{self.client.base(self.endpoint)}/v2/{self.path}/{path}"
        scopes = (
            f"repository:{self.path}:{actions or self._actions}",
            *(f"repository:{self.endpoint.prefix}{name}:pull" for name in reads),
        )
        return self._authorized(method, url, scopes, action=action, headers=headers, body=body)

    def send(
        self,
        method: str,
        url: str,
        *,
        action: str,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        patience: float = 1.0,
        retry: bool = False,
    ) -> Answer:
        """Send a request to where the registry said, once; authorized only when that is the registry itself.

        Raises:
            RegistryError: nobody answers, or not by the rules.
        """
        scopes = (f"repository:{self.path}:{self._actions}",)
        attempts = None if retry else 1
        if origin_of(url) != origin_of(self.client.base(self.endpoint)):
            return self.wire.request(
                method, url, headers or {}, action=action, body=body, attempts=attempts, patience=patience
            )
        return self._authorized(
            method, url, scopes, action=action, headers=headers, body=body, attempts=attempts, patience=patience
        )

    def _authorized(
        self,
        method: str,
        url: str,
        scopes: tuple[str, ...],
        *,
        action: str,
        headers: Mapping[str, str] | None,
        body: Body | None,
        attempts: int | None = None,
        patience: float = 1.0,
    ) -> Answer:
        if self.endpoint.mirror and attempts is None:
            attempts = min(_MIRROR_ATTEMPTS, self.wire.registries.attempts)
        authorization = self._authorizer.header(scopes)
        for final in (False, True):
            whole = {**(headers or {})}
            if authorization:
                whole["Authorization"] = authorization
            answer = self.wire.request(
                method, url, whole, action=action, body=body, attempts=attempts, patience=patience
            )
            # An object store that we were sent to does not know us; its 401 is no question.
            if answer.status != _UNAUTHORIZED or origin_of(answer.url) != origin_of(url):
                return answer
            with answer:
                if final:
                    answer.refuse(self._authorizer.hint())
                authorization = self._authorizer.answer(answer, scopes, authorization)
                if body is not None and not isinstance(body, bytes):
                    reason = "the token expired while the blob was sent"
                    raise RegistryError(action, answer.host, reason, status=answer.status, temporary=True)
        raise AssertionError(url)  # the second answer is the last

    # ── manifests ─────────────────────────────────────────────────────────────────────────────────────────────────

    def head(self, reference: str) -> Descriptor | None:
        """Return what a tag or digest means, without its content; None where the registry does not tell.

        Raises:
            ManifestUnknown: there is none.
            RegistryError: the registry cannot be reached, or refuses.
        """
        action = f"look up {self._called(reference)}"
        headers = {"Accept": _ACCEPT}
        with self.request("HEAD", f"manifests/{reference}", action=action, headers=headers) as answer:
            if answer.status in (405, 501):  # it answers GET only
                return None
            if answer.status != _OK:
                self._refuse(answer)
            digest, length = answer.header("Docker-Content-Digest"), answer.header("Content-Length")
            if not is_digest(digest) or not length.isdecimal() or len(length) > 18:  # noqa: PLR2004 - digits of a size
                return None
            return Descriptor(media_type=_media_type(answer), digest=digest, size=int(length))

    def manifest(self, reference: str) -> RawManifest:
        """Return a manifest or index by tag or digest, verified.

        Raises:
            ManifestUnknown: there is none.
            DigestMismatch: it is not what its digest says.
            RegistryError: the registry cannot be reached, or refuses.
        """
        action = f"get the manifest of {self._called(reference)}"
        headers = {"Accept": _ACCEPT}
        with self.request("GET", f"manifests/{reference}", action=action, headers=headers) as answer:
            if answer.status != _OK:
                self._refuse(answer)
            data = answer.body(MAX_DOCUMENT)
            said = answer.header("Docker-Content-Digest")
            media_type = _media_type(answer)
        wanted = reference if ":" in reference else said if is_digest(said) else ""
        digest = _digest_of(data, wanted.partition(":")[0] or "sha256")
        if wanted and wanted != digest:
            raise DigestMismatch(f"the manifest of {self._called(reference)} from {self.endpoint.host}", wanted, digest)
        return RawManifest(data, media_type, digest)

    def put_manifest(self, reference: str, data: bytes, media_type: str) -> str:
        """Store a manifest or index under a tag or its digest, and return the digest.

        A manifest with a subject is added to the list of that where the registry does not do so itself.

        Raises:
            RegistryError: the registry cannot be reached, or refuses.
        """
        action = f"push the manifest of {self._called(reference)}"
        headers = {"Content-Type": media_type}
        digest = _digest_of(data, "sha256")
        with self.request("PUT", f"manifests/{reference}", action=action, headers=headers, body=data) as answer:
            if answer.status != _CREATED:
                answer.refuse()
            said = answer.header("Docker-Content-Digest")
            listed = bool(answer.header("OCI-Subject"))
        if is_digest(said) and said.startswith("sha256:") and said != digest:
            raise DigestMismatch(f"the manifest that {self.endpoint.host} has of {self.name}", digest, said)
        document = parse_json(data, "the manifest")
        subject = document.get("subject") if isinstance(document, dict) else None
        if isinstance(subject, dict) and not listed:
            self._list_referrer(str(subject.get("digest")), document, digest, data, media_type)
        return digest

    def delete_manifest(self, reference: str) -> None:
        """Delete a manifest by its digest, or, where the registry allows that, a tag.

        Raises:
            ManifestUnknown: there is none.
            RegistryError: the registry cannot be reached, or refuses: many do not delete unless configured to.
        """
        action = f"delete {self._called(reference)}"
        with self.request("DELETE", f"manifests/{reference}", action=action, actions="pull,delete") as answer:
            if answer.status not in _GOOD_DELETE:
                self._refuse(answer)

    def _called(self, reference: str) -> str:
        return f"{self.name}{'@' if ':' in reference else ':'}{reference}"

    def _refuse(self, answer: Answer) -> None:
        if answer.status != _NOT_FOUND:
            answer.refuse(self._authorizer.hint() if answer.status in (_UNAUTHORIZED, 403) else "")
        try:
            answer.refuse()
        except RegistryError as error:
            raise ManifestUnknown(
                error.action,
                error.host,
                error.reason,
                status=error.status,
                registry_code=error.registry_code,
                hint="check the name and the tag",
            ) from None

    # ── blobs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def blob(self, descriptor: Descriptor, *, offset: int = 0) -> RemoteBlob:
        """Return a stream of a blob; nothing is asked for before the first read. The reader verifies it.

        Args:
            descriptor: of the blob.
            offset: of the first byte.
        """
        action = f"get the blob {descriptor.digest} of {self.name}"

        def open_at(headers: Mapping[str, str]) -> Answer:
            return self.request("GET", f"blobs/{descriptor.digest}", action=action, headers=headers)

        return RemoteBlob(self.wire, open_at, descriptor.size, offset=offset, action=action)

    def blob_bytes(self, descriptor: Descriptor, limit: int) -> bytes:
        """Return a small blob, verified.

        Raises:
            ImageError: it is larger than the limit.
            DigestMismatch: it is not what its digest says.
            RegistryError: the registry cannot be reached, or refuses.
        """
        what = f"the blob {descriptor.digest} of {self.name}"
        if descriptor.size > limit:
            raise ImageError(f"{what} has {descriptor.size} bytes, at most {limit} are accepted")
        with self.blob(descriptor) as stream:
            data = b"".join(iter(stream.read, b""))
        actual = _digest_of(data, descriptor.digest.partition(":")[0])
        if actual != descriptor.digest:
            raise DigestMismatch(f"{what} from {self.endpoint.host}", descriptor.digest, actual)
        return data

    def blob_size(self, digest: str) -> int | None:
        """Return the size of a blob in bytes, None when the repository does not have it.

        Raises:
            RegistryError: the registry cannot be reached, or refuses.
        """
        with self.request("HEAD", f"blobs/{digest}", action=f"look up the blob {digest} of {self.name}") as answer:
            if answer.status == _NOT_FOUND:
                return None
            if answer.status != _OK:
                self._refuse(answer)
            length = answer.header("Content-Length")
            return int(length) if length.isdecimal() and len(length) < 19 else 0  # noqa: PLR2004 - digits of a size

    def upload(
        self,
        digest: str,
        size: int,
        open_at: Callable[[int], IO[bytes]],
        *,
        mount_from: str | None = None,
        chunk_size: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> Sent:
        """Make a blob part of this repository; see :func:`pycontainer.distribution.upload.upload`."""
        return upload(self, digest, size, open_at, mount_from=mount_from, chunk_size=chunk_size, progress=progress)

    def delete_blob(self, digest: str) -> None:
        """Delete a blob.

        Raises:
            RegistryError: the registry cannot be reached, or refuses.
        """
        action = f"delete the blob {digest} of {self.name}"
        with self.request("DELETE", f"blobs/{digest}", action=action, actions="pull,delete") as answer:
            if answer.status not in _GOOD_DELETE:
                answer.refuse()

    # ── lists ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def tags(self) -> Iterator[str]:
        """Give the tags of the repository, in the registry's order.

        Raises:
            ManifestUnknown: there is no such repository.
            RegistryError: the registry cannot be reached, or refuses.
        """
        action = f"list the tags of {self.name}"

        def first(path: str) -> Answer:
            return self.request("GET", path, action=action)

        return listed(first, f"tags/list?n={PAGE}", self.send, "tags", self._refuse)

    def referrers(self, digest: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Return the manifests whose subject is another one.

        Args:
            digest: of the subject.
            artifact_type: only those of this type.

        Raises:
            RegistryError: the registry cannot be reached, or refuses.
        """
        action = f"list what refers to {self.name}@{digest}"
        path = f"referrers/{digest}" + (f"?artifactType={quote(artifact_type, safe='')}" if artifact_type else "")
        found: list[Descriptor] = []
        for answer in pages(lambda path: self.request("GET", path, action=action), path, self.send):
            if answer.status != _OK or not _media_type(answer).startswith(INDEX):
                found = self._listed(digest)  # the registry is older than that interface
                break
            found += parse_index(answer.body(MAX_DOCUMENT), action).manifests
        return [item for item in found if artifact_type in (None, item.artifact_type)]

    def _listed(self, digest: str) -> list[Descriptor]:
        try:
            return [*parse_index(self.manifest(_referrers_tag(digest)).data, f"the referrers of {digest}").manifests]
        except ManifestUnknown:
            return []

    def _list_referrer(
        self, subject: str, document: Mapping[str, Any], digest: str, data: bytes, media_type: str
    ) -> None:
        """Add a manifest to the list of its subject; distribution-spec "Pushing Manifests with Subject"."""
        if not is_digest(subject):
            raise ImageError(f"the manifest {digest} has a subject without a digest: {subject!r}")
        tag = _referrers_tag(subject)
        try:
            index = json.loads(self.manifest(tag).data)
        except ManifestUnknown:
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": []}
        entries = index["manifests"]
        if any(entry.get("digest") == digest for entry in entries):
            return
        config = document.get("config")
        kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
        entry: dict[str, Any] = {"mediaType": media_type, "digest": digest, "size": len(data)}
        entry |= {"artifactType": kind} if kind else {}
        entry |= {"annotations": document["annotations"]} if document.get("annotations") else {}
        entries.append(entry)
        self.put_manifest(tag, json.dumps(index, separators=(",", ":")).encode(), INDEX)


def _digest_of(data: bytes, algorithm: str) -> str:
    if algorithm not in ("sha256", "sha384", "sha512"):
        raise ImageError(f"content named by {algorithm} cannot be verified, only by sha256, sha384 and sha512")
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def _media_type(answer: Answer) -> str:
    return answer.header("Content-Type").partition(";")[0].strip().lower()


def _referrers_tag(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"{algorithm[:32]}-{encoded[:64]}"
