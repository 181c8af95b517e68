// A shop and its payment service. `main payment` has a fault that breaks a checkout of `main shop` by a TCP reset.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
)

const limit = 64 << 10

func main() {
	if len(os.Args) != 2 || (os.Args[1] != "shop" && os.Args[1] != "payment") {
		log.Fatal("usage: main shop|payment")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// Where to, and under which name, stands in OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_SERVICE_NAME.
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		log.Fatal(err)
	}
	provider := trace.NewTracerProvider(trace.WithBatcher(exporter))
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.TraceContext{})

	server := &http.Server{Addr: "127.0.0.1:8001", Handler: otelhttp.NewHandler(http.HandlerFunc(pay), "pay")}
	if os.Args[1] == "shop" {
		server = &http.Server{Addr: "127.0.0.1:8000", Handler: otelhttp.NewHandler(http.HandlerFunc(checkout), "checkout")}
	}
	go func() {
		<-ctx.Done()
		server.Shutdown(context.Background())
	}()
	if err := server.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
		log.Fatal(err)
	}
	provider.Shutdown(context.Background())
}

// checkout pays for a cart of as many bytes as the path says: /checkout/1000.
func checkout(writer http.ResponseWriter, request *http.Request) {
	size, err := strconv.Atoi(strings.TrimPrefix(request.URL.Path, "/checkout/"))
	if err != nil {
		http.Error(writer, "how large is the cart?", http.StatusBadRequest)
		return
	}
	cart := bytes.NewReader(make([]byte, size))
	call, err := http.NewRequestWithContext(request.Context(), http.MethodPost, "http://127.0.0.1:8001/pay", cart)
	if err != nil {
		http.Error(writer, err.Error(), http.StatusInternalServerError)
		return
	}
	client := http.Client{Transport: otelhttp.NewTransport(http.DefaultTransport)}
	answer, err := client.Do(call)
	if err != nil {
		http.Error(writer, "payment failed: "+err.Error(), http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	fmt.Fprintln(writer, "payment said", answer.StatusCode)
}

// pay has the fault: of a cart that is too large it reads the start and gives up. The connection is closed with the rest unread,
// and the kernel sends a reset. The fix: read to the end, answer 413.
func pay(writer http.ResponseWriter, request *http.Request) {
	io.CopyN(io.Discard, request.Body, limit)
	if request.ContentLength > limit {
		if connection, _, err := http.NewResponseController(writer).Hijack(); err == nil {
			connection.Close()
		}
		return
	}
	fmt.Fprintln(writer, "paid")
}
