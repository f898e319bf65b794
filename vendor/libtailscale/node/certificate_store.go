// Where certificates are kept: under the names that tsnet uses, so that a state directory can be
// shared with it, and tsnet's answer to control about the node's certificate is true.
//
// Invariants: files are replaced atomically and readable by the owner alone. The key is written
// before the certificate; a pair that does not belong together, after a crash between the two, is
// treated as absent.

package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"tailscale.com/atomicfile"
	"tailscale.com/ipn"
)

const (
	certDir        = "certs"
	accountKeyName = "acme-account.key.pem"
)

// certStore gives nil for what it does not have.
type certStore interface {
	pair(host string) (chain, key []byte, err error)
	setPair(host string, chain, key []byte) error
	accountKey() ([]byte, error)
	setAccountKey([]byte) error
}

// stateWithCerts is a state that keeps pairs itself: the secret of a Kubernetes pod, which has no
// directory that outlives it.
type stateWithCerts interface {
	ipn.StateStore
	ReadTLSCertAndKey(domain string) (cert, key []byte, err error)
	WriteTLSCertAndKey(domain string, cert, key []byte) error
}

func newCertStore(st ipn.StateStore, dir string) certStore {
	if s, ok := st.(stateWithCerts); ok {
		return certsInState{s}
	}
	return certsInFiles{filepath.Join(dir, certDir)}
}

type certsInFiles struct{ dir string }

func (s certsInFiles) file(name string) string { return filepath.Join(s.dir, name) }

func (s certsInFiles) pair(host string) (chain, key []byte, err error) {
	if chain, err = readIfExists(s.file(host + ".crt")); err != nil || chain == nil {
		return nil, nil, err
	}
	if key, err = readIfExists(s.file(host + ".key")); err != nil || key == nil {
		return nil, nil, err
	}
	return chain, key, nil
}

func (s certsInFiles) setPair(host string, chain, key []byte) error {
	if err := s.write(host+".key", key); err != nil {
		return err
	}
	return s.write(host+".crt", chain)
}

func (s certsInFiles) accountKey() ([]byte, error)    { return readIfExists(s.file(accountKeyName)) }
func (s certsInFiles) setAccountKey(key []byte) error { return s.write(accountKeyName, key) }

func (s certsInFiles) write(name string, data []byte) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	return atomicfile.WriteFile(s.file(name), data, 0o600)
}

func readIfExists(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// orderState is where the outcomes of orders are remembered: in the node's state, which outlives
// the process, or beside the certificates if the state is only in memory.
func (n *Node) orderState() ipn.StateStore {
	if n.cfg.Store == "mem:" {
		return stateInFiles{filepath.Join(n.cfg.Dir, certDir)}
	}
	return n.store
}

type stateInFiles struct{ dir string }

func (s stateInFiles) file(id ipn.StateKey) string { return filepath.Join(s.dir, string(id)+".json") }

func (s stateInFiles) ReadState(id ipn.StateKey) ([]byte, error) {
	data, err := readIfExists(s.file(id))
	if err == nil && data == nil {
		return nil, ipn.ErrStateNotExist
	}
	return data, err
}

func (s stateInFiles) WriteState(id ipn.StateKey, data []byte) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	return atomicfile.WriteFile(s.file(id), data, 0o600)
}

type certsInState struct{ state stateWithCerts }

func (s certsInState) pair(host string) (chain, key []byte, err error) {
	chain, key, err = s.state.ReadTLSCertAndKey(host)
	if errors.Is(err, ipn.ErrStateNotExist) {
		return nil, nil, nil
	}
	return chain, key, err
}

func (s certsInState) setPair(host string, chain, key []byte) error {
	return s.state.WriteTLSCertAndKey(host, chain, key)
}

func (s certsInState) accountKey() ([]byte, error) {
	key, err := s.state.ReadState(accountKeyName)
	if errors.Is(err, ipn.ErrStateNotExist) {
		return nil, nil
	}
	return key, err
}

func (s certsInState) setAccountKey(key []byte) error {
	return s.state.WriteState(accountKeyName, key)
}
