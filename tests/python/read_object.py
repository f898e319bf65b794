"""Reads an object of an S3 server as a role, with boto3. How to become the role is in the
environment, as boto3 finds it (AWS_WEB_IDENTITY_TOKEN_FILE, AWS_ROLE_ARN, AWS_ENDPOINT_URL_STS, …).

    read_object.py SERVER BUCKET OBJECT
"""

import sys

import boto3
from botocore.config import Config


def reader(server, **session):
    """A function that reads an object. Each call asks the SDK for credentials anew, which renews
    those that end soon."""
    credentials = boto3.Session(**session).get_credentials()
    config = Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})

    def read(bucket, name):
        now = credentials.get_frozen_credentials()
        assert now.token, "credentials of a role have a session token"
        # The object store of the tests has no TLS and knows no session tokens.
        keys = {"aws_access_key_id": now.access_key, "aws_secret_access_key": now.secret_key}
        client = boto3.client("s3", endpoint_url=server, config=config, **keys)
        return client.get_object(Bucket=bucket, Key=name)["Body"].read().decode()

    return read


if __name__ == "__main__":
    address, *what = sys.argv[1:]
    print(reader(address)(*what))
