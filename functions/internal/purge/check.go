package purge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"
)

const (
	// countPatience bounds how long a check counts expired rows.
	countPatience = 5 * time.Second
	// backlogAge is how long ago a row must have expired to tell that nobody
	// deletes: cleaners come every half an hour.
	backlogAge = 6 * time.Hour
	// certificateAge is how long before its end a certificate is worth a word.
	certificateAge = 30 * 24 * time.Hour
)

// check examines the database, deletes nothing, and fails where a purge would.
func (r *run) check(ctx context.Context, facts Facts, opening time.Duration) error {
	var faults []string
	find := func(f Finding) {
		if r.find(f); f.Level == levelError {
			faults = append(faults, f.Code+": "+f.Message)
		}
	}
	find(Info("connected", fmt.Sprintf("connected, logged in and examined in %d ms", opening.Milliseconds())))
	if clocks, ok := skew(facts.Now); ok {
		find(Info("clock", clocks))
	} else {
		find(Fault("clock-skew", clocks))
	}
	var findings []Finding
	err := r.patiently(ctx, func() (err error) {
		findings, err = r.tables[0].table.Check(ctx)
		return err
	})
	for _, f := range findings {
		find(f)
	}
	switch unfit, ok := errors.AsType[Unfit](err); {
	case ok && (faults != nil || !r.database.Matched):
		find(Fault(unfit.Code, unfit.Message))
	case err != nil:
		return err
	}
	if err := r.checkExpired(ctx); err != nil {
		return err
	}
	if faults != nil {
		return errors.New(strings.Join(faults, "; "))
	}
	return nil
}

// checkExpired finds how much there is to do.
func (r *run) checkExpired(ctx context.Context) error {
	oldest, found, err := r.oldest(ctx)
	if err != nil {
		return err
	}
	if found == nil {
		r.res.looked(nil)
		r.find(Info("expired-rows", "no row has expired"))
		return nil
	}
	r.res.OldestExpiration = instant(oldest)
	r.res.looked(r.res.OldestExpiration)
	counting, cancel := context.WithTimeout(ctx, countPatience)
	defer cancel()
	many := fmt.Sprintf("more rows than %s is enough to count", countPatience)
	switch rows, err := r.rows(counting, found); {
	case err == nil:
		many = fmt.Sprintf("%d rows", rows)
	case !errors.Is(err, ErrTimeout):
		return err
	}
	text := fmt.Sprintf("%s have expired, the oldest at %s", many, instant(oldest))
	if *r.res.OldestExpiredAge() > backlogAge {
		r.find(Warning("backlog", text+": nobody has deleted it; have a purge made until its status is complete"))
	} else {
		r.find(Info("expired-rows", text))
	}
	return nil
}

// skew compares the database's clock with ours; ok is close enough to delete by.
func skew(database time.Time) (text string, ok bool) {
	now := time.Now()
	text = fmt.Sprintf("the database says %s, this function says %s", instant(database), instant(now.Truncate(time.Millisecond)))
	if database.Sub(now).Abs() > MaxClockSkew {
		return fmt.Sprintf("%s; more than %s apart, so nothing is deleted", text, MaxClockSkew), false
	}
	return text, true
}

// Encryption tells how a connection is secured; nil is not at all.
func Encryption(state *tls.ConnectionState) Finding {
	if state == nil {
		return Warning("no-tls", "the connection is not encrypted: set DB_TLS to verify-full")
	}
	text := fmt.Sprintf("%s, %s", tls.VersionName(state.Version), tls.CipherSuiteName(state.CipherSuite))
	if len(state.PeerCertificates) == 0 {
		return Info("tls", text)
	}
	own := state.PeerCertificates[0]
	text += fmt.Sprintf(", certificate by %s until %s", own.Issuer.CommonName, own.NotAfter.Format(time.DateOnly))
	if time.Until(own.NotAfter) < certificateAge {
		return Warning("certificate-ends", text+": renew it; on RDS, choose a newer authority for the instance")
	}
	return Info("tls", text)
}

// Unverified says why a server's certificate was refused, in the words of
// crypto/x509, and what to do.
func Unverified(reason string) string {
	remedy := "give the name that is in it as DB_HOST"
	switch {
	case strings.Contains(reason, "unknown authority"):
		remedy = "give its authority in DB_CA_BUNDLE, if you trust it; Amazon's own are built in, but for some regions"
	case strings.Contains(reason, "expired"):
		remedy = "renew it; on RDS, choose a newer authority for the instance"
	}
	return "the server's certificate can't be verified: " + reason + "; " + remedy
}
