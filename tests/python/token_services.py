"""Token services of AWS, Microsoft Entra and Google Cloud for tests: they check a token with PyJWT
by the rules that these clouds have for issuers, and then hand out credentials.

One server on loopback plays all three, with TLS if it has a certificate. It reads the issuer's
documents as each cloud does, and keeps them as long as they say.

    token_services.py SETTINGS    a file with JSON

As a program it prints its address as a line of JSON, and then a line for each token that it is
shown. It runs until it is killed.
"""

import base64
import datetime
import html
import http.server
import json
import re
import ssl
import sys
import threading
import time
import urllib.parse
import urllib.request

import jwt

AWS_ALGORITHMS = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"]
JWT_TYPE = "urn:ietf:params:oauth:token-type:jwt"


class Refused(Exception):
    def __init__(self, code, words):
        super().__init__(f"{code}: {words}")
        self.code, self.words = code, words


class Documents:
    """What the issuer publishes, under its own name or at `documents` in its place.
    `documents_proxy` is the way there, and `documents_ca` has the only certificates that are
    trusted."""

    def __init__(self, settings):
        self.base = settings.get("documents", settings["issuer"])
        handlers = []
        if proxy := settings.get("documents_proxy"):
            handlers.append(urllib.request.ProxyHandler({"https": proxy}))
        if file := settings.get("documents_ca"):
            handlers.append(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=file)))
        self.opener = urllib.request.build_opener(*handlers)
        self.kept = {}

    def read(self, path):
        until, document = self.kept.get(path, (0, None))
        if time.monotonic() < until:
            return document
        asked = time.monotonic()
        with self.opener.open(self.base + path, timeout=5) as answer:
            document = json.load(answer)
            age = re.search(r"max-age=(\d+)", answer.headers.get("Cache-Control", ""))
        self.kept[path] = asked + int(age[1]) if age else 0, document
        return document


class Issuer:
    """What the clouds know of the issuer: its name, and its documents."""

    def __init__(self, name, documents, code):
        self.name, self.code = name, code
        discovery = documents.read("/.well-known/openid-configuration")
        if discovery["issuer"] != name:
            self.refuse(f"the document says {discovery['issuer']}")
        place = discovery["jwks_uri"]
        if not place.startswith(name):
            self.refuse(f"the keys are at {place}")
        self.keys = documents.read(place.removeprefix(name))["keys"]
        address = urllib.parse.urlsplit(name)
        if address.scheme != "https" or address.query:
            self.refuse("not an https address")

    def refuse(self, words):
        raise Refused(self.code, words)

    def claims(self, token, algorithms, audiences, leeway):
        """Those of a valid token."""
        header = jwt.get_unverified_header(token)
        if header["alg"] not in algorithms:
            self.refuse(f"the algorithm {header['alg']}")
        named = [key for key in self.keys if key.get("kid") == header.get("kid")]
        if "kid" not in header or len(named) != 1:
            self.refuse("the token names no key, or none of the issuer's")
        try:
            claims = jwt.decode(
                token,
                jwt.PyJWK(named[0]),
                algorithms=[header["alg"]],
                audience=audiences,
                issuer=self.name,
                leeway=leeway,
                options={"require": ["iss", "sub", "aud", "iat", "exp"]},
            )
        except jwt.PyJWTError as error:
            self.refuse(str(error))
        if not all(isinstance(claims[name], int) for name in ("iat", "exp")):
            self.refuse("a time is no integer")
        return claims


