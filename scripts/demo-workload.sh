# The demo of workload tokens: a machine reads an object of S3, and OpenBao lets it in, by nothing
# but what the tailnet says of it. Both sides check the tokens with libraries that are not ours and
# read the keys from the internet. Sourced by demo, which has the tailnet and the server.

role=arn:aws:iam::123456789012:role/web
vault_address=
python=$venv/bin/python

workload_demo() {
  "$root/scripts/setup" --tests || note "the set-up is not complete: what misses its tools is skipped"
  build
  if ! have pebble || ! have pebble-challtestsrv; then
    skipped "everything" "pebble, which issues the certificates, is not installed"
    return
  fi
  start_devnet --peer web=tag:web --peer ci=tag:ci
  policy
  start_server workload TB_WORKLOAD_POLICY=workload.toml TB_WORKLOAD_SUBJECT="tag:{tag}"
  keys_from_the_internet "/token?resource=sts.amazonaws.com"
  start_way_of_verifiers
  start_agent
  another_machine
  local shown=()
  if missing=$(missing_for_s3); then
    skipped "S3" "$missing"
  else
    object_of_s3
    shown+=("S3 gave an object")
  fi
  if ! have bao; then
    skipped "OpenBao" "bao is not installed"
  else
    login_at_openbao
    shown+=("OpenBao let it in")
  fi
  note "$(($(wc -l <"$work/way") - 1)) connections of the verifiers came through Funnel"
  nothing_on_the_host
  stop_server
  say "done: the machine tag:web keeps no secret${shown:+; $(printf '%s, ' "${shown[@]}" | sed 's/, $//')}"
}

skipped() { note "SKIPPED: $1: $2 (scripts/setup --tests installs it)"; }

# Machines with tag:web, and nobody else.
policy() {
  mkdir "$work/home"
  cat >"$work/home/workload.toml" <<'POLICY'
[[rule]]
decision = "allow"
who = ["tag:web"]
audiences = ["sts.amazonaws.com", "vault"]
POLICY
  say "who gets tokens (workload.toml)"
  sed 's/^/    /' "$work/home/workload.toml" >&2
}

# Verifiers find the issuer's name on the internet, which here is devnet's ingress of Funnel.
start_way_of_verifiers() {
  background "$work/way" "$python" "$root/tests/python/connect_proxy.py" "${issuer#https://}" "$(jq -r '.funnel["443"]' <<<"$devnet")"
  way=$(first_line "$work/way")
}

# On the machine: tokens in files, as SDKs read them. Its tailnet is that of the peer's proxy.
start_agent() {
  say "tailbone workload agent on the machine tag:web keeps a token file for AWS and one for OpenBao"
  mkdir "$work/tokens"
  reach web
  background "$work/agent" "$work/tailbone" workload agent "${reach[@]}" --write "sts.amazonaws.com=$work/tokens/aws" --write "vault=$work/tokens/vault"
  local i
  for i in $(seq 200); do
    [ -e "$work/tokens/aws" ] && [ -e "$work/tokens/vault" ] && break
    sleep 0.1
  done
  sed 's/^/    /' "$work/agent" >&2
  [ -e "$work/tokens/aws" ] && [ -e "$work/tokens/vault" ] || die "the agent wrote no tokens"
  jq -Rc 'split(".")[1] | gsub("-"; "+") | gsub("_"; "/") | @base64d | fromjson | {iss, sub, aud, exp}' "$work/tokens/aws" | sed 's/^/    /' >&2
}

another_machine() {
  say "the machine tag:ci asks for the same"
  if client ci token --audience sts.amazonaws.com 2>"$work/refused"; then
    die "it got a token"
  fi
  sed 's/^/    /' "$work/refused" >&2
  grep -q audience_not_permitted "$work/refused" || die "that is not the refusal of the rules"
}

missing_for_s3() {
  if ! have versitygw; then
    echo "versitygw is not installed"
  elif ! "$python" -c "import boto3, jwt" 2>/dev/null; then
    echo "boto3 and PyJWT are not installed"
  else
    return 1
  fi
}

