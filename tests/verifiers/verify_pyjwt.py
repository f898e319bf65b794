"""Verifies tokens as a service in Python does, with PyJWT and its JWKS client.

    verify_pyjwt.py ISSUER CA_FILE AUDIENCE…

Each line of standard input is a token. Each line of standard output is what the library says of it,
as JSON: {"accepted": claims} or {"refused": "the library's own words"}. HTTPS_PROXY is the way to
the issuer.
"""

import json
import ssl
import sys
import urllib.request

import jwt

issuer, ca_file, *audiences = sys.argv[1:]
trust = ssl.create_default_context(cafile=ca_file)
with urllib.request.urlopen(issuer + "/.well-known/openid-configuration", context=trust) as answer:
    discovery = json.load(answer)
# A key that is not known yet is looked up at once, not after 30 s.
keys = jwt.PyJWKClient(discovery["jwks_uri"], ssl_context=trust, cooldown_duration=0)
for line in sys.stdin:
    token = line.strip()
    try:
        # The algorithm is the key's; the token's own claim does not count (RFC 8725, 3.1).
        key = keys.get_signing_key_from_jwt(token)
        claims = jwt.decode(
            token,
            key,
            algorithms=[key.algorithm_name],
            issuer=discovery["issuer"],
            audience=audiences,
            options={"require": ["aud", "exp", "iat", "iss", "sub"]},
        )
        said = {"accepted": claims}
    except jwt.PyJWTError as error:
        said = {"refused": f"{type(error).__name__}: {error}"}
    print(json.dumps(said), flush=True)
