// Memory of one kind for each order: `heap N`, `cgo N`, in MiB. The answer is what Go says of itself.
package main

// #include <stdlib.h>
// #include <string.h>
// static void *take(size_t size) { void *block = malloc(size); memset(block, 1, size); return block; }
import "C"

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
)

var kept [][]byte

func obey(order string, size int) {
	const block = 16 << 10
	for got := 0; got < size; got += block {
		if order == "heap" {
			slice := make([]byte, block)
			for at := range slice {
				slice[at] = 1
			}
			kept = append(kept, slice)
		} else {
			C.take(block)
		}
	}
}

func main() {
	fmt.Println("ready")
	input := bufio.NewScanner(os.Stdin)
	for input.Scan() {
		var order string
		var number int
		if _, err := fmt.Sscan(input.Text(), &order, &number); err != nil {
			os.Exit(91)
		}
		obey(order, number<<20)
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		fmt.Printf("inuse %d\nidle %d\nreleased %d\nsys %d\nstacks %d\ndone\n",
			stats.HeapInuse, stats.HeapIdle, stats.HeapReleased, stats.Sys, stats.StackInuse)
	}
}
