package purge

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Table is what can be purged: a table that rows leave by the time they expired.
// The names are those of its product; how an engine writes them is the adapter's.
type Table struct {
	Name       string // in TABLES and results
	Schema     string
	Relation   string
	Key        string // its primary key
	Expiration string // the column that says when a row expires, or when it came
	// Local tells that the zone of what the column holds is not certain. A row has
	// expired then by the earlier of the server's clocks in UTC and local time; in a
	// column that has a zone, by the instant that it is.
	Local bool
	// Grace is how long after they expire rows are still good for whoever accepts them.
	Grace time.Duration
	// Retention is how long after the time in the column a row expires.
	Retention time.Duration
	// Cleaner is a task of its product that cleans it too, and shows in no database.
	Cleaner string
}

// acceptedAfter is for how long tokens are accepted by the Admin API and the
// configuration service after they expire: the clock skew that they allow.
const acceptedAfter = 5 * time.Minute

// DefaultRetention is how long the how-to that has the logs advises to keep them.
const DefaultRetention = 90 * 24 * time.Hour

// What can be purged.
var (
	// ClientAccessTokens is the bearer tokens of the ODS/API. The API writes
	// DateTime.UtcNow and a lifetime: UTC on every engine. A row is dead when its
	// expiration is not after the database's clock in UTC.
	ClientAccessTokens = Table{
		Name:       "ClientAccessTokens",
		Schema:     "dbo",
		Relation:   "ClientAccessTokens",
		Key:        "Id",
		Expiration: "Expiration",
		Cleaner:    "the API's own job, DeleteExpiredTokens,",
	}
	// AdminTokens is the tokens of the Admin API 2. It has no index but its key's.
	AdminTokens = Table{
		Name:       "adminapi.Tokens",
		Schema:     "adminapi",
		Relation:   "Tokens",
		Key:        "Id",
		Expiration: "ExpirationDate",
		Local:      true,
		Grace:      acceptedAfter,
	}
	// ConfigurationTokens is the tokens of the configuration service of the Ed-Fi API 8.
	// On PostgreSQL they go through the writer's session time zone, until a later version
	// gives the column a zone.
	ConfigurationTokens = Table{
		Name:       "dmscs.OpenIddictToken",
		Schema:     "dmscs",
		Relation:   "OpenIddictToken",
		Key:        "Id",
		Expiration: "ExpirationDate",
		Local:      true,
		Grace:      acceptedAfter,
		Cleaner:    "the configuration service's own task, which IdentitySettings:TokenCleanupEnabled turns off,",
	}
	// ClientAccessTokenLogs is what a trigger of the ODS/API's how-to on monitoring
	// notes of each token that is issued.
	ClientAccessTokenLogs = Table{
		Name:       "ClientAccessTokenLogs",
		Schema:     "dbo",
		Relation:   "ClientAccessTokenLogs",
		Key:        "LogId",
		Expiration: "AccessTime",
		Local:      true,
		Retention:  DefaultRetention,
	}
)

// Tables returns all that can be purged.
func Tables() []Table {
	return []Table{ClientAccessTokens, AdminTokens, ConfigurationTokens, ClientAccessTokenLogs}
}

// TableNames returns their names.
func TableNames() (names []string) {
	for _, t := range Tables() {
		names = append(names, t.Name)
	}
	return names
}

// TablesNamed returns the tables of these names, each once, in the order that they are
// purged in. Its error quotes nothing.
func TablesNamed(names []string) (tables []Table, err error) {
	known := TableNames()
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("must hold names of tables: %s", strings.Join(known, ", "))
		}
	}
	for _, t := range Tables() {
		if slices.Contains(names, t.Name) {
			tables = append(tables, t)
		}
	}
	return tables, nil
}

// String returns the name with its schema.
func (t Table) String() string { return t.Schema + "." + t.Relation }

// Lower returns t with all names in lower case, as PostgreSQL folds them.
func (t Table) Lower() Table {
	t.Schema, t.Relation = strings.ToLower(t.Schema), strings.ToLower(t.Relation)
	t.Key, t.Expiration = strings.ToLower(t.Key), strings.ToLower(t.Expiration)
	return t
}

// Cutoff returns the latest time in the column of a row that has expired, where grace is
// to be added to the table's own.
func (t Table) Cutoff(clock time.Time, grace time.Duration) time.Time {
	return clock.Add(-grace - t.Grace - t.Retention)
}

// LocalTime says why the table of an old Ed-Fi version is not purged.
func LocalTime(t Table) string {
	return fmt.Sprintf("%s.AccessTokenIsValid is there, so this is a database of Ed-Fi ODS/API 2.x, which writes expirations in local time: live tokens would go. The oldest version that can be purged is 3.0", t.Schema)
}
