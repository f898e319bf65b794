"""Verifies a token as a relying party would, with PyJWT: JWKS file as argument, {"token": "…"} on standard input.

With a second argument that is the issuer whose tokens it takes, for whatever audience: as those must who take tokens without one.

Prints header and claims; exits 1 with the library's own words when the token does not verify.
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
    # The algorithm is the key's, never the token's word for it (RFC 8725, 3.1).
    wanted = {"issuer": sys.argv[2]} if len(sys.argv) > 2 else {}
    options = {"require": ["exp", "iat", "sub"], "verify_aud": not wanted}
    claims = jwt.decode(token, key, algorithms=[key.algorithm_name], options=options, **wanted)
except (KeyError, jwt.PyJWTError) as error:
    sys.exit(f"not verified: {error!r}")
print("verified by PyJWT", jwt.__version__)
print("header", json.dumps(header))
print("claims", json.dumps(claims))
