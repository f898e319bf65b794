// The control server: the wire protocol that a Tailscale client speaks, with the rules of join.go
// and the views of view.go.
//
// It is our own because testcontrol has no hook for registration: keys, tags, users, refusals,
// deletion and logout cannot be decided from outside it, and its handlers cannot be called behind
// another one (they ask the connection's context for a value that only it can set). Its hook for
// maps, AltMapStream, would require two lists of nodes that must agree. So only the layers below it
// are used: Noise, its HTTP upgrade, HTTP/2 and the message types.
//
// Routes: GET /key, POST /ts2021 (upgrade), GET /a/{login}, and those of oauth.go; inside Noise
// POST /machine/register, /machine/map, /machine/set-dns and a few that only need an empty answer.
// Everything else is 404, never a panic.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"time"

	"golang.org/x/net/http2"
	"tailscale.com/control/controlhttp/controlhttpserver"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/util/zstdframe"
)

const (
	maxBody   = 4 << 20
	keepAlive = 50 * time.Second // clients give up after two minutes of silence
)

type control struct {
	net      *tailnet
	door     *door
	relays   *tailcfg.DERPMap
	baseURL  string
	noise    key.MachinePrivate
	legacy   key.MachinePublic
	outer    http.Handler
	stopping context.Context
}

func newControl(ctx context.Context, net *tailnet, d *door, relays *tailcfg.DERPMap) *control {
	c := &control{
		net:      net,
		door:     d,
		relays:   relays,
		baseURL:  "http://" + d.addr,
		noise:    key.NewMachine(),
		legacy:   key.NewMachine().Public(),
		stopping: ctx,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /key", c.serveKey)
	mux.HandleFunc("/ts2021", c.serveUpgrade)
	mux.HandleFunc("GET /a/{id}", c.serveLogin)
	c.oauthRoutes(mux)
	c.outer = d.gate(mux)
	return c
}

func (c *control) serveKey(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, &tailcfg.OverTLSPublicKeyResponse{LegacyPublicKey: c.legacy, PublicKey: c.noise.Public()})
}

// serveLogin is what a person sees at a login URL.
func (c *control) serveLogin(w http.ResponseWriter, r *http.Request) {
	c.net.mu.Lock()
	p := c.net.findLogin(r.PathValue("id"))
	c.net.mu.Unlock()
	if p == nil {
		http.NotFound(w, r)
		return
	}
	fmt.Fprintf(w, "devnet: a node waits for its login. Complete it with POST /logins/%s/complete on the test API.\n", p.id)
}

// serveUpgrade turns the connection into a Noise session and serves HTTP/2 in
// it until the client goes.
func (c *control) serveUpgrade(w http.ResponseWriter, r *http.Request) {
	conn, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, c.noise, nil)
	if err != nil {
		return // the client has been told, or is gone
	}
	defer conn.Close()
	machine := conn.Peer()
	inner := http.NewServeMux()
	as := func(h func(http.ResponseWriter, *http.Request, key.MachinePublic)) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) { h(w, r, machine) }
	}
	inner.HandleFunc("POST /machine/register", as(c.serveRegister))
	inner.HandleFunc("POST /machine/map", as(c.serveMap))
	inner.HandleFunc("POST /machine/set-dns", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, &tailcfg.SetDNSResponse{})
	})
	done := func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }
	inner.HandleFunc("POST /machine/update-health", done)
	inner.HandleFunc("POST /machine/audit-log", done)
	inner.HandleFunc("PATCH /machine/set-device-attr", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, struct{}{})
	})
	new(http2.Server).ServeConn(conn, &http2.ServeConnOpts{
		Context:    r.Context(),
		BaseConfig: &http.Server{Handler: c.door.gate(inner), ErrorLog: quiet},
	})
}

