// Logs a person in as an MCP client does, with the package @modelcontextprotocol/sdk.
//
//     node login_mcp.mjs PACKAGE SERVER CA_FILE [DOCUMENT]
//
// PACKAGE is the folder of the package, SERVER the address of an MCP server. DOCUMENT is the address
// of what describes the client; without it the client registers itself at the authorization server
// that it finds there. Prints the address to which the client
// sends the browser, reads the address at which the browser comes back, and prints what a tool of
// the server said, each as one line. HTTPS_PROXY is the way to the authorization server.

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

import { fetchThroughProxy } from "./fetch.mjs";

const [folder, server, caFile, document] = process.argv.slice(2);
const part = (name) => import(pathToFileURL(`${folder}/dist/esm/client/${name}.js`));
const { Client } = await part("index");
const { StreamableHTTPClientTransport } = await part("streamableHttp");

const throughProxy = fetchThroughProxy(caFile);
const kept = {};
let address;
const login = {
  redirectUrl: "http://127.0.0.1:8976/callback",
  clientMetadataUrl: document,
  clientMetadata: {
    client_name: "An MCP client",
    redirect_uris: ["http://127.0.0.1:8976/callback"],
    token_endpoint_auth_method: "none",
    grant_types: ["authorization_code", "refresh_token"],
    response_types: ["code"],
    scope: "openid",
  },
  clientInformation: () => kept.client,
  saveClientInformation: (client) => (kept.client = client),
  tokens: () => kept.tokens,
  saveTokens: (tokens) => (kept.tokens = tokens),
  codeVerifier: () => kept.verifier,
  saveCodeVerifier: (verifier) => (kept.verifier = verifier),
  redirectToAuthorization: (url) => (address = url.href),
};
const transport = () =>
  new StreamableHTTPClientTransport(new URL(server), {
    authProvider: login,
    fetch: (url, init) => (new URL(url).protocol === "https:" ? throughProxy(url, init) : fetch(url, init)),
  });

const first = transport();
const client = new Client({ name: "login", version: "1.0.0" });
await client.connect(first).catch((error) => {
  if (!address) throw error;
});
console.log(JSON.stringify({ authorize: address }));

for await (const line of createInterface({ input: process.stdin })) {
  const answer = new URL(line).searchParams;
  await first.finishAuth(answer.get("code"));
  await client.connect(transport());
  const said = await client.callTool({ name: "whoami", arguments: {} });
  console.log(
    JSON.stringify({
      claims: JSON.parse(said.content[0].text),
      client_id: kept.client.client_id,
      refreshable: kept.tokens.refresh_token !== undefined,
    }),
  );
  break;
}
await client.close();
process.exit();
