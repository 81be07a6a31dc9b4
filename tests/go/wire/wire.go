// Package wire holds what both programs share: a codec that leaves messages as they are, metadata as JSON, and how a
// message is told about.
package wire

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
)

// Shown is the largest message, in bytes, whose content is told; of larger ones only size and digest.
const Shown = 64 << 10

// Raw is a codec for messages that are passed on as bytes, whatever they hold.
type Raw struct{}

// Name is what goes into the content type.
func (Raw) Name() string { return "proto" }

// Marshal takes a *[]byte.
func (Raw) Marshal(value any) (mem.BufferSlice, error) {
	message, ok := value.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("%T is not *[]byte", value)
	}
	return mem.BufferSlice{mem.SliceBuffer(*message)}, nil
}

// Unmarshal fills a *[]byte.
func (Raw) Unmarshal(data mem.BufferSlice, value any) error {
	message, ok := value.(*[]byte)
	if !ok {
		return fmt.Errorf("%T is not *[]byte", value)
	}
	*message = data.Materialize()
	return nil
}

var _ encoding.CodecV2 = Raw{}

// Message is what is told about a message.
type Message struct {
	Size   int    `json:"size"`
	Sha256 string `json:"sha256"`
	// Base64; absent for messages larger than Shown.
	Bytes *string `json:"bytes"`
	// The text at the path that was asked for, as a parser of protobuf reads it; only from the server.
	ID *string `json:"id,omitempty"`
}

// Tell says what a message is.
func Tell(message []byte) Message {
	sum := sha256.Sum256(message)
	told := Message{Size: len(message), Sha256: hex.EncodeToString(sum[:])}
	if len(message) <= Shown {
		text := base64.StdEncoding.EncodeToString(message)
		told.Bytes = &text
	}
	return told
}

// Metadata is metadata as JSON: values of names that end in -bin are in base64.
type Metadata map[string][]string

// Of makes JSON of metadata.
func Of(given metadata.MD) Metadata {
	told := Metadata{}
	for name, values := range given {
		for _, value := range values {
			if strings.HasSuffix(name, "-bin") {
				value = base64.StdEncoding.EncodeToString([]byte(value))
			}
			told[name] = append(told[name], value)
		}
	}
	return told
}

// MD makes metadata of JSON.
func (given Metadata) MD() (metadata.MD, error) {
	made := metadata.MD{}
	for name, values := range given {
		for _, value := range values {
			if strings.HasSuffix(name, "-bin") {
				raw, err := base64.StdEncoding.DecodeString(value)
				if err != nil {
					return nil, fmt.Errorf("%s: %w", name, err)
				}
				value = string(raw)
			}
			made.Append(name, value)
		}
	}
	return made, nil
}
