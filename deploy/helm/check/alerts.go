package main

import (
	"os"
	"regexp"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	core "k8s.io/api/core/v1"
)

var job = regexp.MustCompile(`\bjob="([^"]*)"`)

// ofAlerts says that the job by which the shipped alerts know gateways is that of what is scraped.
func (c *checker) ofAlerts(monitor *monitoring.ServiceMonitor, scraped *core.Service) {
	if c.rules == "" {
		return
	}
	text, err := os.ReadFile(c.rules)
	jobs := job.FindAllStringSubmatch(string(text), -1)
	if err != nil || len(jobs) == 0 {
		c.fault("%s has no job in it (%v)", c.rules, err)
	}
	// Prometheus Operator's rule: the label of the Service, or its name.
	its := scraped.Labels[monitor.Spec.JobLabel]
	if its == "" {
		its = scraped.Name
	}
	for _, asked := range jobs {
		if asked[1] != its {
			c.fault("ServiceMonitor/%s makes the job %q, and an alert asks for %q", monitor.Name, its, asked[1])
		}
	}
}
