// The attributes of a client id, and the socket on which the program gives an ID token. The whole
// exchange is tested from Rust, with a devnet (tests/it/tailnet/join.rs, tests/process/join.rs).

package node

import (
	"context"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestClientAttributes(t *testing.T) {
	for _, c := range []struct {
		text                     string
		ephemeral, preauthorized bool
		err                      string
	}{
		{"k1", true, false, ""},
		{"k1?", false, false, ""},
		{"k1?preauthorized=true", false, true, ""},
		{"k1?ephemeral=true&preauthorized=1", true, true, ""},
		{"k1?ephemeral=yes", false, false, "ephemeral must be true or false"},
		{"k1?ephemeral=", false, false, "ephemeral must be true or false"},
		{"k1?reusable=true", false, false, `unknown attribute "reusable"`},
		{"k1?ephemeral=%zz", false, false, "invalid URL escape"},
	} {
		id, ephemeral, preauthorized, err := clientAttributes(c.text)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, want %q", c.text, err, c.err)
			}
			continue
		}
		if err != nil || id != "k1" || ephemeral != c.ephemeral || preauthorized != c.preauthorized {
			t.Errorf("%s: %q ephemeral=%v preauthorized=%v %v", c.text, id, ephemeral, preauthorized, err)
		}
	}
}

func TestIDTokenSocket(t *testing.T) {
	for _, c := range []struct{ answer, token, err string }{
		{`{"id_token":"a.b.c"}`, "a.b.c", ""},
		{`{"error":"not on a cloud"}`, "", "not on a cloud"},
		{``, "", "not what it should be"},
		{`{"id_token":"` + strings.Repeat("x", maxIDTokenMessage) + `"}`, "", "not what it should be"},
	} {
		tokens, program := idTokenSocket(t)
		go func() {
			var question [1]byte
			if n, _ := program.file.Read(question[:]); n == 1 {
				program.file.Write([]byte(c.answer))
			}
			program.file.Close()
		}()
		token, err := tokens.ask(t.Context())
		if token != c.token || (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%.40s: %q %v, want %q %q", c.answer, token, err, c.token, c.err)
		}
		tokens.close()
	}

	// Closing the node ends the wait.
	tokens, program := idTokenSocket(t)
	defer program.file.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if token, err := tokens.ask(ctx); err == nil {
		t.Errorf("a token without an answer: %q", token)
	}

	if _, err := newIDTokens(1 << 20); err == nil || err.Code != Invalid {
		t.Errorf("a descriptor that is not open: %v", err)
	}
	none, err := newIDTokens(0)
	if err != nil {
		t.Fatal(err)
	}
	none.close()
	if _, err := none.ask(t.Context()); err == nil {
		t.Error("a token from nobody")
	}
}

// idTokenSocket returns the node's end and the program's.
func idTokenSocket(t *testing.T) (idTokens, socketEnd) {
	program, fd, err := socketPair(unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	tokens, terr := newIDTokens(fd)
	if terr != nil {
		t.Fatal(terr)
	}
	return tokens, program
}
