// The test API: what a person would do in the admin console, and faults that the control server
// may have. README.md lists it.
//
// Invariants: plain JSON; an unknown name is 404, an invalid body is 400, both with one sentence in
// {"error"}; a change is in force when the answer comes (connected nodes see it within a few
// milliseconds).
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/util/dnsname"
)

// apiError is an error with its HTTP status.
type apiError struct {
	status  int
	message string
}

func (e apiError) Error() string { return e.message }

func badRequest(format string, a ...any) error { return apiError{400, fmt.Sprintf(format, a...)} }
func notFound(kind, ref string) error {
	return apiError{404, fmt.Sprintf("there is no %s %q", kind, ref)}
}

// apiHandler is a handler that returns the answer; nil means {}.
type apiHandler func(r *http.Request) (any, error)

func (d *devnet) routes() http.Handler {
	mux := http.NewServeMux()
	for pattern, h := range map[string]apiHandler{
		"GET /healthz": func(*http.Request) (any, error) { return map[string]string{"status": "ok"}, nil },
		"GET /ready":   func(*http.Request) (any, error) { return d.ready(), nil },

		"GET /nodes":                d.listNodes,
		"GET /nodes/{node}":         d.onNode(func(n *node, _ *http.Request) (any, error) { return d.tailnet.record(n), nil }),
		"POST /nodes/{node}/login":  d.onNode(d.setLogin),
		"POST /nodes/{node}/tags":   d.onNode(d.setTags),
		"POST /nodes/{node}/expire": d.onNode(d.expire),
		"POST /nodes/{node}/unexpire": d.onNode(func(n *node, _ *http.Request) (any, error) {
			n.expiry = time.Time{}
			if len(n.tags) == 0 {
				n.expiry = time.Now().UTC().Truncate(time.Second).Add(keyLife)
			}
			return d.tailnet.record(n), nil
		}),
		"POST /nodes/{node}/approve": d.onNode(func(n *node, _ *http.Request) (any, error) {
			n.approved = true
			return d.tailnet.record(n), nil
		}),
		"POST /nodes/{node}/share":          d.onNode(d.share),
		"DELETE /nodes/{node}":              d.onNode(func(n *node, _ *http.Request) (any, error) { d.tailnet.deleteNode(n); return nil, nil }),
		"POST /nodes/{node}/complete-login": d.completeLogin,

		"GET /logins":                  d.listLogins,
		"POST /logins/{node}/complete": d.completeLogin,

		"GET /keys":         d.listKeys,
		"POST /keys":        d.makeKey,
		"DELETE /keys/{id}": d.revokeKey,

		"POST /oauth-clients": d.makeClient,

		"GET /grants":         d.listGrants,
		"POST /grants":        d.addGrant,
		"DELETE /grants":      d.dropGrants,
		"DELETE /grants/{id}": d.dropGrants,

		"GET /access": func(*http.Request) (any, error) {
			return d.locked(func() (any, error) { return map[string]any{"rules": d.tailnet.accessRules}, nil })
		},
		"POST /access": d.setAccess,
		"DELETE /access": func(*http.Request) (any, error) {
			return d.locked(func() (any, error) { d.tailnet.accessRules = nil; d.tailnet.touch(); return nil, nil })
		},
		"POST /crowd": d.postCrowd,

		"GET /config": func(*http.Request) (any, error) {
			return d.locked(func() (any, error) { return d.tailnet.config, nil })
		},
		"POST /config": d.setConfig,

		"GET /dns": func(*http.Request) (any, error) {
			return d.locked(func() (any, error) {
				return map[string]any{"records": append([]dnsRecord{}, d.tailnet.records...)}, nil
			})
		},
		"GET /acme":  d.onACME(func(*http.Request) (any, error) { return d.acme.counts(), nil }),
		"POST /acme": d.onACME(d.setACME),

		"GET /control":  func(*http.Request) (any, error) { return d.listener.currentFault(), nil },
		"POST /control": d.setControl,

		"POST /peers":               d.postPeer,
		"DELETE /peers/{name}":      d.deletePeer,
		"POST /peers/{name}/ping":   d.postPing,
		"POST /peers/{name}/resets": d.postResets,
	} {
		mux.HandleFunc(pattern, respond(h))
	}
	mux.HandleFunc("/", respond(func(r *http.Request) (any, error) {
		return nil, apiError{404, fmt.Sprintf("there is no operation %s %s", r.Method, r.URL.Path)}
	}))
	return mux
}

