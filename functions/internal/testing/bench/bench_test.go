package main

import (
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gonum.org/v1/plot/plotter"
)

func TestTheSlowLinkDelaysEachRoundTripAndKeepsTheOrder(t *testing.T) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	go func() {
		conn, err := server.Accept()
		if err == nil {
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
	const delay = 20 * time.Millisecond
	link, err := newSlowLink("127.0.0.1", uint16(server.Addr().(*net.TCPAddr).Port), delay)
	if err != nil {
		t.Fatal(err)
	}
	defer link.Close()
	conn, err := net.Dial("tcp", link.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	start := time.Now()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 40_000) // more pieces than one
	go conn.Write(sent)
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took < delay {
		t.Errorf("an answer after %v", took)
	}
	rest := make([]byte, len(sent)-1)
	if n, err := io.ReadFull(conn, rest); err != nil || !bytes.Equal(append(first, rest...), sent) {
		t.Errorf("%d bytes of %d, %v", 1+n, len(sent), err)
	}
}

func TestAStallCountsForAllThatWaitBehindIt(t *testing.T) {
	s := newEmptyStage(t)
	const stall = time.Second
	stalls := cleaner{"stall", func(ctx context.Context, s *stage) (outcome, error) {
		return statement(ctx, s, "BEGIN; LOCK TABLE dbo.clientaccesstokens; SELECT pg_sleep(1); COMMIT", 0)
	}}
	p, err := serve(t.Context(), s, stalls, 100*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	// Half of the requests that were due in a second of standing still waited
	// for more than half of it, though so many connections can't have met it.
	long := 0
	for _, r := range p.served {
		if r.took > stall.Seconds()*1000/2 {
			long++
		}
	}
	if long < apiRate/4 || long == len(p.served) {
		t.Errorf("%d of %d requests waited for long", long, len(p.served))
	}
}

func TestAnErrorOfTheAPIEndsTheBench(t *testing.T) {
	s := newEmptyStage(t)
	drops := cleaner{"drop", func(ctx context.Context, s *stage) (outcome, error) {
		return statement(ctx, s, "DROP TABLE dbo.clientaccesstokens", 0)
	}}
	if _, err := serve(t.Context(), s, drops, 100*time.Millisecond); err == nil || errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// newEmptyStage has a table without a row.
func newEmptyStage(t *testing.T) *stage {
	t.Helper()
	if os.Getenv("DATABASE_URL") != "" {
		t.Skip("needs a server of its own")
	}
	s, err := newStage(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	err = s.fill(t.Context(), table{})
	if err == nil {
		err = s.copy(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTheReportIsWrittenBetweenTheMarkersAndNothingElseChanges(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "functions", "internal", "testing", "bench"), 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "BENCHMARKS.md")
	curves := []curve{{"a & b", plotter.XYs{{X: 10, Y: 1e5}, {X: 100, Y: 1e6}}}}
	phases := []phase{{"idle", 1, []request{{0.1, 2, true}, {0.5, 3, false}}}, {"purge", 1, []request{{0.1, 2, true}, {0.5, 3, false}}}}
	r := report{machine: "A machine\n"}
	r.sum("all", "well")
	r.heading("New")
	if err := r.write(dir, curves, phases); err == nil {
		t.Error("written to no file")
	}
	if err := os.WriteFile(path, []byte("before\n"+written+"\nold\n"+untilHere+"\nafter\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds what the first wrote
		if err := r.write(dir, curves, phases); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if want := "before\n" + written + "\nA machine\n\n### In short\n\n|     | median (least to most) |\n| --- | ---------------------: |\n| all |                   well |\n" + pictured + "\n### New\n\n" + untilHere + "\nafter\n"; err != nil || string(got) != want {
		t.Errorf("%v: %s", err, got)
	}
	for name, text := range map[string]string{"rows.svg": "a &amp; b", "latency.svg": "purge ends"} {
		svg, err := os.ReadFile(filepath.Join(dir, "functions", "internal", "testing", "bench", name))
		if err != nil || !strings.Contains(string(svg), text) {
			t.Errorf("%s: no %q, %v", name, text, err)
		}
		for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
			if _, err := d.Token(); err == io.EOF {
				break
			} else if err != nil {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
	}
}

func TestAPeerThatWouldTakeTooLongIsFoundByItsGrowth(t *testing.T) {
	curves := addPoint(addPoint(nil, "peer", 50, 25), "peer", 100, 50) // 2 s for 100 rows
	if got := expected(curves, "peer", 400); got != 32*time.Second {
		t.Error(got)
	}
	if got := expected(curves, "another", 400); got != 0 {
		t.Error(got)
	}
}

func TestTheLogTellsTheLongestStatementAndTheFirstDeleteThatRan(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	if _, err := log.WriteString(`api|1000.000|LOG:  duration: 900.000 ms  execute stmt_1: DELETE FROM t
edfi-token-purge|1001.000|LOG:  duration: 3.000 ms  parse stmt_2: 
	DELETE FROM t
edfi-token-purge|1002.000|LOG:  duration: 7.500 ms  execute stmt_2: 
	DELETE FROM t
cleaner|1003.000|LOG:  duration: 12.250 ms  statement: DELETE FROM t
`); err != nil {
		t.Fatal(err)
	}
	if _, err := log.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	s := stage{log: log}
	longest, first, err := s.statements()
	if err != nil || longest != 12.25 || !first.Equal(time.Unix(1002, 0)) {
		t.Errorf("%v ms, first %v, %v", longest, first, err)
	}
}
