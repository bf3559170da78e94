package postgres

import (
	"testing"
	"time"

	"edfi-token-purge/functions/internal/purge"
)

// putBack is a function of triggers that puts back what was deleted, when told at the
// commit.
const putBack = "CREATE FUNCTION back() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN INSERT INTO dbo.clientaccesstokens VALUES (OLD.*); RETURN NULL; END'; "

// A batch counts what is gone at its commit, also where what happens there has come in
// the middle of a run.
func TestADeferredTriggerThatComesInTheMiddleOfARunIsNoticed(t *testing.T) {
	const deferred = " DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION back()"
	for name, c := range map[string]struct{ before, middle string }{
		"on the table": {putBack, "CREATE CONSTRAINT TRIGGER back AFTER DELETE ON dbo.clientaccesstokens" + deferred},
		"on a child": {
			putBack + "CREATE TABLE dbo.child () INHERITS (dbo.clientaccesstokens); WITH moved AS (DELETE FROM ONLY dbo.clientaccesstokens RETURNING *) INSERT INTO dbo.child SELECT * FROM moved; CREATE INDEX ON dbo.child (expiration)",
			"CREATE CONSTRAINT TRIGGER back AFTER DELETE ON dbo.child" + deferred,
		},
		"where a foreign key leads": {
			"CREATE TABLE child AS SELECT * FROM dbo.clientaccesstokens; CREATE INDEX ON child (id); " + putBack,
			"ALTER TABLE child ADD FOREIGN KEY (id) REFERENCES dbo.clientaccesstokens ON DELETE CASCADE NOT VALID; CREATE CONSTRAINT TRIGGER back AFTER DELETE ON child" + deferred,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStage(t, "noticing", "")
			db := filled(t, s)
			must(t, db.conn, c.before)
			r := purgeWith(t.Context(), t, s.server(), db.name, purge.Policy{BatchSize: 100, MaxDuration: 20 * time.Second}, func() { must(t, db.conn, c.middle) })
			if expired, live := db.counts(t); r.DeletedRows != rows-expired || (r.Status == purge.Complete) != (expired == 0) || live != 10 {
				t.Errorf("%s, %d counted, %d expired and %d live left: %s", r.Status, r.DeletedRows, expired, live, r.Error)
			}
		})
	}
}