func respond(h apiHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		v, err := h(r)
		if err != nil {
			status := http.StatusInternalServerError
			var f apiError
			if errors.As(err, &f) {
				status = f.status
			}
			writeJSON(w, status, map[string]string{"error": err.Error()})
			return
		}
		if v == nil {
			v = struct{}{}
		}
		writeJSON(w, http.StatusOK, v)
	}
}

// readBody reads a JSON object. An unknown member is an error, since it is a mistake of the test.
func readBody(r *http.Request, v any) error {
	dec := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil && err != io.EOF {
		return badRequest("the body is not what %s %s takes: %v", r.Method, r.URL.Path, err)
	}
	if dec.More() {
		return badRequest("the body holds more than one JSON value")
	}
	return nil
}

func (d *devnet) locked(f func() (any, error)) (any, error) {
	d.tailnet.mu.Lock()
	defer d.tailnet.mu.Unlock()
	return f()
}

// onNode finds the node, and tells the tailnet afterwards.
func (d *devnet) onNode(f func(*node, *http.Request) (any, error)) apiHandler {
	return func(r *http.Request) (any, error) {
		d.tailnet.mu.Lock()
		defer d.tailnet.mu.Unlock()
		n := d.tailnet.find(r.PathValue("node"))
		if n == nil {
			return nil, notFound("node", r.PathValue("node"))
		}
		v, err := f(n, r)
		if err == nil && r.Method != http.MethodGet {
			d.tailnet.touch()
		}
		return v, err
	}
}

// nodeRecord is one node as the API shows it.
type nodeRecord struct {
	ID          string     `json:"id"`
	NodeID      int64      `json:"node_id"`
	Host        string     `json:"host"`
	Name        string     `json:"name"`
	IP          string     `json:"ip"`
	IP6         string     `json:"ip6"`
	Login       string     `json:"login"`
	DisplayName string     `json:"display_name"`
	UserID      int64      `json:"user_id"`
	Tags        []string   `json:"tags"`
	Online      bool       `json:"online"`
	LastSeen    *time.Time `json:"last_seen,omitempty"`
	Approved    bool       `json:"approved"`
	Expired     bool       `json:"expired"`
	KeyExpiry   *time.Time `json:"key_expiry,omitempty"`
	Ephemeral   bool       `json:"ephemeral"`
	NodeKey     string     `json:"node_key"`
	KeyID       string     `json:"key_id,omitempty"`
	Peer        bool       `json:"peer"`
	Sharee      bool       `json:"sharee,omitempty"`
	Sharer      string     `json:"sharer,omitempty"`
	Funnel      bool       `json:"funnel"` // announced by the node
}

func (t *tailnet) record(n *node) nodeRecord {
	u := t.profileOf(n)
	r := nodeRecord{
		ID:          string(n.stable),
		NodeID:      int64(n.id),
		Host:        n.host,
		Name:        n.host + "." + t.suffix,
		IP:          n.v4.Addr().String(),
		IP6:         n.v6.Addr().String(),
		Login:       u.login,
		DisplayName: u.display,
		UserID:      int64(u.id),
		Tags:        append([]string{}, n.tags...),
		Online:      n.streams > 0,
		Approved:    n.approved,
		Expired:     n.expired(time.Now()),
		Ephemeral:   n.ephemeral,
		NodeKey:     n.key.String(),
		KeyID:       n.keyID,
		Peer:        n.ownPeer,
		Sharee:      n.sharee,
		Funnel:      n.hostinfo != nil && n.hostinfo.IngressEnabled,
	}
	if !n.expiry.IsZero() {
		at := n.expiry
		r.KeyExpiry = &at
	}
	if !n.lastSeen.IsZero() && n.streams == 0 {
		at := n.lastSeen
		r.LastSeen = &at
	}
	if n.sharer != 0 {
		r.Sharer = t.users[n.sharer].login
	}
	return r
}

func (d *devnet) listNodes(*http.Request) (any, error) {
	return d.locked(func() (any, error) {
		all := []nodeRecord{}
		for _, n := range d.tailnet.sorted() {
			all = append(all, d.tailnet.record(n))
		}
		return map[string]any{"nodes": all}, nil
	})
}

