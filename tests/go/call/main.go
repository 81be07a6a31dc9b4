// Call is a gRPC client for tests. It reads orders from a file of JSON, carries them out one after another, and prints
// one line of JSON for each: how the call ended and all that came.
//
//	call -target HOST:PORT|unix:/PATH -orders FILE
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
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"berth.test/interop/wire"
)

// A message to send: head, then a field of bytes that is large, then tail; each is left out where it is empty.
type message struct {
	Head string `json:"head"`
	Pad  int    `json:"pad"`
	Tail string `json:"tail"`
}

// The field that holds the padding: one that no service knows.
const padding = 1000

type order struct {
	Method string `json:"method"`
	// "unary", "server", "client" or "bidi".
	Kind     string        `json:"kind"`
	Messages []message     `json:"messages"`
	Metadata wire.Metadata `json:"metadata"`
	// None where it is 0.
	TimeoutMs int `json:"timeout_ms"`
	// "gzip" or empty.
	Compression string `json:"compression"`
	// The largest message that is taken, in bytes.
	MaxReceive int `json:"max_receive"`
	// Gives up after so many answers; 0 is after the header.
	CancelAfter *int `json:"cancel_after"`
	// Sends each message but the first only when the one before it has been answered.
	InTurns bool `json:"in_turns"`
	// Leaves its side open until the answers have ended.
	StaysOpen bool `json:"stays_open"`
}

type outcome struct {
	Code    codes.Code `json:"code"`
	Message string     `json:"message"`
	// The google.rpc.Status with its details, in base64; empty where there are none.
	Status  string         `json:"status"`
	Header  wire.Metadata  `json:"header"`
	Trailer wire.Metadata  `json:"trailer"`
	Answers []wire.Message `json:"answers"`
	TookMs  int64          `json:"took_ms"`
}

func (given message) bytes() ([]byte, error) {
	made, err := base64.StdEncoding.DecodeString(given.Head)
	if err != nil {
		return nil, err
	}
	if given.Pad > 0 {
		made = protowire.AppendTag(made, padding, protowire.BytesType)
		made = protowire.AppendBytes(made, make([]byte, given.Pad))
	}
	tail, err := base64.StdEncoding.DecodeString(given.Tail)
	return append(made, tail...), err
}

// Call carries out one order.
func call(connection *grpc.ClientConn, asked order) (outcome, error) {
	told := outcome{Answers: []wire.Message{}}
	messages := make([][]byte, 0, len(asked.Messages))
	for _, given := range asked.Messages {
		made, err := given.bytes()
		if err != nil {
			return told, err
		}
		messages = append(messages, made)
	}
	sent, err := asked.Metadata.MD()
	if err != nil {
		return told, err
	}
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(context.Background(), sent))
	if asked.TimeoutMs > 0 {
		cancel()
		ctx, cancel = context.WithTimeout(metadata.NewOutgoingContext(context.Background(), sent), time.Duration(asked.TimeoutMs)*time.Millisecond)
	}
	defer cancel()
	limit := asked.MaxReceive
	if limit == 0 {
		limit = 64 << 20
	}
	var header, trailer metadata.MD
	options := []grpc.CallOption{grpc.ForceCodecV2(wire.Raw{}), grpc.MaxCallRecvMsgSize(limit), grpc.MaxCallSendMsgSize(1 << 30)}
	if asked.Compression != "" {
		if asked.Compression != gzip.Name {
			return told, fmt.Errorf("this client has no compression %q", asked.Compression)
		}
		options = append(options, grpc.UseCompressor(gzip.Name))
	}
	if asked.Kind == "unary" && asked.CancelAfter == nil {
		var answer []byte
		err = connection.Invoke(ctx, asked.Method, &messages[0], &answer, append(options, grpc.Header(&header), grpc.Trailer(&trailer))...)
		if err == nil {
			told.Answers = append(told.Answers, wire.Tell(answer))
		}
	} else {
		shape := &grpc.StreamDesc{ClientStreams: asked.Kind != "server", ServerStreams: asked.Kind != "client"}
		var stream grpc.ClientStream
		if stream, err = connection.NewStream(ctx, shape, asked.Method, options...); err == nil {
			err = converse(stream, cancel, messages, asked, &told)
			header, _ = stream.Header()
			trailer = stream.Trailer()
		}
	}
	ended := status.Convert(err)
	told.Code, told.Message, told.Header, told.Trailer = ended.Code(), ended.Message(), wire.Of(header), wire.Of(trailer)
	if len(ended.Proto().GetDetails()) > 0 {
		raw, err := proto.Marshal(ended.Proto())
		if err != nil {
			return told, err
		}
		told.Status = base64.StdEncoding.EncodeToString(raw)
	}
	return told, nil
}

// Converse sends and receives on a stream. What it returns is how the call ended, nil for OK.
func converse(stream grpc.ClientStream, cancel func(), messages [][]byte, asked order, told *outcome) error {
	next := 0
	send := func(count int) {
		for ; count > 0 && next < len(messages); count-- {
			if stream.SendMsg(&messages[next]) != nil {
				next = len(messages) // how the call ended is told by receiving
				return
			}
			next++
		}
	}
	receiveAll := func() error {
		if asked.CancelAfter != nil && *asked.CancelAfter == 0 {
			if _, err := stream.Header(); err != nil {
				return err
			}
			cancel()
		}
		for {
			var answer []byte
			if err := stream.RecvMsg(&answer); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			told.Answers = append(told.Answers, wire.Tell(answer))
			if asked.CancelAfter != nil && len(told.Answers) == *asked.CancelAfter {
				cancel()
			}
			if asked.InTurns {
				if send(1); next == len(messages) && !asked.StaysOpen {
					_ = stream.CloseSend()
				}
			}
			if asked.Kind == "client" {
				return nil
			}
		}
	}
	if asked.InTurns {
		send(1)
		return receiveAll()
	}
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		send(len(messages))
		if !asked.StaysOpen {
			_ = stream.CloseSend()
		}
	}()
	err := receiveAll()
	cancelled := err != nil
	if cancelled {
		cancel()
	}
	<-sending
	return err
}

func main() {
	target := flag.String("target", "", "HOST:PORT or unix:/PATH")
	file := flag.String("orders", "", "a file with a list of orders as JSON")
	flag.Parse()
	text, err := os.ReadFile(*file)
	if err != nil {
		log.Fatal(err)
	}
	var orders []order
	if err := json.Unmarshal(text, &orders); err != nil {
		log.Fatal(err)
	}
	connection, err := grpc.NewClient(*target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	for at, asked := range orders {
		start := time.Now()
		told, err := call(connection, asked)
		if err != nil {
			log.Fatalf("order %d: %v", at, err)
		}
		told.TookMs = time.Since(start).Milliseconds()
		line, err := json.Marshal(told)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println(string(line))
	}
}
