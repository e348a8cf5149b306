package main

import (
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// place is where one of the gateway's own servers listens.
type place struct {
	IP   string `json:"ip"`
	Port int32  `json:"port"`
}

// config is what of config.yaml other objects are made after.
type config struct {
	Apisix struct {
		NodeListen []int32 `json:"node_listen"`
		Ssl        struct {
			Enable bool    `json:"enable"`
			Listen []place `json:"listen"`
		} `json:"ssl"`
		Status      place  `json:"status"`
		EnableAdmin bool   `json:"enable_admin"`
		ProxyMode   string `json:"proxy_mode"`
		StreamProxy struct {
			TCP []struct {
				Addr string `json:"addr"`
			} `json:"tcp"`
			UDP []string `json:"udp"`
		} `json:"stream_proxy"`
	} `json:"apisix"`
	Nginx struct {
		ShutdownTimeout string    `json:"worker_shutdown_timeout"`
		HTTP            accessLog `json:"http"`
		Stream          accessLog `json:"stream"`
	} `json:"nginx_config"`
	Attributes struct {
		Prometheus struct {
			Enabled bool  `json:"enable_export_server"`
			Address place `json:"export_addr"`
		} `json:"prometheus"`
	} `json:"plugin_attr"`
	Deployment struct {
		Admin struct {
			Listen place `json:"admin_listen"`
		} `json:"admin"`
	} `json:"deployment"`
}

type accessLog struct {
	Path string `json:"access_log"`
}

// ofConfig holds config.yaml against the pod: whoever is led to a port finds the gateway there, and it has the time that it takes.
func (c *checker) ofConfig(text string) {
	var found config
	if err := yaml.Unmarshal([]byte(text), &found); err != nil {
		c.fault("config.yaml: %v", err)
		return
	}
	listened := c.listened(&found)
	var had []string
	for _, container := range c.workload.pod.Spec.Containers {
		for _, port := range container.Ports {
			had = append(had, named(port.ContainerPort, port.Protocol))
		}
		grace := c.workload.pod.Spec.TerminationGracePeriodSeconds
		drain, err := time.ParseDuration(found.Nginx.ShutdownTimeout)
		if err != nil || grace == nil || container.Lifecycle == nil || container.Lifecycle.PreStop.Sleep == nil ||
			*grace <= container.Lifecycle.PreStop.Sleep.Seconds+int64(drain.Seconds()) {
			c.fault("%s has not the time to drain for %s", container.Name, found.Nginx.ShutdownTimeout)
		}
	}
	slices.Sort(listened)
	slices.Sort(had)
	if listened = slices.Compact(listened); !slices.Equal(listened, had) {
		c.fault("config.yaml listens on %v, the pod has ports %v", listened, had)
	}
	for _, log := range []accessLog{found.Nginx.HTTP, found.Nginx.Stream} {
		if !strings.HasPrefix(log.Path, "/dev/") {
			c.fault("an access log is at %q, which is in the volume of the store", log.Path)
		}
	}
}

// listened are the ports that pods are asked at, and says which of the gateway's own servers are not at every address.
func (c *checker) listened(found *config) []string {
	var ports []string
	for _, port := range found.Apisix.NodeListen {
		ports = append(ports, named(port, core.ProtocolTCP))
	}
	if found.Apisix.Ssl.Enable {
		for _, listen := range found.Apisix.Ssl.Listen {
			ports = append(ports, named(listen.Port, core.ProtocolTCP))
		}
	}
	own := []place{found.Apisix.Status}
	if found.Apisix.EnableAdmin {
		own = append(own, found.Deployment.Admin.Listen)
	}
	if found.Attributes.Prometheus.Enabled {
		own = append(own, found.Attributes.Prometheus.Address)
	}
	for _, server := range own {
		ports = append(ports, named(server.Port, core.ProtocolTCP))
		if server.IP != "::" {
			c.fault("port %d is at %q: pods with addresses of the other family are not reached", server.Port, server.IP)
		}
	}
	streams := found.Apisix.StreamProxy
	if len(streams.TCP)+len(streams.UDP) > 0 && found.Apisix.ProxyMode != "http&stream" {
		c.fault("proxy_mode is %q beside streams", found.Apisix.ProxyMode)
	}
	for _, listen := range streams.TCP {
		ports = append(ports, c.streamed(listen.Addr, core.ProtocolTCP))
	}
	for _, listen := range streams.UDP {
		ports = append(ports, c.streamed(listen, core.ProtocolUDP))
	}
	return ports
}

func (c *checker) streamed(address string, protocol core.Protocol) string {
	_, port, err := net.SplitHostPort(address)
	number, wrong := strconv.Atoi(port)
	if err != nil || wrong != nil {
		c.fault("%q is no address of a stream", address)
	}
	return named(int32(number), protocol)
}

func named(port int32, protocol core.Protocol) string {
	if protocol == "" {
		protocol = core.ProtocolTCP
	}
	return strconv.Itoa(int(port)) + "/" + string(protocol)
}
