"""Microsoft's own clients (azure-keyvault-keys, azure-keyvault-secrets) on the stand-in of Azure
Key Vault, and on what this program left there.

Arguments: the stand-in's port, its certificate, and a command:
  wrap KEY        wraps standard input as tsiam does; prints base64url
  open            opens the envelope on standard input as this program writes it; prints the key
  set NAME        sets a secret to standard input
  get NAME VERSION  prints a secret
  sign KEY ALG DIGEST  signs with the vault's key and verifies that; the digest is in hexadecimal
"""

import base64
import json
import socket
import sys
import time

from azure.core.credentials import AccessToken
from azure.core.exceptions import ResourceNotFoundError
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient, KeyWrapAlgorithm, SignatureAlgorithm
from azure.keyvault.secrets import SecretClient
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VAULT = "https://stub.vault.example"
port, certificate, command, *rest = sys.argv[1:]

resolve = socket.getaddrinfo
socket.getaddrinfo = lambda host, _, *more, **named: resolve("127.0.0.1", int(port), *more, **named)


class Credential:
    def get_token(self, *scopes, **_):
        import requests

        assert scopes == ("https://vault.example/.default",), scopes
        form = {
            "grant_type": "client_credentials",
            "client_id": "client",
            "client_secret": "s3cr3t",
            "scope": scopes[0],
        }
        url = "https://login.example/tenant/oauth2/v2.0/token"
        answer = requests.post(url, data=form, verify=certificate, timeout=20).json()
        return AccessToken(answer["access_token"], int(time.time()) + answer["expires_in"])


def decode(text):
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


options = {"credential": Credential(), "connection_verify": certificate}
if command == "wrap":
    key = KeyClient(VAULT, **options).get_key(rest[0])
    crypto = CryptographyClient(key, **options)
    wrapped = crypto.wrap_key(KeyWrapAlgorithm.rsa_oaep_256, sys.stdin.buffer.read())
    print(base64.urlsafe_b64encode(wrapped.encrypted_key).rstrip(b"=").decode())
elif command == "open":
    envelope = json.load(sys.stdin)
    crypto = CryptographyClient(f"{envelope['key']}/{envelope['key_version']}", **options)
    content = crypto.unwrap_key(KeyWrapAlgorithm.rsa_oaep_256, decode(envelope["wrapped"])).key
    aad = f"{envelope['version']}\n{envelope['key']}\n{envelope['key_version']}".encode()
    nonce, ciphertext = decode(envelope["nonce"]), decode(envelope["ciphertext"])
    print(AESGCM(content).decrypt(nonce, ciphertext, aad).decode())
elif command == "set":
    SecretClient(VAULT, **options).set_secret(rest[0], sys.stdin.read())
elif command == "get":
    try:
        print(SecretClient(VAULT, **options).get_secret(*rest).value)
    except ResourceNotFoundError:
        sys.exit("no such secret")
elif command == "sign":
    name, algorithm, digest = rest
    key = KeyClient(VAULT, **options).get_key(name)
    crypto = CryptographyClient(key, **options)
    algorithm, digest = SignatureAlgorithm(algorithm), bytes.fromhex(digest)
    signed = crypto.sign(algorithm, digest)
    # With the public half, in the client.
    print(crypto.verify(algorithm, digest, signed.signature).is_valid)
