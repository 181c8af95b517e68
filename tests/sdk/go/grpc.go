package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
)

// health answers after a while.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
}

func (health) Check(ctx context.Context, request *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if request.Service == "slow" {
		select {
		case <-time.After(400 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}, nil
}

func serveGRPC(arguments []string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:"+arguments[0])
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.StatsHandler(otelgrpc.NewServerHandler()))
	grpc_health_v1.RegisterHealthServer(server, health{})
	ready()
	return server.Serve(listener)
}

func callGRPC(arguments []string) error {
	at, refused := "127.0.0.1:"+arguments[0], "127.0.0.1:"+arguments[1]
	for _, name := range arguments[2:] {
		switch name {
		case "connection_refused":
			// Left at once: a channel would try again, in no span.
			with(refused, func(client grpc_health_v1.HealthClient) { check(client, name, "") })
		case "unread":
			with(at, func(client grpc_health_v1.HealthClient) { check(client, name, strings.Repeat("x", 60_000)) })
		case "all_of_three":
			with(at, func(client grpc_health_v1.HealthClient) {
				together(3, func(int) { check(client, "all of three", "") })
			})
		case "third_of_five":
			with(at, func(client grpc_health_v1.HealthClient) {
				for _, each := range []string{"fast", "fast", "before third", "fast", "fast"} {
					check(client, each, "")
				}
			})
		case "one_of_eight":
			together(8, func(number int) {
				each := "slow"
				if number == 7 {
					each = "later eight"
				}
				with(at, func(client grpc_health_v1.HealthClient) { check(client, each, "") })
			})
		case "outside":
			together(2, func(number int) {
				if number == 0 {
					with(at, func(client grpc_health_v1.HealthClient) { check(client, "slow", "") })
				} else if connection, err := net.Dial("tcp", at); err == nil {
					fmt.Fprint(connection, "no preface of HTTP/2 at all")
					_, err = io.Copy(io.Discard, connection)
					fmt.Fprintln(os.Stderr, err)
				}
			})
		default:
			with(at, func(client grpc_health_v1.HealthClient) {
				check(client, name, "")
				time.Sleep(500 * time.Millisecond)
			})
		}
		time.Sleep(300 * time.Millisecond)
	}
	return nil
}

// with makes a channel for as long as it takes.
func with(target string, act func(grpc_health_v1.HealthClient)) {
	channel, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler()))
	if err != nil {
		panic(err)
	}
	act(grpc_health_v1.NewHealthClient(channel))
	_ = channel.Close()
}

func together(number int, act func(int)) {
	var all sync.WaitGroup
	for each := range number {
		all.Go(func() { act(each) })
	}
	all.Wait()
}

func check(client grpc_health_v1.HealthClient, name, service string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "case", name)
	if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service}); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}
