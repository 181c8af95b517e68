package main

import (
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"sort"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	collectorlogs "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	collectortrace "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	perRequest = 512
	attributes = 20
	largest    = 64 << 20
)

// sinkOTLP takes everything, or with "stall" answers nothing.
func sinkOTLP(arguments []string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:"+arguments[0])
	if err != nil {
		return err
	}
	stall := len(arguments) > 1 && arguments[1] == "stall"
	server := grpc.NewServer(grpc.MaxRecvMsgSize(largest), grpc.ForceServerCodecV2(rawCodec{}),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
			var request []byte
			if err := stream.RecvMsg(&request); err != nil {
				return err
			}
			if stall {
				<-stream.Context().Done()
			}
			return stream.SendMsg(&[]byte{})
		}))
	ready()
	return server.Serve(listener)
}

// loadOTLP sends COUNT logs or spans, so many requests in flight, each span in a trace of its own, and prints how long
// the requests took.
//
//	otlp-load PORT logs|traces COUNT IN_FLIGHT
func loadOTLP(arguments []string) error {
	count, err := strconv.Atoi(arguments[2])
	if err != nil {
		return err
	}
	inFlight, err := strconv.Atoi(arguments[3])
	if err != nil {
		return err
	}
	connection, err := grpc.NewClient("127.0.0.1:"+arguments[0],
		grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	var left atomic.Int64
	left.Store(int64(count / perRequest))
	var failed atomic.Int64
	took := make([][]time.Duration, inFlight)
	var all sync.WaitGroup
	for worker := range inFlight {
		all.Go(func() {
			send := sender(connection, arguments[1] == "logs")
			for left.Add(-1) >= 0 {
				started := time.Now()
				if send() != nil {
					failed.Add(1)
				}
				took[worker] = append(took[worker], time.Since(started))
			}
		})
	}
	all.Wait()
	var each []time.Duration
	for _, worker := range took {
		each = append(each, worker...)
	}
	sort.Slice(each, func(a, b int) bool { return each[a] < each[b] })
	fmt.Printf("p50_us=%d p99_us=%d failed=%d\n", each[len(each)/2].Microseconds(),
		each[len(each)*99/100].Microseconds(), failed.Load())
	return nil
}

func sender(connection *grpc.ClientConn, isLogs bool) func() error {
	var some []*common.KeyValue
	for number := range attributes {
		value := &common.AnyValue{Value: &common.AnyValue_StringValue{StringValue: "the value of an attribute"}}
		some = append(some, &common.KeyValue{Key: fmt.Sprintf("attribute.%02d", number), Value: value})
	}
	ctx := context.Background()
	if isLogs {
		var records []*logs.LogRecord
		for range perRequest {
			records = append(records, &logs.LogRecord{TimeUnixNano: uint64(time.Now().UnixNano()), Attributes: some})
		}
		request := &collectorlogs.ExportLogsServiceRequest{ResourceLogs: []*logs.ResourceLogs{
			{ScopeLogs: []*logs.ScopeLogs{{LogRecords: records}}}}}
		client := collectorlogs.NewLogsServiceClient(connection)
		return func() error { _, err := client.Export(ctx, request); return err }
	}
	var spans []*trace.Span
	for range perRequest {
		now := uint64(time.Now().UnixNano())
		spans = append(spans, &trace.Span{Name: "GET /", Kind: trace.Span_SPAN_KIND_CLIENT, SpanId: make([]byte, 8),
			TraceId: make([]byte, 16), StartTimeUnixNano: now - 1_000_000, EndTimeUnixNano: now, Attributes: some})
	}
	request := &collectortrace.ExportTraceServiceRequest{ResourceSpans: []*trace.ResourceSpans{
		{ScopeSpans: []*trace.ScopeSpans{{Spans: spans}}}}}
	client := collectortrace.NewTraceServiceClient(connection)
	return func() error {
		for _, span := range spans {
			_, _ = rand.Read(span.TraceId)
			_, _ = rand.Read(span.SpanId)
		}
		_, err := client.Export(ctx, request)
		return err
	}
}