// setLogin renames the node's user, with all its nodes, and keeps the profile id, as a renamed
// account does. A login that another user has, or "move", gives only this node to that user.
func (d *devnet) setLogin(n *node, r *http.Request) (any, error) {
	var in struct {
		Login       string `json:"login"`
		DisplayName string `json:"display_name"`
		Move        bool   `json:"move"`
	}
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	if in.Login == "" && in.DisplayName == "" {
		return nil, badRequest("give a login, a display_name or both")
	}
	if in.Login != "" {
		if err := checkLogin(in.Login); err != nil {
			return nil, err
		}
	}
	if len(n.tags) > 0 {
		return nil, badRequest("%s has tags, so it has no login; remove them first", n.host)
	}
	u := d.tailnet.users[n.user]
	if in.Login != "" && in.Login != u.login {
		taken := false
		for _, o := range d.tailnet.users {
			taken = taken || o.login == in.Login
		}
		if in.Move || taken {
			u = d.tailnet.userOf(in.Login)
			n.user = u.id
		} else {
			u.login = in.Login
		}
	}
	if in.DisplayName != "" {
		u.display = in.DisplayName
	}
	return d.tailnet.record(n), nil
}

func (d *devnet) setTags(n *node, r *http.Request) (any, error) {
	var in struct {
		Tags *[]string `json:"tags"`
	}
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	if in.Tags == nil {
		return nil, badRequest("give tags, or an empty list to remove them")
	}
	if err := checkTags(*in.Tags); err != nil {
		return nil, err
	}
	had := len(n.tags) > 0
	n.tags = slices.Clone(*in.Tags)
	switch {
	case len(n.tags) > 0:
		n.expiry = time.Time{}
	case had:
		n.expiry = time.Now().UTC().Truncate(time.Second).Add(keyLife)
	}
	return d.tailnet.record(n), nil
}

func (d *devnet) expire(n *node, r *http.Request) (any, error) {
	var in struct {
		At *time.Time `json:"at"`
	}
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	n.expiry = time.Now().UTC().Add(-time.Second)
	if in.At != nil {
		n.expiry = in.At.UTC()
	}
	return d.tailnet.record(n), nil
}

func (d *devnet) share(n *node, r *http.Request) (any, error) {
	var in struct {
		Sharee bool   `json:"sharee"`
		Sharer string `json:"sharer"`
	}
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	if in.Sharee && in.Sharer != "" {
		return nil, badRequest("give sharee (their machine reaches ours) or sharer (who shared their machine with us), not both")
	}
	n.sharee, n.sharer = in.Sharee, 0
	if in.Sharer != "" {
		if err := checkLogin(in.Sharer); err != nil {
			return nil, err
		}
		n.sharer = d.tailnet.userOf(in.Sharer).id
	}
	return d.tailnet.record(n), nil
}

type loginRecord struct {
	ID        string    `json:"id"`
	URL       string    `json:"url"`
	Host      string    `json:"host"`
	Tags      []string  `json:"tags"`
	NodeKey   string    `json:"node_key"`
	Created   time.Time `json:"created"`
	Completed bool      `json:"completed"`
	Login     string    `json:"login,omitempty"`
}

func (d *devnet) listLogins(*http.Request) (any, error) {
	return d.locked(func() (any, error) {
		all := []loginRecord{}
		for _, p := range d.tailnet.logins {
			r := loginRecord{ID: p.id, URL: p.url, Created: p.created, Login: p.login, Completed: p.login != "",
				NodeKey: p.req.NodeKey.String(), Tags: append([]string{}, wantedTags(p.req)...)}
			if p.req.Hostinfo != nil {
				r.Host = p.req.Hostinfo.Hostname
			}
			all = append(all, r)
		}
		return map[string]any{"logins": all}, nil
	})
}

func (d *devnet) completeLogin(r *http.Request) (any, error) {
	var in struct {
		Login string `json:"login"`
	}
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	if in.Login != "" {
		if err := checkLogin(in.Login); err != nil {
			return nil, err
		}
	}
	return d.locked(func() (any, error) {
		ref := r.PathValue("node")
		p := d.tailnet.findLogin(ref)
		if p == nil {
			// A node that has to log in again has more names than the one that it waits under.
			if n := d.tailnet.find(ref); n != nil && n.hostinfo != nil {
				p = d.tailnet.findLogin(n.hostinfo.Hostname)
			}
		}
		if p == nil {
			return nil, notFound("pending login of", ref)
		}
		if p.login != "" {
			return nil, badRequest("the login %s was completed already", p.id)
		}
		return d.tailnet.record(d.tailnet.complete(p, in.Login)), nil
	})
}

