// Devnet's own peers: tsnet nodes in this process, each with a SOCKS5 proxy on
// loopback, so that curl or a browser acts as that user or machine.
//
// Invariants: the proxy resolves names as the peer does (MagicDNS, short and
// full) and dials through its netstack; state is in memory, files in the
// devnet's own directory; nothing is logged unless asked.
package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"tailscale.com/ipn/store/mem"
	"tailscale.com/net/socks5"
	"tailscale.com/tailcfg"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
)

// peerSpec is one --peer, or the body of POST /peers.
type peerSpec struct {
	Name  string   `json:"name"`
	Login string   `json:"login"`
	Tags  []string `json:"tags"`
}

// parsePeer parses NAME=LOGIN and NAME=tag:X,tag:Y.
func parsePeer(s string) (peerSpec, error) {
	name, who, ok := strings.Cut(s, "=")
	p := peerSpec{Name: name}
	if !ok {
		return p, fmt.Errorf("%q is not NAME=LOGIN or NAME=tag:X[,tag:Y]", s)
	}
	if strings.HasPrefix(who, "tag:") {
		p.Tags = strings.Split(who, ",")
	} else {
		p.Login = who
	}
	return p, p.check()
}

func (p peerSpec) check() error {
	if err := checkHost(p.Name); err != nil {
		return err
	}
	if (p.Login == "") == (len(p.Tags) == 0) {
		return fmt.Errorf("peer %s needs either a login or tags", p.Name)
	}
	if p.Login != "" {
		return checkLogin(p.Login)
	}
	return checkTags(p.Tags)
}

// peerRecord is what callers are told about a peer.
type peerRecord struct {
	IP    string `json:"ip"`
	IP6   string `json:"ip6"`
	Proxy string `json:"proxy"`
	ID    string `json:"id"`
	Name  string `json:"name"`
}

type peer struct {
	record peerRecord
	node   *tsnet.Server
	proxy  net.Listener
	cancel context.CancelFunc
}

// memoryStore is a state store in memory. It is wrapped because tsnet accepts the bare one only for
// ephemeral nodes, and peers must outlive a control server that is down for a while.
type memoryStore struct{ *mem.Store }

func startPeer(ctx context.Context, spec peerSpec, dir, controlURL, authKey string, logf logger.Logf) (*peer, error) {
	node := &tsnet.Server{
		Dir:        filepath.Join(dir, spec.Name),
		Store:      memoryStore{new(mem.Store)},
		Hostname:   spec.Name,
		ControlURL: controlURL,
		AuthKey:    authKey,
		Logf:       logger.WithPrefix(logf, spec.Name+": "),
		UserLogf:   logger.Discard,
	}
	joining, cancelJoin := context.WithTimeout(ctx, 20*time.Second)
	defer cancelJoin()
	status, err := node.Up(joining)
	if err != nil {
		node.Close()
		return nil, fmt.Errorf("peer %s did not join: %w", spec.Name, err)
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		node.Close()
		return nil, fmt.Errorf("peer %s has no proxy: %w", spec.Name, err)
	}

	lifetime, cancel := context.WithCancel(context.Background())
	p := &peer{node: node, proxy: ln, cancel: cancel}
	p.record = peerRecord{
		Proxy: "socks5h://" + ln.Addr().String(),
		ID:    string(status.Self.ID),
		Name:  strings.TrimSuffix(status.Self.DNSName, "."),
	}
	for _, ip := range status.TailscaleIPs {
		if ip.Is4() {
			p.record.IP = ip.String()
		} else {
			p.record.IP6 = ip.String()
		}
	}
	socks := &socks5.Server{Logf: logger.Discard, Dialer: func(_ context.Context, network, addr string) (net.Conn, error) {
		// The proxy's own time-out is 5 s, exactly as long as WireGuard waits before it tries again
		// after a lost first packet.
		dialing, cancel := context.WithTimeout(lifetime, 30*time.Second)
		defer cancel()
		return node.Dial(dialing, network, addr)
	}}
	go socks.Serve(ln)
	return p, nil
}

func (p *peer) close() {
	p.cancel()
	p.proxy.Close()
	p.node.Close()
}

// ping pings an address through WireGuard, at the other node's Tailscale layer, so that a session
// exists afterwards. That ping is a single packet, which is lost if the peer does not know yet how
// to reach the other. So it first finds a path, below WireGuard.
func (p *peer) ping(ctx context.Context, ip netip.Addr) (map[string]any, error) {
	lc, err := p.node.LocalClient()
	if err != nil {
		return nil, err
	}
	for pause := 10 * time.Millisecond; ; pause *= 2 {
		trying, cancel := context.WithTimeout(ctx, pause)
		res, err := lc.Ping(trying, ip, tailcfg.PingDisco)
		if err == nil && res.Err == "" {
			cancel()
			break
		}
		<-trying.Done()
		cancel()
		if ctx.Err() != nil {
			return nil, fmt.Errorf("no way to it was found: %w", ctx.Err())
		}
	}
	res, err := lc.Ping(ctx, ip, tailcfg.PingTSMP)
	if err != nil {
		return nil, err
	}
	if res.Err != "" {
		return nil, fmt.Errorf("%s", res.Err)
	}
	return map[string]any{"ip": ip.String(), "latency_ms": res.LatencySeconds * 1000}, nil
}
