// A foreign client: what a program in Go gets out of a node, as one line of JSON.
//
//	client ADDRESS unary CALLERS SECONDS    Produce, one connection, each caller one call at a time
//	client ADDRESS stream SECONDS           ConsumeStream from offset 0, record by record
//
// Messages are encoded by hand: no generated code is needed to build it.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"sort"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// raw hands bytes through.
type raw struct{}

func (raw) Marshal(v interface{}) ([]byte, error) { return *v.(*[]byte), nil }
func (raw) Unmarshal(data []byte, v interface{}) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}
func (raw) Name() string { return "proto" }

func field(number byte, value []byte) []byte {
	head := append([]byte{number<<3 | 2}, binary.AppendUvarint(nil, uint64(len(value)))...)
	return append(head, value...)
}

func unary(connection *grpc.ClientConn, callers int, seconds float64) map[string]float64 {
	request := field(1, field(1, make([]byte, 100)))
	var group sync.WaitGroup
	latencies := make([][]float64, callers)
	begin := time.Now()
	end := begin.Add(time.Duration(seconds * 1e9))
	for caller := range latencies {
		group.Add(1)
		go func(own *[]float64) {
			defer group.Done()
			for time.Now().Before(end) {
				var answer []byte
				from := time.Now()
				err := connection.Invoke(context.Background(), "/log.v1.Log/Produce", &request, &answer)
				if err != nil {
					log.Fatal(err)
				}
				*own = append(*own, float64(time.Since(from).Microseconds())/1000)
			}
		}(&latencies[caller])
	}
	group.Wait()
	elapsed := time.Since(begin).Seconds()
	var all []float64
	for _, own := range latencies {
		all = append(all, own...)
	}
	sort.Float64s(all)
	return map[string]float64{
		"rate": float64(len(all)) / elapsed,
		"p50":  all[len(all)/2],
		"p99":  all[len(all)*99/100],
	}
}

func stream(connection *grpc.ClientConn, seconds float64) map[string]float64 {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(seconds*1e9))
	defer cancel()
	description := grpc.StreamDesc{ServerStreams: true}
	receiving, err := connection.NewStream(ctx, &description, "/log.v1.Log/ConsumeStream")
	if err != nil {
		log.Fatal(err)
	}
	request := []byte{}
	if err := receiving.SendMsg(&request); err != nil {
		log.Fatal(err)
	}
	if err := receiving.CloseSend(); err != nil {
		log.Fatal(err)
	}
	count := 0
	begin := time.Now()
	last := begin
	for {
		var answer []byte
		if receiving.RecvMsg(&answer) != nil {
			break
		}
		count++
		if count%100 == 0 {
			last = time.Now() // not the end: at the tail it waits for more
		}
	}
	return map[string]float64{"rate": float64(count) / last.Sub(begin).Seconds()}
}

func number(text string) float64 {
	value, err := strconv.ParseFloat(text, 64)
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func main() {
	if len(os.Args) < 4 {
		log.Fatal("client ADDRESS unary CALLERS SECONDS | stream SECONDS")
	}
	connection, err := grpc.Dial(
		os.Args[1],
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})),
	)
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	var found map[string]float64
	switch os.Args[2] {
	case "unary":
		unary(connection, 1, 0.05) // connects
		found = unary(connection, int(number(os.Args[3])), number(os.Args[4]))
	case "stream":
		found = stream(connection, number(os.Args[3]))
	default:
		log.Fatal("unary or stream")
	}
	text, err := json.Marshal(found)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(string(text))
}