type keyRecord struct {
	ID            string   `json:"id"`
	Login         string   `json:"login"`
	Tags          []string `json:"tags"`
	Ephemeral     bool     `json:"ephemeral"`
	Reusable      bool     `json:"reusable"`
	Preauthorized bool     `json:"preauthorized"`
	Expired       bool     `json:"expired"`
	Used          bool     `json:"used"`
}

func (d *devnet) makeKey(r *http.Request) (any, error) {
	var in struct {
		Login         string   `json:"login"`
		Tags          []string `json:"tags"`
		Ephemeral     bool     `json:"ephemeral"`
		Reusable      bool     `json:"reusable"`
		Preauthorized bool     `json:"preauthorized"`
		Expired       bool     `json:"expired"`
	}
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	if in.Login != "" {
		if err := checkLogin(in.Login); err != nil {
			return nil, err
		}
	}
	if err := checkTags(in.Tags); err != nil {
		return nil, err
	}
	return d.locked(func() (any, error) {
		k := d.tailnet.addKey(authKey{login: in.Login, tags: in.Tags, ephemeral: in.Ephemeral, reusable: in.Reusable,
			preauthorized: in.Preauthorized, expired: in.Expired})
		return map[string]string{"auth_key": k.text(), "id": k.id}, nil
	})
}

func (d *devnet) listKeys(*http.Request) (any, error) {
	return d.locked(func() (any, error) {
		all := []keyRecord{}
		for _, k := range d.tailnet.keys {
			all = append(all, keyRecord{k.id, k.login, append([]string{}, k.tags...), k.ephemeral, k.reusable, k.preauthorized, k.expired, k.used})
		}
		slices.SortFunc(all, func(a, b keyRecord) int { return strings.Compare(a.ID, b.ID) })
		return map[string]any{"keys": all}, nil
	})
}

func (d *devnet) revokeKey(r *http.Request) (any, error) {
	return d.locked(func() (any, error) {
		id := r.PathValue("id")
		if d.tailnet.keys[id] == nil {
			return nil, notFound("key", id)
		}
		delete(d.tailnet.keys, id)
		return nil, nil
	})
}

// makeClient makes an OAuth client, or a federated identity if its ID token is given.
func (d *devnet) makeClient(r *http.Request) (any, error) {
	var in struct {
		Tags []string `json:"tags"`
		JWT  string   `json:"jwt"`
	}
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	if len(in.Tags) == 0 {
		return nil, badRequest("a client needs tags: only tagged nodes come without a person")
	}
	if err := checkTags(in.Tags); err != nil {
		return nil, err
	}
	return d.locked(func() (any, error) {
		c := d.tailnet.addClient(in.Tags, in.JWT)
		out := map[string]string{"client_id": c.id, "base_url": "http://" + d.listener.addr}
		if c.secret != "" {
			out["client_secret"] = c.secret
		}
		return out, nil
	})
}

func (d *devnet) addGrant(r *http.Request) (any, error) {
	g := new(grant)
	if err := readBody(r, g); err != nil {
		return nil, err
	}
	if g.Src == "" || g.Dst == "" || len(g.Caps) == 0 {
		return nil, badRequest("a grant needs src, dst and caps")
	}
	for name := range g.Caps {
		if !strings.Contains(name, "/") {
			return nil, badRequest("%q is no capability name: it must look like example.com/cap/name", name)
		}
	}
	return d.locked(func() (any, error) {
		for _, ref := range []string{g.Src, g.Dst} {
			if err := d.checkRef(ref); err != nil {
				return nil, err
			}
		}
		d.tailnet.lastGrant++
		g.ID = d.tailnet.lastGrant
		d.tailnet.grants = append(d.tailnet.grants, g)
		d.tailnet.touch()
		return g, nil
	})
}

func (d *devnet) listGrants(*http.Request) (any, error) {
	return d.locked(func() (any, error) {
		return map[string]any{"grants": append([]*grant{}, d.tailnet.grants...)}, nil
	})
}

func (d *devnet) dropGrants(r *http.Request) (any, error) {
	return d.locked(func() (any, error) {
		id := r.PathValue("id")
		before := len(d.tailnet.grants)
		d.tailnet.grants = slices.DeleteFunc(d.tailnet.grants, func(g *grant) bool { return id == "" || fmt.Sprint(g.ID) == id })
		if id != "" && len(d.tailnet.grants) == before {
			return nil, notFound("grant", id)
		}
		d.tailnet.touch()
		return nil, nil
	})
}

