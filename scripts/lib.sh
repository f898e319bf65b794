# Shared by the other scripts: the location of caches, the output of steps and errors. Sourced,
# never run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${TAILBONE_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME or TAILBONE_CACHE must be set}/.cache}/tailbone}
tools=$cache/bin
venv=$cache/venv
# Debian installs servers in /usr/sbin, which may be missing in PATH.
export PATH="$tools:$PATH:/usr/sbin:/sbin"

# Versions of the tools for the tests. To upgrade one, change it here.
versitygw_version=v1.8.0
pyjwt_version=2.15.1
cryptography_version=50.0.2
grpcio_version=1.85.1
cargo_deny_version=0.20.2
kubernetes_validate_version=1.37.0
pyyaml_version=6.0.3
envoy_version=1.36.4
openbao_version=2.7.2
boto3_version=1.44.8
azure_identity_version=1.27.0
azure_keyvault_keys_version=4.11.3
azure_keyvault_secrets_version=4.12.0
google_auth_version=2.63.0
requests_version=2.34.2
spiffe_version=0.3.2
moto_version=5.2.5
jose_version=6.2.17
openid_client_version=6.8.9
authlib_version=1.9.6
flask_version=3.1.3
mcp_version=2.3.0
playwright_version=1.65.2
oauth2_proxy_version=v7.15.6
mcp_sdk_version=1.32.2
nimbus_version=10.10
actionlint_version=v1.7.12
mdbook_version=0.5.4

say() { printf '\n\033[1m==> %s\033[0m\n' "$*" >&2; }
note() { printf '    %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# Runs a step; prints its name before and its duration after it.
step() {
  local name=$1 started=$SECONDS
  shift
  say "$name"
  "$@" || die "step failed: $name"
  note "$name: $((SECONDS - started)) s"
}
