"""Logs a person in as a web application in Python does, with Authlib in Flask.

    login_authlib.py ISSUER CA_FILE CLIENT_ID SECRET REDIRECT_URI

Prints the address to which the application sends the browser, reads the address at which the
browser comes back, and prints what the application learned; all as one line of JSON or text each.
HTTPS_PROXY is the way to the provider.
"""

import json
import sys
from urllib.parse import urlsplit

from authlib.integrations.flask_client import OAuth
from flask import Flask

issuer, ca_file, client_id, secret, redirect_uri = sys.argv[1:]

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
        "verify": ca_file,
    },
)


@app.get("/login")
def login():
    return provider.authorize_redirect(redirect_uri)


@app.get(urlsplit(redirect_uri).path)
def callback():
    # Checks the state, and every claim of the ID token that it knows.
    token = provider.authorize_access_token()
    told = provider.userinfo(token=token)
    session = provider._get_session()
    refreshed = session.refresh_token(
        provider.load_server_metadata()["token_endpoint"],
        refresh_token=token["refresh_token"],
    )
    return {
        "claims": token["userinfo"],
        "userinfo": told,
        "refreshed": provider.parse_id_token(refreshed, nonce=None),
    }


browser = app.test_client()
print(json.dumps({"authorize": browser.get("/login").location}), flush=True)
back = urlsplit(sys.stdin.readline().strip())
answer = browser.get(f"{back.path}?{back.query}", base_url=f"{back.scheme}://{back.netloc}")
print(answer.get_data(as_text=True).replace("\n", ""), flush=True)
