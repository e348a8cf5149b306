//go:build tools

// Package main names the programs whose versions go.mod fixes.
package main

import _ "helm.sh/helm/v4/cmd/helm"
