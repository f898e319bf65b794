// DERP and STUN on loopback, so that nodes find each other and learn their
// endpoints without leaving the machine.
//
// Invariants: both bind 127.0.0.1 only; the relay's certificate is made at
// start and clients are told not to check it, so nothing has to be set in
// their environment.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"time"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stun"
	"tailscale.com/tailcfg"
	"tailscale.com/types/key"
	"tailscale.com/types/logger"
)

// startRelay serves DERP and STUN until ctx ends. It delays the packets that nodes send through the
// relay.
func startRelay(ctx context.Context, logf logger.Logf, delay time.Duration) (*tailcfg.DERPMap, error) {
	cert, err := relayCert()
	if err != nil {
		return nil, fmt.Errorf("relay certificate: %w", err)
	}
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("stun: %w", err)
	}

	if delay > 0 {
		ln = slowListener{ln, delay}
	}
	relay := derpserver.New(key.NewNode(), logf)
	mux := http.NewServeMux()
	mux.Handle("/derp", derpserver.Handler(relay))
	mux.HandleFunc("/derp/", derpserver.ProbeHandler)
	mux.HandleFunc("/generate_204", derpserver.ServeNoContent)
	server := &http.Server{
		Handler:  mux,
		ErrorLog: discardLog,
		// DERP takes the connection over, which HTTP/2 does not allow.
		TLSNextProto: map[string]func(*http.Server, *tls.Conn, http.Handler){},
	}
	go server.Serve(tls.NewListener(ln, &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}))
	go answerSTUN(udp)
	context.AfterFunc(ctx, func() {
		server.Close()
		relay.Close()
		udp.Close()
	})

	return &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{1: {
		RegionID:   1,
		RegionCode: "devnet",
		RegionName: "devnet (loopback)",
		Nodes: []*tailcfg.DERPNode{{
			Name:             "1a",
			RegionID:         1,
			HostName:         "127.0.0.1",
			IPv4:             "127.0.0.1",
			IPv6:             "none", // else every probe of the network waits for it
			STUNPort:         udp.LocalAddr().(*net.UDPAddr).Port,
			STUNTestIP:       "127.0.0.1",
			DERPPort:         ln.Addr().(*net.TCPAddr).Port,
			InsecureForTests: true,
		}},
	}}}, nil
}

// slowListener returns connections on which everything arrives late.
type slowListener struct {
	net.Listener
	delay time.Duration
}

func (l slowListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	near, far := net.Pipe()
	type piece struct {
		at   time.Time
		data []byte
	}
	pieces := make(chan piece, 1024)
	go func() {
		defer close(pieces)
		for {
			data := make([]byte, 16<<10)
			n, err := c.Read(data)
			if n > 0 {
				pieces <- piece{time.Now(), data[:n]}
			}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer far.Close()
		for p := range pieces {
			time.Sleep(l.delay - time.Since(p.at))
			if _, err := far.Write(p.data); err != nil {
				c.Close()
			}
		}
	}()
	return slowConn{c, near}, nil
}

// slowConn reads what has come late, and writes at once.
type slowConn struct {
	net.Conn
	delayed net.Conn
}

func (c slowConn) Read(p []byte) (int, error)        { return c.delayed.Read(p) }
func (c slowConn) SetReadDeadline(t time.Time) error { return c.delayed.SetReadDeadline(t) }

func (c slowConn) SetDeadline(t time.Time) error {
	return errors.Join(c.delayed.SetReadDeadline(t), c.Conn.SetWriteDeadline(t))
}

func (c slowConn) Close() error {
	c.delayed.Close()
	return c.Conn.Close()
}

func answerSTUN(udp *net.UDPConn) {
	buf := make([]byte, 2048)
	for {
		n, from, err := udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			return // closed
		}
		if tx, err := stun.ParseBindingRequest(buf[:n]); err == nil {
			udp.WriteToUDPAddrPort(stun.Response(tx, from), from)
		}
	}
}

func relayCert() (tls.Certificate, error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(365 * 24 * time.Hour),
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.Public(), k)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k}, nil
}
