//go:build !ts_omit_kube

// State in a Kubernetes secret, at an API server that knows as much of Kubernetes as the store
// needs: access reviews, and secrets that are made, read, patched and replaced.

package node

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"tailscale.com/kube/kubeclient"
)

const (
	kubeNamespace = "testing"
	kubeToken     = "token-of-the-pod"
)

type secret struct {
	Kind     string            `json:"kind"`
	Version  string            `json:"apiVersion"`
	Metadata map[string]string `json:"metadata"`
	Data     map[string][]byte `json:"data,omitempty"`
}

// cluster is the API server. Verbs are what the pod may do with its secret.
type cluster struct {
	t     *testing.T
	verbs []string

	mu      sync.Mutex
	secrets map[string]*secret
	done    []string
}

// newCluster makes this process a pod of the cluster.
func newCluster(t *testing.T, verbs ...string) *cluster {
	c := &cluster{t: t, verbs: verbs, secrets: map[string]*secret{}}
	s := httptest.NewTLSServer(http.HandlerFunc(c.serve))
	t.Cleanup(s.Close)
	root := t.TempDir()
	account := filepath.Join(root, "var/run/secrets/kubernetes.io/serviceaccount")
	if err := os.MkdirAll(account, 0o700); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	for name, text := range map[string][]byte{"namespace": []byte(kubeNamespace), "token": []byte(kubeToken), "ca.crt": ca} {
		if err := os.WriteFile(filepath.Join(account, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kubeclient.SetRootPathForTesting(root)
	t.Cleanup(func() { kubeclient.SetRootPathForTesting("") })
	u, _ := url.Parse(s.URL)
	t.Setenv("TS_KUBERNETES_READ_API_SERVER_ADDRESS_FROM_ENV", "true")
	t.Setenv("KUBERNETES_SERVICE_HOST", u.Hostname())
	t.Setenv("KUBERNETES_SERVICE_PORT_HTTPS", u.Port())
	return c
}

func (c *cluster) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if r.Header.Get("Authorization") != "Bearer "+kubeToken {
		refuse(w, http.StatusUnauthorized)
		return
	}
	if r.URL.Path == "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews" {
		var ask struct {
			Spec struct {
				ResourceAttributes struct{ Namespace, Verb, Resource string }
			}
		}
		if err := json.NewDecoder(r.Body).Decode(&ask); err != nil {
			refuse(w, http.StatusBadRequest)
			return
		}
		a := ask.Spec.ResourceAttributes
		allowed := a.Namespace == kubeNamespace && a.Resource == "secrets" && slices.Contains(c.verbs, a.Verb)
		w.WriteHeader(http.StatusCreated)
		fmt.Fprintf(w, `{"status":{"allowed":%v}}`, allowed)
		return
	}
	name, ok := strings.CutPrefix(r.URL.Path, "/api/v1/namespaces/"+kubeNamespace+"/secrets")
	if !ok {
		refuse(w, http.StatusNotFound)
		return
	}
	name = strings.TrimPrefix(name, "/")
	verb := map[string]string{"GET": "get", "POST": "create", "PUT": "update", "PATCH": "patch"}[r.Method]
	if !slices.Contains(c.verbs, verb) {
		refuse(w, http.StatusForbidden)
		return
	}
	c.done = append(c.done, verb)
	switch found := c.secrets[name]; {
	case verb == "create" || verb == "update" && found != nil:
		var given secret
		if err := json.NewDecoder(r.Body).Decode(&given); err != nil {
			refuse(w, http.StatusBadRequest)
			return
		}
		c.secrets[given.Metadata["name"]] = &given
		json.NewEncoder(w).Encode(given)
	case found == nil:
		refuse(w, http.StatusNotFound)
	case verb == "patch":
		c.patch(w, r, found)
	default:
		json.NewEncoder(w).Encode(found)
	}
}

// patch handles what the store sends: single keys below /data, or all of it.
func (c *cluster) patch(w http.ResponseWriter, r *http.Request, s *secret) {
	var all []struct {
		Op, Path string
		Value    json.RawMessage
	}
	if err := json.NewDecoder(r.Body).Decode(&all); err != nil || r.Header.Get("Content-Type") == "" {
		refuse(w, http.StatusBadRequest)
		return
	}
	for _, p := range all {
		key, single := strings.CutPrefix(p.Path, "/data/")
		var err error
		switch {
		case p.Op == "remove" && single:
			delete(s.Data, key)
		case p.Op == "add" && single && s.Data != nil:
			var v []byte
			err = json.Unmarshal(p.Value, &v)
			s.Data[key] = v
		case p.Op == "add" && p.Path == "/data":
			s.Data = nil
			err = json.Unmarshal(p.Value, &s.Data)
		default:
			err = fmt.Errorf("%s %s", p.Op, p.Path)
		}
		if err != nil {
			c.t.Errorf("patch: %v", err)
			refuse(w, http.StatusUnprocessableEntity)
			return
		}
	}
	json.NewEncoder(w).Encode(s)
}

func refuse(w http.ResponseWriter, code int) {
	w.WriteHeader(code)
	fmt.Fprintf(w, `{"kind":"Status","status":"Failure","code":%d,"message":"refused"}`, code)
}

func (c *cluster) keys(name string) (keys []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.secrets[name]; s != nil {
		for k := range s.Data {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func (c *cluster) did(verb string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Contains(c.done, verb)
}

// A node whose directory is gone comes back as the same node, without a key, from the secret. It
// makes no difference whether the secret existed before, and whether it may be patched or only
// replaced.
func TestKubeStateSurvivesTheDirectory(t *testing.T) {
	for _, c := range []struct {
		name   string
		before *secret
		verbs  []string
		writes string
	}{
		{"made by the node", nil, []string{"get", "update", "patch", "create"}, "patch"},
		{"empty, made beforehand", &secret{Metadata: map[string]string{"name": "state"}}, []string{"get", "update", "patch"}, "patch"},
		{"may only be replaced", &secret{Metadata: map[string]string{"name": "state"}}, []string{"get", "update"}, "update"},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newCluster(t, c.verbs...)
			if c.before != nil {
				k.secrets["state"] = c.before
			}
			tn := newTailnet(t)
			tn.control.RequireAuthKey = "right"
			cfg := tn.config("pod")
			cfg.AuthKey = "right"
			cfg.Store = "kube:state"
			m := tn.make(cfg)
			p := m.await("Running")
			m.close()
			keys := k.keys("state")
			if !slices.Contains(keys, "_machinekey") || !slices.Contains(keys, "_current-profile") {
				t.Errorf("the secret holds %v", keys)
			}
			if !k.did(c.writes) {
				t.Errorf("nothing was written by %s: %v", c.writes, k.done)
			}
			if _, err := os.Stat(filepath.Join(cfg.Dir, "tailscaled.state")); err == nil {
				t.Error("there is state in the directory as well")
			}

			tn.control.RequireAuthKey = ""
			cfg.AuthKey = ""
			cfg.Dir = filepath.Join(t.TempDir(), "another")
			m = tn.make(cfg)
			if again := m.await("Running"); again.ID != p.ID || again.Name != p.Name {
				t.Errorf("came back as %s %s, was %s %s", again.ID, again.Name, p.ID, p.Name)
			}
			m.close()
		})
	}
}

// What is missing is reported in the store's words, and nothing is stored elsewhere.
func TestKubeStateWithoutRights(t *testing.T) {
	k := newCluster(t, "get")
	tn := newTailnet(t)
	cfg := tn.config("pod")
	cfg.Store = "kube:state"
	m := tn.make(cfg)
	p := m.awaitStatus("the refusal", func(p nodeStatus) bool { return p.Error != "" })
	if !strings.Contains(p.Error, `missing update permission on secret "state"`) {
		t.Errorf("error: %s", p.Error)
	}
	m.close()
	if keys := k.keys("state"); keys != nil {
		t.Errorf("the secret holds %v", keys)
	}
}

// A certificate is kept in the secret, since the directory of a pod does not outlive it.
func TestKubeStateKeepsCertificates(t *testing.T) {
	k := newCluster(t, "get", "update", "patch", "create")
	a, tn := newCertTailnet(t)
	cfg := tn.config("first")
	cfg.Store = "kube:state"
	m := tn.make(cfg)
	m.await("Running")
	first := m.mustCert(a, firstName, 0)
	m.close()
	keys := k.keys("state")
	for _, want := range []string{firstName + ".crt", firstName + ".key", accountKeyName} {
		if !slices.Contains(keys, want) {
			t.Errorf("the secret has no %s, but %v", want, keys)
		}
	}

	cfg.Dir = filepath.Join(t.TempDir(), "another")
	m = tn.make(cfg)
	m.await("Running")
	if again := m.mustCert(a, firstName, 0); string(again.chain) != string(first.chain) {
		t.Error("another certificate after the directory was lost")
	}
	if _, orders := a.counts(); orders != 1 {
		t.Errorf("%d orders", orders)
	}
	m.close()
}
