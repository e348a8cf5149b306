//go:build tools

// Package tools names the programs whose versions go.mod fixes: versions that the Go of Debian 12 can build.
package tools

import _ "github.com/summerwind/h2spec/cmd/h2spec"
