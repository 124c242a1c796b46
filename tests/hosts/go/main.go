// A go-plugin host as AOG is one, on the library that AOG pins: it starts a plugin, does the steps that a test gives it
// as JSON on stdin, and prints what came back, one JSON line for each step. Its log goes to stderr.
package main

// The stub is made from our own .proto (with protoc-gen-go and protoc-gen-go-grpc in the path):
//go:generate python -m grpc_tools.protoc -I ../../../extensions/faces/aog/src/ovms_face_aog/protos --go_out=stub --go_opt=paths=source_relative,Maog_provider.proto=ovms-plugin/hosts/go/stub --go-grpc_out=stub --go-grpc_opt=paths=source_relative,Maog_provider.proto=ovms-plugin/hosts/go/stub aog_provider.proto

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"ovms-plugin/hosts/go/stub"
)

// step is one thing to do. Requests are messages of the rpc as protojson.
type step struct {
	Call     string            `json:"call"`
	Requests []json.RawMessage `json:"requests"`
	Until    string            `json:"until"`    // a session is over when a message holds this
	Count    int               `json:"count"`    // more than 0: do it that often and report times only
	Parallel int               `json:"parallel"` // by so many callers at once
	Seconds  float64           `json:"seconds"`  // deadline, 0 = none
}

type result struct {
	Call      string            `json:"call"`
	Responses []json.RawMessage `json:"responses,omitempty"`
	Error     string            `json:"error,omitempty"`
	Seconds   float64           `json:"seconds"`
	P50       float64           `json:"p50,omitempty"`
	First     float64           `json:"first,omitempty"`  // median seconds to the first message of a stream
	Events    int               `json:"events,omitempty"` // server-sent events in a stream's messages
	Exited    bool              `json:"exited,omitempty"`
	Pid       int               `json:"pid,omitempty"`
}

type provider struct {
	plugin.NetRPCUnsupportedPlugin
}

func (provider) GRPCServer(*plugin.GRPCBroker, *grpc.Server) error { return nil }

func (provider) GRPCClient(_ context.Context, _ *plugin.GRPCBroker, conn *grpc.ClientConn) (any, error) {
	return conn, nil
}

func main() {
	executable := os.Args[1]
	command := exec.Command(executable, os.Args[2:]...)
	command.Dir = filepath.Dir(filepath.Dir(executable))
	command.Env = []string{"AOG_VERSION=v0.7"}
	client := plugin.NewClient(&plugin.ClientConfig{
		HandshakeConfig: plugin.HandshakeConfig{
			ProtocolVersion: 1, MagicCookieKey: "AOG_PLUGIN", MagicCookieValue: "aog-provider-plugin-v1",
		},
		Plugins:          map[string]plugin.Plugin{"provider": provider{}},
		Cmd:              command,
		AllowedProtocols: []plugin.Protocol{plugin.ProtocolGRPC},
		Logger:           hclog.New(&hclog.LoggerOptions{Name: "host", Level: hclog.Debug, Output: os.Stderr, JSONFormat: true}),
		SyncStdout:       os.Stderr,
		SyncStderr:       os.Stderr,
	})
	began := time.Now()
	protocol, err := client.Client()
	if err != nil {
		report(result{Call: "start", Error: err.Error()})
		client.Kill()
		os.Exit(1)
	}
	seconds := time.Since(began).Seconds()
	raw, err := protocol.Dispense("provider")
	if err == nil {
		err = protocol.Ping()
	}
	if err != nil {
		report(result{Call: "ping", Error: err.Error()})
		client.Kill()
		os.Exit(1)
	}
	report(result{Call: "start", Seconds: seconds, Pid: command.Process.Pid})
	conn := raw.(*grpc.ClientConn)
	decoder := json.NewDecoder(os.Stdin)
	for {
		var next step
		if err := decoder.Decode(&next); err == io.EOF {
			break
		} else if err != nil {
			report(result{Call: "read", Error: err.Error()})
			break
		}
		if next.Count > 0 {
			report(measure(conn, next))
		} else {
			report(do(conn, next))
		}
	}
	began = time.Now()
	client.Kill()
	report(result{Call: "kill", Seconds: time.Since(began).Seconds(), Exited: client.Exited()})
}

func report(value result) {
	line, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	fmt.Println(string(line))
}

func messageOf(descriptor protoreflect.MessageDescriptor) proto.Message {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(descriptor.FullName())
	if err != nil {
		panic(err)
	}
	return kind.New().Interface()
}

