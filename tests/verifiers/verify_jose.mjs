// Verifies tokens as a service in JavaScript does, with the package jose.
//
//     node verify_jose.mjs JOSE ISSUER CA_FILE AUDIENCE…
//
// JOSE is the module of the package. Each line of standard input is a token. Each line of standard
// output is what the library says of it, as JSON: {"accepted": claims} or {"refused": "the library's
// own words"}. HTTPS_PROXY is the way to the issuer.

import { readFileSync } from "node:fs";
import http from "node:http";
import https from "node:https";
import { createInterface } from "node:readline";
import { connect } from "node:tls";
import { pathToFileURL } from "node:url";

const [module, issuer, caFile, ...audience] = process.argv.slice(2);
const { createRemoteJWKSet, customFetch, jwtVerify } = await import(pathToFileURL(module));
const ca = readFileSync(caFile);
const proxy = new URL(process.env.HTTPS_PROXY);

// Node's own fetch knows neither the proxy of the environment nor an authority of one's own.
function tunnel(host) {
  return new Promise((resolve, reject) => {
    const asked = http.request({ host: proxy.hostname, port: proxy.port, method: "CONNECT", path: host });
    asked.once("error", reject);
    asked.once("connect", (answer, socket) =>
      answer.statusCode === 200 ? resolve(socket) : reject(new Error(`proxy: ${answer.statusCode}`)),
    );
    asked.end();
  });
}

async function get(address) {
  const url = new URL(address);
  const socket = await tunnel(`${url.hostname}:${url.port || 443}`);
  return new Promise((resolve, reject) => {
    const createConnection = () => connect({ socket, servername: url.hostname, ca });
    const asked = https.get(url, { createConnection }, (answer) => {
      const parts = [];
      answer.on("data", (part) => parts.push(part));
      answer.once("end", () => resolve(new Response(Buffer.concat(parts), { status: answer.statusCode })));
      answer.once("error", reject);
    });
    asked.once("error", reject);
  });
}

const discovery = await (await get(`${issuer}/.well-known/openid-configuration`)).json();
// A key that is not known yet is looked up at once, not after 30 s.
const keys = createRemoteJWKSet(new URL(discovery.jwks_uri), { [customFetch]: get, cooldownDuration: 0 });
const requiredClaims = ["aud", "exp", "iat", "iss", "sub"];
for await (const token of createInterface({ input: process.stdin })) {
  let said;
  try {
    const { payload } = await jwtVerify(token, keys, { issuer: discovery.issuer, audience, requiredClaims });
    said = { accepted: payload };
  } catch (error) {
    said = { refused: `${error.code}: ${error.message}` };
  }
  console.log(JSON.stringify(said));
}
