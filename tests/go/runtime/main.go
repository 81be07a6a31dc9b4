// Runtime is an inference server for tests that takes its orders by ModelMesh's runtime contract, mmesh.ModelRuntime, and
// answers inference.GRPCInferenceService on the same port. It shares no code with the program under test: messages are taken
// apart by their field numbers.
//
// A model is a file of JSON (see model below) that says what becomes of it; a folder holds one called model.json. It answers
// FP32 tensors called x with y, of the same shape, times its factor. On standard output there is a line of JSON for each call.
//
//	runtime -listen 127.0.0.1:0|unix:/path [-capacity BYTES] [-starting N] ...
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"berth.test/interop/wire"
)

// A model says how its load, its sizes and its unloads go.
type model struct {
	Factor float32 `json:"factor"`
	LoadMs int     `json:"load_ms"`
	// Loads to the end although the caller has given up.
	Stubborn bool       `json:"stubborn"`
	Code     codes.Code `json:"code"`
	Message  string     `json:"message"`
	// Ends the whole process while it loads.
	Kills bool `json:"kills"`
	// What loadModel says, 0 where modelSize does.
	Size           uint64 `json:"size"`
	LateSize       uint64 `json:"late_size"`
	MaxConcurrency uint64 `json:"max_concurrency"`
	// So many unloads fail first.
	RefusedUnloads int `json:"refused_unloads"`
}

type server struct {
	sync.Mutex
	models   map[string]model
	starting int
	// The status, but for the word how it stands.
	about        []byte
	predicts     bool
	statusPauses time.Duration
	// What it does wrong.
	lies, keeps   bool
	unknownUnload codes.Code
}

// A line about a call.
type line struct {
	Call  string `json:"call"`
	Event string `json:"event"`
	Model string `json:"model,omitempty"`
	Type  string `json:"type,omitempty"`
	Path  string `json:"path,omitempty"`
	Key   string `json:"key,omitempty"`
	Code  string `json:"code,omitempty"`
	Held  int    `json:"held"`
}

var lines sync.Mutex

func say(told line) {
	text, err := json.Marshal(told)
	if err != nil {
		log.Fatal(err)
	}
	lines.Lock()
	defer lines.Unlock()
	fmt.Fprintln(os.Stdout, string(text))
}

func text(message []byte, field protowire.Number) string {
	if found := wire.Text(message, []protowire.Number{field}); found != nil {
		return *found
	}
	return ""
}

func number(field protowire.Number, value uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, field, protowire.VarintType), value)
}

func bytes(field protowire.Number, value []byte) []byte {
	return protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), value)
}

func join(parts ...[]byte) []byte {
	made := []byte{}
	for _, part := range parts {
		made = append(made, part...)
	}
	return made
}

// Each calls on for the fields of a message.
func each(message []byte, on func(field protowire.Number, kind protowire.Type, value []byte) error) error {
	for len(message) > 0 {
		field, kind, length := protowire.ConsumeTag(message)
		if length < 0 {
			return errors.New("the message is malformed")
		}
		message = message[length:]
		length = protowire.ConsumeFieldValue(field, kind, message)
		if length < 0 {
			return errors.New("the message is malformed")
		}
		value := message[:length]
		if kind == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(value)
		}
		if err := on(field, kind, value); err != nil {
			return err
		}
		message = message[length:]
	}
	return nil
}

func (s *server) held() int {
	s.Lock()
	defer s.Unlock()
	return len(s.models)
}

// Read finds out what the files at a path say.
func read(path string) (model, error) {
	made := model{Factor: 1}
	about, err := os.Stat(path)
	if err != nil {
		return made, status.Error(codes.NotFound, err.Error())
	}
	if about.IsDir() {
		path = filepath.Join(path, "model.json")
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return made, status.Error(codes.NotFound, err.Error())
	}
	if err := json.Unmarshal(content, &made); err != nil {
		return made, status.Errorf(codes.InvalidArgument, "%s is no model: %v", filepath.Base(path), err)
	}
	return made, nil
}

