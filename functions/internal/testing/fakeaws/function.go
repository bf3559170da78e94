package fakeaws

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"time"
)

// drain is how long output is still read after a process ended, in case it left
// a child that holds the pipe.
const drain = time.Second

// FunctionOptions says what StartFunction starts. Binary and API are required.
type FunctionOptions struct {
	Binary string   // path of the function's bootstrap
	Env    []string // "NAME=value"; it wins over what StartFunction sets
	Stdout io.Writer
	Stderr io.Writer
	API    *RuntimeAPI
}

// Function is a running process of the function: one execution environment.
type Function struct {
	api  *RuntimeAPI
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how the process ended; read it after done
}

// StartFunction starts the binary in an environment like Lambda's. Nothing of
// this process's own environment gets in but PATH and HOME, and nothing of the
// user's AWS configuration. The process is killed when ctx ends.
func StartFunction(ctx context.Context, o FunctionOptions) (*Function, error) {
	if o.Binary == "" || o.API == nil {
		return nil, errors.New("start function: Binary and API are required")
	}
	f := &Function{api: o.API, cmd: exec.CommandContext(ctx, o.Binary), done: make(chan struct{})}
	f.cmd.Env = append([]string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + os.Getenv("HOME"),
		"AWS_LAMBDA_RUNTIME_API=" + o.API.Addr(),
		"AWS_LAMBDA_FUNCTION_NAME=purge-tokens",
		"AWS_LAMBDA_FUNCTION_VERSION=$LATEST",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=256",
		"AWS_REGION=us-east-1",
		"AWS_ACCESS_KEY_ID=standin",
		"AWS_SECRET_ACCESS_KEY=standin",
		// HOME is the user's: a profile there must not send the function elsewhere.
		"AWS_CONFIG_FILE=" + os.DevNull,
		"AWS_SHARED_CREDENTIALS_FILE=" + os.DevNull,
		"AWS_EC2_METADATA_DISABLED=true",
	}, o.Env...) // of two of a name, the last counts
	f.cmd.Stdout, f.cmd.Stderr, f.cmd.WaitDelay = o.Stdout, o.Stderr, drain
	if err := f.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start function: %w", err)
	}
	go func() {
		f.err = f.cmd.Wait()
		close(f.done)
	}()
	return f, nil
}

// Invoke is [RuntimeAPI.Invoke] with the two ends that Lambda puts to it: a
// process that exits has failed, and one that is still at work after timeout is
// killed. The timeout covers a cold start too.
func (f *Function) Invoke(ctx context.Context, payload []byte, timeout time.Duration) (Reply, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	over := time.AfterFunc(timeout, func() {
		cancel(fmt.Errorf("the function was killed at its timeout of %v", timeout))
		f.Stop()
	})
	defer over.Stop()
	go func() {
		select {
		case <-f.done:
			cancel(fmt.Errorf("the function exited: %v", f.cmd.ProcessState))
		case <-ctx.Done():
		}
	}()
	return f.api.Invoke(ctx, payload, timeout)
}

// PID answers the process's id.
func (f *Function) PID() int { return f.cmd.Process.Pid }

// Done is closed once the process ended and its output is written.
func (f *Function) Done() <-chan struct{} { return f.done }

// Wait waits for the process to end, and answers how, as [exec.Cmd.Wait] does.
func (f *Function) Wait() error {
	<-f.done
	return f.err
}

// Stop kills the process, as Lambda does, and waits for its end. It may be
// called again, and after the process ended.
func (f *Function) Stop() {
	f.cmd.Process.Kill() //nolint:errcheck // it may have ended already
	<-f.done
}
