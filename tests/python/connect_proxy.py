"""A proxy for CONNECT that knows one host: programs that take their proxy from HTTPS_PROXY find
there, at the host's own name, a server that listens on loopback.

    connect_proxy.py HOST ADDRESS

Prints its own address, and then a line for each connection. It runs until it is killed.
"""

import asyncio
import sys

MAX_HEAD = 8 * 1024


async def main(host, address):
    server_host, _, server_port = address.rpartition(":")
    wanted = f"CONNECT {host}:443 HTTP/1."

    async def serve(reader, writer):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.decode("latin-1").startswith(wanted):
                writer.write(b"HTTP/1.1 403 Forbidden\r\n\r\n")
                await writer.drain()
                return
            print(f"to {host}", flush=True)
            server_reader, server_writer = await asyncio.open_connection(server_host, int(server_port))
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            await asyncio.gather(pipe(reader, server_writer), pipe(server_reader, writer))
        # A client that goes away has seen enough.
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=MAX_HEAD)
    own_host, own_port = server.sockets[0].getsockname()
    print(f"http://{own_host}:{own_port}", flush=True)
    await server.serve_forever()


async def pipe(reader, writer):
    try:
        while data := await reader.read(64 * 1024):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
