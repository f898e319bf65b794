"""Logs a person in as an MCP client does, with the package mcp, at an MCP server made with it.

    login_mcp.py ISSUER CA_FILE

The server names ISSUER as its authorization server, and asks it about each token that it is shown.
The client registers itself there. Prints the address to which the client sends the browser, reads
the address at which the browser comes back, and prints what a tool of the server said, each as one
line. HTTPS_PROXY is the way to the provider.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import sys
from urllib.parse import parse_qs, urlsplit

import httpx2
import uvicorn
from mcp import ClientSession
from mcp.client.auth import AuthorizationCodeResult, OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import MCPServer
from mcp.shared.auth import OAuthClientMetadata

issuer, ca_file = sys.argv[1:]
trust = ssl.create_default_context(cafile=ca_file)
listener = socket.create_server(("127.0.0.1", 0))
resource = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"


class Introspection:
    """Tokens as the provider knows them (RFC 7662)."""

    async def verify_token(self, token):
        async with httpx2.AsyncClient(verify=trust) as client:
            answer = await client.post(issuer + "/introspect", data={"token": token})
        told = answer.raise_for_status().json()
        if not told["active"] or resource not in told["aud"]:
            return None
        return AccessToken(
            token=token,
            client_id=told["client_id"],
            scopes=told["scope"].split(),
            expires_at=told["exp"],
            resource=resource,
            subject=told["sub"],
            claims=told,
        )


server = MCPServer(
    "tools",
    token_verifier=Introspection(),
    auth=AuthSettings(
        issuer_url=issuer,
        resource_server_url=resource,
        required_scopes=["openid"],
        validate_token_resource=True,
    ),
    log_level="ERROR",
)


@server.tool()
def whoami() -> str:
    return json.dumps(get_access_token().claims)


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
    config = uvicorn.Config(server.streamable_http_app(), log_level="error")
    serving = uvicorn.Server(config)
    task = asyncio.create_task(serving.serve(sockets=[listener]))
    memory = Memory()
    login = OAuthClientProvider(
        server_url=resource,
        client_metadata=OAuthClientMetadata(
            client_name="An MCP client",
            redirect_uris=["http://127.0.0.1:8976/callback"],
            token_endpoint_auth_method="none",
            scope="openid",
        ),
        storage=memory,
        redirect_handler=send_browser,
        callback_handler=browser_back,
    )
    async with contextlib.AsyncExitStack() as stack:
        http = await stack.enter_async_context(
            httpx2.AsyncClient(auth=login, verify=trust, timeout=30)
        )
        streams = await stack.enter_async_context(streamable_http_client(resource, http_client=http))
        session = await stack.enter_async_context(ClientSession(*streams[:2]))
        await session.initialize()
        said = await session.call_tool("whoami", {})
        told = {
            "claims": json.loads(said.content[0].text),
            "client_id": memory.client.client_id,
            "resource": resource,
            "refreshable": memory.tokens.refresh_token is not None,
        }
        print(json.dumps(told), flush=True)
    serving.should_exit = True
    await task


asyncio.run(main())