object_of_s3() {
  local access=demo-access secret=demo-secret content="what the token bought" port sts
  say "an S3 server, and a token service like AWS's that trusts the issuer: $role for sub tag:web"
  mkdir -p "$work/s3/web-data"
  printf %s "$content" >"$work/s3/web-data/greeting.txt"
  port=$(free_port)
  background "$work/s3.log" versitygw --access "$access" --secret "$secret" --quiet --port "127.0.0.1:$port" posix "$work/s3"
  jq -n --arg issuer "$issuer" --arg way "$way" --arg root "$root_file" --arg tls "$root/tests/testkit/tls/first" \
    --arg role "$role" --arg access "$access" --arg secret "$secret" '{
      issuer: $issuer, documents_proxy: $way, documents_ca: $root, subject: "tag:web", role: $role,
      certificate: ($tls + ".crt"), key: ($tls + ".key"), access: $access, secret: $secret}' >"$work/sts.json"
  background "$work/sts" "$python" "$root/tests/python/token_services.py" "$work/sts.json"
  sts=$(first_line "$work/sts" | jq -r .url)
  accepts "$port"
  say "boto3 on the machine reads s3://web-data/greeting.txt with AWS_WEB_IDENTITY_TOKEN_FILE alone"
  env AWS_WEB_IDENTITY_TOKEN_FILE="$work/tokens/aws" AWS_ROLE_ARN="$role" AWS_REGION=us-east-1 AWS_ENDPOINT_URL_STS="$sts" \
    AWS_CA_BUNDLE="$root/tests/testkit/tls/first.crt" AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null \
    AWS_EC2_METADATA_DISABLED=true \
    "$python" "$root/tests/python/read_object.py" "http://127.0.0.1:$port" web-data greeting.txt >"$work/object"
  tail -n 1 "$work/sts" | jq -r '"    the token service, with PyJWT: a token of \(.subject) for \(.audience[0])"' >&2
  note "the object: $(cat "$work/object")"
  [ "$(cat "$work/object")" = "$content" ] || die "that is another object"
}

login_at_openbao() {
  local port i
  say "OpenBao, told to trust the issuer by what 'tailbone workload recipe vault' prints"
  port=$(free_port)
  vault_address=http://127.0.0.1:$port
  mkdir "$work/vault"
  HTTPS_PROXY=$way background "$work/vault/log" bao server -dev -dev-root-token-id=demo -dev-listen-address="127.0.0.1:$port"
  accepts "$port"
  for i in $(seq 100); do
    vault status >/dev/null 2>&1 && break
    sleep 0.1
  done
  client web recipe vault --subject tag:web --role web >"$work/vault/recipe"
  # The certificate is of devnet's own authority. What the machine itself does comes below.
  sed -i -e '/^# [0-9]*\. On the machine/,$d' -e '/^# with a certificate of your own/d' \
    -e 's|^  *bound_issuer=.*|& \\\n    oidc_discovery_ca_pem=@'"$root_file"'|' "$work/vault/recipe"
  sed 's/^/    /' "$work/vault/recipe" >&2
  (
    cd "$work/vault"
    export BAO_TOKEN=demo
    . ./recipe >"$work/vault/said"
  )
  say "the machine logs in with its token file"
  vault write -format=json auth/jwt/login role=web jwt=@"$work/tokens/vault" >"$work/vault/login"
  jq -r '"    policies \(.auth.token_policies | join(", ")), for \(.auth.lease_duration) s"' "$work/vault/login" >&2
  if vault write auth/jwt/login role=web jwt=@"$work/tokens/aws" 2>"$work/vault/refused" >/dev/null; then
    die "OpenBao took a token for AWS"
  fi
  note "with the token for AWS: $(grep -m 1 'audience' "$work/vault/refused" | sed 's/^[* ]*//')"
}

# As the recipe calls OpenBao.
vault() { BAO_ADDR=$vault_address HOME=$work/vault bao "$@"; }

# A command of `tailbone workload` on that machine.
client() {
  reach "$1"
  shift
  "$work/tailbone" workload "$@" "${reach[@]}"
}

# The way to the issuer, for programs on that machine.
reach() {
  reach=(--server "$issuer" --ca-file "$root_file" --timeout 30s --proxy "$(jq -r ".peers.$1.proxy" <<<"$devnet")")
}

# Runs a command beside the demo, with its output in that file.
background() {
  local file=$1
  shift
  "$@" >"$file" 2>&1 &
  other_pids+=($!)
}

# The first line of a file that a program writes.
first_line() {
  local i
  for i in $(seq 100); do
    [ "$(wc -l <"$1")" -gt 0 ] && { head -n 1 "$1"; return; }
    sleep 0.1
  done
  cat "$1" >&2
  die "nothing came from ${1##*/}"
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# Waits until something listens there.
accepts() {
  local i
  for i in $(seq 200); do
    (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return
    sleep 0.1
  done
  die "nothing listens on port $1"
}
