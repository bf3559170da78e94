// Package fakeaws plays what AWS offers to a function, on this machine and
// with the standard library alone: the Lambda Runtime API, Secrets Manager, and
// the environment that a function's process is started in. Tests and the
// demonstration run the very binary that is deployed against it.
package fakeaws

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// functionARN names the function in every invocation.
const functionARN = "arn:aws:lambda:us-east-1:000000000000:function:purge-tokens"

// RuntimeAPI is the Lambda Runtime API that a function polls for events.
type RuntimeAPI struct {
	server   http.Server
	listener net.Listener
	closed   chan struct{}
	close    sync.Once
	turn     chan struct{}    // holds a token while an Invoke is under way
	events   chan *invocation // unbuffered: an event goes to a process that polls
	initErr  chan ErrorReply  // the last unreported fault before the first poll

	mu      sync.Mutex
	current *invocation // handed over and not yet answered
}

type invocation struct {
	id      string
	payload []byte
	timeout time.Duration
	reply   chan Reply // room for the one answer
}

// Reply is how an invocation ended.
type Reply struct {
	RequestID string
	Payload   []byte      // what the function answered, the JSON of an error included
	Error     *ErrorReply // nil when the function succeeded
}

// ErrorReply is the error that a function answered.
type ErrorReply struct {
	Message string `json:"errorMessage"`
	Type    string `json:"errorType"`
}

// NewRuntimeAPI listens on a free port of the loopback interface.
func NewRuntimeAPI() (*RuntimeAPI, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the runtime API: %w", err)
	}
	a := &RuntimeAPI{
		listener: listener,
		closed:   make(chan struct{}),
		turn:     make(chan struct{}, 1),
		events:   make(chan *invocation),
		initErr:  make(chan ErrorReply, 1),
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /2018-06-01/runtime/invocation/next", a.next)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/response", a.response)
	mux.HandleFunc("POST /2018-06-01/runtime/invocation/{id}/error", a.failure)
	mux.HandleFunc("POST /2018-06-01/runtime/init/error", a.initFailure)
	a.server.Handler = mux
	go a.server.Serve(listener) //nolint:errcheck // it ends with Close
	return a, nil
}

// Addr is host:port, the value of AWS_LAMBDA_RUNTIME_API.
func (a *RuntimeAPI) Addr() string { return a.listener.Addr().String() }

// Close ends every poll and every Invoke. It may be called again.
func (a *RuntimeAPI) Close() {
	a.close.Do(func() {
		close(a.closed)
		a.server.Close() //nolint:errcheck // nothing is left to lose
	})
}

// Invoke hands the payload to the process that polls, waiting for one if need
// be, and then for its answer. The function is told that its deadline is
// timeout after the hand-over; Invoke itself gives up only when ctx ends, as
// [Function.Invoke] makes it do when the process died or overran. Invocations
// that overlap wait for each other. An error that the function answers, before
// its first poll too, is in the Reply; the error is for having no answer.
func (a *RuntimeAPI) Invoke(ctx context.Context, payload []byte, timeout time.Duration) (Reply, error) {
	select {
	case a.turn <- struct{}{}:
		defer func() { <-a.turn }()
	case <-ctx.Done():
		return Reply{}, fmt.Errorf("invoke: %w", context.Cause(ctx))
	case <-a.closed:
		return Reply{}, errors.New("invoke: the runtime API is closed")
	}
	i := &invocation{id: newUUID(), payload: payload, timeout: timeout, reply: make(chan Reply, 1)}
	defer a.take(i.id) // a late answer finds nobody

	events := a.events
	for {
		select {
		case events <- i:
			events = nil
		case r := <-i.reply:
			return r, nil
		case e := <-a.initErr:
			return i.initFailed(e), nil
		case <-ctx.Done():
			// A process that answers and dies has answered.
			select {
			case r := <-i.reply:
				return r, nil
			case e := <-a.initErr:
				return i.initFailed(e), nil
			default:
				return Reply{RequestID: i.id}, fmt.Errorf("invoke: %w", context.Cause(ctx))
			}
		case <-a.closed:
			return Reply{RequestID: i.id}, errors.New("invoke: the runtime API is closed")
		}
	}
}

func (i *invocation) initFailed(e ErrorReply) Reply {
	payload, _ := json.Marshal(e) // two strings
	return Reply{RequestID: i.id, Payload: payload, Error: &e}
}

func (a *RuntimeAPI) next(w http.ResponseWriter, r *http.Request) {
	select {
	case i := <-a.events:
		a.mu.Lock()
		a.current = i
		a.mu.Unlock()
		deadline := time.Now().Add(i.timeout).UnixMilli()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Lambda-Runtime-Aws-Request-Id", i.id)
		w.Header().Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(deadline, 10))
		w.Header().Set("Lambda-Runtime-Invoked-Function-Arn", functionARN)
		w.Write(i.payload) //nolint:errcheck // a process that is gone doesn't answer
	case <-r.Context().Done():
	case <-a.closed:
	}
}

func (a *RuntimeAPI) response(w http.ResponseWriter, r *http.Request) {
	a.answer(w, r, func(payload []byte) *ErrorReply { return nil })
}

func (a *RuntimeAPI) failure(w http.ResponseWriter, r *http.Request) {
	a.answer(w, r, func(payload []byte) *ErrorReply { e := parseError(payload); return &e })
}

func (a *RuntimeAPI) answer(w http.ResponseWriter, r *http.Request, parse func([]byte) *ErrorReply) {
	payload, err := io.ReadAll(r.Body)
	if err != nil {
		return // the process died in the middle of its answer
	}
	i := a.take(r.PathValue("id"))
	if i == nil {
		status(w, http.StatusBadRequest, `{"errorMessage":"no such request under way","errorType":"InvalidRequestID"}`)
		return
	}
	i.reply <- Reply{RequestID: i.id, Payload: payload, Error: parse(payload)}
	status(w, http.StatusAccepted, `{"status":"OK"}`)
}

func (a *RuntimeAPI) initFailure(w http.ResponseWriter, r *http.Request) {
	payload, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	select {
	case <-a.initErr: // an older one that no Invoke asked for
	default:
	}
	a.initErr <- parseError(payload)
	status(w, http.StatusAccepted, `{"status":"OK"}`)
}

// take answers the invocation under way if it has this id, and forgets it.
func (a *RuntimeAPI) take(id string) *invocation {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current == nil || a.current.id != id {
		return nil
	}
	i := a.current
	a.current = nil
	return i
}

func parseError(payload []byte) ErrorReply {
	var e ErrorReply
	if json.Unmarshal(payload, &e) != nil {
		e.Message = string(payload)
	}
	return e
}

func status(w http.ResponseWriter, code int, body string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	io.WriteString(w, body) //nolint:errcheck // the client is gone
}

// newUUID answers a random UUID, the form of Lambda's request ids.
func newUUID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
