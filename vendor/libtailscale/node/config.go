// The configuration of a node: strict parsing and limits.
//
// Invariants: nothing is ever cut, guessed or silently ignored. An unknown member, a member given
// twice, a string with NUL or other control characters, text that is not UTF-8 or longer than its
// limit is refused with a message that names the member (never its value, which may be a secret).
// The program knows the defaults; here a member that is absent or null is its zero value.

package node

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"tailscale.com/ipn"
	"tailscale.com/tailcfg"
)

// Config is what tailscale_new takes, see tailscale.h.
type Config struct {
	Dir          string   `json:"dir"`
	Hostname     string   `json:"hostname"`
	AuthKey      string   `json:"auth_key"`
	ClientSecret string   `json:"client_secret"`
	ClientID     string   `json:"client_id"`
	IDToken      string   `json:"id_token"`
	Audience     string   `json:"audience"`
	IDTokenFD    int      `json:"id_token_fd"`
	ControlURL   string   `json:"control_url"`
	Ephemeral    bool     `json:"ephemeral"`
	Tags         []string `json:"tags"`
	Store        string   `json:"store"`
	LogLevel     string   `json:"log_level"`
	UploadLogs   bool     `json:"upload_logs"`
	Netns        bool     `json:"netns"`
	GreetMax     int      `json:"greet_max"`

	level level
}

const (
	maxConfig   = 128 << 10
	maxPath     = 4000 // PATH_MAX less what tsnet appends
	maxSecret   = 4 << 10
	maxIDToken  = 32 << 10
	maxURL      = 2 << 10
	maxTags     = 64
	maxTag      = 200
	maxGreeting = 10_000
)

// ParseConfig parses the JSON given to tailscale_new.
func ParseConfig(raw []byte) (*Config, *Error) {
	var c Config
	if err := decodeStrict(raw, maxConfig, &c); err != nil {
		return nil, err
	}
	for _, s := range []struct {
		name string
		val  string
		max  int
	}{
		{"dir", c.Dir, maxPath},
		{"hostname", c.Hostname, 63},
		{"auth_key", c.AuthKey, maxSecret},
		{"client_secret", c.ClientSecret, maxSecret},
		{"client_id", c.ClientID, maxSecret},
		{"id_token", c.IDToken, maxIDToken},
		{"audience", c.Audience, maxSecret},
		{"control_url", c.ControlURL, maxURL},
		{"store", c.Store, 260},
		{"log_level", c.LogLevel, 8},
	} {
		if err := checkText(s.name, s.val, s.max); err != nil {
			return nil, err
		}
	}
	if len(c.Tags) > maxTags {
		return nil, errorf(Invalid, "tags: %d given, at most %d are allowed", len(c.Tags), maxTags)
	}
	for _, t := range c.Tags {
		if err := checkText("tags", t, maxTag); err != nil {
			return nil, err
		}
		if err := tailcfg.CheckTag(t); err != nil {
			return nil, errorf(Invalid, "tags: %q: %v (a tag looks like \"tag:name\")", t, err)
		}
	}
	if strings.ContainsFunc(c.Hostname, func(r rune) bool { return unicode.IsSpace(r) || r > unicode.MaxASCII || r == '/' }) {
		return nil, errorf(Invalid, "hostname: only ASCII letters, digits, '-', '_' and '.' are allowed")
	}
	switch {
	case c.Store == "":
	case c.Store == "mem:":
		if !c.Ephemeral {
			return nil, errorf(Invalid, "store: \"mem:\" forgets the node's key at exit, so it needs \"ephemeral\": true")
		}
	case strings.HasPrefix(c.Store, "kube:") && len(c.Store) > len("kube:"):
	default:
		return nil, errorf(Invalid, "store: must be \"\", \"mem:\" or \"kube:NAME\"")
	}
	if c.Dir == "" && c.Store == "" {
		return nil, errorf(Invalid, "dir: missing; the node keeps its identity there")
	}
	if c.Dir != "" && !filepath.IsAbs(c.Dir) {
		return nil, errorf(Invalid, "dir: must be an absolute path")
	}
	// The environment must not decide which control server is used: tsnet reads TS_CONTROL_URL if
	// this is empty.
	if c.ControlURL == "" {
		c.ControlURL = ipn.DefaultControlURL
	}
	u, err := url.Parse(c.ControlURL)
	if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" {
		return nil, errorf(Invalid, "control_url: must be an http or https URL")
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, errorf(Invalid, "control_url: must not have a user, a query or a fragment")
	}
	if c.level, err = parseLevel(c.LogLevel); err != nil {
		return nil, errorf(Invalid, "log_level: %v", err)
	}
	if c.GreetMax < 0 || c.GreetMax > maxGreeting {
		return nil, errorf(Invalid, "greet_max: must be between 0 and %d", maxGreeting)
	}
	if c.IDToken != "" && c.Audience != "" {
		return nil, errorf(Invalid, "id_token and audience: only one of them may be given")
	}
	if (c.IDToken != "" || c.Audience != "") && c.ClientID == "" {
		return nil, errorf(Invalid, "client_id: missing; id_token and audience are used only with it")
	}
	return &c, nil
}

