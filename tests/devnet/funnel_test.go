package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"tailscale.com/ipn"
	"tailscale.com/tsnet"
)

// funnelServer joins a node that uses Funnel by means of tsnet alone, with a certificate for any
// other name, and answers with the caller's address.
type sourceKey struct{}

func funnelServer(t *testing.T, d *devnet) *tsnet.Server {
	t.Helper()
	s := mustJoin(t, newNode(t, d, "public", d.authKey))
	cert, err := acmeCA.issue(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ln, err := s.ListenFunnel("tcp", ":443", tsnet.FunnelOnly(), tsnet.FunnelTLSConfig(&tls.Config{Certificates: []tls.Certificate{cert}}))
	if err != nil {
		t.Fatal(err)
	}
	web := &http.Server{
		ErrorLog: discardLog,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, sourceKey{}, c.(*tls.Conn).NetConn().(*ipn.FunnelConn).Src)
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Context().Value(sourceKey{}))
		}),
	}
	go web.Serve(ln)
	t.Cleanup(func() { web.Close() })
	return s
}

// visit fetches from the internet: a TLS connection to a port of the front. It returns the body and
// our own address.
func visit(t *testing.T, d *devnet, name string) (body, local string, err error) {
	t.Helper()
	dialer := &net.Dialer{Timeout: 5 * time.Second, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	c, err := tls.DialWithDialer(dialer, "tcp", d.ready().Funnel[443], &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", name)
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return "", "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), c.LocalAddr().String(), err
}

func TestFunnel(t *testing.T) {
	d := startDevnetWith(t, options{funnel: true}, "alice=alice@example.com")
	name := "public." + suffix
	if _, _, err := visit(t, d, name); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("a node that is not there: %v", err)
	}
	s := funnelServer(t, d)
	waitUntil(t, 10*time.Second, func() string {
		body, local, err := visit(t, d, name)
		if err != nil || body != local {
			return fmt.Sprintf("%q from %s, %v", body, local, err)
		}
		return ""
	})

	// An ordinary peer is no ingress, and the ingress is no ordinary peer: it reaches no port.
	public := getNode(t, d, "public")
	if !public.Funnel {
		t.Errorf("the node announces Funnel, but is shown as %+v", public)
	}
	peerAPI, _ := d.tailnet.funnelNode(name)
	alice := d.peers["alice"].node
	mustCall(t, d, "POST", "/peers/alice/ping", m{"to": "public"})
	c, err := alice.Dial(t.Context(), "tcp", peerAPI.String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintf(c, "POST /v0/ingress HTTP/1.1\r\nHost: peer\r\nTailscale-Ingress-Src: 203.0.113.7:1\r\nTailscale-Ingress-Target: %s:443\r\n\r\n", name)
	if res, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("an ordinary peer: %v, %v", res, err)
	}
	ln, err := s.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	reaches := func(from *tsnet.Server) bool {
		trying, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		c, err := from.Dial(trying, "tcp", public.IP+":80")
		if err == nil {
			c.Close()
		}
		return err == nil
	}
	if !reaches(alice) || reaches(d.funnel.ingress.node) {
		t.Error("the ingress is a peer like any other, or there is none")
	}

	// Without the attribute the ingress is gone.
	mustCall(t, d, "POST", "/config", m{"funnel": false})
	if _, _, err := visit(t, d, name); err == nil {
		t.Error("a tailnet without Funnel has it")
	}
	if s, _ := request(t, d, "POST", "/config", m{"funnel_ports": "x"}); s != http.StatusBadRequest {
		t.Errorf("ports that are none: %d", s)
	}
}
