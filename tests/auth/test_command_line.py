"""Clients, users, tokens, keys and the audit from the command line, beside a server that runs."""

from __future__ import annotations

import json
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from fhir_server.cli import main
from tests.cli.conftest import Process, call


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("authorization")


@pytest.fixture(scope="module")
def served(data: Path) -> Any:
    process = Process("serve", "--port", "0", "--data-dir", data)
    base = process.base
    yield base
    process.stop()


def told(result: Any) -> dict[str, str]:
    assert result.returncode == 0, result.stderr
    return dict(line.split(maxsplit=1) for line in result.stdout.splitlines())


def test_without_a_token_there_is_nothing(served: str) -> None:
    for path in ("Patient", "Patient/p1", "AuditEvent", "Patient/$meta", "_history"):
        answer = httpx.get(f"{served}/{path}")
        assert answer.status_code == 401, path
        assert answer.json()["resourceType"] == "OperationOutcome"
        assert answer.headers["www-authenticate"] == "Bearer"
    assert httpx.get(f"{served}/metadata").status_code == 200
    services = httpx.get(f"{served}/metadata").json()["rest"][0]["security"]["service"]
    assert services[0]["coding"][0]["code"] == "SMART-on-FHIR"


def test_a_token_for_trying_things_out(served: str, data: Path) -> None:
    place = ("--data-dir", data)
    everything = call("token", "--scope", "system/*.cruds", *place).stdout.strip()
    for id in ("p1", "p2"):
        put = httpx.put(
            f"{served}/Patient/{id}",
            json={"resourceType": "Patient", "id": id},
            headers={"Authorization": f"Bearer {everything}"},
        )
        assert put.status_code == 201, put.text
    one = call("token", "--scope", "patient/*.rs", "--patient", "p1", *place).stdout.strip()
    headers = {"Authorization": f"Bearer {one}"}
    found = httpx.get(f"{served}/Patient", headers=headers).json()
    assert [entry["resource"]["id"] for entry in found["entry"]] == ["p1"]
    assert httpx.get(f"{served}/Patient/p2", headers=headers).status_code == 404
    for elsewhere in (("--port", "1"), ("--public-url", "https://other.example.org/fhir")):
        other = call("token", "--scope", "system/*.cruds", *place, *elsewhere).stdout.strip()
        assert httpx.get(f"{served}/Patient", headers={"Authorization": f"Bearer {other}"}).status_code == 401


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--scope", "patient/*.rs"), "--patient"),
        (("--scope", "openid"), "resource scopes"),
        (("--scope", "system/*.rs user/*.rs"), "do not mix"),
        (("--scope", "user/*.rs", "--user", "nobody"), "no user"),
        (("--scope", "system/*.rs", "--ttl", "0"), "--ttl"),
    ],
)
def test_what_a_token_cannot_be(
    served: str, data: Path, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["token", *words, "--data-dir", str(data)]) == 2
    assert says in capsys.readouterr().err


def test_a_service_is_registered_gets_tokens_and_is_removed(served: str, data: Path) -> None:
    place = ("--data-dir", data)
    added = told(call("client", "add", "Warehouse", "--backend", "--scope", "system/*.rs", *place))
    form = {"grant_type": "client_credentials", "scope": "system/*.rs"}
    auth = (added["client_id"], added["client_secret"])
    token = httpx.post(f"{served}/auth/token", data=form, auth=auth)
    assert token.status_code == 200, token.text
    headers = {"Authorization": f"Bearer {token.json()['access_token']}"}
    assert httpx.get(f"{served}/Patient", headers=headers).status_code == 200
    listed = call("client", "list", *place).stdout
    assert f"{added['client_id']}\tconfidential-symmetric\tWarehouse\tsystem/*.rs" in listed
    assert added["client_secret"] not in listed
    assert call("client", "remove", added["client_id"], *place).returncode == 0
    assert call("client", "remove", added["client_id"], *place).returncode == 1
    assert httpx.post(f"{served}/auth/token", data=form, auth=auth).json()["error"] == "invalid_client"


def test_keys_from_a_file_are_public_only(served: str, data: Path, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from jwt.algorithms import ECAlgorithm

    private = json.loads(ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP384R1())))
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [{**private, "kid": "k"}]}))
    added = call("client", "add", "Signed", "--backend", "--jwks", file, "--scope", "system/*.rs", "--data-dir", data)
    assert added.returncode == 0, added.stderr
    assert "client_secret" not in added.stdout
    file.write_text("{}")
    refused = call("client", "add", "Bad", "--backend", "--jwks", file, "--scope", "system/*.rs", "--data-dir", data)
    assert (refused.returncode, "kid" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("X", "--scope", "system/*.rs"), "--redirect-uri"),
        (("X", "--scope", "sytem/*.rs", "--backend"), "not a SMART"),
        (("X", "--scope", "patient/*.rs", "--public", "--redirect-uri", "http://evil.example/"), "https"),
        (("X", "--scope", "patient/*.rs", "--public", "--redirect-uri", "https://[evil.example/"), "not a URL"),
        (("X", "--scope", "system/*.rs", "--backend", "--public"), "cannot be public"),
        (("X", "--scope", "patient/*.rs", "--backend"), "needs system/ scopes"),
    ],
)
def test_what_a_client_cannot_be(
    served: str, data: Path, words: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["client", "add", *words, "--data-dir", str(data)]) == 2
    assert says in capsys.readouterr().err


def test_a_service_is_limited_by_its_scopes_and_not_by_a_users_role(data: Path) -> None:
    """A lab's role would have let it read everything its scopes do."""
    refused = call("client", "add", "X", "--backend", "--role", "lab", "--scope", "system/*.cruds", "--data-dir", data)
    assert refused.returncode == 2
    assert "invalid choice: 'lab'" in refused.stderr


def test_a_command_waits_for_the_database_of_a_server_just_started(tmp_path: Path) -> None:
    """`fhir-server serve &`, and the next line of the guide."""
    server = Process("serve", "--port", "0", "--data-dir", tmp_path)
    try:
        while not (tmp_path / "lock").exists():
            assert server.process.poll() is None
            time.sleep(0.01)
        assert not any(line.startswith("ready") for line in server.lines)
        added = call("user", "add", "ann", "--role", "patient", "--fhir-user", "Patient/p1", "--data-dir", tmp_path)
        assert added.returncode == 0, added.stderr
        assert server.base
    finally:
        server.stop()


def test_users_are_added_and_disabled(served: str, data: Path) -> None:
    place = ("--data-dir", data)
    added = told(call("user", "add", "ann", "--role", "patient", "--fhir-user", "Patient/p1", *place))
    assert len(added["password"]) >= 12
    assert call("user", "add", "ann", "--role", "patient", "--fhir-user", "Patient/p1", *place).returncode == 2
    assert call("user", "add", "bob", "--role", "patient", *place).returncode == 2
    assert "ann\tpatient\tself\tPatient/p1\tactive" in call("user", "list", *place).stdout
    assert call("user", "disable", "ann", *place).returncode == 0
    assert "disabled" in call("user", "list", *place).stdout


def test_what_a_disabled_user_had_stays_ended(served: str, data: Path) -> None:
    place = ("--data-dir", data)
    eve = ("user", "add", "eve", "--role", "patient", "--fhir-user", "Patient/p1")
    assert call(*eve, *place).returncode == 0
    token = call("token", "--scope", "patient/*.rs", "--patient", "p1", "--user", "eve", *place).stdout.strip()
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{served}/Patient", headers=headers).status_code == 200
    assert call("user", "disable", "eve", *place).returncode == 0
    assert call(*eve, "--replace", *place).returncode == 0
    time.sleep(2)
    assert httpx.get(f"{served}/Patient", headers=headers).status_code == 401


def test_keys_rotate_and_the_audit_verifies(served: str, data: Path) -> None:
    token = call("token", "--scope", "system/*.rs", "--data-dir", data, "--public-url", served).stdout.strip()
    assert call("keys", "rotate", "--data-dir", data).returncode == 0
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{served}/Patient/p1", headers=headers).status_code == 200
    verified = call("audit", "verify", "--data-dir", data)
    assert verified.returncode == 0, verified.stderr
    assert "all there and unchanged" in verified.stdout
    wrong = call("audit", "verify", "--data-dir", data, "--expect", "1 " + "0" * 64)
    assert (wrong.returncode, "cut off" in wrong.stderr) == (1, True)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--tls-cert", "nowhere.pem"), "nowhere.pem: the file is not there"),
        (("--tls-cert", __file__), "must be a certificate chain"),
        (("--tls-key", __file__), "--tls-key needs --tls-cert"),
    ],
)
def test_tls_that_cannot_be_is_told_at_once(
    words: tuple[str, str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "0", "--data-dir", str(tmp_path), *words]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_serve_does_tls_itself(tmp_path: Path, data: Path) -> None:
    """A chain and a key are all it takes; issuer and links are https then."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    start, end = datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) + timedelta(days=1)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, start, end).add_extension(names, critical=False)
    basic = x509.BasicConstraints(ca=True, path_length=None)
    certificate = builder.add_extension(basic, critical=True).sign(key, hashes.SHA256())
    (tmp_path / "cert.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    words = ["--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem", "--host", "localhost"]
    process = Process("serve", "--port", "0", "--data-dir", tmp_path / "data", *words)
    try:
        base = process.base
        trusted = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        assert base.startswith("https://localhost:")
        answer = httpx.get(f"{base}/.well-known/smart-configuration", verify=trusted)
        assert answer.json()["token_endpoint"] == f"{base}/auth/token"
        assert answer.headers["strict-transport-security"]
        token = call("token", "--scope", "system/*.rs", "--data-dir", tmp_path / "data").stdout.strip()
        headers = {"Authorization": f"Bearer {token}"}
        assert httpx.get(f"{base}/Patient", headers=headers, verify=trusted).status_code == 200
    finally:
        process.stop()
