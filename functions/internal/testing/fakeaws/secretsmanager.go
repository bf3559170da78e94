package fakeaws

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"
)

const (
	arnPrefix = "arn:aws:secretsmanager:us-east-1:000000000000:secret:"
	arnSuffix = "-a1B2c3" // six random characters on AWS
)

// SecretsManager answers GetSecretValue, and nothing else that the service can.
type SecretsManager struct {
	server   http.Server
	listener net.Listener

	mu      sync.Mutex
	secrets map[string][]version // by name; the current one first
	calls   int
	code    string // what every call is answered with; "" is the truth
	message string
	hang    bool
}

type version struct {
	id, value string
	created   time.Time
}

// stages are those of a secret's versions, by their place.
var stages = []string{"AWSCURRENT", "AWSPREVIOUS"}

// NewSecretsManager listens on a free port of the loopback interface. It holds
// no secret yet.
func NewSecretsManager() (*SecretsManager, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for secrets manager: %w", err)
	}
	s := &SecretsManager{listener: listener, secrets: map[string][]version{}}
	s.server.Handler = s
	go s.server.Serve(listener) //nolint:errcheck // it ends with Close
	return s, nil
}

// URL is the value of AWS_ENDPOINT_URL_SECRETS_MANAGER.
func (s *SecretsManager) URL() string { return "http://" + s.listener.Addr().String() }

// Close ends every call under way. It may be called again.
func (s *SecretsManager) Close() {
	s.server.Close() //nolint:errcheck // nothing is left to lose
}

// Put sets the current value of the secret with this name or ARN; the one
// before it stays as AWSPREVIOUS, as after a rotation.
func (s *SecretsManager) Put(id, secretString string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := s.name(id)
	versions := append([]version{{newUUID(), secretString, time.Now()}}, s.secrets[name]...)
	s.secrets[name] = versions[:min(len(versions), len(stages))]
}

// ARN answers the full ARN of the secret with this name.
func (s *SecretsManager) ARN(name string) string { return arnPrefix + name + arnSuffix }

// Calls counts the calls so far, those that failed or hang included.
func (s *SecretsManager) Calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

// Fail has every call answered with an error, such as AccessDeniedException,
// until Recover. InternalServiceError is a fault of the server's, which clients
// try again; all others are the caller's.
func (s *SecretsManager) Fail(code, message string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.code, s.message = code, message
}

// Hang has no call answered until Recover, as where no route leads to the
// service. Calls that hang by then are never answered.
func (s *SecretsManager) Hang() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hang = true
}

// Recover ends Fail and Hang.
func (s *SecretsManager) Recover() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.code, s.message, s.hang = "", "", false
}

// ServeHTTP implements [http.Handler].
func (s *SecretsManager) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct{ SecretId, VersionId, VersionStage string }
	// The body is read first: only then the server notices a client that left.
	err := json.NewDecoder(r.Body).Decode(&in)

	s.mu.Lock()
	s.calls++
	code, message, hang := s.code, s.message, s.hang
	name := s.name(in.SecretId)
	versions := s.secrets[name]
	s.mu.Unlock()

	switch {
	case hang:
		<-r.Context().Done()
		return
	case code != "":
		fault(w, code, message)
		return
	case r.Header.Get("X-Amz-Target") != "secretsmanager.GetSecretValue":
		fault(w, "UnknownOperationException", "the stand-in knows GetSecretValue alone")
		return
	case err != nil:
		fault(w, "SerializationException", "the body is no JSON")
		return
	case len(versions) == 0:
		fault(w, "ResourceNotFoundException", "Secrets Manager can't find the specified secret.")
		return
	}
	if in.VersionStage == "" && in.VersionId == "" {
		in.VersionStage = stages[0]
	}
	for i, v := range versions {
		if in.VersionStage != "" && in.VersionStage != stages[i] || in.VersionId != "" && in.VersionId != v.id {
			continue
		}
		w.Header().Set("Content-Type", "application/x-amz-json-1.1")
		json.NewEncoder(w).Encode(map[string]any{ //nolint:errcheck // the client is gone
			"ARN":           s.ARN(name),
			"Name":          name,
			"SecretString":  v.value,
			"VersionId":     v.id,
			"VersionStages": []string{stages[i]},
			"CreatedDate":   float64(v.created.UnixMilli()) / 1000,
		})
		return
	}
	fault(w, "ResourceNotFoundException",
		"Secrets Manager can't find the specified secret value for the version asked for.")
}

// name answers the name in an ARN, whose random end may be left out, as AWS
// allows; and any other id as it is.
func (s *SecretsManager) name(id string) string {
	name, isARN := strings.CutPrefix(id, arnPrefix)
	if !isARN {
		return id
	}
	return strings.TrimSuffix(name, arnSuffix)
}

// fault answers an error as AWS JSON 1.1 does.
func fault(w http.ResponseWriter, code, message string) {
	w.Header().Set("Content-Type", "application/x-amz-json-1.1")
	w.Header().Set("X-Amzn-ErrorType", code)
	if code == "InternalServiceError" {
		w.WriteHeader(http.StatusInternalServerError)
	} else {
		w.WriteHeader(http.StatusBadRequest)
	}
	json.NewEncoder(w).Encode(map[string]string{"__type": code, "Message": message}) //nolint:errcheck // as above
}
