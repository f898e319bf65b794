// Who may join, and as whom: auth keys, interactive logins, key rotation, logout. A node enters the
// tailnet only through this file.
//
// Invariants: a node key that is known, unexpired and used by its own machine is let in without
// asking for anything else, so existing state always wins; a one-time key makes exactly one node.
// Refusals use the messages of the real control server, since clients show and match them.
package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
)

// The messages of the real control server, from reports of its users. The client shows them behind
// "backend error: " or "tsnet.Up: backend: ".
//
//   - not shaped like a key at all, or a wrong secret (tailscale/tailscale#6215)
//   - used up (tailscale/tailscale#9715); %s is the key's id
//   - expired, revoked or never made (k3s-io/k3s#10729, hass-tailscale/hass-addons#147)
//   - tags that the key's owner may not give (hassio-addons/app-tailscale#642)
const (
	refusedUnreadable = "invalid key: unable to validate API key"
	refusedUsed       = "invalid key: API key %s not valid"
	refusedUnknown    = "invalid key: API key does not exist"
	refusedTags       = "requested tags [%s] are invalid or not permitted"
	// refusedLogin is ours: no report shows the real message for a stale login URL.
	refusedLogin = "login URL is unknown or was used already"
)

type authKey struct {
	id            string
	secret        string
	login         string
	tags          []string
	ephemeral     bool
	reusable      bool
	preauthorized bool
	expired       bool
	anyTags       bool // the ready line's key: its owner may give every tag
	used          bool
	forPeer       bool // made for one of devnet's own peers
}

func (k *authKey) text() string { return "tskey-auth-" + k.id + "-" + k.secret }

func (t *tailnet) addKey(k authKey) *authKey {
	k.id = "k" + randomText(9) + "CNTRL"
	k.secret = randomText(20)
	if k.login == "" {
		k.login = t.owner
	}
	t.keys[k.id] = &k
	return &k
}

// pendingLogin is a node that came without a key and waits for a person.
type pendingLogin struct {
	id      string
	url     string
	created time.Time
	machine key.MachinePublic
	req     *tailcfg.RegisterRequest
	done    chan struct{} // closed once completed
	login   string        // who completed it, "" while nobody did
}

// register answers one registration. It blocks only for the follow-up of a login that is not
// completed yet.
func (t *tailnet) register(ctx context.Context, machine key.MachinePublic, req *tailcfg.RegisterRequest, baseURL string) (*tailcfg.RegisterResponse, error) {
	if req.Followup != "" {
		if resp, err := t.awaitLogin(ctx, machine, req); resp != nil || err != nil {
			return resp, err
		}
	}

	t.mu.Lock()
	defer t.mu.Unlock()

	now := time.Now()
	known := t.byKey(req.NodeKey)
	if known != nil && known.machine != machine {
		return nil, errors.New("node key belongs to another machine")
	}
	if known != nil && !req.Expiry.IsZero() {
		return t.shortenExpiry(known, req.Expiry, now), nil
	}
	if known != nil {
		return t.registerKnownKey(known, req, now), nil
	}
	return t.registerNewKey(machine, req, baseURL), nil
}

