"""Logs a person in as an MCP client does, with the package mcp.

    login_mcp.py SERVER CA_FILE [DOCUMENT]

SERVER is the address of an MCP server. DOCUMENT is the address of what describes the client;
without it the client registers itself at the authorization server that it finds there. Prints the
address to which the client sends the browser, reads the address at which the browser comes back,
and prints what a tool of the server said, each as one line. HTTPS_PROXY is the way to the
authorization server.
"""

import asyncio
import json
import ssl
import sys
from urllib.parse import parse_qs, urlsplit

import httpx2
from mcp import ClientSession
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientMetadata

server, ca_file, *document = sys.argv[1:]


class Memory:
    """What the client keeps."""

    tokens = client = None

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.client

    async def set_client_info(self, client):
        self.client = client


async def send_browser(address):
    print(json.dumps({"authorize": address}), flush=True)


async def browser_back():
    line = await asyncio.to_thread(sys.stdin.readline)
    fields = {name: value for name, [value] in parse_qs(urlsplit(line.strip()).query).items()}
    return AuthorizationCodeResult(**{name: fields.get(name) for name in ("code", "state", "iss")})


async def main():
    memory = Memory()
    login = OAuthClientProvider(
        server_url=server,
        client_metadata=OAuthClientMetadata(
            client_name="An MCP client",
            redirect_uris=["http://127.0.0.1:8976/callback"],
            token_endpoint_auth_method="none",
            scope="openid",
        ),
        storage=memory,
        redirect_handler=send_browser,
        callback_handler=browser_back,
        client_metadata_url=document[0] if document else None,
    )
    trust = ssl.create_default_context(cafile=ca_file)
    async with (
        httpx2.AsyncClient(auth=login, verify=trust, timeout=30) as http,
        streamable_http_client(server, http_client=http) as streams,
        ClientSession(*streams[:2]) as session,
    ):
        await session.initialize()
        said = await session.call_tool("whoami", {})
        told = {
            "claims": json.loads(said.content[0].text),
            "client_id": memory.client.client_id,
            "refreshable": memory.tokens.refresh_token is not None,
        }
        print(json.dumps(told), flush=True)


asyncio.run(main())
