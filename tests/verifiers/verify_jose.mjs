// Verifies tokens as a service in JavaScript does, with the package jose.
//
//     node verify_jose.mjs JOSE ISSUER CA_FILE AUDIENCE…
//
// JOSE is the module of the package. Each line of standard input is a token. Each line of standard
// output is what the library says of it, as JSON: {"accepted": claims} or {"refused": "the library's
// own words"}. HTTPS_PROXY is the way to the issuer.

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

import { fetchThroughProxy } from "./fetch.mjs";

const [module, issuer, caFile, ...audience] = process.argv.slice(2);
const { createRemoteJWKSet, customFetch, jwtVerify } = await import(pathToFileURL(module));
const get = fetchThroughProxy(caFile);

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