// usesIDToken reports whether starting first trades an ID token for an auth key.
func (c *Config) usesIDToken() bool {
	return c.AuthKey == "" && c.ClientSecret == "" && c.ClientID != ""
}

// usesExchange reports whether starting first trades a client secret or an ID token for an auth key
// over the network.
func (c *Config) usesExchange() bool {
	return c.AuthKey == "" && (c.ClientSecret != "" || c.ClientID != "") || strings.HasPrefix(c.AuthKey, "tskey-client-")
}

func checkText(name, s string, max int) *Error {
	if len(s) > max {
		return errorf(Invalid, "%s: %d bytes, at most %d are allowed", name, len(s), max)
	}
	if strings.ContainsRune(s, 0) {
		return errorf(Invalid, "%s: contains a NUL character", name)
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		return errorf(Invalid, "%s: contains a control character", name)
	}
	return nil
}

// decodeStrict decodes one JSON object into the struct that into points to. encoding/json alone
// would match names without regard to case, take the last of two equal names and replace broken
// UTF-8; all three are refused here.
func decodeStrict(raw []byte, max int, into any) *Error {
	if len(raw) > max {
		return errorf(Invalid, "the configuration is %d bytes long, at most %d are allowed", len(raw), max)
	}
	if !utf8.Valid(raw) {
		return errorf(Invalid, "the configuration is not valid UTF-8")
	}
	known, err := json.Marshal(into)
	if err != nil {
		return errorf(Internal, "%v", err)
	}
	var names map[string]json.RawMessage
	if err := json.Unmarshal(known, &names); err != nil {
		return errorf(Internal, "%v", err)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errorf(Invalid, "the configuration is not a JSON object")
	}
	var seen []string
	for d.More() {
		t, err := d.Token()
		name, ok := t.(string)
		if err != nil || !ok {
			return errorf(Invalid, "the configuration is not valid JSON: %v", err)
		}
		if _, ok := names[name]; !ok {
			return errorf(Invalid, "unknown member %q", truncate(name, 64))
		}
		if slices.Contains(seen, name) {
			return errorf(Invalid, "member %q is given twice", name)
		}
		seen = append(seen, name)
		var skip json.RawMessage
		if err := d.Decode(&skip); err != nil {
			return errorf(Invalid, "the configuration is not valid JSON: %v", err)
		}
	}
	if _, err := d.Token(); err != nil {
		return errorf(Invalid, "the configuration is not valid JSON: %v", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errorf(Invalid, "there is something after the configuration's closing brace")
	}
	if err := json.Unmarshal(raw, into); err != nil {
		// The error of encoding/json may quote a value, so name only the member and its type.
		if t, ok := err.(*json.UnmarshalTypeError); ok {
			return errorf(Invalid, "member %q must be of type %s", t.Field, jsonType(t))
		}
		return errorf(Invalid, "the configuration is not valid JSON")
	}
	return nil
}

func jsonType(t *json.UnmarshalTypeError) string {
	switch k := t.Type.Kind().String(); k {
	case "bool":
		return "boolean"
	case "slice":
		return "array of strings"
	case "int", "int64", "uint64":
		return "whole number"
	default:
		return k
	}
}

// truncate shortens text that is only shown.
func truncate(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return fmt.Sprintf("%s… (%d bytes)", s[:n], len(s))
}
