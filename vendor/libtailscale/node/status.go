// The node's state as one object, on demand and as a stream of the newest.
//
// Invariants: a watcher gets the first state at once, then one after each change, at most one in
// watchInterval, and never the same twice. A watcher that does not read delays nobody: a change
// only wakes it, and states that could not be sent are never made. The generation in a state is not
// newer than the rest of it.

package node

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"tailscale.com/ipn"
	"tailscale.com/ipn/ipnstate"
)

const watchInterval = 20 * time.Millisecond

type nodeStatus struct {
	Generation   uint64       `json:"generation"`
	State        string       `json:"state"`
	AuthURL      string       `json:"auth_url"`
	Error        string       `json:"error"`
	ID           string       `json:"id"`
	Name         string       `json:"name"`
	Hostname     string       `json:"hostname"`
	Addresses    []netip.Addr `json:"addresses"`
	Tailnet      string       `json:"tailnet"`
	KeyExpiry    string       `json:"key_expiry"`
	Expired      bool         `json:"expired"`
	Tags         []string     `json:"tags"`
	Owner        string       `json:"owner"`
	OwnerID      *int64       `json:"owner_id"`
	Health       []string     `json:"health"`
	InMapPoll    bool         `json:"in_map_poll"`
	ControlError string       `json:"control_error"`
	CertDomains  []string     `json:"cert_domains"`
	Peers        []peer       `json:"peers,omitzero"`
}

type peer struct {
	ID        string       `json:"id"`
	Name      string       `json:"name"`
	Addresses []netip.Addr `json:"addresses"`
	Online    bool         `json:"online"`
	Active    bool         `json:"active"`
	Tags      []string     `json:"tags"`
	Login     string       `json:"login"`
}

// Status returns the state together with the peers.
func (n *Node) Status() ([]byte, *Error) {
	if n.ctx.Err() != nil {
		return nil, errClosed
	}
	b, err := json.Marshal(n.currentStatus(true))
	if err != nil {
		return nil, errorf(Internal, "%v", err)
	}
	return b, nil
}

func (n *Node) currentStatus(withPeers bool) *nodeStatus {
	p := &nodeStatus{Generation: n.gen.now(), State: ipn.NoState.String()}
	p.Error, p.ControlError = n.lastErrors.get()
	p.Addresses, p.Tags, p.Health, p.CertDomains = []netip.Addr{}, []string{}, []string{}, []string{}
	if withPeers {
		p.Peers = []peer{}
	}
	lb := n.lb.Load()
	if lb == nil {
		return p
	}
	var st *ipnstate.Status
	if withPeers {
		st = lb.Status()
	} else {
		st = lb.StatusWithoutPeers()
	}
	p.State = st.BackendState
	if p.State == ipn.Running.String() && !n.greet.finished.Load() {
		p.State = ipn.Starting.String() // the node is still greeting its peers (greet.go)
	}
	p.AuthURL = st.AuthURL
	p.InMapPoll = lb.HealthTracker().GetInPollNetMap()
	if p.InMapPoll {
		p.ControlError = ""
	}
	p.Health = append(p.Health, st.Health...)
	p.Addresses = append(p.Addresses, st.TailscaleIPs...)
	p.CertDomains = append(p.CertDomains, st.CertDomains...)
	if st.CurrentTailnet != nil {
		p.Tailnet = st.CurrentTailnet.MagicDNSSuffix
	}
	if self := st.Self; self != nil {
		p.ID = string(self.ID)
		p.Name = fqdn(self.DNSName)
		p.Hostname = self.HostName
		if self.Tags != nil {
			p.Tags = self.Tags.AppendTo(p.Tags)
		}
		if self.KeyExpiry != nil {
			p.KeyExpiry, p.Expired = expiry(*self.KeyExpiry, self.Expired)
		}
		if u, ok := lb.UserProfile(self.UserID); ok && len(p.Tags) == 0 {
			p.Owner = u.LoginName()
			id := int64(self.UserID)
			p.OwnerID = &id
		}
	}
	for _, ps := range st.Peer {
		pe := peer{
			ID: string(ps.ID), Name: fqdn(ps.DNSName), Addresses: ps.TailscaleIPs,
			Online: ps.Online, Active: ps.Active, Tags: []string{}, Login: st.User[ps.UserID].LoginName,
		}
		if pe.Addresses == nil {
			pe.Addresses = []netip.Addr{}
		}
		if ps.Tags != nil {
			pe.Tags = ps.Tags.AppendTo(pe.Tags)
		}
		p.Peers = append(p.Peers, pe)
	}
	slices.SortFunc(p.Peers, func(a, b peer) int { return strings.Compare(a.Name+a.ID, b.Name+b.ID) })
	return p
}

func fqdn(name string) string { return strings.TrimSuffix(name, ".") }

// expiry returns when a key expires and whether it has. Upstream fault, seen in tailscale.com
// v1.102.5: its timer marks an expired peer some ten seconds late. So the clock is asked as well,
// which can go when the mark is exact.
func expiry(t time.Time, marked bool) (string, bool) {
	if t.IsZero() {
		return "", marked
	}
	return t.UTC().Format(time.RFC3339), marked || !t.After(time.Now())
}

// changed wakes the watchers. It never blocks; the backend's lock may be held.
func (n *Node) changed() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for w := range n.watchers {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// Watch returns a descriptor on which states arrive until it is closed.
func (n *Node) Watch() (int, *Error) {
	socket, programFD, err := socketPair(unix.SOCK_SEQPACKET)
	if err != nil {
		return -1, ioError("making the watch's sockets", err)
	}
	wake := make(chan struct{}, 1)
	hungUp := make(chan struct{})
	n.mu.Lock()
	n.watchers[wake] = struct{}{}
	n.mu.Unlock()
	ok := n.spawn(func() {
		defer func() {
			n.mu.Lock()
			delete(n.watchers, wake)
			n.mu.Unlock()
		}()
		n.sendStatuses(socket, wake, hungUp)
	}) && n.spawn(func() {
		socket.awaitHangup()
		close(hungUp)
		socket.file.Close()
	})
	if !ok {
		n.mu.Lock()
		delete(n.watchers, wake)
		n.mu.Unlock()
		socket.file.Close()
		unix.Close(programFD)
		return -1, errClosed
	}
	return programFD, nil
}

func (n *Node) sendStatuses(socket socketEnd, wake, hungUp chan struct{}) {
	defer socket.file.Close() // also ends the goroutine that waits for the other end
	stop := make(chan struct{})
	defer close(stop)
	go func() { // a send that waits for room must not delay close
		select {
		case <-n.ctx.Done():
			socket.file.Close()
		case <-stop:
		}
	}()
	var last []byte
	for {
		msg, err := json.Marshal(n.currentStatus(false))
		if err != nil {
			n.log.printf(levelError, "the node's status cannot be written: %v", err)
			return
		}
		if !bytes.Equal(msg, last) {
			if socket.send(msg, nil) != nil {
				return
			}
			last = msg
		}
		select {
		case <-wake:
		case <-hungUp:
			return
		case <-n.ctx.Done():
			return
		}
		select {
		case <-time.After(watchInterval):
		case <-hungUp:
			return
		case <-n.ctx.Done():
			return
		}
	}
}
