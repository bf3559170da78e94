package purge

import (
	"context"
	"log/slog"
	"math/bits"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// While others write to the same server a run is throttled: batches have minBatchSize
// rows, one begins every minInterval at most, however many connections and databases
// there are, and after each its connection rests for as long as it took, minInterval
// at least. Both times are slowStartFactor times as long when the run begins and are
// halved with each slowStartStep, so that nobody feels a small backlog go and a large
// one is not left to grow. All of that ends when the others have been quiet for
// throttleFor, and when half of the run's time is over.
const (
	minInterval     = 2 * time.Millisecond
	slowStartFactor = 32
	slowStartStep   = 10 * time.Second
	throttleFor     = time.Second
	// noiseFloor is how many writes within throttleFor are nobody's work: a heartbeat,
	// autovacuum.
	noiseFloor = 2
	// senseInterval is how often the server is asked at most, and how long a run
	// listens before its first batch: a small backlog would be gone before it has
	// heard anybody.
	senseInterval = 20 * time.Millisecond
	// maxUncounted is how many batches a connection may have committed without having
	// told of it yet.
	maxUncounted = 2
)

// ThrottleReason is why a run makes way, for whoever waits for it.
const ThrottleReason = "others write to the server"

// pacer says when the next batch of a run may begin.
type pacer struct {
	target  time.Duration // Policy.BatchTarget; 0 is never to make way
	log     *slog.Logger
	began   time.Time
	half    time.Duration // of the run's time; 0 is without end
	sensor  sensor
	limiter *rate.Limiter // of the batches of a throttled run

	listening atomic.Bool
	heard     chan struct{} // closed once it is known whether there are others
}

func newPacer(ctx context.Context, p Policy, log *slog.Logger) *pacer {
	pace := &pacer{log: log, target: p.BatchTarget, began: time.Now(), limiter: rate.NewLimiter(rate.Inf, 1), heard: make(chan struct{})}
	if deadline, limited := ctx.Deadline(); limited {
		pace.half = max(1, time.Until(deadline)/2)
	}
	return pace
}

// Throttled tells whether the run makes way now.
func (p *pacer) Throttled() bool {
	return p.sensor.contended() && (p.half == 0 || time.Since(p.began) < p.half)
}

// Listen finds out whether there are others before anything is deleted. The first
// database of a run does it for all of them, and the others wait for it.
func (p *pacer) Listen(ctx context.Context, conn Conn) {
	if p.listening.Swap(true) {
		select {
		case <-p.heard:
		case <-ctx.Done():
		}
		return
	}
	defer close(p.heard)
	if f := conn.Facts(); p.target > 0 && f.Writes > 0 && time.Since(f.Counted) < throttleFor {
		p.sensor.start(f.Counted, f.Writes) // it has listened since
	} else {
		p.sense(ctx, conn)
	}
	sleep(ctx, p.sensor.warmup())
	p.sense(ctx, conn)
}

// Wait returns when the next batch may begin, and whether it is one of a throttled
// run. It asks the server about others over conn.
func (p *pacer) Wait(ctx context.Context, conn Conn) (throttled bool) {
	p.sense(ctx, conn)
	if !p.Throttled() {
		return false
	}
	now := time.Now()
	p.limiter.SetLimitAt(now, rate.Every(p.interval()))
	sleep(ctx, p.limiter.ReserveN(now, 1).DelayFrom(now))
	return true
}

// Rest returns how long a connection of a throttled run rests after a batch that took
// so long.
func (p *pacer) Rest(took time.Duration) time.Duration {
	return p.interval() / minInterval * max(minInterval, min(took, p.target))
}

// Took takes in what a batch wrote, and what the server had counted as it ended.
func (p *pacer) Took(gone Deleted) {
	p.sensor.wrote(max(0, gone.Writes))
	if gone.Count > 0 && gone.Writes >= 0 && p.target > 0 {
		p.sensor.sense(func() (int64, error) { return gone.Count, nil })
	}
}

// Absorb takes what was written since the last count for the run's own, after a batch
// that can't tell how much of it was.
func (p *pacer) Absorb(ctx context.Context, conn Conn) {
	if count := p.counter(ctx, conn); count != nil {
		p.sensor.absorb(count)
	}
}

// interval is the least time between two batches of a throttled run.
func (p *pacer) interval() time.Duration {
	step := slowStartStep
	if p.half > 0 { // all steps and one more fit in it
		step = min(step, p.half/time.Duration(bits.Len(slowStartFactor)))
	}
	return max(1, time.Duration(slowStartFactor)>>(time.Since(p.began)/max(step, 1))) * minInterval
}

// sense asks the server about others, where it can tell and batches may adapt.
func (p *pacer) sense(ctx context.Context, conn Conn) {
	if count := p.counter(ctx, conn); count != nil {
		p.sensor.sense(count)
	}
}

// counter returns what asks the server; nil where it can't tell, or need not.
func (p *pacer) counter(ctx context.Context, conn Conn) func() (int64, error) {
	counter, ok := conn.(WriteCounter)
	if !ok || p.target == 0 {
		return nil
	}
	return func() (count int64, err error) {
		err = recoverPanic(ctx, p.log, func() (err error) {
			count, err = counter.Writes(ctx)
			return err
		})
		return count, err
	}
}

// sensor tells whether others write to the server at the same time: by the count
// of all writes there, of which the run's own are known.
type sensor struct {
	mu            sync.Mutex
	own           int64     // the run's, in all databases
	deleting      int       // connections that are at it
	sensed        time.Time // last
	since         tally     // what the next count is held against
	others        int64     // writes of others from then to the last count
	throttleUntil time.Time
}

// tally is how many writes had been counted at some time.
type tally struct {
	at       time.Time
	all, own int64
}

// sense has count ask the server, if it is time to.
func (s *sensor) sense(count func() (int64, error)) {
	now := time.Now()
	s.mu.Lock()
	due := now.Sub(s.sensed) >= senseInterval
	if due {
		s.sensed = now
	}
	// What ends while the server counts may be counted or not. It is taken for the
	// run's own here and below, rather than for another's.
	seen, deleting := tally{at: now, own: s.own}, s.deleting
	s.mu.Unlock()
	if !due {
		return
	}
	all, err := count()
	if err != nil || all == 0 { // the next batch tells what is wrong
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	seen.all = all
	ours := s.own - s.since.own + int64(maxUncounted*max(deleting, s.deleting))
	s.others = max(0, all-s.since.all-ours)
	switch {
	case s.since.at.IsZero(): // the first count
	case s.others > noiseFloor:
		s.throttleUntil = now.Add(throttleFor)
	case now.Sub(s.since.at) < throttleFor:
		return
	}
	s.since, s.others = seen, 0
}

// start takes a count of before for the first.
func (s *sensor) start(at time.Time, all int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sensed, s.since = at, tally{at: at, all: all, own: s.own}
}

// absorb has count ask the server, and takes for the run's own what came to it since
// others were counted last.
func (s *sensor) absorb(count func() (int64, error)) {
	all, err := count()
	if err != nil || all == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.since.at.IsZero() {
		s.own += max(0, all-s.since.all-(s.own-s.since.own)-s.others)
	}
}

// contended tells whether others are there.
func (s *sensor) contended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return time.Now().Before(s.throttleUntil)
}

// warmup returns how long it takes until a second count can tell of others.
func (s *sensor) warmup() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.since.at.IsZero() { // the server does not tell
		return 0
	}
	return senseInterval - time.Since(s.since.at)
}

// begin and end enclose what a connection deletes.
func (s *sensor) begin() { s.add(1, 0) }
func (s *sensor) end()   { s.add(-1, 0) }

// wrote counts so many writes of the run's own.
func (s *sensor) wrote(n int64) { s.add(0, n) }

func (s *sensor) add(deleting int, wrote int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleting += deleting
	s.own += wrote
}
