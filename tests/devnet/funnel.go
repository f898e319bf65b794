// Funnel: an ingress node as Tailscale runs them, and in front of it the internet, which is
// loopback here. Real nodes meet in them what they meet in the wild: an unsigned peer that is there
// only while the node announces Funnel, that may reach nothing but its PeerAPI, and that finds the
// port of it in the host info.
//
// Invariants: like a real one, the ingress reads the server name of a TLS handshake and nothing
// behind it, and ends no TLS. Who names a node without Funnel, or none, gets an alert.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"tailscale.com/tailcfg"
	"tailscale.com/types/logger"
)

const (
	ingressHost  = "funnel-ingress"
	ingressTag   = "tag:funnel-ingress"
	helloTimeout = 10 * time.Second
)

var funnelPorts = []uint16{443, 8443, 10000}

// funnelFront is the public side.
type funnelFront struct {
	tailnet   *tailnet
	ingress   *peer
	listeners map[uint16]net.Listener
	cancel    context.CancelFunc
}

// startFunnel joins the ingress node and opens a port on loopback for each port of Funnel.
func startFunnel(ctx context.Context, t *tailnet, dir, controlURL string, logf logger.Logf) (*funnelFront, error) {
	t.mu.Lock()
	key := t.addKey(authKey{tags: []string{ingressTag}, preauthorized: true, forPeer: true})
	t.mu.Unlock()
	ingress, err := startPeer(ctx, peerSpec{Name: ingressHost, Tags: []string{ingressTag}}, dir, controlURL, key.text(), logf)
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	if n := t.find(ingress.record.ID); n != nil {
		n.ingress = true
		t.touch()
	}
	t.mu.Unlock()
	lifetime, cancel := context.WithCancel(context.Background())
	f := &funnelFront{tailnet: t, ingress: ingress, listeners: map[uint16]net.Listener{}, cancel: cancel}
	for _, port := range funnelPorts {
		ln, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			f.close()
			return nil, fmt.Errorf("no port for Funnel: %w", err)
		}
		f.listeners[port] = ln
		go f.serve(lifetime, ln, port)
	}
	return f, nil
}

// record is where each port of Funnel is found on loopback.
func (f *funnelFront) record() map[uint16]string {
	all := map[uint16]string{}
	for port, ln := range f.listeners {
		all[port] = ln.Addr().String()
	}
	return all
}

func (f *funnelFront) close() {
	f.cancel()
	for _, ln := range f.listeners {
		ln.Close()
	}
	f.ingress.close()
}

func (f *funnelFront) serve(ctx context.Context, ln net.Listener, port uint16) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() })
			defer stop()
			f.forward(ctx, c, port)
		}()
	}
}

// forward takes a connection from the internet to the node that it names.
func (f *funnelFront) forward(ctx context.Context, c net.Conn, port uint16) {
	c.SetReadDeadline(time.Now().Add(helloTimeout))
	name, hello := readServerName(c)
	c.SetReadDeadline(time.Time{})
	to, ok := f.tailnet.funnelNode(name)
	if !ok {
		c.Write([]byte{21, 3, 3, 0, 2, 2, 112}) // a fatal alert: unrecognized_name
		return
	}
	dialing, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	inside, err := f.ingress.node.Dial(dialing, "tcp", to.String())
	if err != nil {
		return
	}
	defer inside.Close()
	stop := context.AfterFunc(ctx, func() { inside.Close() })
	defer stop()
	fmt.Fprintf(inside, "POST /v0/ingress HTTP/1.1\r\nHost: %s\r\nTailscale-Ingress-Src: %s\r\nTailscale-Ingress-Target: %s:%d\r\n\r\n",
		to, c.RemoteAddr(), name, port)
	// Nothing of the caller is sent before the answer, and the node sends nothing of its own after
	// it before it has heard from the caller.
	answer, err := http.ReadResponse(bufio.NewReader(inside), nil)
	if err != nil || answer.StatusCode != http.StatusSwitchingProtocols {
		return
	}
	var both sync.WaitGroup
	both.Go(func() {
		if _, err := inside.Write(hello); err == nil {
			io.Copy(inside, c)
		}
		closeWrite(inside)
	})
	both.Go(func() {
		io.Copy(c, inside)
		closeWrite(c)
	})
	both.Wait()
}

func closeWrite(c net.Conn) {
	if half, ok := c.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
}

var errHelloRead = errors.New("the server name is known")

// readServerName returns the name in a TLS handshake, "" if there is none, and all bytes that it
// has read.
func readServerName(c net.Conn) (string, []byte) {
	var name string
	seen := &helloConn{Conn: c}
	tls.Server(seen, &tls.Config{GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		name = hello.ServerName
		return nil, errHelloRead
	}}).Handshake()
	return name, seen.read
}

// helloConn remembers what is read and sends nothing.
type helloConn struct {
	net.Conn
	read []byte
}

func (c *helloConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.read = append(c.read, b[:n]...)
	return n, err
}

func (c *helloConn) Write(b []byte) (int, error) { return len(b), nil }
func (c *helloConn) Close() error                { return nil }

// funnelNode finds the PeerAPI of a node that announces Funnel and may use it.
func (t *tailnet) funnelNode(name string) (netip.AddrPort, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.find(name)
	if n == nil || !strings.Contains(name, ".") || !t.hasFunnel(n) {
		return netip.AddrPort{}, false
	}
	for _, s := range n.hostinfo.Services {
		if s.Proto == tailcfg.PeerAPI4 {
			return netip.AddrPortFrom(n.v4.Addr(), s.Port), true
		}
	}
	return netip.AddrPort{}, false
}

// hasFunnel reports whether ingress nodes and this node are peers.
func (t *tailnet) hasFunnel(n *node) bool {
	return t.config.HTTPS && t.config.Funnel && n.hostinfo != nil && n.hostinfo.IngressEnabled
}

// strangers reports whether two nodes do not see each other although both are in the tailnet: an
// ingress node sees those with Funnel alone.
func (t *tailnet) strangers(a, b *node) bool {
	return a.ingress && !t.hasFunnel(b) || b.ingress && !t.hasFunnel(a)
}

// ingressRule makes an ingress node of those peers that are one. They may reach no port.
func ingressRule(n *node, ingress []string) tailcfg.FilterRule {
	return tailcfg.FilterRule{
		SrcIPs: ingress,
		CapGrant: []tailcfg.CapGrant{{
			Dsts: []netip.Prefix{n.v4, n.v6},
			Caps: []tailcfg.PeerCapability{tailcfg.PeerCapabilityIngress},
		}},
	}
}
