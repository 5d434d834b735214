// A Go program without C code: there is no malloc in it.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Println("ready")
	var one [1]byte
	for n := 1; n == 1; n, _ = os.Stdin.Read(one[:]) {
	}
}
