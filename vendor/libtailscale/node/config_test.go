package node

import (
	"net"
	"strconv"
	"strings"
	"testing"
	"unicode"

	"tailscale.com/ipn"
)

func TestConfigRefusals(t *testing.T) {
	long := strings.Repeat("x", 200_000)
	for raw, want := range map[string]string{
		``:                               "not a JSON object",
		`[]`:                             "not a JSON object",
		`{"dir":"/a"`:                    "not valid JSON",
		`{"dir":"/a"} {}`:                "after the configuration's closing brace",
		`{"dir":"/a","hostnme":"x"}`:     `unknown member "hostnme"`,
		`{"Dir":"/a"}`:                   `unknown member "Dir"`,
		`{"dir":"/a","dir":"/b"}`:        `"dir" is given twice`,
		`{"dir":"/a","level":1}`:         `unknown member "level"`,
		`{"dir":null}`:                   "dir: missing",
		`{"dir":1}`:                      `"dir" must be of type string`,
		`{"dir":"/a","tags":"tag:x"}`:    `"tags" must be of type array of strings`,
		`{"dir":"/a","greet_max":1.5}`:   `"greet_max" must be of type whole number`,
		`{"dir":"/a","ephemeral":"yes"}`: `"ephemeral" must be of type boolean`,
		`{}`:                             "dir: missing",
		`{"dir":"a"}`:                    "absolute",
		`{"dir":"/a\u0000b"}`:            "dir: contains a NUL",
		`{"dir":"/a\nb"}`:                "dir: contains a control character",
		"{\"dir\":\"/a\xff\"}":           "not valid UTF-8",
		`{"dir":"/` + long[:5000] + `"}`: "dir: 5001 bytes",
		`{"dir":"` + long + `"}`:         "at most 131072",
		`{"dir":"/a","hostname":"a b"}`:  "hostname:",
		`{"dir":"/a","hostname":"` + long[:64] + `"}`:                "hostname: 64 bytes",
		`{"dir":"/a","auth_key":"k\u0000"}`:                          "auth_key: contains a NUL",
		`{"dir":"/a","auth_key":"` + long[:5000] + `"}`:              "auth_key: 5000 bytes",
		`{"dir":"/a","tags":["ci"]}`:                                 `tags: "ci"`,
		`{"dir":"/a","control_url":"ftp://x"}`:                       "control_url:",
		`{"dir":"/a","control_url":"http://u:p@x"}`:                  "control_url:",
		`{"dir":"/a","store":"arn:x"}`:                               "store:",
		`{"dir":"/a","store":"kube:"}`:                               "store:",
		`{"dir":"/a","store":"mem:"}`:                                `"ephemeral": true`,
		`{"dir":"/a","log_level":"loud"}`:                            "log_level: must be one of trace",
		`{"dir":"/a","greet_max":-1}`:                                "greet_max:",
		`{"dir":"/a","id_token":"t"}`:                                "client_id: missing",
		`{"dir":"/a","client_id":"c","id_token":"t","audience":"a"}`: "only one of them",
	} {
		_, err := ParseConfig([]byte(raw))
		if err == nil || err.Code != Invalid || !strings.Contains(err.Message, want) {
			t.Errorf("%.80q: %v, want %q", raw, err, want)
		}
		if err != nil && len(err.Message) > 400 {
			t.Errorf("%.80q: %d bytes of words", raw, len(err.Message))
		}
	}
}

func TestConfigRefusalsNeverShowSecrets(t *testing.T) {
	for _, raw := range []string{
		`{"dir":"/a","auth_key":"hunter2\u0000"}`,
		`{"dir":"/a","auth_key":["hunter2"]}`,
		`{"dir":"/a","control_url":"http://u:hunter2@x"}`,
		`{"dir":"/a","id_token":"hunter2","client_id":"c","audience":"a"}`,
	} {
		if _, err := ParseConfig([]byte(raw)); err == nil || strings.Contains(err.Message, "hunter2") {
			t.Errorf("%s: %v", raw, err)
		}
	}
}

func TestConfigDefaults(t *testing.T) {
	t.Setenv("TS_CONTROL_URL", "http://elsewhere.invalid")
	c, err := ParseConfig([]byte(`{"dir":"/a"}`))
	if err != nil {
		t.Fatal(err)
	}
	if c.ControlURL != ipn.DefaultControlURL || c.level != levelInfo {
		t.Errorf("%+v", c)
	}
}

func TestListenAndDialAddresses(t *testing.T) {
	for addr, want := range map[string]string{
		":80": "invalid AddrPort", "0.0.0.0:80": "invalid AddrPort", "[::]:80": "invalid AddrPort",
		"100.64.0.1:80": "100.64.0.1:80", "[fd7a::1]:80": "[fd7a::1]:80", "[::ffff:100.64.0.1]:80": "100.64.0.1:80",
	} {
		got, err := parseListen([]byte(addr))
		if err != nil || got.String() != want && got.Addr().IsValid() || got.Port() != 80 {
			t.Errorf("listen %s: %v, %v", addr, got, err)
		}
	}
	for _, addr := range []string{"", ":", ":0", "80", ":http", ":65536", "host:80", "[fe80::1%eth0]:80", ":80\x00", "\xff:80", strings.Repeat(":80", 200)} {
		if got, err := parseListen([]byte(addr)); err == nil || err.Code != Invalid {
			t.Errorf("listen %.20q: %v, %v", addr, got, err)
		}
	}
	for _, addr := range []string{"", ":80", "h", "h:", "h:0", "h:http", "h:65536", "a\x00b:80", strings.Repeat("h", 400) + ":80"} {
		if _, _, err := parseDial([]byte(addr)); err == nil || err.Code != Invalid {
			t.Errorf("dial %.20q: %v", addr, err)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(`{"dir":"/a","tags":["tag:x"],"greet_max":3}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if c, err := ParseConfig(raw); (c == nil) == (err == nil) {
			t.Errorf("%v, %v", c, err)
		}
	})
}

func FuzzAddresses(f *testing.F) {
	for _, addr := range []string{":80", "[::ffff:100.64.0.1]:80", "[fe80::1%eth0]:80", "h:80", "h\n:80"} {
		f.Add([]byte(addr))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		addr, err := parseListen(raw)
		oneLine(t, err)
		if err == nil {
			ip := addr.Addr()
			if addr.Port() == 0 || ip.Zone() != "" || ip.Is4In6() || ip.IsValid() && ip.IsUnspecified() {
				t.Errorf("%q is %v", raw, addr)
			}
			if again, err := parseListen([]byte(addr.String())); ip.IsValid() && (err != nil || again != addr) {
				t.Errorf("%q is %v, and then %v, %v", raw, addr, again, err)
			}
		}
		name, err := parseCertName(raw)
		oneLine(t, err)
		if err == nil && (strings.ContainsAny(name, "/*") || strings.Contains(name, "..")) {
			t.Errorf("%q is the name of a file %q", raw, name)
		}
		host, port, err := parseDial(raw)
		oneLine(t, err)
		if err == nil {
			back := net.JoinHostPort(host, strconv.Itoa(int(port)))
			h, p, err := parseDial([]byte(back))
			if err != nil || h != host || p != port || port == 0 || host == "" {
				t.Errorf("%q is %q and %d, and then %q, %d, %v", raw, host, port, h, p, err)
			}
		}
	})
}

// A message about foreign bytes must not contain a second line.
func oneLine(t *testing.T, err *Error) {
	if err != nil && strings.ContainsFunc(err.Message, unicode.IsControl) {
		t.Errorf("a message with a control character: %q", err.Message)
	}
}
