// An HTTP/1.1 client in its simplest form: one write for each request, one buffered reader for each
// connection. A caller that costs little leaves the machine to the server being measured. What it
// does not understand is an error, never a guess.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// request is what a caller sends, over and over.
type request struct {
	Addr    string            `json:"addr"` // host:port on the tailnet, or outside of it
	Outside bool              `json:"outside"`
	Method  string            `json:"method"`
	Path    string            `json:"path"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	Expect  int               `json:"expect"` // the status of a good answer
	TLS     string            `json:"tls"`    // the server's name; none without TLS
	Resume  bool              `json:"resume"` // TLS sessions of earlier connections
}

// patience is longer than WireGuard's wait of 5 s after a lost first packet.
const patience = 15 * time.Second

func (r request) bytes() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", r.Method, r.Path)
	if _, named := r.Headers["Host"]; !named {
		fmt.Fprintf(&b, "Host: %s\r\n", r.Addr)
	}
	for name, value := range r.Headers {
		fmt.Fprintf(&b, "%s: %s\r\n", name, value)
	}
	if r.Body != "" || r.Method == "POST" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(r.Body))
	}
	b.WriteString("\r\n" + r.Body)
	return b.Bytes()
}

type conn struct {
	net.Conn
	in *bufio.Reader
}

func (n *node) connect(r request) (*conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	dial := n.Dial
	if r.Outside {
		dial = new(net.Dialer).DialContext
	}
	stream, err := dial(ctx, "tcp", r.Addr)
	if err != nil {
		return nil, err
	}
	if r.TLS != "" {
		secured := tls.Client(stream, n.tls(r))
		if err := secured.HandshakeContext(ctx); err != nil {
			stream.Close()
			return nil, err
		}
		stream = secured
	}
	return &conn{stream, bufio.NewReaderSize(stream, 4096)}, nil
}

// tls is what costs a caller least: it checks that the server has the certificate's key, not who
// issued the certificate.
func (n *node) tls(r request) *tls.Config {
	config := &tls.Config{ServerName: r.TLS, NextProtos: []string{"http/1.1"}, InsecureSkipVerify: true}
	if r.Resume {
		config.ClientSessionCache = n.sessions
	}
	return config
}

// ask sends one request and reads the whole answer.
func (c *conn) ask(bytes []byte) (status, length int, err error) {
	if _, err := c.Write(bytes); err != nil {
		return 0, 0, err
	}
	return c.answer()
}

func (c *conn) answer() (status, length int, err error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, 0, err
	}
	if len(line) < 12 || string(line[:9]) != "HTTP/1.1 " {
		return 0, 0, fmt.Errorf("not an answer: %q", line)
	}
	if status, err = strconv.Atoi(string(line[9:12])); err != nil {
		return 0, 0, err
	}
	length = -1
	if status == 204 || status == 304 {
		length = 0
	}
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return status, 0, err
		}
		if len(line) <= 2 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		if len(name) == len("content-length") && strings.EqualFold(string(name), "content-length") {
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil {
				return status, 0, err
			}
		}
	}
	if length < 0 {
		return status, 0, fmt.Errorf("an answer without Content-Length")
	}
	_, err = c.in.Discard(length)
	return status, length, err
}
