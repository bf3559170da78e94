package main

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"edfi-token-purge/functions/internal/purge"
	"edfi-token-purge/functions/internal/roots"
	"edfi-token-purge/functions/internal/secret"
)

// config is the function's environment, read once at cold start.
// docs/configuration.md says what each variable means.
type config struct {
	secretID    string
	login       secret.Login     // of DATABASE_URL, where there is no secretID
	databases   *purge.Selection // nil leaves it to the secret
	tables      []purge.Table    // that are purged
	engine      string           // "" leaves it to the secret, like host and port
	host        string
	port        uint16
	tls         string // DB_TLS; "" is verify-full, unless the login asks for another
	roots       *x509.CertPool
	lockTimeout time.Duration
	policy      purge.Policy // without an action; a BatchSize of 0 is the engine's default
	namespace   string
	function    string

	metricsPerDatabase bool // a dimension for each database as well
}

// CloudWatch's rule for namespaces; those that begin with AWS/ are its own.
var namespaceRule = regexp.MustCompile(`^[0-9A-Za-z.\-_/#:]{1,255}$`)

// readConfig reads the environment. It returns an error text for every wrong
// variable; none shows a value.
func readConfig(getenv func(string) string) (config, []string) {
	env := environment{get: getenv}
	c := config{
		secretID:    env.text("SECRET_ID", ""),
		databases:   env.selection("DATABASES"),
		tables:      env.tables("TABLES", env.duration("LOG_RETENTION", purge.DefaultRetention, 24*time.Hour, mostDuration)),
		engine:      env.engine("DB_ENGINE"),
		host:        env.host("DB_HOST"),
		port:        uint16(env.number("DB_PORT", 0, 1, 65535)),
		tls:         env.tls("DB_TLS"),
		roots:       env.certificates("DB_CA_BUNDLE"),
		lockTimeout: env.duration("LOCK_TIMEOUT", 2*time.Second, time.Millisecond, mostDuration),
		policy: purge.Policy{
			Grace:       env.duration("GRACE_PERIOD", 0, 0, mostDuration),
			BatchSize:   int(env.number("BATCH_SIZE", 0, 1, 1<<31-1)),
			BatchTarget: env.duration("BATCH_TARGET", 50*time.Millisecond, 0, mostDuration),
			Concurrency: int(env.number("CONCURRENCY", 1, 1, 32)),
			Parallel:    int(env.number("PARALLEL_DATABASES", 4, 1, 1000)),
			Pause:       env.duration("PAUSE", 0, 0, mostDuration),
			MaxRows:     env.number("MAX_ROWS", 0, 0, 1<<62),
			StopBefore:  env.duration("STOP_BEFORE", 10*time.Second, time.Second, mostDuration),

			ConnectTimeout: env.duration("CONNECT_TIMEOUT", 45*time.Second, time.Second, mostTime),
		},
		namespace:          env.text("METRICS_NAMESPACE", "EdFi/TokenPurge"),
		metricsPerDatabase: env.oneOf("METRICS_PER_DATABASE", "true", "false") == "true",
		function:           env.text("AWS_LAMBDA_FUNCTION_NAME", "purge-tokens"),
	}
	env.databaseURL(&c)
	if !namespaceRule.MatchString(c.namespace) || strings.HasPrefix(c.namespace, "AWS/") {
		env.fault("METRICS_NAMESPACE", "must be 1 to 255 letters, digits and . - _ / # : and not begin with AWS/")
	}
	// The SDK takes any value, and its errors quote it.
	for _, name := range []string{"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SECRETS_MANAGER"} {
		env.address(name)
	}
	return c, env.faults
}

// complete fills in what the settings say in place of a login, and returns why that
// can't be used: results, logs and metrics show the host and the database, so that no
// password may stand there.
func (c config) complete(login secret.Login) (secret.Login, error) {
	login.Engine = cmp.Or(c.engine, login.Engine)
	login.Host = cmp.Or(c.host, login.Host)
	login.Port = cmp.Or(c.port, login.Port)
	login.TLS = cmp.Or(c.tls, login.TLS)
	engine, known := engineNamed(login.Engine)
	switch {
	case login.Engine == "":
		return login, errors.New("names no engine: set DB_ENGINE")
	case !known:
		return login, fmt.Errorf("names an engine that this function does not know: it must be one of %s", engineNames())
	case login.TLS == secret.Strict && !engine.strict:
		return login, fmt.Errorf("names %s, and DB_TLS=strict is for SQL Server: set DB_TLS=verify-full", engine.name)
	case login.Host == "":
		return login, errors.New("names no host: set DB_HOST")
	case !isHost(login.Host):
		return login, errors.New("can't be used: the host " + hostRule(login.Host))
	}
	if login.Port == 0 {
		login.Port = engine.port
	}
	if login.Database == "" {
		return login, nil
	}
	err := purge.CheckName(login.Database)
	if err == nil {
		err = engine.fits([]string{login.Database})
	}
	if err != nil {
		return login, fmt.Errorf("can't be used: the name of the database %w", err)
	}
	return login, nil
}

