"""Logs a person in as a web application in Python does, with Authlib in Flask.

    login_authlib.py ISSUER CA_FILE CLIENT_ID SECRET REDIRECT_URI

Prints the address to which the application sends the browser, reads the address at which the
browser comes back, and prints what the application learned; all as one line of JSON or text each.
HTTPS_PROXY is the way to the provider.
"""

import json
import os
import sys
from urllib.parse import urlsplit

from authlib.integrations.flask_client import OAuth
from flask import Flask

issuer, ca_file, client_id, secret, redirect_uri = sys.argv[1:]
# For requests, this counts more than what a session says.
os.environ["REQUESTS_CA_BUNDLE"] = ca_file
own = urlsplit(redirect_uri)

app = Flask("application")
app.secret_key = "keeps the state of a login in the browser's cookie"
provider = OAuth(app).register(
    "provider",
    client_id=client_id,
    client_secret=secret,
    server_metadata_url=issuer + "/.well-known/openid-configuration",
    client_kwargs={
        "scope": "openid email profile",
        "code_challenge_method": "S256",
    },
)


@app.get("/login")
def login():
    return provider.authorize_redirect(redirect_uri)


@app.get(own.path)
def callback():
    # Checks the state, and every claim of the ID token that it knows.
    token = provider.authorize_access_token()
    told = provider.userinfo(token=token)
    metadata = provider.load_server_metadata()
    with provider._get_oauth_client(**metadata) as session:
        refreshed = session.refresh_token(
            metadata["token_endpoint"], refresh_token=token["refresh_token"]
        )
    return {
        "claims": token["userinfo"],
        "userinfo": told,
        "refreshed": provider.parse_id_token(refreshed, nonce=None),
    }


app.testing = True  # An error ends the program.
browser = app.test_client()
at = {"base_url": f"{own.scheme}://{own.netloc}"}
print(json.dumps({"authorize": browser.get("/login", **at).location}), flush=True)
back = urlsplit(sys.stdin.readline().strip())
answer = browser.get(f"{back.path}?{back.query}", **at)
print(json.dumps(answer.json), flush=True)
