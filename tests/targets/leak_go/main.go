// A Go program whose C code leaks: from goroutines, from callbacks out of C, on stacks that have moved, and on a
// thread that Go did not make. Each function named in the truth is the Go function that is to blame.
package main

// #include <stdlib.h>
// #include "leak.h"
import "C"

import (
	"fmt"
	"os"
	"strings"
	"sync"
)

const (
	goroutines = 4
	calls      = 100
)

// Keeps frames large, so that a few calls move the stack.
type padding [512]byte

//go:noinline
func deepen(depth int, work func()) byte {
	var room padding
	room[depth&511] = byte(depth)
	if depth > 0 {
		return deepen(depth-1, work) + room[depth&511]
	}
	work()
	return room[0]
}

//go:noinline
func leakDirectly() {
	C.malloc(100)
}

//go:noinline
func leakInFunction() {
	C.site_go_c(200)
}

type pool struct{ size C.size_t }

//go:noinline
func (p *pool) take() {
	C.site_go_c(p.size)
}

//go:noinline
func leakInMethod() {
	(&pool{size: 300}).take()
}

//go:noinline
func leakDeep() {
	C.site_go_c(400)
}

// The depth tells whose callback it is. Inlined, it would have no name in a stripped program.
//
//go:noinline
//export goCallback
func goCallback(depth C.int, size C.size_t) {
	deepen(int(depth), func() { leakInCallback(size) })
}

//go:noinline
func leakInCallback(size C.size_t) {
	C.site_go_c(size)
}

//go:noinline
func work() {
	leakDirectly()
	leakInFunction()
	leakInMethod()
	deepen(40, leakDeep)
	// The stack grows inside of the callback: C holds a frame pointer into the one that is no more.
	C.call_back(100, 500)
	C.call_back(0, 500)
}

func waitForLine() bool {
	var one [1]byte
	for {
		if n, err := os.Stdin.Read(one[:]); n != 1 || err != nil {
			return false
		}
		if one[0] == '\n' {
			return true
		}
	}
}

func main() {
	fmt.Println("ready")
	waitForLine()
	var group sync.WaitGroup
	for worker := 0; worker < goroutines; worker++ {
		group.Add(1)
		go func() {
			defer group.Done()
			for call := 0; call < calls; call++ {
				work()
			}
		}()
	}
	group.Wait()
	for call := 0; call < calls; call++ {
		if C.call_back_on_thread(20, 500) != 1 {
			fmt.Println("broken: no thread")
			os.Exit(91)
		}
	}
	// Two callbacks of each pass of each goroutine, and those of the threads.
	callbacks := 2*goroutines*calls + calls
	var sites []string
	for _, site := range []struct {
		name        string
		count, size int
	}{
		{"leakDirectly", goroutines * calls, 100},
		{"leakInFunction", goroutines * calls, 200},
		{"leakInMethod", goroutines * calls, 300},
		{"leakDeep", goroutines * calls, 400},
		{"leakInCallback", callbacks, 500},
	} {
		sites = append(sites, fmt.Sprintf(
			`{"function":"main.%s","outstanding_bytes":%d,"outstanding_count":%d,"allocated_bytes":%d,"allocated_count":%d}`,
			site.name, site.count*site.size, site.count, site.count*site.size, site.count))
	}
	fmt.Printf("truth {\"is_strict\":false,\"sites\":[%s]}\n", strings.Join(sites, ","))
	for waitForLine() {
	}
}