// setAccess replaces the rules that say which nodes reach which ports of which others.
func (d *devnet) setAccess(r *http.Request) (any, error) {
	in := struct {
		Rules []accessRule `json:"rules"`
	}{}
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	if in.Rules == nil {
		return nil, badRequest("rules are missing; an empty list lets nobody reach anybody")
	}
	return d.locked(func() (any, error) {
		for _, a := range in.Rules {
			if _, err := parsePorts(a.Ports); err != nil {
				return nil, badRequest("%v", err)
			}
			for _, ref := range []string{a.Src, a.Dst} {
				if err := d.checkRef(ref); err != nil {
					return nil, err
				}
			}
		}
		d.tailnet.accessRules = in.Rules
		d.tailnet.touch()
		return in, nil
	})
}

// checkRef returns an error if src or dst of a rule can mean no node.
func (d *devnet) checkRef(ref string) error {
	if ref != "*" && !strings.HasPrefix(ref, "tag:") && !strings.Contains(ref, "@") && d.tailnet.find(ref) == nil {
		return notFound("node", ref)
	}
	return nil
}

// setConfig changes the switches that are given and leaves the others.
func (d *devnet) setConfig(r *http.Request) (any, error) {
	return d.locked(func() (any, error) {
		in := d.tailnet.config
		if err := readBody(r, &in); err != nil {
			return nil, err
		}
		if in.EphemeralGraceMS < 0 {
			return nil, badRequest("ephemeral_grace_ms must not be negative")
		}
		if in.FunnelPorts != "" {
			if _, err := parsePorts(in.FunnelPorts); err != nil {
				return nil, badRequest("funnel_ports: %v", err)
			}
		}
		d.tailnet.config = in
		d.tailnet.touch()
		return in, nil
	})
}

func (d *devnet) setControl(r *http.Request) (any, error) {
	var in fault
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	if err := in.check(); err != nil {
		return nil, badRequest("%v", err)
	}
	// While clients cannot come back, they are not to blame for being away.
	d.tailnet.pauseReaping(in.Mode != "ok" && in.Mode != "slow")
	if err := d.listener.setFault(in); err != nil {
		return nil, err
	}
	return in, nil
}

func (d *devnet) onACME(f apiHandler) apiHandler {
	return func(r *http.Request) (any, error) {
		if d.acme == nil || d.acme.record() == nil {
			return nil, apiError{http.StatusNotFound, "there is no ACME server: devnet was started without --https"}
		}
		return f(r)
	}
}

func (d *devnet) setACME(r *http.Request) (any, error) {
	var in fault
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	if err := in.check(); err != nil {
		return nil, badRequest("%v", err)
	}
	if err := d.acme.front.setFault(in); err != nil {
		return nil, err
	}
	return d.acme.counts(), nil
}

func (d *devnet) postPeer(r *http.Request) (any, error) {
	var in peerSpec
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	if err := in.check(); err != nil {
		return nil, badRequest("%v", err)
	}
	rec, err := d.addPeer(r.Context(), in)
	if err != nil {
		return nil, err
	}
	return rec, nil
}

func (d *devnet) deletePeer(r *http.Request) (any, error) {
	if name := r.PathValue("name"); !d.removePeer(name) {
		return nil, notFound("peer", name)
	}
	return nil, nil
}

func (d *devnet) postPing(r *http.Request) (any, error) {
	var in struct {
		To string `json:"to"`
	}
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	p, ip, err := d.peerAndTarget(r.PathValue("name"), in.To)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
	defer cancel()
	res, err := p.ping(ctx, ip)
	if err != nil {
		return nil, apiError{http.StatusGatewayTimeout, fmt.Sprintf("%s does not answer: %v", in.To, err)}
	}
	return res, nil
}

func checkHost(name string) error {
	if err := dnsname.ValidLabel(name); err != nil || name != strings.ToLower(name) {
		return badRequest("%q is no host name: lower-case letters, digits and dashes", name)
	}
	return nil
}

func checkLogin(login string) error {
	if login == "" || strings.HasPrefix(login, "@") || strings.HasSuffix(login, "@") || strings.ContainsAny(login, ": \t\r\n") {
		return badRequest("%q is no login: it must look like alice@example.com, or alice as on headscale", login)
	}
	return nil
}

func checkTags(tags []string) error {
	for _, t := range tags {
		if err := tailcfg.CheckTag(t); err != nil {
			return badRequest("%q is no tag: %v", t, err)
		}
	}
	return nil
}
