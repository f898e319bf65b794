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
	tailnet   *tailnet
	listener  *faultyListener
	relays    *tailcfg.DERPMap
	baseURL   string
	noiseKey  key.MachinePrivate
	legacyKey key.MachinePublic
	handler   http.Handler
	stopping  context.Context
	// publish hands a record to the resolver of the ACME server; nil if there is none.
	publish func(context.Context, dnsRecord) error
}

func newControl(ctx context.Context, tailnet *tailnet, listener *faultyListener, relays *tailcfg.DERPMap) *control {
	c := &control{
		tailnet:   tailnet,
		listener:  listener,
		relays:    relays,
		baseURL:   "http://" + listener.addr,
		noiseKey:  key.NewMachine(),
		legacyKey: key.NewMachine().Public(),
		stopping:  ctx,
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /key", c.serveKey)
	mux.HandleFunc("/ts2021", c.serveUpgrade)
	mux.HandleFunc("GET /a/{id}", c.serveLogin)
	c.oauthRoutes(mux)
	c.handler = listener.withFault(mux)
	return c
}

func (c *control) serveKey(w http.ResponseWriter, r *http.Request) {
	writeJSON(w, http.StatusOK, &tailcfg.OverTLSPublicKeyResponse{LegacyPublicKey: c.legacyKey, PublicKey: c.noiseKey.Public()})
}

// serveLogin is what a person sees at a login URL.
func (c *control) serveLogin(w http.ResponseWriter, r *http.Request) {
	c.tailnet.mu.Lock()
	p := c.tailnet.findLogin(r.PathValue("id"))
	c.tailnet.mu.Unlock()
	if p == nil {
		http.NotFound(w, r)
		return
	}
	fmt.Fprintf(w, "devnet: a node waits for its login. Complete it with POST /logins/%s/complete on the test API.\n", p.id)
}

// serveUpgrade turns the connection into a Noise session and serves HTTP/2 in
// it until the client goes.
func (c *control) serveUpgrade(w http.ResponseWriter, r *http.Request) {
	conn, err := controlhttpserver.AcceptHTTP(r.Context(), w, r, c.noiseKey, nil)
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
	inner.HandleFunc("POST /machine/set-dns", as(c.serveSetDNS))
	done := func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusNoContent) }
	inner.HandleFunc("POST /machine/update-health", done)
	inner.HandleFunc("POST /machine/audit-log", done)
	inner.HandleFunc("PATCH /machine/set-device-attr", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, struct{}{})
	})
	new(http2.Server).ServeConn(conn, &http2.ServeConnOpts{
		Context:    r.Context(),
		BaseConfig: &http.Server{Handler: c.listener.withFault(inner), ErrorLog: discardLog},
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
	resp, err := c.tailnet.register(ctx, machine, req, c.baseURL)
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
	c.tailnet.mu.Lock()
	n := c.tailnet.byKey(req.NodeKey)
	if n == nil || n.machine != machine {
		c.tailnet.mu.Unlock()
		// The message of the real server for a deleted node (tailscale/tailscale#12032).
		http.Error(w, "node not found", http.StatusNotFound)
		return
	}
	if !req.Stream && !req.ReadOnly {
		n.cap = req.Version
		n.endpoints = loopbackOnly(req.Endpoints)
		n.disco = req.DiscoKey
		c.tailnet.recordHostinfo(n, req.Hostinfo)
		c.tailnet.touch()
	}
	if req.Stream {
		c.tailnet.streamOpened(n)
	}
	c.tailnet.mu.Unlock()

	writer := &mapWriter{w: w, compress: req.Compress == "zstd"}
	switch {
	case req.Stream:
		defer func() {
			c.tailnet.mu.Lock()
			defer c.tailnet.mu.Unlock()
			c.tailnet.streamClosed(n)
		}()
		c.stream(r.Context(), writer, n, req.NodeKey)
	case req.OmitPeers:
		w.WriteHeader(http.StatusOK)
	default:
		writer.send(c.nextMessage(n, req.NodeKey, new(sentState), true))
	}
}

// loopbackOnly keeps traffic off the machine's other addresses, where a firewall could block it.
// Nodes learn their loopback address from the relay's STUN.
func loopbackOnly(endpoints []netip.AddrPort) []netip.AddrPort {
	var local []netip.AddrPort
	for _, e := range endpoints {
		if e.Addr().IsLoopback() {
			local = append(local, e)
		}
	}
	if local == nil {
		return endpoints
	}
	return local
}

// stream tells the node about every change until it goes, is deleted, changes its key, or the
// control server is made to fail.
func (c *control) stream(ctx context.Context, out *mapWriter, n *node, nodeKey key.NodePublic) {
	sent := new(sentState)
	cut := c.listener.streamsEnd()
	tick := time.NewTicker(keepAlive)
	defer tick.Stop()
	for first := true; ; first = false {
		c.tailnet.mu.Lock()
		changed := c.tailnet.changed
		c.tailnet.mu.Unlock()

		m := c.nextMessage(n, nodeKey, sent, first)
		if m == nil {
			return
		}
		if !isEmpty(m) && (!c.listener.mayDeliver(ctx) || out.send(m) != nil) {
			return
		}
		select {
		case <-changed:
		case <-tick.C:
			now := time.Now().UTC()
			if !c.listener.mayDeliver(ctx) || out.send(&tailcfg.MapResponse{KeepAlive: true, ControlTime: &now}) != nil {
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

// nextMessage returns what the node must be told now: nil if it is no longer a node of this
// tailnet, an empty message if there is nothing new.
func (c *control) nextMessage(n *node, nodeKey key.NodePublic, sent *sentState, first bool) *tailcfg.MapResponse {
	c.tailnet.mu.Lock()
	defer c.tailnet.mu.Unlock()
	if c.tailnet.nodes[n.id] != n || n.key != nodeKey {
		return nil
	}
	now := time.Now()
	m := sent.nextMessage(c.tailnet.viewOf(n, now))
	if m == nil {
		return &tailcfg.MapResponse{}
	}
	if first {
		utc := now.UTC()
		m.ControlTime = &utc
		m.DERPMap = c.relays
		m.Domain = c.tailnet.domainName()
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
