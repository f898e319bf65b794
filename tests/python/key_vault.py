"""A stand-in for Azure Key Vault on loopback, over TLS: what the key stores need of its REST API.

Arguments: certificate and key as PEM files. Prints its port. Every vault host is the same vault.
`POST /test/TROUBLE` changes how it behaves from then on: `none`, `deny` (403), `away` (503),
`rotate` (a new version of each key), `disable` and `enable` (each version that there is).

`check_key_vault.py` holds it against Microsoft's own clients.
"""

import base64
import http.server
import json
import re
import ssl
import sys
import threading
import time
import urllib.parse
import uuid

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature

RESOURCE = "https://vault.example"
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
lock = threading.Lock()
trouble = "none"
tokens = set()
keys = {}  # name -> [(version, private key, enabled)]
secrets = {}  # name -> [(version, value, content type)]
deleted = set()


def encode(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def add_version(name):
    made = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    keys.setdefault(name, []).append([uuid.uuid4().hex, made, True])


CURVES = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
HASHES = {"256": hashes.SHA256(), "384": hashes.SHA384(), "512": hashes.SHA512()}
SIGNS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


def create_version(name, wanted):
    if wanted["kty"] == "EC":
        made = ec.generate_private_key(CURVES[wanted["crv"]])
    else:
        made = rsa.generate_private_key(public_exponent=65537, key_size=wanted["key_size"])
    keys.setdefault(name, []).append([uuid.uuid4().hex, made, True])


def public_jwk(key):
    numbers = key.public_key().public_numbers()
    if isinstance(key, rsa.RSAPrivateKey):
        n = numbers.n.to_bytes(key.key_size // 8, "big")
        return {"kty": "RSA", "n": encode(n), "e": "AQAB"}
    length = (key.key_size + 7) // 8
    x, y = (encode(part.to_bytes(length, "big")) for part in (numbers.x, numbers.y))
    crv = next(crv for crv, curve in CURVES.items() if curve.name == key.curve.name)
    return {"kty": "EC", "crv": crv, "x": x, "y": y}


def sign(key, alg, digest):
    is_rsa = isinstance(key, rsa.RSAPrivateKey)
    if alg != ("RS256" if is_rsa else SIGNS[key.curve.name]):
        raise Refused(400, "BadParameter")
    hashed = Prehashed(HASHES[alg[2:]])
    if is_rsa:
        return key.sign(digest, padding.PKCS1v15(), hashed)
    length = (key.key_size + 7) // 8
    numbers = decode_dss_signature(key.sign(digest, ec.ECDSA(hashed)))
    return b"".join(number.to_bytes(length, "big") for number in numbers)


class Refused(Exception):
    def __init__(self, status, code, message="refused by the stand-in"):
        super().__init__(code)
        self.status = status
        self.code = code
        self.message = message


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body, headers=()):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def handle_request(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        path = [part for part in urllib.parse.urlsplit(self.path).path.split("/") if part]
        with lock:
            try:
                self.route(path, body)
            except Refused as refused:
                error = {"code": refused.code, "message": refused.message}
                self.answer(refused.status, {"error": error})

    do_GET = do_POST = do_PUT = do_DELETE = handle_request

    def route(self, path, body):
        global trouble
        if path[0] == "test":
            if path[1] == "rotate":
                for name in keys:
                    add_version(name)
            elif path[1] in ("disable", "enable"):
                for versions in keys.values():
                    for version in versions:
                        version[2] = path[1] == "enable"
            else:
                trouble = path[1]
            return self.answer(200, {})
        if path[-1] == "token":
            return self.token(body)
        if self.headers.get("Authorization", "").removeprefix("Bearer ") not in tokens:
            challenge = f'Bearer authorization="https://login.example/tenant", resource="{RESOURCE}"'
            error = {"error": {"code": "Unauthorized", "message": "no token"}}
            return self.answer(401, error, [("WWW-Authenticate", challenge)])
        if trouble == "away":
            raise Refused(503, "ServiceUnavailable")
        if trouble == "deny":
            raise Refused(403, "Forbidden")
        vault = f"https://{self.headers['Host']}"
        value = json.loads(body) if body else {}
        if path[0] == "keys":
            return self.keys(vault, path[1], path[2:], value)
        return self.secrets(vault, path[1], path[2:], value)

    def token(self, body):
        form = dict(urllib.parse.parse_qsl(body.decode()))
        wanted = {
            "grant_type": "client_credentials",
            "client_id": "client",
            "client_secret": "s3cr3t",
            "scope": f"{RESOURCE}/.default",
        }
        if any(form.get(name) != value for name, value in wanted.items()):
            return self.answer(401, {"error": "invalid_client"})
        token = uuid.uuid4().hex
        tokens.add(token)
        self.answer(200, {"token_type": "Bearer", "expires_in": 3600, "access_token": token})

    def keys(self, vault, name, rest, value):
        if rest == ["create"]:
            create_version(name, value)
            rest = []
        elif name not in keys:
            add_version(name)
        versions = keys[name]
        kid = lambda version: f"{vault}/keys/{name}/{version}"
        if rest == ["versions"]:
            listed = [
                {"kid": kid(version), "attributes": {"enabled": on, "created": 1750000000 + age}}
                for age, (version, _, on) in enumerate(versions)
            ]
            return self.answer(200, {"value": listed, "nextLink": None})
        operation = rest[-1] if rest and rest[-1] in ("sign", "unwrapkey", "wrapkey") else None
        wanted = rest[0] if rest and rest[0] != operation else versions[-1][0]
        found = [version for version in versions if version[0] == wanted]
        if not found:
            raise Refused(404, "KeyNotFound")
        version, key, enabled = found[0]
        if operation is None:
            jwk = {"kid": kid(version), **public_jwk(key)}
            jwk["key_ops"] = ["sign", "verify", "wrapKey", "unwrapKey"]
            return self.answer(200, {"key": jwk, "attributes": {"enabled": enabled}})
        if not enabled:
            message = f"Operation {operation} is not allowed on a disabled key."
            raise Refused(403, "Forbidden", message)
        if operation == "sign":
            result = sign(key, value.get("alg"), decode(value["value"]))
            return self.answer(200, {"kid": kid(version), "value": encode(result)})
        if value.get("alg") != "RSA-OAEP-256":
            raise Refused(400, "BadParameter")
        try:
            if operation == "wrapkey":
                result = key.public_key().encrypt(decode(value["value"]), OAEP)
            else:
                result = key.decrypt(decode(value["value"]), OAEP)
        except ValueError:
            raise Refused(400, "BadParameter") from None
        self.answer(200, {"kid": kid(version), "value": encode(result)})

    def secrets(self, vault, name, rest, value):
        if not re.fullmatch("[0-9A-Za-z-]{1,127}", name):
            raise Refused(400, "BadParameter")
        versions = secrets.setdefault(name, [])
        if self.command == "PUT":
            if name in deleted:
                raise Refused(409, "Conflict")
            versions.append((uuid.uuid4().hex, value["value"], value.get("contentType")))
        wanted = rest[0] if rest and self.command == "GET" else versions and versions[-1][0]
        found = [version for version in versions if version[0] == wanted]
        if not found or name in deleted:
            raise Refused(404, "SecretNotFound")
        if self.command == "DELETE":
            deleted.add(name)
        version, text, kind = found[0]
        secret = {
            "id": f"{vault}/secrets/{name}/{version}",
            "value": text,
            "contentType": kind,
            "attributes": {"enabled": True, "created": int(time.time())},
        }
        self.answer(200, secret)


def main():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1], sys.argv[2])
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
