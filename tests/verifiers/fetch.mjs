// `fetch` for programs that reach a server through the proxy of the environment, and trust an
// authority of their own. Node's own fetch knows neither.

import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import { connect } from "node:tls";

function tunnel(proxy, host) {
  return new Promise((resolve, reject) => {
    const asked = http.request({ host: proxy.hostname, port: proxy.port, method: "CONNECT", path: host });
    asked.once("error", reject);
    asked.once("connect", (answer, socket) =>
      answer.statusCode === 200 ? resolve(socket) : reject(new Error(`proxy: ${answer.statusCode}`)),
    );
    asked.end();
  });
}

// Through HTTPS_PROXY, with the authority of this file. Redirects are not followed.
export function fetchThroughProxy(caFile) {
  const ca = readFileSync(caFile);
  const proxy = new URL(process.env.HTTPS_PROXY);
  return async (address, init) => {
    const request = new Request(address, init);
    const url = new URL(request.url);
    const body = Buffer.from(await request.arrayBuffer());
    const socket = await tunnel(proxy, `${url.hostname}:${url.port || 443}`);
    const createConnection = () => connect({ socket, servername: url.hostname, ca });
    const headers = Object.fromEntries(request.headers);
    if (body.length > 0) headers["content-length"] = body.length;
    return new Promise((resolve, reject) => {
      const asked = https.request(url, { createConnection, method: request.method, headers }, (answer) => {
        const parts = [];
        answer.on("data", (part) => parts.push(part));
        answer.once("end", () => {
          const empty = [204, 304].includes(answer.statusCode);
          const all = Object.entries(answer.headersDistinct);
          const headers = all.flatMap(([name, values]) => values.map((value) => [name, value]));
          resolve(new Response(empty ? null : Buffer.concat(parts), { status: answer.statusCode, headers }));
        });
        answer.once("error", reject);
      });
      asked.once("error", reject);
      asked.end(body);
    });
  };
}
