// Command check reads what `helm template` writes and holds it against Kubernetes' own types, and its parts against each other.
//
//	helm template NAME CHART | check -out FOLDER -given ConfigMap/a,Secret/b -alerts FILE
//
// Every object is decoded as the API server decodes it under strict field validation: unknown, repeated and wrongly typed fields are
// faults. Then selectors must select, ports and volumes that are named must be there, config.yaml must be of one mind with them, the
// alerts of FILE must ask for the job that is scraped, and pods must run as restricted as this project promises. Files of ConfigMaps
// are written to FOLDER.
package main

import (
	"bufio"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

func main() {
	out := flag.String("out", "", "folder that the files of ConfigMaps are written to")
	given := flag.String("given", "", "KIND/NAME of objects that are there already, with commas between")
	alerts := flag.String("alerts", "", "file of alerts that ask for the job of what is scraped")
	flag.Parse()
	objects, faults := read(os.Stdin)
	faults = append(faults, related(objects, strings.Split(*given, ","), *alerts)...)
	if *out != "" {
		faults = append(faults, write(objects, *out)...)
	}
	for _, fault := range faults {
		fmt.Fprintln(os.Stderr, fault)
	}
	if len(faults) > 0 {
		os.Exit(1)
	}
	fmt.Printf("%d objects\n", len(objects))
}

// read decodes a stream of documents.
func read(in io.Reader) ([]runtime.Object, []error) {
	if err := monitoring.AddToScheme(scheme.Scheme); err != nil {
		return nil, []error{err}
	}
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	documents := yaml.NewYAMLReader(bufio.NewReader(in))
	var objects []runtime.Object
	var faults []error
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return objects, append(faults, err)
		}
		if empty(document) {
			continue
		}
		object, kind, err := decoder.Decode(document, nil, nil)
		if err != nil {
			faults = append(faults, fmt.Errorf("%v: %w\n%s", kind, err, document))
			continue
		}
		objects = append(objects, object)
	}
	if len(objects) == 0 && len(faults) == 0 {
		faults = append(faults, errors.New("no objects"))
	}
	return objects, faults
}

// empty says whether a document is nothing but comments.
func empty(document []byte) bool {
	for _, line := range strings.Split(string(document), "\n") {
		line = strings.TrimSpace(line)
		if line != "" && line != "---" && !strings.HasPrefix(line, "#") {
			return false
		}
	}
	return true
}

// write puts the files of ConfigMaps into a folder, as they are mounted together.
func write(objects []runtime.Object, folder string) []error {
	for _, object := range objects {
		config, ok := object.(*core.ConfigMap)
		if !ok {
			continue
		}
		for name, text := range config.Data {
			if err := os.WriteFile(filepath.Join(folder, name), []byte(text), 0o644); err != nil {
				return []error{err}
			}
		}
	}
	return nil
}
