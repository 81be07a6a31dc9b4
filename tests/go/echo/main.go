// Echo is a gRPC server for tests: every service and method is there, and each call says in its metadata what is to
// become of it. On standard output it writes a line of JSON when a call begins and one when it has ended.
//
//	echo -listen 127.0.0.1:0|unix:/path [-max-receive BYTES] [-max-streams N]
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"berth.test/interop/wire"
)

// An order is what a call says in `echo-order-bin`. Without one, the call is answered with what was seen of it.
type order struct {
	// The path of field numbers at which the id is read; [1] where none is given.
	Path []protowire.Number `json:"id_path"`
	// "report": one message of JSON when all messages have come. "echo": each message back as it comes. "none".
	Answer string `json:"answer"`
	// After that, so many messages of so many bytes.
	Answers     int `json:"answers"`
	AnswerBytes int `json:"answer_bytes"`
	// Before each message that is sent.
	PauseMs int `json:"pause_ms"`
	// Before each message that is read.
	ReadPauseMs int `json:"read_pause_ms"`
	// Reads one message at most, and then does not read on.
	ReadOne bool `json:"read_one"`
	// After the answers, waits until the caller gives up.
	Hold    bool          `json:"hold"`
	Header  wire.Metadata `json:"header"`
	Trailer wire.Metadata `json:"trailer"`
	// How it ends.
	Code    codes.Code `json:"code"`
	Message string     `json:"message"`
	// A google.rpc.Status in base64 instead of code and message, to be sent with its details.
	Status string `json:"status"`
}

// What was seen of a call.
type report struct {
	// What the call calls itself, in `echo-call`.
	Call   string `json:"call"`
	Event  string `json:"event"`
	Method string `json:"method"`
	// How long the caller still waits, as it was when the call began; nil when for ever.
	DeadlineMs *int64         `json:"deadline_ms"`
	Metadata   wire.Metadata  `json:"metadata"`
	Messages   []wire.Message `json:"messages"`
	Sent       int            `json:"sent"`
	// Why the call was given up by its caller: "canceled", "deadline", or empty.
	GivenUp string `json:"given_up"`
}

var lines sync.Mutex

func say(told any) {
	text, err := json.Marshal(told)
	if err != nil {
		log.Fatal(err)
	}
	lines.Lock()
	defer lines.Unlock()
	fmt.Fprintln(os.Stdout, string(text))
}

func read(given metadata.MD) (order, error) {
	asked := order{Path: []protowire.Number{1}, Answer: "report"}
	if values := given.Get("echo-order-bin"); len(values) > 0 {
		if err := json.Unmarshal([]byte(values[0]), &asked); err != nil {
			return asked, err
		}
	}
	return asked, nil
}

func first(given metadata.MD, name string) string {
	if values := given.Get(name); len(values) > 0 {
		return values[0]
	}
	return ""
}

// Pause waits, or says why it could not.
func pause(ctx context.Context, milliseconds int) error {
	if milliseconds <= 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(milliseconds) * time.Millisecond):
		return nil
	}
}

func handle(_ any, stream grpc.ServerStream) error {
	ctx := stream.Context()
	given, _ := metadata.FromIncomingContext(ctx)
	method, _ := grpc.MethodFromServerStream(stream)
	seen := report{Call: first(given, "echo-call"), Event: "begun", Method: method, Metadata: wire.Of(given), Messages: []wire.Message{}}
	if deadline, ok := ctx.Deadline(); ok {
		left := time.Until(deadline).Milliseconds()
		seen.DeadlineMs = &left
	}
	say(seen)
	ended := carryOut(stream, given, &seen)
	seen.Event = "ended"
	switch ctx.Err() {
	case context.Canceled:
		seen.GivenUp = "canceled"
	case context.DeadlineExceeded:
		seen.GivenUp = "deadline"
	}
	say(seen)
	return ended
}

func carryOut(stream grpc.ServerStream, given metadata.MD, seen *report) error {
	asked, err := read(given)
	if err != nil {
		return status.Errorf(codes.InvalidArgument, "echo-order-bin: %v", err)
	}
	ctx := stream.Context()
	send := func(message []byte) error {
		if err := pause(ctx, asked.PauseMs); err != nil {
			return err
		}
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
		seen.Sent++
		return nil
	}
	header, err := asked.Header.MD()
	if err != nil {
		return err
	}
	trailer, err := asked.Trailer.MD()
	if err != nil {
		return err
	}
	if len(header) > 0 || asked.Hold {
		if err := stream.SendHeader(header); err != nil {
			return err
		}
	}
	stream.SetTrailer(trailer)
	for !asked.ReadOne || len(seen.Messages) == 0 {
		if err := pause(ctx, asked.ReadPauseMs); err != nil {
			return err
		}
		var message []byte
		if err := stream.RecvMsg(&message); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		told := wire.Tell(message)
		told.ID = wire.Text(message, asked.Path)
		seen.Messages = append(seen.Messages, told)
		if asked.Answer == "echo" {
			if err := send(message); err != nil {
				return err
			}
		}
	}
	if asked.Answer == "report" {
		text, err := json.Marshal(seen)
		if err != nil {
			return err
		}
		if err := send(text); err != nil {
			return err
		}
	}
	for range asked.Answers {
		if err := send(make([]byte, asked.AnswerBytes)); err != nil {
			return err
		}
	}
	if asked.Hold {
		<-ctx.Done()
		return ctx.Err()
	}
	if asked.Status != "" {
		raw, err := base64.StdEncoding.DecodeString(asked.Status)
		if err != nil {
			return err
		}
		whole := &spb.Status{}
		if err := proto.Unmarshal(raw, whole); err != nil {
			return err
		}
		return status.ErrorProto(whole)
	}
	return status.Error(asked.Code, asked.Message)
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "HOST:PORT or unix:/PATH")
	maxReceive := flag.Int("max-receive", 256<<20, "largest message that is taken, in bytes")
	maxStreams := flag.Uint("max-streams", 1000, "calls at once on a connection")
	flag.Parse()
	network, address := "tcp", *listen
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer(
		grpc.ForceServerCodecV2(wire.Raw{}),
		grpc.UnknownServiceHandler(handle),
		grpc.MaxRecvMsgSize(*maxReceive),
		grpc.MaxSendMsgSize(1<<30),
		grpc.MaxConcurrentStreams(uint32(*maxStreams)),
	)
	fmt.Printf("listening on %s\n", listener.Addr())
	log.Fatal(server.Serve(listener))
}
