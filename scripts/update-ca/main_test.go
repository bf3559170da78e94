package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// embedded is the bundle as it is.
const embedded = "../../functions/internal/roots/rds.pem"

func TestTheBundleIsRenewedFromAnAddressAndAFile(t *testing.T) {
	text, err := os.ReadFile(embedded)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Last-Modified", time.Date(2025, 1, 2, 0, 0, 0, 0, time.UTC).Format(http.TimeFormat))
		w.Write(text) //nolint:errcheck // the client would say
	}))
	defer server.Close()
	bundle := filepath.Join(t.TempDir(), "rds.pem")
	var out strings.Builder
	if err := update([]string{server.URL}, bundle, "", "", &out); err != nil {
		t.Fatal(err)
	}
	written, _ := os.ReadFile(bundle)
	for _, want := range []string{"# Published: 2025-01-02\n", "# Source: " + server.URL, "Certificates: 81", "eu-west-1"} {
		if !strings.Contains(string(written), want) || !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	if strings.Count(out.String(), "new:  ") != 81 {
		t.Errorf("%s", out.String())
	}
	// What a program quotes is the same, and writing it again changes nothing.
	program := filepath.Join(t.TempDir(), "defaults.js")
	quoted := "['" + strings.ReplaceAll(string(text), "\n", "\\n' +\n    '") + "'];"
	if err := os.WriteFile(program, []byte(quoted), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := update([]string{program}, bundle, server.URL, "2025-01-02", io.Discard); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(bundle); string(again) != string(written) {
		t.Error("the same roots make another bundle")
	}
}

func TestABundleThatLosesARegionIsRefused(t *testing.T) {
	text, err := os.ReadFile(embedded)
	if err != nil {
		t.Fatal(err)
	}
	half := filepath.Join(t.TempDir(), "half.pem")
	bundle := filepath.Join(t.TempDir(), "rds.pem")
	for path, part := range map[string][]byte{half: text[:len(text)/2], bundle: text} {
		if err := os.WriteFile(path, part, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := update([]string{half}, bundle, "", "", io.Discard); err == nil || !strings.Contains(err.Error(), "nothing is changed") {
		t.Errorf("%v", err)
	}
	if after, _ := os.ReadFile(bundle); string(after) != string(text) {
		t.Error("the bundle was changed")
	}
	for _, from := range []string{"nowhere.pem", "main.go"} {
		if err := update([]string{from}, bundle, "", "", io.Discard); err == nil {
			t.Errorf("%s is taken", from)
		}
	}
}
