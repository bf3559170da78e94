// Package rig runs the real Lambda binary on this machine: against a throwaway
// PostgreSQL and the stand-ins for what AWS offers.
package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"edfi-token-purge/functions/internal/testing/edfi"
	"edfi-token-purge/functions/internal/testing/fakeaws"
	"edfi-token-purge/functions/internal/testing/pgserver"
)

// SecretID is the secret with the login of the database.
const SecretID = "edfi/admin-database"

// Rig is what functions need to run.
type Rig struct {
	Postgres *pgserver.Server
	Secrets  *fakeaws.SecretsManager
	Binary   string // of the function

	mu        sync.Mutex
	functions []*Function
}

// Function is a running function: one execution environment.
type Function struct {
	*fakeaws.Function
	api    *fakeaws.RuntimeAPI
	output *os.File
	read   int64 // so much of output
}

// New starts everything but a function, whose binary it is told.
func New(ctx context.Context, binary string, o pgserver.Options) (*Rig, error) {
	r := &Rig{Binary: binary}
	var err error
	if r.Postgres, err = pgserver.Start(ctx, o); err != nil {
		return nil, err
	}
	if r.Secrets, err = fakeaws.NewSecretsManager(); err != nil {
		r.Close()
		return nil, err
	}
	r.Secrets.Put(SecretID, r.Secret(r.Postgres.Password))
	return r, nil
}

// Secret answers a secret as RDS writes it, with this password.
func (r *Rig) Secret(password string) string {
	text, _ := json.Marshal(map[string]any{ // strings and a number
		"engine": "postgres", "host": r.Postgres.Host, "port": r.Postgres.Port,
		"username": r.Postgres.User, "password": password,
	})
	return string(text)
}

// Start starts a function, a cold one, with this environment on top of what it
// needs.
func (r *Rig) Start(ctx context.Context, env ...string) (*Function, error) {
	api, err := fakeaws.NewRuntimeAPI()
	if err != nil {
		return nil, err
	}
	f := &Function{api: api}
	if f.output, err = newOutput(); err != nil {
		return nil, err
	}
	f.Function, err = fakeaws.StartFunction(ctx, fakeaws.FunctionOptions{
		Binary: r.Binary,
		API:    api,
		Env: append([]string{
			"AWS_ENDPOINT_URL_SECRETS_MANAGER=" + r.Secrets.URL(),
			"SECRET_ID=" + SecretID,
			"DB_TLS=disable", // the throwaway server has no certificate
		}, env...),
		Stdout: f.output,
		Stderr: f.output,
	})
	if err != nil {
		api.Close()
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.functions = append(r.functions, f)
	return f, nil
}

// Stop kills the function.
func (f *Function) Stop() {
	f.Function.Stop()
	f.api.Close()
}

// Invoke sends the function an event and answers its reply, and what it wrote
// meanwhile. After timeout it is killed.
func (f *Function) Invoke(ctx context.Context, event string, timeout time.Duration) (fakeaws.Reply, string, error) {
	if _, err := f.written(); err != nil {
		return fakeaws.Reply{}, "", err
	}
	reply, err := f.Function.Invoke(ctx, []byte(event), timeout)
	written, readErr := f.written()
	return reply, written, errors.Join(err, readErr)
}

// CreateDatabase makes an Ed-Fi admin database and answers a connection to it.
func (r *Rig) CreateDatabase(ctx context.Context, name string) (*pgx.Conn, error) {
	if err := edfi.CreateDatabase(ctx, r.Postgres.URL("postgres"), name); err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, r.Postgres.URL(name))
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", name, err)
	}
	return conn, edfi.CreateSchema(ctx, conn)
}

// Close ends all that New and Start started.
func (r *Rig) Close() {
	for _, f := range r.functions {
		f.Stop()
	}
	if r.Secrets != nil {
		r.Secrets.Close()
	}
	r.Postgres.Stop() //nolint:errcheck // what is left is in a temporary directory
}

// newOutput makes the file that a function writes to. It is a file and not a
// pipe, so that what the function wrote before it answered is there for sure.
func newOutput() (*os.File, error) {
	f, err := os.CreateTemp("", "function-output-")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name()) // the open file lives on
}

// written answers what the function wrote since the last time.
func (f *Function) written() (string, error) {
	text, err := io.ReadAll(io.NewSectionReader(f.output, f.read, 1<<40))
	f.read += int64(len(text))
	return string(text), err
}