// awaitLogin waits until the login behind a follow-up is completed. It then returns nil and nil: go
// on with the node key, which is known by now.
func (t *tailnet) awaitLogin(ctx context.Context, machine key.MachinePublic, req *tailcfg.RegisterRequest) (*tailcfg.RegisterResponse, error) {
	t.mu.Lock()
	p := t.findLogin(req.Followup)
	t.mu.Unlock()
	if p == nil || p.machine != machine {
		return &tailcfg.RegisterResponse{Error: refusedLogin}, nil
	}
	select {
	case <-p.done:
		return nil, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// shortenExpiry brings a node's expiry forward. Far in the past it is a logout, after which an
// ephemeral node is deleted at once.
func (t *tailnet) shortenExpiry(n *node, to, now time.Time) *tailcfg.RegisterResponse {
	resp := t.registerResponse(n)
	switch {
	case to.After(now):
		if n.expiry.IsZero() || to.Before(n.expiry) {
			n.expiry = to
		}
		t.touch()
	case n.ephemeral:
		t.deleteNode(n)
	default:
		n.expiry = now
		t.touch()
	}
	return resp
}

// registerKnownKey lets a known node in again, or tells it to make a new node key.
func (t *tailnet) registerKnownKey(n *node, req *tailcfg.RegisterRequest, now time.Time) *tailcfg.RegisterResponse {
	if n.expired(now) {
		return &tailcfg.RegisterResponse{NodeKeyExpired: true, MachineAuthorized: n.approved}
	}
	// The real server seems to check a key even if none is needed (tailscale/tailscale#16987). It
	// is a switch, since it breaks restarts.
	if t.config.StrictKeys && req.Auth != nil && req.Auth.AuthKey != "" {
		if k, words := t.findKey(req.Auth.AuthKey); words != "" && (k == nil || n.keyID != k.id) {
			return &tailcfg.RegisterResponse{Error: words}
		}
	}
	t.recordHostinfo(n, req.Hostinfo)
	t.touch()
	return t.registerResponse(n)
}

// registerNewKey handles a node key that was not seen before: a new machine, or a known one with a
// new key.
func (t *tailnet) registerNewKey(machine key.MachinePublic, req *tailcfg.RegisterRequest, baseURL string) *tailcfg.RegisterResponse {
	if old := t.byKey(req.OldNodeKey); t.config.KeepExpired && old != nil && old.machine == machine && old.expired(time.Now()) {
		return &tailcfg.RegisterResponse{NodeKeyExpired: true, MachineAuthorized: old.approved}
	}
	secret := ""
	if req.Auth != nil {
		secret = req.Auth.AuthKey
	}
	switch {
	case secret != "":
		k, words := t.findKey(secret)
		if words == "" {
			words = k.refuseTags(wantedTags(req))
		}
		if words != "" {
			return &tailcfg.RegisterResponse{Error: words}
		}
		k.used = true
		tags := k.tags
		if len(tags) == 0 {
			tags = wantedTags(req)
		}
		n := t.admit(machine, req, k.login, tags, k.preauthorized)
		n.keyID, n.ownPeer = k.id, k.forPeer
		n.ephemeral = k.ephemeral || req.Ephemeral
		t.scheduleReaping(n) // in case it never polls
		t.touch()
		return t.registerResponse(n)
	case !t.config.RequireAuth:
		n := t.admit(machine, req, t.owner, wantedTags(req), false)
		t.touch()
		return t.registerResponse(n)
	}

	p := &pendingLogin{
		id:      strings.ToLower(randomText(12)),
		created: time.Now().UTC(),
		machine: machine,
		req:     req,
		done:    make(chan struct{}),
	}
	p.url = baseURL + "/a/" + p.id
	t.logins = append(t.logins, p)
	return &tailcfg.RegisterResponse{AuthURL: p.url}
}

// admit gives a machine its node: the former one if it is still the same identity, otherwise a new
// one.
func (t *tailnet) admit(machine key.MachinePublic, req *tailcfg.RegisterRequest, login string, tags []string, preauthorized bool) *node {
	u := t.userOf(login)
	n := t.formerNode(machine, req.OldNodeKey, u.id, len(tags) > 0)
	if n == nil {
		n = t.addNode(machine, req.NodeKey, req.Hostinfo)
		n.approved = preauthorized || !t.config.RequireApproval
	} else {
		n.key = req.NodeKey
		n.disco = key.DiscoPublic{}
		t.recordHostinfo(n, req.Hostinfo)
	}
	n.cap = req.Version
	n.user = u.id
	n.tags = slices.Clone(tags)
	n.ephemeral = req.Ephemeral
	n.expiry = time.Time{}
	if len(tags) == 0 {
		n.expiry = time.Now().UTC().Truncate(time.Second).Add(keyLife)
	}
	return n
}

// formerNode returns the node that a machine had before: named by the key it replaces, or the same
// user's (or tagged) node on the same machine after a logout.
func (t *tailnet) formerNode(machine key.MachinePublic, oldKey key.NodePublic, u tailcfg.UserID, tagged bool) *node {
	if n := t.byKey(oldKey); n != nil && n.machine == machine {
		return n
	}
	for _, n := range t.nodes {
		if n.machine == machine && tagged == (len(n.tags) > 0) && (tagged || n.user == u) {
			return n
		}
	}
	return nil
}

func (t *tailnet) registerResponse(n *node) *tailcfg.RegisterResponse {
	u := t.profileOf(n)
	return &tailcfg.RegisterResponse{
		User:              tailcfg.User{ID: u.id, DisplayName: u.display},
		Login:             tailcfg.Login{ID: tailcfg.LoginID(u.id), Provider: "devnet", LoginName: u.login, DisplayName: u.display},
		MachineAuthorized: n.approved,
	}
}

// complete ends a pending login as if a person had logged in at its URL.
func (t *tailnet) complete(p *pendingLogin, login string) *node {
	if login == "" {
		login = t.owner
	}
	p.login = login
	n := t.admit(p.machine, p.req, login, wantedTags(p.req), false)
	t.logins = slices.DeleteFunc(t.logins, func(o *pendingLogin) bool {
		// All logins of a machine that asked several times are completed. Requests that wait on the
		// older ones find their node key unknown and ask again.
		return o != p && o.machine == p.machine && o.login == ""
	})
	close(p.done)
	t.touch()
	return n
}

// findLogin accepts a login's id, its URL, or the host name that waits (its newest login, if it
// asked several times).
func (t *tailnet) findLogin(ref string) *pendingLogin {
	for _, p := range slices.Backward(t.logins) {
		if ref == p.id || ref == p.url {
			return p
		}
		if p.login == "" && p.req.Hostinfo != nil && strings.EqualFold(ref, p.req.Hostinfo.Hostname) {
			return p
		}
	}
	return nil
}

// findKey finds the key with this text, and returns the refusal if it cannot be used.
func (t *tailnet) findKey(key string) (k *authKey, refusal string) {
	id, secret, ok := strings.Cut(strings.TrimPrefix(key, "tskey-auth-"), "-")
	if !ok || !strings.HasPrefix(key, "tskey-auth-") {
		return nil, refusedUnreadable
	}
	k = t.keys[id]
	switch {
	case k == nil:
		return nil, refusedUnknown
	case k.secret != secret:
		return nil, refusedUnreadable
	case k.expired:
		return k, refusedUnknown
	case k.used && !k.reusable:
		return k, strings.Replace(refusedUsed, "%s", k.id, 1)
	}
	return k, ""
}

// refuseTags returns the refusal if the key may not give these tags.
func (k *authKey) refuseTags(tags []string) string {
	if k.anyTags {
		return ""
	}
	var bad []string
	for _, tag := range tags {
		if !slices.Contains(k.tags, tag) {
			bad = append(bad, tag)
		}
	}
	if bad == nil {
		return ""
	}
	return strings.Replace(refusedTags, "%s", strings.Join(bad, " "), 1)
}

func wantedTags(req *tailcfg.RegisterRequest) []string {
	if req.Hostinfo == nil {
		return nil
	}
	return req.Hostinfo.RequestTags
}