func (s *server) load(ctx context.Context, message []byte) ([]byte, error) {
	id := text(message, 1)
	if id == "" {
		return nil, status.Error(codes.InvalidArgument, "there is no model id")
	}
	made, err := read(text(message, 3))
	if err != nil {
		return nil, err
	}
	if made.Kills {
		os.Exit(3)
	}
	select {
	case <-time.After(time.Duration(made.LoadMs) * time.Millisecond):
	case <-ctx.Done():
		if !made.Stubborn {
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	if made.Code != codes.OK {
		return nil, status.Error(made.Code, made.Message)
	}
	s.Lock()
	defer s.Unlock()
	if !s.lies {
		s.models[id] = made
	}
	return join(number(1, made.Size), number(2, made.MaxConcurrency)), nil
}

func (s *server) unload(message []byte) ([]byte, error) {
	s.Lock()
	defer s.Unlock()
	id := text(message, 1)
	found, ok := s.models[id]
	if ok && found.RefusedUnloads > 0 {
		found.RefusedUnloads--
		s.models[id] = found
		return nil, status.Error(codes.Internal, "this model does not want to go")
	}
	if !ok && s.unknownUnload != codes.OK {
		return nil, status.Errorf(s.unknownUnload, "what is %s?", id)
	}
	if !s.keeps {
		delete(s.models, id)
	}
	return nil, nil
}

func (s *server) predict(message []byte) ([]byte, error) {
	if !s.predicts {
		return nil, status.Error(codes.Unimplemented, "sizes are not predicted here")
	}
	about := struct {
		Size uint64 `json:"disk_size_bytes"`
	}{}
	if err := json.Unmarshal([]byte(text(message, 4)), &about); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return number(1, 3*about.Size), nil
}

func (s *server) size(message []byte) ([]byte, error) {
	s.Lock()
	defer s.Unlock()
	found, ok := s.models[text(message, 1)]
	if !ok {
		return nil, status.Error(codes.NotFound, "there is no such model here")
	}
	return number(1, max(found.Size, found.LateSize)), nil
}

// Drops every model, as servers do when they are asked how they stand.
func (s *server) status() ([]byte, error) {
	time.Sleep(s.statusPauses)
	s.Lock()
	defer s.Unlock()
	if s.starting > 0 {
		s.starting--
		return number(1, 0), nil
	}
	s.models = map[string]model{}
	return join(number(1, 1), s.about), nil
}

func (s *server) named(ctx context.Context, message []byte) (string, model, error) {
	given, _ := metadata.FromIncomingContext(ctx)
	id := text(message, 1)
	if values := given.Get("mm-model-id"); len(values) > 0 {
		id = values[0]
	}
	s.Lock()
	defer s.Unlock()
	found, ok := s.models[id]
	if !ok {
		return id, found, status.Errorf(codes.NotFound, "model %s is not here", id)
	}
	return id, found, nil
}

func (s *server) infer(ctx context.Context, message []byte) ([]byte, error) {
	id, found, err := s.named(ctx, message)
	if err != nil {
		return nil, err
	}
	var shape, numbers []byte
	var name, request string
	take := func(value []byte) {
		for ; len(value) >= 4; value = value[4:] {
			times := math.Float32frombits(binary.LittleEndian.Uint32(value)) * found.Factor
			numbers = binary.LittleEndian.AppendUint32(numbers, math.Float32bits(times))
		}
	}
	input := func(field protowire.Number, _ protowire.Type, value []byte) error {
		switch field {
		case 1:
			name = string(value)
		case 3: // packed or not, the numbers are written the same
			shape = append(shape, value...)
		case 5:
			return each(value, func(field protowire.Number, _ protowire.Type, value []byte) error {
				if field == 6 {
					take(value)
				}
				return nil
			})
		}
		return nil
	}
	err = each(message, func(field protowire.Number, _ protowire.Type, value []byte) error {
		switch field {
		case 3:
			request = string(value)
		case 5:
			return each(value, input)
		case 7:
			take(value)
		}
		return nil
	})
	if err != nil || name != "x" {
		return nil, status.Errorf(codes.InvalidArgument, "this model takes one tensor, x, and not %q", name)
	}
	output := join(bytes(1, []byte("y")), bytes(2, []byte("FP32")), bytes(3, shape))
	return join(bytes(1, []byte(id)), bytes(3, []byte(request)), bytes(5, output), bytes(6, numbers)), nil
}

func (s *server) metadata(ctx context.Context, message []byte) ([]byte, error) {
	id, _, err := s.named(ctx, message)
	if err != nil {
		return nil, err
	}
	tensor := func(name string) []byte {
		return join(bytes(1, []byte(name)), bytes(2, []byte("FP32")), bytes(3, protowire.AppendVarint(nil, math.MaxUint64)))
	}
	return join(bytes(1, []byte(id)), bytes(3, []byte("test")), bytes(4, tensor("x")), bytes(5, tensor("y"))), nil
}

func (s *server) handle(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	ctx := stream.Context()
	var message []byte
	if err := stream.RecvMsg(&message); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	orders, isOrder := strings.CutPrefix(method, "/mmesh.ModelRuntime/")
	told := line{Call: orders, Event: "begun", Model: text(message, 1)}
	if orders == "loadModel" || orders == "predictModelSize" {
		told.Type, told.Path, told.Key = text(message, 2), text(message, 3), text(message, 4)
	}
	if isOrder {
		told.Held = s.held()
		say(told)
	}
	var answer []byte
	err := status.Errorf(codes.Unimplemented, "there is no %s here", method)
	switch method {
	case "/mmesh.ModelRuntime/loadModel":
		answer, err = s.load(ctx, message)
	case "/mmesh.ModelRuntime/unloadModel":
		answer, err = s.unload(message)
	case "/mmesh.ModelRuntime/predictModelSize":
		answer, err = s.predict(message)
	case "/mmesh.ModelRuntime/modelSize":
		answer, err = s.size(message)
	case "/mmesh.ModelRuntime/runtimeStatus":
		answer, err = s.status()
	case "/inference.GRPCInferenceService/ModelInfer":
		answer, err = s.infer(ctx, message)
	case "/inference.GRPCInferenceService/ModelMetadata":
		answer, err = s.metadata(ctx, message)
	}
	if isOrder {
		told.Event, told.Code, told.Held = "ended", status.Code(err).String(), s.held()
		say(told)
	}
	if err != nil {
		return err
	}
	return stream.SendMsg(&answer)
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "HOST:PORT or unix:/PATH")
	capacity := flag.Uint64("capacity", 1<<30, "capacityInBytes")
	concurrency := flag.Uint64("concurrency", 2, "maxLoadingConcurrency")
	timeout := flag.Uint64("timeout", 30000, "modelLoadingTimeoutMs")
	usual := flag.Uint64("default-size", 1<<20, "defaultModelSizeInBytes")
	starting := flag.Int("starting", 0, "answers that it is starting so many times")
	pause := flag.Duration("status-takes", 0, "how long the status takes")
	predicts := flag.Bool("predicts", false, "has predictModelSize: three times the bytes on disk")
	limits := flag.Bool("limits", false, "limitModelConcurrency")
	lies := flag.Bool("lies", false, "answers loads without loading")
	keeps := flag.Bool("keeps", false, "answers unloads without unloading")
	unknownUnload := flag.Uint("unknown-unload", 0, "the code for unloads of what is not there")
	allowed := flag.String("methods", "", "full names of methods with commas between, each with its id in field 1; all where empty")
	flag.Parse()
	about := join(number(2, *capacity), number(3, *concurrency), number(4, *timeout), number(5, *usual), bytes(6, []byte("test-1")))
	for _, name := range strings.Split(*allowed, ",") {
		if name != "" {
			info := bytes(1, protowire.AppendVarint(nil, 1))
			about = join(about, bytes(8, join(bytes(1, []byte(name)), bytes(2, info))))
		}
	}
	if *limits {
		about = join(about, number(9, 1))
	}
	network, address := "tcp", *listen
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		network, address = "unix", path
		_ = os.Remove(path) // what a killed one has left
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		log.Fatal(err)
	}
	s := &server{models: map[string]model{}, starting: *starting, about: about, predicts: *predicts, statusPauses: *pause,
		lies: *lies, keeps: *keeps, unknownUnload: codes.Code(*unknownUnload)}
	grpcServer := grpc.NewServer(grpc.ForceServerCodecV2(wire.Raw{}), grpc.UnknownServiceHandler(s.handle))
	fmt.Printf("listening on %s\n", listener.Addr())
	log.Fatal(grpcServer.Serve(listener))
}
