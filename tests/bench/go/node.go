// A node of the test tailnet. Everything stays on loopback: no log upload, no binding of sockets to
// an interface (which costs a probe without privileges), and a control server is required.
package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"tailscale.com/envknob"
	"tailscale.com/net/netns"
	"tailscale.com/tsnet"
	"tailscale.com/types/logger"
)

type node struct {
	*tsnet.Server
	name string
	ip   netip.Addr
	dir  string
	// Of TLS, by the server's name.
	sessions tls.ClientSessionCache
}

func join(controlURL, authKey, hostname string) (*node, error) {
	if !strings.HasPrefix(controlURL, "http://127.0.0.1:") {
		return nil, fmt.Errorf("%q is no control server on loopback", controlURL)
	}
	netns.SetEnabled(false)
	envknob.SetNoLogsNoSupport()
	dir, err := os.MkdirTemp("", "tailbone-bench-")
	if err != nil {
		return nil, err
	}
	server := &tsnet.Server{
		Dir:        filepath.Join(dir, "state"),
		Hostname:   hostname,
		ControlURL: controlURL,
		AuthKey:    authKey,
		Logf:       logger.Discard,
		UserLogf:   logger.Discard,
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	status, err := server.Up(ctx)
	if err != nil {
		server.Close()
		os.RemoveAll(dir)
		return nil, fmt.Errorf("%s did not join: %w", hostname, err)
	}
	return &node{
		Server:   server,
		name:     hostname,
		ip:       status.TailscaleIPs[0],
		dir:      dir,
		sessions: tls.NewLRUClientSessionCache(0),
	}, nil
}

func (n *node) close() {
	n.Close()
	os.RemoveAll(n.dir)
}

// keyOf asks devnet for an auth key of that user.
func keyOf(apiURL, login string) (string, error) {
	body, err := json.Marshal(map[string]any{"login": login, "preauthorized": true})
	if err != nil {
		return "", err
	}
	response, err := http.Post(apiURL+"/keys", "application/json", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	var made struct {
		Key string `json:"auth_key"`
	}
	if err := json.NewDecoder(response.Body).Decode(&made); err != nil {
		return "", err
	}
	if made.Key == "" {
		return "", fmt.Errorf("devnet made no key for %s: %s", login, response.Status)
	}
	return made.Key, nil
}
