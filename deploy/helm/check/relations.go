package main

import (
	"fmt"
	"slices"

	monitoring "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	apps "k8s.io/api/apps/v1"
	autoscaling "k8s.io/api/autoscaling/v2"
	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	policy "k8s.io/api/policy/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// workload is what makes the pods: one Deployment or one StatefulSet.
type workload struct {
	kind, name string
	selector   *meta.LabelSelector
	pod        core.PodTemplateSpec
	claims     []core.PersistentVolumeClaim
	service    string
}

type checker struct {
	workload *workload
	there    []string
	services []*core.Service
	configs  []string
	rules    string
	faults   []error
}

// related holds objects against each other, and against the file of alerts.
func related(objects []runtime.Object, given []string, rules string) []error {
	c := checker{there: given, rules: rules}
	for _, object := range objects {
		c.collect(object)
	}
	if c.workload == nil {
		return append(c.faults, fmt.Errorf("neither a Deployment nor a StatefulSet"))
	}
	c.ofPod()
	for _, config := range c.configs {
		c.ofConfig(config)
	}
	for _, object := range objects {
		c.ofObject(object)
	}
	return c.faults
}

func (c *checker) fault(format string, arguments ...any) {
	c.faults = append(c.faults, fmt.Errorf(format, arguments...))
}

func (c *checker) collect(object runtime.Object) {
	kind := object.GetObjectKind().GroupVersionKind().Kind
	named, ok := object.(meta.Object)
	if !ok {
		c.fault("%s has no metadata", kind)
		return
	}
	name := kind + "/" + named.GetName()
	for _, wrong := range validation.IsDNS1123Label(named.GetName()) {
		c.fault("%s: %s", name, wrong)
	}
	if slices.Contains(c.there, name) {
		c.fault("%s is there twice", name)
	}
	c.there = append(c.there, name)
	var found *workload
	switch object := object.(type) {
	case *apps.Deployment:
		found = &workload{kind: kind, name: object.Name, selector: object.Spec.Selector, pod: object.Spec.Template}
	case *apps.StatefulSet:
		spec := object.Spec
		found = &workload{kind, object.Name, spec.Selector, spec.Template, spec.VolumeClaimTemplates, spec.ServiceName}
	case *core.Service:
		c.services = append(c.services, object)
	case *core.ConfigMap:
		c.configs = append(c.configs, object.Data["config.yaml"])
	}
	if found != nil && c.workload != nil {
		c.fault("%s beside %s", name, c.workload.name)
	}
	if found != nil {
		c.workload = found
	}
}

// needs says that an object of this kind and name must be there, or be given.
func (c *checker) needs(by, kind, name string) {
	if !slices.Contains(c.there, kind+"/"+name) {
		c.fault("%s names %s/%s, which is not there", by, kind, name)
	}
}

// selects says that this selector must select the pods.
func (c *checker) selects(by string, selector *meta.LabelSelector) {
	parsed, err := meta.LabelSelectorAsSelector(selector)
	if err != nil || parsed.Empty() || !parsed.Matches(labels.Set(c.workload.pod.Labels)) {
		c.fault("%s does not select the pods (%v)", by, err)
	}
}

// hasPort says that a container must have a port of this name or number.
func (c *checker) hasPort(by string, port intstr.IntOrString) {
	for _, container := range c.workload.pod.Spec.Containers {
		for _, its := range container.Ports {
			if its.Name == port.String() || its.ContainerPort == port.IntVal {
				return
			}
		}
	}
	c.fault("%s names port %s, which no container has", by, port.String())
}

func (c *checker) ofPod() {
	w, spec := c.workload, c.workload.pod.Spec
	c.selects(w.kind+"/"+w.name, w.selector)
	if w.service != "" {
		c.needs(w.name, "Service", w.service)
	}
	if spec.ServiceAccountName != "default" {
		c.needs(w.name, "ServiceAccount", spec.ServiceAccountName)
	}
	volumes := []string{}
	for _, claim := range w.claims {
		volumes = append(volumes, claim.Name)
	}
	for _, volume := range spec.Volumes {
		volumes = append(volumes, volume.Name)
		c.ofVolume(volume)
	}
	for _, container := range spec.Containers {
		for _, mount := range container.VolumeMounts {
			if !slices.Contains(volumes, mount.Name) {
				c.fault("%s mounts %s, which is no volume", container.Name, mount.Name)
			}
		}
		for _, variable := range container.Env {
			if variable.ValueFrom != nil && variable.ValueFrom.SecretKeyRef != nil {
				c.needs(variable.Name, "Secret", variable.ValueFrom.SecretKeyRef.Name)
			}
		}
		for what, probe := range map[string]*core.Probe{
			"startup": container.StartupProbe, "liveness": container.LivenessProbe, "readiness": container.ReadinessProbe,
		} {
			if probe == nil || probe.HTTPGet == nil {
				c.fault("%s has no %s probe", container.Name, what)
				continue
			}
			c.hasPort(what, probe.HTTPGet.Port)
		}
		c.restricted(container)
	}
}

func (c *checker) ofVolume(volume core.Volume) {
	if volume.ConfigMap != nil {
		c.needs(volume.Name, "ConfigMap", volume.ConfigMap.Name)
	}
	if volume.Secret != nil {
		c.needs(volume.Name, "Secret", volume.Secret.SecretName)
	}
	if volume.Projected != nil {
		for _, source := range volume.Projected.Sources {
			if source.ConfigMap != nil {
				c.needs(volume.Name, "ConfigMap", source.ConfigMap.Name)
			}
			if source.Secret != nil {
				c.needs(volume.Name, "Secret", source.Secret.Name)
			}
		}
	}
}

// restricted is Kubernetes' profile `restricted` of pod security, and a root file system that is read only beside it.
func (c *checker) restricted(container core.Container) {
	spec, pod := c.workload.pod.Spec, c.workload.pod.Spec.SecurityContext
	is := func(what string, right bool) {
		if !right {
			c.fault("%s: %s", container.Name, what)
		}
	}
	own := container.SecurityContext
	if pod == nil || own == nil {
		is("no security context", false)
		return
	}
	is("may run as root", pod.RunAsNonRoot != nil && *pod.RunAsNonRoot && pod.RunAsUser != nil && *pod.RunAsUser > 0)
	is("seccomp is not RuntimeDefault", pod.SeccompProfile != nil && pod.SeccompProfile.Type == core.SeccompProfileTypeRuntimeDefault)
	is("may gain privileges", own.AllowPrivilegeEscalation != nil && !*own.AllowPrivilegeEscalation)
	is("may write to its root", own.ReadOnlyRootFilesystem != nil && *own.ReadOnlyRootFilesystem)
	dropped := own.Capabilities != nil && slices.Equal(own.Capabilities.Drop, []core.Capability{"ALL"})
	is("keeps capabilities", dropped && len(own.Capabilities.Add) == 0)
	is("has a token of the API", spec.AutomountServiceAccountToken != nil && !*spec.AutomountServiceAccountToken)
	is("is not drained", container.Lifecycle != nil && container.Lifecycle.PreStop != nil)
}

func (c *checker) ofObject(object runtime.Object) {
	switch object := object.(type) {
	case *core.Service:
		c.selects("Service/"+object.Name, &meta.LabelSelector{MatchLabels: object.Spec.Selector})
		for _, port := range object.Spec.Ports {
			c.hasPort("Service/"+object.Name, port.TargetPort)
		}
	case *policy.PodDisruptionBudget:
		c.selects("PodDisruptionBudget/"+object.Name, object.Spec.Selector)
	case *networking.NetworkPolicy:
		c.selects("NetworkPolicy/"+object.Name, &object.Spec.PodSelector)
		for _, rule := range object.Spec.Ingress {
			for _, port := range rule.Ports {
				c.hasPort("NetworkPolicy/"+object.Name, *port.Port)
			}
		}
	case *autoscaling.HorizontalPodAutoscaler:
		c.needs("HorizontalPodAutoscaler", object.Spec.ScaleTargetRef.Kind, object.Spec.ScaleTargetRef.Name)
	case *monitoring.ServiceMonitor:
		c.ofMonitor(object)
	}
}

// ofMonitor says that exactly one Service is scraped, at ports that it has.
func (c *checker) ofMonitor(monitor *monitoring.ServiceMonitor) {
	selector, err := meta.LabelSelectorAsSelector(&monitor.Spec.Selector)
	if err != nil {
		c.fault("ServiceMonitor: %v", err)
		return
	}
	selected := slices.DeleteFunc(slices.Clone(c.services), func(service *core.Service) bool {
		return !selector.Matches(labels.Set(service.Labels))
	})
	if len(selected) != 1 {
		c.fault("ServiceMonitor/%s selects %d Services", monitor.Name, len(selected))
		return
	}
	for _, endpoint := range monitor.Spec.Endpoints {
		if !slices.ContainsFunc(selected[0].Spec.Ports, func(port core.ServicePort) bool { return port.Name == endpoint.Port }) {
			c.fault("ServiceMonitor/%s names port %s", monitor.Name, endpoint.Port)
		}
	}
	c.ofAlerts(monitor, selected[0])
}
