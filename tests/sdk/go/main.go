// Programs of net/http with otelhttp and of gRPC with otelgrpc, as their documentation has them.
//
//	program http-server|grpc-server PORT
//	program http-client|grpc-client PORT REFUSED_PORT CASE...
//
// And for tests/bench: a backend that takes all, and a program that sends it.
//
//	program otlp-sink PORT [stall]
//	program otlp-load PORT logs|traces COUNT IN_FLIGHT
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
)

func main() {
	provider := start()
	roles := map[string]func([]string) error{
		"http-server": serveHTTP,
		"http-client": callHTTP,
		"grpc-server": serveGRPC,
		"grpc-client": callGRPC,
		"otlp-sink":   sinkOTLP,
		"otlp-load":   loadOTLP,
	}
	err := roles[os.Args[1]](os.Args[2:])
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if stopped := provider.Shutdown(ctx); err == nil {
		err = stopped
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// start sets the SDK up with its defaults: the environment says where to and by which protocol.
func start() *trace.TracerProvider {
	ctx := context.Background()
	var exporter trace.SpanExporter
	var err error
	if os.Getenv("OTEL_EXPORTER_OTLP_PROTOCOL") == "grpc" {
		exporter, err = otlptracegrpc.New(ctx)
	} else {
		exporter, err = otlptracehttp.New(ctx)
	}
	if err != nil {
		panic(err)
	}
	provider := trace.NewTracerProvider(trace.WithBatcher(exporter))
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	return provider
}

func ready() { fmt.Println(`{"ready": true}`) }