// environment reads variables and collects what is wrong with them. A variable
// that is empty counts as unset.
type environment struct {
	get    func(string) string
	faults []string
}

func (e *environment) fault(name, format string, args ...any) {
	e.faults = append(e.faults, name+" "+fmt.Sprintf(format, args...))
}

func (e *environment) text(name, unset string) string {
	if v := strings.TrimSpace(e.get(name)); v != "" {
		return v
	}
	return unset
}

func (e *environment) oneOf(name, unset string, others ...string) string {
	v := e.text(name, unset)
	if v != unset && !slices.Contains(others, v) {
		e.fault(name, "must be %s or %s", unset, strings.Join(others, " or "))
	}
	return v
}

func (e *environment) tls(name string) string {
	const unset = "verify-full"
	e.oneOf(name, unset, secret.Strict, secret.Disable)
	return e.text(name, "")
}

func (e *environment) engine(name string) string {
	v := e.text(name, "")
	if _, ok := engineNamed(v); v != "" && !ok {
		e.fault(name, "must be one of %s", engineNames())
	}
	return v
}

func (e *environment) host(name string) string {
	v := e.text(name, "")
	if v != "" && !isHost(v) {
		e.fault(name, "%s", hostRule(v))
	}
	return v
}

// hostRule is why text is no host. A URL or a connection string is refused in its place:
// results and logs show the host, so it must not hold a password.
func hostRule(text string) string {
	rule := "must be the name or the address of a server, and nothing else"
	if strings.Contains(text, `\`) {
		rule += `; an instance (host\instance) has a port, which takes its name's place`
	}
	return rule
}

var hostName = regexp.MustCompile(`^[0-9A-Za-z_-][0-9A-Za-z._-]*$`)

func isHost(text string) bool {
	_, err := netip.ParseAddr(text)
	return err == nil || hostName.MatchString(text)
}

func (e *environment) address(name string) {
	v := e.text(name, "")
	u, err := url.Parse(v)
	if v != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		e.fault(name, "must be a URL that begins with https:// or http://")
	}
}

func (e *environment) number(name string, unset, least, most int64) int64 {
	v := e.text(name, "")
	if v == "" {
		return unset
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < least || n > most {
		e.fault(name, "must be a whole number from %d to %d", least, most)
	}
	return n
}

const (
	// mostDuration is the longest duration, ten years: beyond it sums overflow, or lead
	// before the first instant of SQL Server's datetime. What is kept for longer is kept
	// by taking the table out of TABLES.
	mostDuration = 87_600 * time.Hour
	// mostTime is how long a Lambda function may run: to wait for longer is a mistake.
	mostTime = 15 * time.Minute
)

func (e *environment) duration(name string, unset, least, most time.Duration) time.Duration {
	v := e.text(name, "")
	if v == "" {
		return unset
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < least || d > most {
		e.fault(name, "must be a duration such as 30s or 24h, from %s to %s", brief(least), brief(most))
	}
	return d
}

// brief writes a duration without its zeros: 24h and not 24h0m0s.
func brief(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func (e *environment) selection(name string) *purge.Selection {
	v := e.text(name, "")
	if v == "" {
		return nil
	}
	s, err := purge.ParseSelection(v)
	if err != nil {
		e.fault(name, "%v", err)
	}
	return &s
}

// tables reads a list of tables; retention is for how long logs are kept.
func (e *environment) tables(name string, retention time.Duration) []purge.Table {
	names := strings.Split(e.text(name, purge.ClientAccessTokens.Name), ",")
	for i := range names {
		names[i] = strings.TrimSpace(names[i])
	}
	tables, err := purge.TablesNamed(names)
	if err != nil {
		e.fault(name, "%v", err)
	}
	for i := range tables {
		if tables[i].Retention > 0 {
			tables[i].Retention = retention
		}
	}
	return tables
}

// databaseURL reads the login that replaces the secret outside of Lambda. In Lambda
// it is ignored: whoever may look at the function could read it.
func (e *environment) databaseURL(c *config) {
	text := e.text("DATABASE_URL", "")
	switch inLambda := e.text(runtimeAPI, "") != ""; {
	case inLambda && c.secretID == "":
		e.fault("SECRET_ID", "is required: the name or ARN of the secret")
	case inLambda:
	case c.secretID == "" && text == "":
		e.fault("SECRET_ID", "is required: the name or ARN of the secret; or DATABASE_URL in its place")
	case c.secretID != "" && text != "":
		e.fault("DATABASE_URL", "and SECRET_ID are both set: unset one, so that it is clear which server is meant")
	case text != "":
		login, err := secret.ParseAddress(text)
		if err == nil {
			login, err = c.complete(login)
		}
		if err != nil {
			e.fault("DATABASE_URL", "%v", err)
		}
		c.login = login
	}
}

func (e *environment) certificates(name string) *x509.CertPool {
	var extra []byte
	if path := e.text(name, ""); path != "" {
		var err error
		if extra, err = os.ReadFile(path); err != nil {
			e.fault(name, "names a file that can't be read")
			return nil
		}
	}
	pool, err := roots.Pool(extra)
	if err != nil {
		e.fault(name, "is no use: %v", err)
	}
	return pool
}