func (c *control) serveRegister(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	req := new(tailcfg.RegisterRequest)
	if !readRequest(w, r, req) {
		return
	}
	if req.NodeKey.IsZero() {
		http.Error(w, "no node key", http.StatusBadRequest)
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(c.stopping, cancel)()
	resp, err := c.net.register(ctx, machine, req, c.baseURL)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	writeJSON(w, http.StatusOK, resp)
}

// serveMap is the long poll (Stream) by which a node learns about the tailnet, and the short one by
// which it reports about itself. A long poll of a current client reports nothing, whatever its
// fields hold.
func (c *control) serveMap(w http.ResponseWriter, r *http.Request, machine key.MachinePublic) {
	req := new(tailcfg.MapRequest)
	if !readRequest(w, r, req) {
		return
	}
	c.net.mu.Lock()
	n := c.net.byKey(req.NodeKey)
	if n == nil || n.machine != machine {
		c.net.mu.Unlock()
		// The message of the real server for a deleted node (tailscale/tailscale#12032).
		http.Error(w, "node not found", http.StatusNotFound)
		return
	}
	if !req.Stream && !req.ReadOnly {
		n.cap = req.Version
		n.ends = onLoopback(req.Endpoints)
		n.disco = req.DiscoKey
		c.net.heard(n, req.Hostinfo)
		c.net.touch()
	}
	if req.Stream {
		c.net.came(n)
	}
	c.net.mu.Unlock()

	out := &mapWriter{w: w, compress: req.Compress == "zstd"}
	switch {
	case req.Stream:
		defer func() {
			c.net.mu.Lock()
			defer c.net.mu.Unlock()
			c.net.went(n)
		}()
		c.stream(r.Context(), out, n, req.NodeKey)
	case req.OmitPeers:
		w.WriteHeader(http.StatusOK)
	default:
		out.send(c.message(n, req.NodeKey, new(told), true))
	}
}

// onLoopback keeps traffic off the machine's other addresses, where a firewall could block it.
// Nodes learn their loopback address from the relay's STUN.
func onLoopback(ends []netip.AddrPort) []netip.AddrPort {
	var local []netip.AddrPort
	for _, e := range ends {
		if e.Addr().IsLoopback() {
			local = append(local, e)
		}
	}
	if local == nil {
		return ends
	}
	return local
}

// stream tells the node about every change until it goes, is deleted, changes its key, or the
// control server is made to fail.
func (c *control) stream(ctx context.Context, out *mapWriter, n *node, nodeKey key.NodePublic) {
	heard := new(told)
	cut := c.door.cut()
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for first := true; ; first = false {
		c.net.mu.Lock()
		changed := c.net.changed
		c.net.mu.Unlock()

		m := c.message(n, nodeKey, heard, first)
		if m == nil {
			return
		}
		if !isEmpty(m) && (!c.door.passable(ctx) || out.send(m) != nil) {
			return
		}
		select {
		case <-changed:
		case <-tick.C:
			now := time.Now().UTC()
			if !c.door.passable(ctx) || out.send(&tailcfg.MapResponse{KeepAlive: true, ControlTime: &now}) != nil {
				return
			}
		case <-cut:
			return
		case <-ctx.Done():
			return
		case <-c.stopping.Done():
			return
		}
	}
}

// message returns what the node must be told now: nil if it is no longer a node of this tailnet, an
// empty message if there is nothing new.
func (c *control) message(n *node, nodeKey key.NodePublic, heard *told, first bool) *tailcfg.MapResponse {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	if c.net.nodes[n.id] != n || n.key != nodeKey {
		return nil
	}
	now := time.Now()
	m := heard.next(c.net.viewOf(n, now))
	if m == nil {
		return &tailcfg.MapResponse{}
	}
	if first {
		utc := now.UTC()
		m.ControlTime = &utc
		m.DERPMap = c.relays
		m.Domain = c.net.domain()
		m.CollectServices = "false"
	}
	return m
}

func isEmpty(m *tailcfg.MapResponse) bool {
	return m.Node == nil && m.PacketFilters == nil && m.DNSConfig == nil && m.UserProfiles == nil &&
		m.Peers == nil && m.PeersChanged == nil && m.PeersRemoved == nil
}

// mapWriter frames messages: little-endian length, then JSON, compressed if
// the client asked for it.
type mapWriter struct {
	w        http.ResponseWriter
	compress bool
}

func (o *mapWriter) send(m *tailcfg.MapResponse) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if o.compress {
		b = zstdframe.AppendEncode(nil, b, zstdframe.FastestCompression)
	}
	frame := binary.LittleEndian.AppendUint32(nil, uint32(len(b)))
	if _, err := o.w.Write(append(frame, b...)); err != nil {
		return err
	}
	return http.NewResponseController(o.w).Flush()
}

func readRequest(w http.ResponseWriter, r *http.Request, v any) bool {
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err == nil {
		err = json.Unmarshal(b, v)
	}
	if err != nil {
		http.Error(w, "unreadable request: "+err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}
