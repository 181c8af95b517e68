package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
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

// callGRPC calls through a relay (`peer.py relay`) that breaks the connection.
func callGRPC(arguments []string) error {
	for _, name := range arguments[2:] {
		port, calls, service := arguments[0], 1, "slow"
		switch name {
		case "connection_refused":
			port = arguments[1]
		case "all_of_three":
			calls = 3
		case "idle":
			service = "fast"
		}
		connection, err := grpc.NewClient("127.0.0.1:"+port,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithStatsHandler(otelgrpc.NewClientHandler()))
		if err != nil {
			return err
		}
		client := grpc_health_v1.NewHealthClient(connection)
		var all sync.WaitGroup
		for range calls {
			all.Go(func() {
				ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
				defer cancel()
				if _, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service}); err != nil {
					fmt.Fprintln(os.Stderr, err)
				}
			})
		}
		all.Wait()
		time.Sleep(800 * time.Millisecond)
		_ = connection.Close()
	}
	return nil
}
