package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
)

func serveHTTP(arguments []string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /fast", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })
	mux.HandleFunc("GET /slow", func(w http.ResponseWriter, _ *http.Request) {
		time.Sleep(400 * time.Millisecond)
		fmt.Fprint(w, "ok")
	})
	mux.HandleFunc("POST /ignore", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "not wanted", http.StatusRequestEntityTooLarge)
	})
	mux.HandleFunc("GET /abort", func(w http.ResponseWriter, _ *http.Request) {
		connection, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		fmt.Fprint(connection, "HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\nxxx")
		time.Sleep(100 * time.Millisecond)
		abort(connection)
	})
	listener, err := net.Listen("tcp", "127.0.0.1:"+arguments[0])
	if err != nil {
		return err
	}
	ready()
	return http.Serve(listener, otelhttp.NewHandler(mux, "server"))
}

func abort(connection net.Conn) {
	if tcp, ok := connection.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0)
	}
	_ = connection.Close()
}

func callHTTP(arguments []string) error {
	base, refused := "http://127.0.0.1:"+arguments[0], "http://127.0.0.1:"+arguments[1]
	for _, name := range arguments[2:] {
		client := &http.Client{Transport: otelhttp.NewTransport(&http.Transport{})}
		switch name {
		case "connection_refused":
			get(client, refused+"/refused")
		case "unread":
			answer, err := client.Post(base+"/unread", "text/plain", bytes.NewReader(make([]byte, 4_000_000)))
			finish(answer, err)
		case "drip":
			drip(client, base+"/drip")
		case "third_of_five":
			for _, path := range []string{"fast", "fast", "before/third", "fast", "fast"} {
				get(client, base+"/"+path)
			}
		case "one_of_eight":
			var calls sync.WaitGroup
			for number := range 8 {
				path := "/slow"
				if number == 7 {
					path = "/later/eight"
				}
				calls.Go(func() { get(client, base+path) })
			}
			calls.Wait()
		case "outside":
			outside(client, base, arguments[0])
		default:
			get(client, base+"/"+name)
			time.Sleep(500 * time.Millisecond)
		}
		time.Sleep(300 * time.Millisecond)
		client.CloseIdleConnections()
	}
	return nil
}

func get(client *http.Client, url string) {
	finish(client.Get(url))
}

func finish(answer *http.Response, err error) {
	if err == nil {
		_, err = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// drip goes away in the middle of an answer: its context ends.
func drip(client *http.Client, url string) {
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		panic(err)
	}
	finish(client.Do(request))
}

// outside makes a connection in no span, while another has one.
func outside(client *http.Client, base, port string) {
	var other sync.WaitGroup
	other.Go(func() { get(client, base+"/slow") })
	if connection, err := net.Dial("tcp", "127.0.0.1:"+port); err == nil {
		fmt.Fprint(connection, "GET /before/outside HTTP/1.1\r\nHost: localhost\r\n\r\n")
		_, err = io.Copy(io.Discard, connection)
		fmt.Fprintln(os.Stderr, err)
	}
	other.Wait()
}
