-- Forward-auth for HAProxy 2.6 and newer: asks tailbone's gate about each request and passes on the
-- identity in its answer.
--
--   global
--     setenv TAILBONE_GATE_SOCKET /run/tailbone/gate.sock
--     lua-load-per-thread /etc/haproxy/tailbone-auth.lua
--   frontend web
--     http-request lua.tailbone-auth
--     …   (the rest is in haproxy.cfg beside this file)
--
-- Afterwards txn.tailbone_allowed is true or false, and txn.tailbone_status is the gate's status.
-- Identity headers from the client are removed first, so that none of them reaches the backend even
-- if something fails here.

-- Only newer versions of HAProxy pass arguments to lua-load.
local socket = os.getenv("TAILBONE_GATE_SOCKET") or "/run/tailbone/gate.sock"

local identity = {
  "tailscale-user", "tailscale-login", "tailscale-name", "tailscale-profile-picture", "tailscale-tailnet",
  "tailscale-user-login", "tailscale-user-name", "tailscale-user-profile-pic", "tailscale-headers-info",
  "tailscale-app-capabilities", "tailscale-funnel-request", "tailscale-node-id", "tailscale-node-name",
  "tailscale-tags", "tailbone-token",
}

-- Backends based on CGI treat `_` and `-` alike.
local function claims(name)
  local plain = name:lower():gsub("[^%w]", "-")
  return plain:match("^tailscale%-") or plain:match("^tailbone%-")
end

core.register_action("tailbone-auth", { "http-req" }, function(txn)
  -- With the last four the gate tells pages of other origins from the service's own.
  local wanted = {
    accept = true, ["sec-fetch-mode"] = true, ["x-requested-with"] = true,
    origin = true, ["sec-fetch-site"] = true, ["sec-websocket-key"] = true, upgrade = true,
  }
  local host
  local ask = {}
  for name, values in pairs(txn.http:req_get_headers()) do
    if claims(name) then
      txn.http:req_del_header(name)
    elseif name == "host" then
      host = values[0]
    elseif wanted[name] then
      ask[name] = { values[0] }
    end
  end
  txn:set_var("txn.tailbone_allowed", false)
  txn:set_var("txn.tailbone_status", 503)

  ask["host"] = { "tailbone" }
  ask["x-forwarded-for"] = { txn.f:src() }
  ask["x-forwarded-host"] = { host or "" }
  ask["x-forwarded-method"] = { txn.f:method() }
  ask["x-forwarded-uri"] = { txn.f:pathq() }
  ask["x-forwarded-proto"] = { txn.f:ssl_fc() == 1 and "https" or "http" }
  local answer = core.httpclient():get{
    url = "http://tailbone/auth/forwarded",
    dst = "unix@" .. socket,
    headers = ask,
    timeout = 10000,
  }
  if not answer or not answer.status or answer.status == 0 then
    return
  end
  txn:set_var("txn.tailbone_status", answer.status)
  if answer.headers and answer.headers["location"] then
    txn:set_var("txn.tailbone_location", answer.headers["location"][0])
  end
  if answer.status ~= 200 then
    return
  end
  for _, name in ipairs(identity) do
    local value = answer.headers[name] and answer.headers[name][0]
    if value and value ~= "" then
      txn.http:req_set_header(name, value)
    end
  end
  txn:set_var("txn.tailbone_allowed", true)
end, 0)