class TokenServices:
    def __init__(self, settings, say=lambda record: None):
        self.settings, self.say = settings, say
        self.documents = Documents(settings)
        # Each token that bought something, by the name of the service.
        self.seen = {"aws": [], "azure": [], "google": []}
        self.refused = []
        # How far clocks may be apart. The clouds allow minutes; none here shows a stale file.
        self.leeway = 0
        services = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                services.answer(self, {})

            def do_POST(self):
                length = int(self.headers.get("Content-Length", 0))
                body = self.rfile.read(length).decode()
                form = urllib.parse.parse_qs(body, keep_blank_values=True)
                services.answer(self, {name: values[0] for name, values in form.items()})

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        scheme = "http"
        if settings["certificate"]:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(settings["certificate"], settings["key"])
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            scheme = "https"
        self.url = f"{scheme}://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, request, form):
        path = urllib.parse.urlsplit(request.path).path
        try:
            if path == "/":
                status, kind, body = 200, "text/xml", self.aws(form, request.headers)
            elif path.endswith("/oauth2/v2.0/token"):
                status, kind, body = 200, "application/json", self.azure(form)
            elif path.endswith("/.well-known/openid-configuration"):
                status, kind, body = 200, "application/json", self.entra_discovery(path)
            elif path == "/v1/token":
                status, kind, body = 200, "application/json", self.google(form)
            else:
                status, kind, body = 404, "text/plain", path
        except Refused as refusal:
            self.refused.append(str(refusal))
            self.say({"refused": str(refusal)})
            status, kind, body = self.refusal(path, refusal)
        data = body.encode()
        request.send_response(status)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data)

    def refusal(self, path, refusal):
        if path == "/":
            code, words = html.escape(refusal.code), html.escape(refusal.words)
            xml = f"<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{words}</Message></Error></ErrorResponse>"
            return 400, "text/xml", xml
        words = json.dumps({"error": "invalid_grant", "error_description": f"{refusal.code}: {refusal.words}"})
        return 400, "application/json", words

    def issuer(self, code):
        return Issuer(self.settings["issuer"], self.documents, code)

    def accept(self, service, claims):
        self.seen[service].append(claims["jti"])
        self.say({"service": service, "subject": claims["sub"], "audience": claims["aud"], "token": claims["jti"]})

    def aws(self, form, headers):
        """AssumeRoleWithWebIdentity."""
        if form.get("Action") != "AssumeRoleWithWebIdentity" or form.get("Version") != "2011-06-15":
            raise Refused("InvalidAction", str(form.get("Action")))
        if "Authorization" in headers:
            raise Refused("InvalidParameterValue", "the request is signed")
        token, session = form["WebIdentityToken"], form["RoleSessionName"]
        if not 4 <= len(token) <= 20000:
            raise Refused("ValidationError", "the token's length")
        if not re.fullmatch(r"[\w+=,.@-]{2,64}", session, re.ASCII):
            raise Refused("ValidationError", "the session's name")
        if not 900 <= int(form.get("DurationSeconds", 3600)) <= 43200:
            raise Refused("ValidationError", "the duration")
        issuer = self.issuer("InvalidIdentityToken")
        if urllib.parse.urlsplit(issuer.name).port:
            issuer.refuse("the issuer's address has a port")
        kids = [key.get("kid") for key in issuer.keys]
        odd = any("key_ops" in key or key.get("use", "sig") != "sig" for key in issuer.keys)
        if odd or len(set(kids)) != len(kids):
            issuer.refuse("the keys")
        claims = issuer.claims(token, AWS_ALGORITHMS, ["sts.amazonaws.com"], self.leeway)
        if not isinstance(claims["aud"], str) and len(claims["aud"]) > 1 and "azp" not in claims:
            issuer.refuse("several audiences")
        if form["RoleArn"] != self.settings["role"] or claims["sub"] != self.settings["subject"]:
            raise Refused("AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
        self.accept("aws", claims)
        # So short that SDKs renew them with each request.
        end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
        session_token = base64.b64encode(session.encode()).decode()
        return f"""<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <AssumeRoleWithWebIdentityResult>
    <SubjectFromWebIdentityToken>{claims["sub"]}</SubjectFromWebIdentityToken>
    <Audience>sts.amazonaws.com</Audience>
    <AssumedRoleUser><Arn>{form["RoleArn"]}/{session}</Arn><AssumedRoleId>AROA:{session}</AssumedRoleId></AssumedRoleUser>
    <Credentials>
      <AccessKeyId>{self.settings["access"]}</AccessKeyId>
      <SecretAccessKey>{self.settings["secret"]}</SecretAccessKey>
      <SessionToken>{session_token}</SessionToken>
      <Expiration>{end:%Y-%m-%dT%H:%M:%SZ}</Expiration>
    </Credentials>
    <Provider>{issuer.name}</Provider>
  </AssumeRoleWithWebIdentityResult>
</AssumeRoleWithWebIdentityResponse>"""

    def entra_discovery(self, path):
        tenant = path.split("/")[1]
        base = f"{self.url}/{tenant}"
        return json.dumps({
            "issuer": f"{base}/v2.0",
            "token_endpoint": f"{base}/oauth2/v2.0/token",
            "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
        })

    def azure(self, form):
        """The client credentials grant with a federated assertion."""
        assertion_type = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
        if form.get("grant_type") != "client_credentials" or form.get("client_assertion_type") != assertion_type:
            raise Refused("AADSTS900144", "the grant")
        issuer = self.issuer("AADSTS50027")
        # The audience is exactly this one, and RS256 the only algorithm that is documented.
        claims = issuer.claims(form["client_assertion"], ["RS256"], ["api://AzureADTokenExchange"], self.leeway)
        if claims["sub"] != self.settings["subject"] or form["client_id"] != self.settings["client_id"]:
            raise Refused("AADSTS70021", "No matching federated identity record found for presented assertion.")
        self.accept("azure", claims)
        answer = {"token_type": "Bearer", "expires_in": 3599, "access_token": f"entra-{form['scope']}"}
        return json.dumps(answer)

    def google(self, form):
        """The token exchange of RFC 8693."""
        provider = self.settings["google_audience"]
        wanted = {
            "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
            "audience": provider,
            "requested_token_type": "urn:ietf:params:oauth:token-type:access_token",
            "subject_token_type": JWT_TYPE,
        }
        for name, value in wanted.items():
            if form.get(name) != value:
                raise Refused("invalid_request", f"{name} is {form.get(name)}")
        issuer = self.issuer("invalid_grant")
        claims = issuer.claims(form["subject_token"], ["RS256", "ES256"], [provider, f"https:{provider}"], self.leeway)
        if claims["exp"] - claims["iat"] >= 48 * 3600 or claims["iat"] > time.time() + 1:
            issuer.refuse("the times")
        if len(claims["sub"].encode()) > 127:
            issuer.refuse("the subject is too long")
        self.accept("google", claims)
        answer = {"access_token": "google-token", "token_type": "Bearer", "expires_in": 3599}
        return json.dumps(answer | {"issued_token_type": "urn:ietf:params:oauth:token-type:access_token"})


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        settings = json.load(file)
    lock = threading.Lock()

    def say(record):
        with lock:
            print(json.dumps(record), flush=True)

    services = TokenServices(settings, say)
    say({"url": services.url})
    threading.Event().wait()


if __name__ == "__main__":
    main()
