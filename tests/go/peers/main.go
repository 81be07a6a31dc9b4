// Peers holds connections to a server that a good client would not hold, or many that one would. It says how many are
// open, and which of them the server has ended.
//
//	peers -target HOST:PORT -mode MODE [-count N]
//
// Modes: silent, http1, http2, half-open, slow-head, slow-body, garbage, reset (see below).
package main

import (
	"bufio"
	"bytes"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
)

// How one byte follows another where a peer is slow.
const pace = 100 * time.Millisecond

// A mode makes of a connection what it should be, calls held, and returns when the server has ended it.
type mode func(connection net.Conn, held func()) error

var modes = map[string]mode{
	"silent":    silent,
	"http1":     resting,
	"http2":     idle,
	"half-open": halfOpen,
	"slow-head": slowHead,
	"slow-body": slowBody,
	"garbage":   garbage,
	"reset":     reset,
}

// Says nothing.
func silent(connection net.Conn, held func()) error {
	held()
	_, err := io.Copy(io.Discard, connection)
	return err
}

// Has asked once and been answered, as a client does that keeps its connection for later.
func resting(connection net.Conn, held func()) error {
	if _, err := io.WriteString(connection, "GET /v2/health/live HTTP/1.1\r\nhost: test\r\n\r\n"); err != nil {
		return err
	}
	answers := bufio.NewReaderSize(connection, 512)
	answer, err := http.ReadResponse(answers, nil)
	if err != nil {
		return err
	}
	if _, err = io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode != http.StatusOK {
		return fmt.Errorf("answered with %s", answer.Status)
	}
	held()
	_, err = io.Copy(io.Discard, answers)
	return err
}

// Speaks HTTP/2, answers pings, and asks for nothing.
func idle(connection net.Conn, held func()) error {
	return speak(connection, held, func(framer *http2.Framer) error {
		frame, err := framer.ReadFrame()
		if err != nil {
			return err
		}
		if ping, ok := frame.(*http2.PingFrame); ok && !ping.IsAck() {
			return framer.WritePing(true, ping.Data)
		}
		return nil
	})
}

// Has begun to speak HTTP/2 and then is as if it had lost its power: it does not answer and does not close.
func halfOpen(connection net.Conn, held func()) error {
	return speak(connection, held, func(framer *http2.Framer) error {
		_, err := framer.ReadFrame()
		return err
	})
}

func speak(connection net.Conn, held func(), on func(*http2.Framer) error) error {
	// One write, as a client would: the preface and what it has set.
	var first bytes.Buffer
	first.WriteString(http2.ClientPreface)
	if err := http2.NewFramer(&first, nil).WriteSettings(); err != nil {
		return err
	}
	if _, err := connection.Write(first.Bytes()); err != nil {
		return err
	}
	framer := http2.NewFramer(connection, connection)
	for settled := false; !settled; {
		frame, err := framer.ReadFrame()
		if err != nil {
			return err
		}
		if settings, ok := frame.(*http2.SettingsFrame); ok && !settings.IsAck() {
			if err := framer.WriteSettingsAck(); err != nil {
				return err
			}
			settled = true
		}
	}
	held()
	for {
		if err := on(framer); err != nil {
			return err
		}
	}
}

// Sends the head of a request byte by byte and never ends it.
func slowHead(connection net.Conn, held func()) error {
	return dripping(connection, held, "POST /v2/models/iris/infer HTTP/1.1\r\nhost: test\r\nx-", 'x')
}

// Sends the body of a request byte by byte.
func slowBody(connection net.Conn, held func()) error {
	return dripping(connection, held, "POST /v2/models/iris/infer HTTP/1.1\r\nhost: test\r\ncontent-length: 100000\r\n\r\n{", ' ')
}

func dripping(connection net.Conn, held func(), start string, drop byte) error {
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, connection)
		ended <- err
	}()
	if _, err := io.WriteString(connection, start); err != nil {
		return err
	}
	held()
	for {
		select {
		case err := <-ended:
			return err
		case <-time.After(pace):
			if _, err := connection.Write([]byte{drop}); err != nil {
				return err
			}
		}
	}
}

// Sends what no protocol knows.
func garbage(connection net.Conn, held func()) error {
	bytes := make([]byte, 4096)
	rand.New(rand.NewSource(7)).Read(bytes)
	if _, err := connection.Write(bytes); err != nil {
		return err
	}
	held()
	_, err := io.Copy(io.Discard, connection)
	return err
}

// Breaks off in the middle of a request, without closing in order.
func reset(connection net.Conn, held func()) error {
	if _, err := io.WriteString(connection, "POST /v2/models/iris/infer HTTP/1.1\r\nhost: test\r\ncontent-length: 1000\r\n\r\n{"); err != nil {
		return err
	}
	held()
	return connection.(*net.TCPConn).SetLinger(0)
}

func main() {
	target := flag.String("target", "", "HOST:PORT")
	chosen := flag.String("mode", "silent", "what the peers do")
	count := flag.Int("count", 1, "how many peers there are at once")
	flag.Parse()
	be, ok := modes[*chosen]
	if !ok {
		log.Fatalf("there is no mode %q", *chosen)
	}
	var holding, done sync.WaitGroup
	var refused atomic.Int64
	// Connections are made a few at a time, so that the system's queue holds them.
	making := make(chan struct{}, 64)
	for range *count {
		making <- struct{}{}
		holding.Add(1)
		done.Add(1)
		go func() {
			defer done.Done()
			once := sync.OnceFunc(func() { holding.Done(); <-making })
			defer once()
			connection, err := net.Dial("tcp", *target)
			if err != nil {
				log.Fatalf("cannot connect: %v", err)
			}
			defer connection.Close()
			reached := false
			err = be(connection, func() { reached = true; once() })
			if !reached {
				refused.Add(1)
				fmt.Printf("not held: %v\n", err)
			}
		}()
	}
	holding.Wait()
	fmt.Printf("holding %d\n", int64(*count)-refused.Load())
	done.Wait()
	fmt.Println("all ended")
}
