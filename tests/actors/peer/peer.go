// One end of connections, in Go: the protocol is told in owners.py.
//
//	peer serve ADDRESS PORT | connect ADDRESS PORT | fd NUMBER
//
// And what fills a machine, for the test under load:
//
//	peer answer ADDRESS PORT                                 resets connections that send "r", closes those that send "c", keeps others
//	peer demand FROM ADDRESS PORT TIMES [SECONDS]            makes resets one after another, by turns its own and the peer's; lives on
//	peer noise FROM ADDRESS PORT RATE SECONDS                connections a second that end well
package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"time"
)

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func number(text string) int { return must(strconv.Atoi(text)) }

func hold(connection net.Conn) {
	defer connection.Close()
	lines := bufio.NewReader(connection)
	lines.ReadString('\n')
	fmt.Fprintf(connection, "%d\n", os.Getpid())
	if line, _ := lines.ReadString('\n'); line == "reset\n" {
		must(0, connection.(*net.TCPConn).SetLinger(0))
	}
}

// The client's byte says who resets; so it is accepted by then.
func answer(connection net.Conn) {
	defer connection.Close()
	word := make([]byte, 1)
	if _, err := io.ReadFull(connection, word); err != nil {
		return
	}
	if word[0] == 'r' {
		must(0, connection.(*net.TCPConn).SetLinger(0))
		return
	}
	if word[0] == 'c' {
		return
	}
	connection.Write(word)
	io.Copy(io.Discard, connection)
}

func serve(address, port string, use func(net.Conn)) {
	listener := must(net.Listen("tcp", net.JoinHostPort(address, port)))
	fmt.Println("ready")
	for {
		go use(must(listener.Accept()))
	}
}

func dial(from, address, port string) *net.TCPConn {
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	return must(dialer.Dial("tcp", net.JoinHostPort(address, port))).(*net.TCPConn)
}

func demand(from, address, port string, times int) {
	word := make([]byte, 1)
	for turn := range times {
		connection := dial(from, address, port)
		if turn%2 == 0 {
			connection.Write([]byte("r"))
			connection.Read(word)
		} else {
			connection.Write([]byte("k"))
			must(io.ReadFull(connection, word))
			must(0, connection.SetLinger(0))
		}
		connection.Close()
	}
}

func noise(from, address, port string, rate, seconds int) {
	var busy sync.WaitGroup
	made, start := 0, time.Now()
	for tick := range seconds * 100 {
		time.Sleep(time.Until(start.Add(time.Duration(tick) * 10 * time.Millisecond)))
		for range rate / 100 {
			made++
			busy.Go(func() {
				connection := dial(from, address, port)
				// The server closes first: TIME_WAIT is then its own, and no port is lost to the next connection.
				connection.Write([]byte("c"))
				io.Copy(io.Discard, connection)
				connection.Close()
			})
		}
	}
	busy.Wait()
	fmt.Printf("%d connections in %.3f s\n", made, time.Since(start).Seconds())
}

func main() {
	rest := os.Args[2:]
	switch os.Args[1] {
	case "serve":
		serve(rest[0], rest[1], hold)
	case "answer":
		serve(rest[0], rest[1], answer)
	case "connect":
		hold(must(net.Dial("tcp", net.JoinHostPort(rest[0], rest[1]))))
	case "fd":
		hold(must(net.FileConn(os.NewFile(uintptr(number(rest[0])), "connection"))))
	case "demand":
		demand(rest[0], rest[1], rest[2], number(rest[3]))
		if len(rest) > 4 {
			time.Sleep(time.Duration(number(rest[4])) * time.Second)
		}
	case "noise":
		noise(rest[0], rest[1], rest[2], number(rest[3]), number(rest[4]))
	}
}
