"""An MCP server made with the package mcp, which shows callers what is known of their tokens.

    mcp_server.py ISSUER CA_FILE

It names ISSUER as its authorization server, and asks it about each token that it is shown. Prints
its own address and serves until its standard input ends. HTTPS_PROXY is the way to the issuer.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import sys

import httpx2
import uvicorn
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.mcpserver import MCPServer


class Introspection:
    """Tokens as the issuer knows them (RFC 7662), of which those for this resource count."""

    def __init__(self, issuer, trust, resource):
        self.issuer = issuer
        self.trust = trust
        self.resource = resource

    async def verify_token(self, token):
        async with httpx2.AsyncClient(verify=self.trust) as client:
            answer = await client.post(self.issuer + "/introspect", data={"token": token})
        told = answer.raise_for_status().json()
        if not told["active"] or self.resource not in told["aud"]:
            return None
        return AccessToken(
            token=token,
            client_id=told["client_id"],
            scopes=told["scope"].split(),
            expires_at=told["exp"],
            resource=self.resource,
            subject=told["sub"],
            claims=told,
        )


@contextlib.asynccontextmanager
async def serving(issuer, ca_file):
    """Serves on a free port of loopback; gives the address."""
    listener = socket.create_server(("127.0.0.1", 0))
    resource = f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
    trust = ssl.create_default_context(cafile=ca_file)
    server = MCPServer(
        "tools",
        token_verifier=Introspection(issuer, trust, resource),
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

    config = uvicorn.Config(server.streamable_http_app(), log_level="error")
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve(sockets=[listener]))
    yield resource
    running.should_exit = True
    await task


async def main():
    async with serving(*sys.argv[1:]) as resource:
        print(json.dumps({"server": resource}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
