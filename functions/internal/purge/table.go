package purge

import "strings"

// Table is what can be purged: a table that rows leave by the time they expired.
// The names are Ed-Fi's; how an engine writes them is the adapter's.
type Table struct {
	Name       string // in settings and results
	Schema     string
	Relation   string
	Key        string // its primary key; of a token table it is the token itself
	Expiration string // the column that says when a row expires
}

// ClientAccessTokens is the bearer tokens of the ODS/API. The API writes
// DateTime.UtcNow and a lifetime: UTC on every engine. A row is dead when its
// expiration is not after the database's clock in UTC.
var ClientAccessTokens = Table{
	Name:       "ClientAccessTokens",
	Schema:     "dbo",
	Relation:   "ClientAccessTokens",
	Key:        "Id",
	Expiration: "Expiration",
}

// String returns the name with its schema.
func (t Table) String() string { return t.Schema + "." + t.Relation }

// Lower returns t with all names in lower case, as PostgreSQL folds them.
func (t Table) Lower() Table {
	t.Schema, t.Relation = strings.ToLower(t.Schema), strings.ToLower(t.Relation)
	t.Key, t.Expiration = strings.ToLower(t.Key), strings.ToLower(t.Expiration)
	return t
}
