package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"edfi-token-purge/functions/internal/postgres"
	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/redact"
	"edfi-token-purge/functions/internal/secret"
	"edfi-token-purge/functions/internal/sqlserver"
)

// server is what an adapter makes of a login.
type server interface {
	purge.Engine
	// Databases lists all databases of the server, by way of the one named.
	Databases(ctx context.Context, via string) ([]purge.Database, error)
}

// comparer is a server to which names that differ may be one.
type comparer interface {
	// Matching returns those of names that one of the patterns matches as the server
	// compares the names of databases. It is asked by way of the database named.
	Matching(ctx context.Context, via string, names, patterns []string) ([]string, error)
}

// engine is what this package must know of an adapter.
type engine struct {
	name            string // in settings, results and metrics
	aliases         []string
	port            uint16 // unless the secret or DB_PORT says another
	batch           int    // rows, unless BATCH_SIZE says another
	mostBatch       int    // rows; 0 is no ceiling
	catalogue       string // database that lists the others, unless the secret names one
	caseInsensitive bool   // in names of databases
	hidesDatabases  bool   // one that the login may not enter looks like none
	maxName         int    // units of a database's name
	nameUnit        string // bytes or characters
	units           func(name string) int
	strict          bool // knows DB_TLS=strict
	connect         func(login secret.Login, c config, r resources) server
}

// resources are what the connections of a run have in common.
type resources struct {
	tls    *tls.Config // nil is no TLS
	memory *sqlserver.Memory
	linger time.Duration // what was canceled may take to end
}

// lingerShare is the part of the time between the stop and the timeout that what was
// canceled may take to end: once for a statement, once for the last look, which has a
// quarter of it, and once for the closing, so that more than a third is left for the
// answer.
const lingerShare = 8

// engines are all that there are, with the names that RDS and Ed-Fi give them.
var engines = []engine{{
	name:    "postgres",
	aliases: []string{"aurora-postgresql", "postgresql"},
	port:    postgres.DefaultPort, batch: postgres.DefaultBatch,
	catalogue: "postgres",
	maxName:   postgres.MaxName, nameUnit: "bytes", units: func(name string) int { return len(name) },
	connect: func(login secret.Login, c config, r resources) server {
		return postgres.Server{
			Host: login.Host, Port: login.Port, User: login.Username, Password: login.Password, TLS: r.tls,
			LockTimeout: c.lockTimeout, ConnectTimeout: c.policy.ConnectTimeout, Longest: c.policy.Longest(), Linger: r.linger,
		}
	},
}, {
	name:    "sqlserver",
	aliases: []string{"sqlserver-ee", "sqlserver-se", "sqlserver-ex", "sqlserver-web", "sqlserver-dev-ee", "sqlserver-dev-se", "custom-sqlserver-ee", "custom-sqlserver-se", "custom-sqlserver-web", "custom-sqlserver-dev"},
	port:    sqlserver.DefaultPort, batch: sqlserver.DefaultBatch, mostBatch: sqlserver.MostBatch,
	catalogue: "master", caseInsensitive: true, hidesDatabases: true,
	maxName: sqlserver.MaxName, nameUnit: "characters", units: func(name string) int { return len(utf16.Encode([]rune(name))) },
	strict: true,
	connect: func(login secret.Login, c config, r resources) server {
		return sqlserver.Server{
			Host: login.Host, Port: login.Port, User: login.Username, Password: login.Password, TLS: r.tls, Strict: login.TLS == secret.Strict,
			LockTimeout: c.lockTimeout, ConnectTimeout: c.policy.ConnectTimeout, Longest: c.policy.Longest(), Linger: r.linger, Memory: r.memory,
		}
	},
}}

// engineNamed returns the engine of this name or alias, in any letter case.
func engineNamed(name string) (engine, bool) {
	i := slices.IndexFunc(engines, func(e engine) bool {
		return slices.ContainsFunc(slices.Concat(e.aliases, []string{e.name}), func(known string) bool { return strings.EqualFold(known, name) })
	})
	if i < 0 {
		return engine{}, false
	}
	return engines[i], true
}

// via returns the database by way of which the server is asked about all of them.
func (e engine) via(login secret.Login) string { return cmp.Or(login.Database, e.catalogue) }

// engineNames lists all names, for messages.
func engineNames() string {
	var names []string
	for _, e := range engines {
		names = append(append(names, e.name), e.aliases...)
	}
	return strings.Join(names, ", ")
}

// fits returns an error for names that are too long: a server that cuts them
// would open another database, one that is excluded perhaps.
func (e engine) fits(names []string) error {
	for _, name := range names {
		if e.units(name) > e.maxName {
			return fmt.Errorf("%s is longer than %d %s, the most that %s takes for a database's name", redact.Quote(name), e.maxName, e.nameUnit, e.name)
		}
	}
	return nil
}

// limitBatch returns the policy with a batch size that the engine can bear.
func (e engine) limitBatch(p purge.Policy) (purge.Policy, []purge.Finding) {
	if p.BatchSize == 0 {
		p.BatchSize = e.batch
	}
	if e.mostBatch == 0 || p.BatchSize <= e.mostBatch {
		return p, nil
	}
	p.BatchSize = e.mostBatch
	return p, []purge.Finding{purge.BatchSizeLowered.Found(fmt.Sprintf("BATCH_SIZE is above %d, beyond which %s would lock the whole table; %[1]d holds", e.mostBatch, e.name))}
}
