// Logs a person in as a web application in JavaScript does, with the package openid-client.
//
//     node login_openid_client.mjs MODULE ISSUER CA_FILE CLIENT_ID SECRET REDIRECT_URI
//
// MODULE is the module of the package. Prints the address to which the application sends the
// browser, reads the address at which the browser comes back, and prints what the application
// learned; each as one line. HTTPS_PROXY is the way to the provider.

import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

import { fetchThroughProxy } from "./fetch.mjs";

const [module, issuer, caFile, clientId, secret, redirectUri] = process.argv.slice(2);
const client = await import(pathToFileURL(module));
const provider = await client.discovery(new URL(issuer), clientId, secret, undefined, {
  [client.customFetch]: fetchThroughProxy(caFile),
});
const verifier = client.randomPKCECodeVerifier();
const [state, nonce] = [client.randomState(), client.randomNonce()];
const address = client.buildAuthorizationUrl(provider, {
  redirect_uri: redirectUri,
  scope: "openid email profile",
  code_challenge: await client.calculatePKCECodeChallenge(verifier),
  code_challenge_method: "S256",
  state,
  nonce,
});
console.log(JSON.stringify({ authorize: address.href }));

for await (const line of createInterface({ input: process.stdin })) {
  // Checks `iss` and the state of the answer, and every claim of the ID token.
  const tokens = await client.authorizationCodeGrant(provider, new URL(line), {
    pkceCodeVerifier: verifier,
    expectedState: state,
    expectedNonce: nonce,
    idTokenExpected: true,
  });
  const claims = tokens.claims();
  const userinfo = await client.fetchUserInfo(provider, tokens.access_token, claims.sub);
  const refreshed = await client.refreshTokenGrant(provider, tokens.refresh_token);
  console.log(JSON.stringify({ claims, userinfo, refreshed: refreshed.claims() }));
  break;
}
