package main

import (
	"strings"
	"testing"

	"tailbone.dev/libtailscale/node"
)

func TestGuard(t *testing.T) {
	data, err := guard(testPanic)
	if data != nil || err == nil || err.Code != node.Panic || !strings.Contains(err.Message, "asked for") {
		t.Errorf("%s, %v", data, err)
	}
	if _, err := guard(func() ([]byte, *node.Error) { var p *node.Error; return []byte(p.Message), nil }); err == nil || err.Code != node.Panic {
		t.Errorf("a nil pointer: %v", err)
	}
	if data, err := guard(node.Version); err != nil || !strings.Contains(string(data), `"go":"go1.`) {
		t.Errorf("%s, %v", data, err)
	}
}