func do(conn *grpc.ClientConn, next step) result {
	outcome := result{Call: next.Call}
	began := time.Now()
	responses, _, err := call(conn, next)
	outcome.Seconds = time.Since(began).Seconds()
	if err != nil {
		outcome.Error = err.Error()
	}
	for _, each := range responses {
		line, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(each)
		if err != nil {
			outcome.Error = err.Error()
		}
		outcome.Responses = append(outcome.Responses, line)
	}
	return outcome
}

// call does a step and returns what came back, and when the first of it did.
func call(conn *grpc.ClientConn, next step) ([]proto.Message, time.Time, error) {
	var first time.Time
	ctx, cancel := context.WithCancel(context.Background())
	if next.Seconds > 0 {
		ctx, cancel = context.WithTimeout(context.Background(), time.Duration(next.Seconds*float64(time.Second)))
	}
	defer cancel()
	service := stub.File_aog_provider_proto.Services().ByName("ProviderService")
	method := service.Methods().ByName(protoreflect.Name(next.Call))
	if method == nil {
		return nil, first, fmt.Errorf("there is no rpc %s", next.Call)
	}
	if len(next.Requests) == 0 {
		next.Requests = []json.RawMessage{json.RawMessage("{}")}
	}
	var requests []proto.Message
	for _, each := range next.Requests {
		request := messageOf(method.Input())
		if err := protojson.Unmarshal(each, request); err != nil {
			return nil, first, err
		}
		requests = append(requests, request)
	}
	path := fmt.Sprintf("/%s/%s", service.FullName(), next.Call)
	if !method.IsStreamingServer() {
		response := messageOf(method.Output())
		err := conn.Invoke(ctx, path, requests[0], response)
		return []proto.Message{response}, time.Now(), err
	}
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: method.IsStreamingClient()}, path)
	if err != nil {
		return nil, first, err
	}
	for _, each := range requests {
		if err := stream.SendMsg(each); err != nil {
			return nil, first, err
		}
	}
	// AOG never closes a session by itself; the test decides.
	if next.Until == "" {
		if err := stream.CloseSend(); err != nil {
			return nil, first, err
		}
	}
	var responses []proto.Message
	for {
		response := messageOf(method.Output())
		if err := stream.RecvMsg(response); err == io.EOF {
			return responses, first, nil
		} else if err != nil {
			return responses, first, err
		}
		if first.IsZero() {
			first = time.Now()
		}
		responses = append(responses, response)
		data := method.Output().Fields().ByName("data")
		if next.Until != "" && strings.Contains(string(response.ProtoReflect().Get(data).Bytes()), next.Until) {
			return responses, first, nil
		}
	}
}

// measure does one call very often and reports how long that took.
func measure(conn *grpc.ClientConn, next step) result {
	outcome := result{Call: next.Call}
	callers := max(next.Parallel, 1)
	var times, firsts []float64
	var lock sync.Mutex
	var group sync.WaitGroup
	began := time.Now()
	for number := range callers {
		group.Add(1)
		go func() {
			defer group.Done()
			for range (next.Count + number) / callers { // together Count
				start := time.Now()
				responses, first, err := call(conn, next)
				taken := time.Since(start).Seconds()
				lock.Lock()
				times = append(times, taken)
				firsts = append(firsts, first.Sub(start).Seconds())
				if err != nil {
					outcome.Error = err.Error()
				}
				for _, each := range responses {
					if problem, events := judge(each); problem != "" {
						outcome.Error = problem
					} else {
						outcome.Events += events
					}
				}
				lock.Unlock()
			}
		}()
	}
	group.Wait()
	outcome.Seconds = time.Since(began).Seconds()
	outcome.P50 = median(times)
	outcome.First = median(firsts)
	return outcome
}

// judge returns what is wrong with a response, or the number of events in it.
func judge(response proto.Message) (string, int) {
	message := response.ProtoReflect()
	fields := message.Descriptor().Fields()
	if code := fields.ByName("code"); code != nil {
		if value := message.Get(code).Int(); value != 0 && value != 200 {
			return message.Get(fields.ByName("message")).String(), 0
		}
	}
	if chunk := fields.ByName("chunk_data"); chunk != nil {
		return "", strings.Count(string(message.Get(chunk).Bytes()), "data: ")
	}
	return "", 0
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sort.Float64s(values)
	return values[len(values)/2]
}
