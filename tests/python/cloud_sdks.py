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


def bucket(**session):
    """Reads the object with credentials that the SDK renews before each read, as they end soon."""
    import boto3
    from botocore.config import Config

    credentials = boto3.Session(**session).get_credentials()
    config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})

    def read():
        now = credentials.get_frozen_credentials()
        assert now.token, "credentials of a role have a session token"
        # The object store of the tests has no TLS and knows no session tokens.
        keys = {"aws_access_key_id": now.access_key, "aws_secret_access_key": now.secret_key}
        client = boto3.client("s3", endpoint_url=settings["s3"], config=config, **keys)
        return client.get_object(Bucket=settings["bucket"], Key=settings["object"])["Body"].read().decode()

    return read


def aws_file():
    os.environ.update(AWS_WEB_IDENTITY_TOKEN_FILE=settings["aws_file"], AWS_ROLE_ARN=settings["role"])
    read = bucket()
    # As long as it takes for the file to have had some tokens.
    reads, started = 0, time.monotonic()
    while len(set(services.seen["aws"])) < settings["rotations"]:
        if time.monotonic() - started > 60:
            sys.exit(f"the file does not change: {services.seen['aws']}")
        content = read()
        reads += 1
        time.sleep(0.2)
    for name in ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"):
        del os.environ[name]
    return {"object": content, "reads": reads, "tokens": len(set(services.seen["aws"]))}


def aws_process():
    command = [settings["tailbone"], "workload", "aws-credentials", "--server", settings["server"]]
    command += ["--role-arn", settings["role"]]
    process = f"[profile web]\nregion = us-east-1\ncredential_process = {shlex.join(command)}\n"
    (folder / "aws-config").write_text(process, encoding="utf-8")
    return {"object": bucket(profile_name="web")()}


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
    command = [settings["tailbone"], "workload", "google-executable", "--server", settings["server"]]
    output = folder / "google-output"
    executable = {"command": shlex.join(command), "timeout_millis": 20000, "output_file": str(output)}
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
