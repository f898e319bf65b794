"""Verifies a token as a relying party would, with PyJWT: JWKS file as argument, {"token": "…"} on
standard input.

With a second argument, the issuer, it accepts tokens of that issuer for any audience, as programs
must that accept tokens without one.

Prints header and claims; exits with 1 and the library's own message if the token does not verify.
"""

import json
import sys

import jwt

token = json.load(sys.stdin)["token"]
with open(sys.argv[1], encoding="utf-8") as file:
    keys = jwt.PyJWKSet.from_dict(json.load(file))
header = jwt.get_unverified_header(token)
try:
    key = keys[header["kid"]]
    # The algorithm is the key's; the token's own claim does not count (RFC 8725, 3.1).
    wanted = {"issuer": sys.argv[2]} if len(sys.argv) > 2 else {}
    options = {"require": ["exp", "iat", "sub"], "verify_aud": not wanted}
    claims = jwt.decode(token, key, algorithms=[key.algorithm_name], options=options, **wanted)
except (KeyError, jwt.PyJWTError) as error:
    sys.exit(f"not verified: {error!r}")
print("verified by PyJWT", jwt.__version__)
print("header", json.dumps(header))
print("claims", json.dumps(claims))
