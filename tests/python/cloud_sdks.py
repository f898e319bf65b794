"""Real SDKs with tokens of `tailbone workload`, against the services in token_services.py.

Standard input has the settings as JSON. Runs the functions that the arguments name, and prints what
each of them got, as JSON; exits with 1 and the SDK's own words where one fails.
"""

import json
import os
import pathlib
import shlex
import sys
import tempfile
import time

from token_services import JWT_TYPE, TokenServices

settings = json.load(sys.stdin)
services = TokenServices(settings)
folder = pathlib.Path(tempfile.mkdtemp(prefix="cloud-sdks-"))

os.environ.update(
    AWS_CA_BUNDLE=settings["certificate"],
    AWS_CONFIG_FILE=str(folder / "aws-config"),
    AWS_EC2_METADATA_DISABLED="true",
    AWS_ENDPOINT_URL_STS=services.url,
    AWS_REGION="us-east-1",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_SHARED_CREDENTIALS_FILE=str(folder / "none"),
    REQUESTS_CA_BUNDLE=settings["certificate"],
    SSL_CERT_FILE=settings["certificate"],
)
# One that the caller uses.
os.environ.pop("AWS_PROFILE", None)


def object_reader(**session):
    from read_object import reader

    read = reader(settings["s3"], **session)
    return lambda: read(settings["bucket"], settings["object"])


def command_line(*command):
    """A command of `tailbone workload` with the issuer and the way to it, as one line."""
    return shlex.join([settings["tailbone"], "workload", *command, *settings["reach"]])


def aws_file():
    os.environ.update(AWS_WEB_IDENTITY_TOKEN_FILE=settings["aws_file"], AWS_ROLE_ARN=settings["role"])
    read = object_reader()
    # As long as it takes for the file to have had some tokens, or until the test ends it.
    reads, started = 0, time.monotonic()
    while len(set(services.seen["aws"])) < settings["rotations"] or not over():
        if time.monotonic() - started > 60:
            sys.exit(f"the file does not change: {services.seen['aws']}")
        content = read()
        reads += 1
        time.sleep(0.2)
    for name in ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"):
        del os.environ[name]
    return {"object": content, "reads": reads, "tokens": len(set(services.seen["aws"])), "refused": services.refused}


def over():
    file = settings.get("end_file")
    return file is None or pathlib.Path(file).exists()


def aws_process():
    command = command_line("aws-credentials", "--role-arn", settings["role"])
    process = f"[profile web]\nregion = us-east-1\ncredential_process = {command}\n"
    (folder / "aws-config").write_text(process, encoding="utf-8")
    return {"object": object_reader(profile_name="web")()}


def azure():
    from azure.identity import WorkloadIdentityCredential

    credential = WorkloadIdentityCredential(
        tenant_id="00000000-0000-0000-0000-000000000001",
        client_id=settings["client_id"],
        token_file_path=settings["azure_file"],
        authority=services.url,
        disable_instance_discovery=True,
        connection_verify=settings["certificate"],
    )
    return {"token": credential.get_token("https://vault.azure.net/.default").token}


def google(source):
    import google.auth.transport.requests
    from google.auth import identity_pool, pluggable

    kind = pluggable if "executable" in source else identity_pool
    configuration = {
        "type": "external_account",
        "audience": settings["google_audience"],
        "subject_token_type": JWT_TYPE,
        "token_url": f"{services.url}/v1/token",
        "credential_source": source,
    }
    credentials = kind.Credentials.from_info(
        configuration, scopes=["https://www.googleapis.com/auth/cloud-platform"]
    )
    credentials.refresh(google.auth.transport.requests.Request())
    return {"token": credentials.token}


def google_file():
    return google({"file": settings["google_file"]})


def google_url():
    headers = {"X-Tailbone-Secret": settings["source_secret"]}
    form = {"type": "json", "subject_token_field_name": "access_token"}
    return google({"url": settings["source"], "headers": headers, "format": form})


def google_executable():
    os.environ["GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES"] = "1"
    output = folder / "google-output"
    executable = {"command": command_line("google-executable"), "timeout_millis": 20000, "output_file": str(output)}
    got = google({"executable": executable})
    return got | {"kept": json.loads(output.read_text(encoding="utf-8"))["success"]}


def spiffe():
    from spiffe import WorkloadApiClient

    with WorkloadApiClient(f"unix://{settings['spiffe_socket']}") as client:
        svid = client.fetch_jwt_svid(audience={"db"})
        valid = client.validate_jwt_svid(token=svid.token, audience="db")
        domains = [str(bundle.trust_domain) for bundle in client.fetch_jwt_bundles().bundles]
    return {"id": str(valid.spiffe_id), "fetched": str(svid.spiffe_id), "domains": domains}


print(json.dumps({name: globals()[name]() for name in sys.argv[1:]}))
