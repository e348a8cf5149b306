#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashMap;

use super::*;

const STANDALONE: &str = "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}}\n";

fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let map: HashMap<String, String> =
        variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Config::parse(&format!("{STANDALONE}{text}"), "config.yaml", &EnvVars::Fixed(map))
        .map_err(|errors| errors.iter().map(ToString::to_string).collect())
}

fn parse(text: &str) -> Config {
    parse_with(text, &[]).unwrap()
}

fn parse_with_role(text: &str, variables: &[(&str, &str)]) -> Config {
    let map = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Config::parse(text, "config.yaml", &EnvVars::Fixed(map.collect())).unwrap()
}

fn only_error(text: &str) -> String {
    let errors = parse_with(text, &[]).unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:?}");
    errors.into_iter().next().unwrap()
}

fn addresses(listeners: &[ListenAddress]) -> Vec<String> {
    listeners
        .iter()
        .map(|l| format!("{}{}", l.address, if l.proxy_protocol { " proxy" } else { "" }))
        .collect()
}

#[test]
fn defaults_are_apisixs() {
    let config = parse("");
    assert_eq!(addresses(&config.http_listeners), ["0.0.0.0:9080", "[::]:9080"]);
    assert_eq!(addresses(&config.https_listeners), ["0.0.0.0:9443", "[::]:9443"]);
    assert_eq!(config.router, RouterKind::RadixtreeHostUri);
    assert_eq!(config.ssl.protocols, ["TLSv1.2", "TLSv1.3"]);
    assert_eq!(config.http.client_max_body_size, None);
    assert_eq!(config.http.upstream_keepalive.size, 320);
    assert_eq!(config.worker_shutdown_timeout, Duration::from_secs(240));
    assert_eq!(config.real_ip.from, ["127.0.0.1/32".parse().unwrap()]);
    assert_eq!(config.status.unwrap().to_string(), "127.0.0.1:7085");
    assert!(config.enable_http2 && config.enable_server_tokens && config.http.access_log.is_some());
    assert_eq!(
        (config.plugins, config.worker_processes, config.trusted_addresses),
        (EnabledPlugins::default(), None, None)
    );
    assert!(config.reports.is_empty());
}

/// The folder beside a config.yaml in /etc is one that a service may not write to: a gateway with an etcd kept nothing there.
#[test]
fn a_store_is_where_the_service_may_write() {
    let path = |text: &str, told: &[(&str, &str)]| {
        let config = parse_with_role(text, told);
        config.resources_path(Path::new("/etc/sixfold"), &EnvVars::Fixed(HashMap::new()))
    };
    let etcd = "deployment: {role: data_plane, role_data_plane: {config_provider: etcd}}\n";
    let told = [("STATE_DIRECTORY", "/var/lib/sixfold:/var/lib/other")];
    assert_eq!(
        path("deployment: {role: traditional}\n", &told),
        Path::new("/var/lib/sixfold/resources.redb")
    );
    assert_eq!(path(etcd, &told), Path::new("/var/lib/sixfold/etcd.redb"));
    assert_eq!(path(etcd, &[]), Path::new("/etc/sixfold/data/etcd.redb"));
    assert_eq!(path(etcd, &[("STATE_DIRECTORY", "")]), Path::new("/etc/sixfold/data/etcd.redb"));
    let named = "deployment: {role: traditional, embedded: {directory: kept}}\n";
    assert_eq!(path(named, &told), Path::new("/etc/sixfold/kept/resources.redb"));
}

#[test]
fn who_says_nothing_of_etcd_has_the_embedded_store() {
    let provider = |text: &str| {
        let config = Config::parse(text, "config.yaml", &EnvVars::Fixed(HashMap::new())).unwrap();
        assert!(config.admin.is_some(), "{text}");
        (config.deployment.provider, config.resources_path(Path::new("conf"), &EnvVars::Process))
    };
    let embedded = (Provider::Embedded, PathBuf::from("conf/data/resources.redb"));
    for text in
        ["", "# nothing\n", "deployment: {role: traditional}\n", "deployment: {admin: {allow_admin: []}}\n"]
    {
        assert_eq!(provider(text), embedded, "{text}");
    }
    let text =
        "deployment: {role_traditional: {config_provider: embedded}, embedded: {directory: /var/lib/s}}\n";
    assert_eq!(provider(text), (Provider::Embedded, PathBuf::from("/var/lib/s/resources.redb")));
    for text in [
        "deployment: {etcd: {host: ['http://127.0.0.1:2379']}}\n",
        "deployment: {role_traditional: {config_provider: etcd}}\n",
    ] {
        assert_eq!(provider(text), (Provider::Etcd, PathBuf::from("conf/data/etcd.redb")));
    }
}

/// What is wrong with each key is told at its place, and none of them is passed over.
#[test]
fn the_etcd_has_apisixs_settings() {
    let etcd = |text: &str, vars: &[(&str, &str)]| {
        let vars = vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let text =
            format!("deployment: {{role: data_plane, role_data_plane: {{config_provider: etcd}}, {text}}}\n");
        let config = Config::parse(&text, "config.yaml", &EnvVars::Fixed(vars));
        config.map(|config| (config.deployment.etcd.unwrap(), config.admin.is_some(), config.reports.len()))
    };
    let (default, has_admin, reports) = etcd("etcd: {}", &[]).unwrap();
    assert_eq!(
        (default.hosts[0].to_string().as_str(), default.prefix.as_str()),
        ("http://127.0.0.1:2379", "/apisix")
    );
    let seconds = |etcd: &EtcdConfig| {
        [etcd.timeout, etcd.watch_timeout, etcd.resync_delay, etcd.health_check_timeout]
            .map(|time| time.as_secs())
    };
    assert_eq!((seconds(&default), default.startup_retry, default.tls.verify), ([30, 50, 5, 10], 2, true));
    assert_eq!((has_admin, reports), (false, 0));
    let text = "etcd: {host: ['http://a:1', 'https://b'], prefix: /x/, timeout: 1, watch_timeout: 2, resync_delay: 0, \
                health_check_timeout: 4, startup_retry: 0, user: u, password: p, tls: {cert: c, key: k, verify: false, sni: s}}";
    let (read, ..) = etcd(text, &[]).unwrap();
    assert_eq!((seconds(&read), read.startup_retry, read.prefix.as_str()), ([1, 2, 0, 4], 0, "/x"));
    assert_eq!(
        read.hosts.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["http://a:1", "https://b:2379"]
    );
    let user = read.user.unwrap();
    assert_eq!((user.name.as_str(), user.password.as_str()), ("u", "p"));
    assert!(!format!("{user:?}").contains("\"p\""));
    let tls = EtcdTls { identity: Some(("c".into(), "k".into())), verify: false, sni: Some("s".to_owned()) };
    assert_eq!(read.tls, tls);
    let hosts = r#"["http://c:3"]"#;
    let (read, ..) = etcd("etcd: {host: ['http://a:1']}", &[("APISIX_DEPLOYMENT_ETCD_HOST", hosts)]).unwrap();
    assert_eq!(read.hosts[0].to_string(), "http://c:3");
    for (text, field) in [
        ("etcd: {host: ['a:1']}", "host[0]"),
        ("etcd: {host: []}", "host"),
        ("etcd: {timeout: 0}", "timeout"),
        ("etcd: {watch_timeout: x}", "watch_timeout"),
        ("etcd: {startup_retry: -1}", "startup_retry"),
        ("etcd: {password: p}", "password"),
        ("etcd: {tls: {cert: c}}", "tls.cert"),
        ("etcd: {tls: {key: k}}", "tls.key"),
    ] {
        let error = etcd(text, &[]).unwrap_err()[0].to_string();
        assert!(error.starts_with("config.yaml:1:"), "{error}");
        assert!(error.contains(&format!(" deployment.etcd.{field}: ")), "{error}");
    }
    let error = etcd("etcd: {}", &[("APISIX_DEPLOYMENT_ETCD_HOST", "http://c:3")]).unwrap_err();
    assert!(error[0].to_string().contains("APISIX_DEPLOYMENT_ETCD_HOST"), "{error:?}");
}

#[test]
fn a_control_plane_has_an_etcd_and_serves_no_traffic() {
    let parse = |text: &str| Config::parse(text, "config.yaml", &EnvVars::Fixed(HashMap::new()));
    let config = parse("apisix: {enable_admin: false}\ndeployment: {role: control_plane}\n").unwrap();
    assert_eq!(config.deployment.provider, Provider::Etcd);
    assert!(config.admin.is_some() && config.http_listeners.is_empty() && config.https_listeners.is_empty());
    // Where etcd is not used what is said of it is reported.
    let text = "deployment: {role: data_plane, role_data_plane: {config_provider: yaml}, etcd: {host: []}}\n";
    assert_eq!(parse(text).unwrap().reports[0].field.as_deref(), Some("deployment.etcd"));
}

/// The place was that of the default, in a file that the user does not have.
#[test]
fn a_default_that_is_not_supported_is_told_at_the_users_key() {
    let text = "apisix: {node_listen: 9080}\n\ndeployment:\n  role: control_plane\n  role_control_plane: {config_provider: yaml}\n";
    let errors = Config::parse(text, "config.yaml", &EnvVars::Fixed(HashMap::new())).unwrap_err();
    let error = errors[0].to_string();
    assert!(error.starts_with("config.yaml:5:"), "{error}");
    assert!(error.contains("role_data_plane: {config_provider: yaml}"), "{error}");
}

#[test]
fn the_admin_api_has_apisixs_settings() {
    let text = "deployment:
  admin:
    admin_key: [{name: a, key: k, role: admin}, {name: v, key: w, role: viewer}, {name: n, key: '', role: admin}]
    admin_listen: {ip: 0.0.0.0, port: 9181}
    allow_admin: [10.0.0.0/8]
    https_admin: true
    admin_api_mtls: {admin_ssl_cert: c.pem, admin_ssl_cert_key: k.pem, admin_ssl_ca_cert: ''}
";
    let parse = |text: &str| Config::parse(text, "config.yaml", &EnvVars::Fixed(HashMap::new()));
    let admin = parse(text).unwrap().admin.unwrap();
    assert_eq!(admin.address.to_string(), "0.0.0.0:9181");
    assert_eq!(
        admin.keys.iter().map(|key| (&*key.key, key.role)).collect::<Vec<_>>(),
        [("k", AdminRole::Admin), ("w", AdminRole::Viewer)]
    );
    let tls = admin.tls.unwrap();
    assert_eq!((tls.certificate, tls.key, tls.authority), ("c.pem".into(), "k.pem".into(), None));
    assert_eq!(admin.allow.unwrap().len(), 1);
    // By default: on this machine alone, and nobody has a key that others know.
    let admin = parse("").unwrap().admin.unwrap();
    assert_eq!((admin.address.to_string().as_str(), admin.keys.len()), ("127.0.0.1:9180", 0));
    assert!(admin.key_required && admin.cors && admin.tls.is_none() && !admin.stream);
    assert_eq!(parse("apisix: {enable_admin: false}").unwrap().admin, None);
    assert_eq!(parse("deployment: {admin: {allow_admin: null}}").unwrap().admin.unwrap().allow, None);
    let errors =
        parse("deployment: {admin: {https_admin: true, admin_api_version: v2, admin_key: x}}").unwrap_err();
    assert_eq!(errors.len(), 2, "{errors:?}");
    let known =
        "deployment: {admin: {admin_key: [{name: a, role: admin, key: edd1c9f034335f136f87ad84b625c8f1}]}}";
    assert!(parse(known).unwrap().reports[0].reason.starts_with("everybody knows this key"));
    // The viewer's was not warned of.
    let viewer = known.replace("edd1c9f034335f136f87ad84b625c8f1", "4054f7cf07e344346cd3f287985e76a2");
    assert!(parse(&viewer).unwrap().reports[0].reason.starts_with("everybody knows this key"));
    // Whoever was let in was refused the connection, and nothing told why.
    let reports = |text: &str| parse(text).unwrap().reports.len();
    for (allow, listen, told) in [
        ("[0.0.0.0/0]", "", 1),
        ("[127.0.0.0/24, 10.0.0.0/8]", "", 1),
        ("[127.0.0.0/24]", "", 0),
        ("[0.0.0.0/0]", ", admin_listen: {ip: 0.0.0.0}", 0),
    ] {
        let text = format!("deployment: {{admin: {{allow_admin: {allow}{listen}}}}}");
        assert_eq!(reports(&text), told, "{text}");
    }
}

#[test]
fn every_fault_is_listed_at_once() {
    let text =
        "apisix: {enable_ipv6: 'yes', proxy_mode: udp, node_listen: [{port: 70000}]}\ndiscovery: {dns: {}}\n";
    let errors = parse_with(text, &[]).unwrap_err();
    assert_eq!(errors.len(), 3, "{errors:?}");
}

#[test]
fn streams_come_in_where_apisix_says() {
    let text = "apisix:
  proxy_mode: http&stream
  proxy_protocol: {enable_tcp_pp: true}
  stream_proxy:
    tcp:
      - 9100
      - 127.0.0.1:9101
      - {addr: '[::1]:9102-9103', tls: true, proxy_protocol: false, proxy_protocol_to_upstream: true}
      - unix:/run/a.sock
    udp: ['*:9200', 127.0.0.1:9201]
stream_plugins: [ip-restriction]
";
    let config = parse(text);
    let shown = |listens: &[StreamListen]| -> Vec<String> {
        let flags = |l: &StreamListen| {
            [(l.tls, " tls"), (l.proxy_protocol, " in"), (l.proxy_protocol_to_upstream, " out")]
        };
        let flags = |l: &StreamListen| flags(l).into_iter().filter(|f| f.0).map(|f| f.1).collect::<String>();
        listens.iter().map(|l| format!("{} {}{}", l.key(), l.address, flags(l))).collect()
    };
    assert_eq!(
        shown(&config.stream_proxy.tcp),
        [
            "apisix.stream_proxy.tcp[0] 0.0.0.0:9100 in",
            "apisix.stream_proxy.tcp[1] 127.0.0.1:9101 in",
            "apisix.stream_proxy.tcp[2] [::1]:9102 tls out",
            "apisix.stream_proxy.tcp[2] [::1]:9103 tls out",
            "apisix.stream_proxy.tcp[3] /run/a.sock in",
        ]
    );
    assert_eq!(
        shown(&config.stream_proxy.udp),
        ["apisix.stream_proxy.udp[0] 0.0.0.0:9200", "apisix.stream_proxy.udp[1] 127.0.0.1:9201"]
    );
    assert_eq!(config.plugins.streams, Some(PluginNames::from_iter(["ip-restriction"])));
    assert!(!config.http_listeners.is_empty() && config.proxy_mode.has_streams());
    // Of a mode without HTTP nothing listens for it; a mode without streams does not look at theirs.
    let config = parse("apisix: {proxy_mode: stream, stream_proxy: {udp: [53]}}");
    assert!(config.http_listeners.is_empty() && config.https_listeners.is_empty());
    let config = parse("apisix: {stream_proxy: {tcp: [9100]}}");
    assert!(config.stream_proxy.is_empty());
    assert!(
        config.reports[0]
            .to_string()
            .contains("apisix.stream_proxy: has no effect: apisix.proxy_mode is http")
    );
    let streams = "apisix:\n  proxy_mode: http&stream\n  stream_proxy:\n    ";
    for (text, said) in [
        ("tcp: [x]", "config.yaml:5:11: apisix.stream_proxy.tcp[0]: expected a port, a range"),
        ("udp: [{addr: 1}]", "apisix.stream_proxy.udp[0]: expected a port, a range"),
        ("tcp: [{adr: 1}]", "apisix.stream_proxy.tcp[0]: addr is required"),
        ("tcp: [9110-9100]", "found \"9110-9100\""),
        ("tcp: 9100", "apisix.stream_proxy.tcp: expected a list"),
        (
            "tcp: [9080]",
            "tcp[0]: can't listen on 0.0.0.0:9080: apisix.node_listen[0] (by default) listens on",
        ),
        ("tcp: [9100, 9100-9101]", "tcp[1]: 0.0.0.0:9100 is given twice"),
        (
            "tcp: [9091]",
            "tcp[0]: can't listen on 0.0.0.0:9091: plugin_attr.prometheus.export_addr (by default)",
        ),
    ] {
        let error = only_error(&format!("{streams}{text}\n"));
        assert!(error.contains(said), "{error}");
    }
    assert!(
        only_error("apisix: {proxy_mode: tcp}")
            .contains("expected http, stream or http&stream, found \"tcp\"")
    );
}

#[test]
fn the_charset_is_that_of_the_file() {
    assert_eq!(parse("").http.charset.as_deref(), Some("utf-8"));
    for off in ["'off'", "off", "false"] {
        assert_eq!(parse(&format!("nginx_config: {{http: {{charset: {off}}}}}")).http.charset, None);
    }
    assert_eq!(parse("nginx_config: {http: {charset: koi8-r}}").http.charset.as_deref(), Some("koi8-r"));
    assert!(only_error("nginx_config: {http: {charset: 'a b'}}").contains("the name of a charset"));
}

#[test]
fn listeners_in_every_form() {
    let config = parse("apisix: {node_listen: 80, enable_ipv6: false, ssl: {enable: false}}");
    assert_eq!(addresses(&config.http_listeners), ["0.0.0.0:80"]);
    assert!(config.https_listeners.is_empty());
    let config = parse(
        "apisix:\n  node_listen:\n    - 9080\n    - {ip: 127.0.0.2, port: 9081}\n    - {ip: '::1'}\n  \
         enable_ipv6: false\n  proxy_protocol: {listen_http_port: 9181, listen_https_port: 9182}\n",
    );
    assert_eq!(
        addresses(&config.http_listeners),
        ["0.0.0.0:9080", "127.0.0.2:9081", "[::1]:9080", "0.0.0.0:9181 proxy"]
    );
    assert_eq!(addresses(&config.https_listeners), ["0.0.0.0:9443", "0.0.0.0:9182 proxy"]);
    assert_eq!(
        only_error("apisix:\n  node_listen:\n    - {port: 70000}\n"),
        "config.yaml:4:14: apisix.node_listen[0].port: expected a port, found 70000"
    );
    assert!(only_error("apisix: {ssl: {listen: [{port: 1, enable_http3: true}]}}").contains("HTTP/3"));
    // As APISIX, which ignores it.
    let config = parse("apisix: {node_listen: [{prot: 1, ip: 127.0.0.1}]}");
    assert_eq!(addresses(&config.http_listeners), ["127.0.0.1:9080"]);
    assert!(
        config.reports[0].to_string().ends_with("node_listen[0].prot: unknown field; did you mean \"port\"?")
    );
}

#[test]
fn arrays_replace_null_deletes_and_types_hold() {
    let config = parse("apisix: {status: ~}\nnginx_config: {http: {real_ip_from: [10.0.0.0/8, 'unix:']}}");
    assert_eq!(config.status, None);
    assert_eq!(config.real_ip.from, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(parse("apisix: {router: {http: ~}}").router, RouterKind::RadixtreeUri);
    assert_eq!(
        only_error("apisix:\n  enable_ipv6: 'yes'\n"),
        "config.yaml:3:16: apisix.enable_ipv6: failed to merge, path[apisix->enable_ipv6] expect: boolean, but got: string"
    );
    // nginx_config may hold numbers for strings and the reverse.
    let config =
        parse("nginx_config: {worker_processes: 2, http: {keepalive_timeout: 75, client_max_body_size: 8m}}");
    assert_eq!(config.worker_processes, Some(2));
    assert_eq!(config.http.keepalive_timeout, Duration::from_secs(75));
    assert_eq!(config.http.client_max_body_size, Some(8 << 20));
}

/// They were refused; APISIX ignores them, and nearly half of the files in the field have some.
#[test]
fn unknown_keys_are_reported_with_the_nearest() {
    let only_report = |text: &str| {
        let reports = parse(text).reports;
        assert_eq!(reports.len(), 1, "{reports:?}");
        reports[0].to_string()
    };
    assert_eq!(
        only_report("apisix:\n  node_listne: 80\n"),
        "config.yaml:3:3: apisix.node_listne: unknown field; did you mean \"node_listen\"?"
    );
    assert_eq!(
        only_report("apisix: {enable_ipv6: false, enable_ipv6: true}"),
        "config.yaml:2:30: apisix.enable_ipv6: duplicate key, first given at 2:10: the last one counts"
    );
    assert!(only_report("nginx_conf: {}").contains("did you mean \"nginx_config\"?"));
    assert!(
        only_report("nginx_config: {http: {upstream: {keepalives: 1}}}")
            .contains("did you mean \"keepalive\"?")
    );
}

#[test]
fn what_would_be_ignored_to_harm_is_refused() {
    for (text, key) in [
        ("apisix: {lua_module_hook: x}", "apisix.lua_module_hook"),
        ("apisix: {ssl: {ssl_ciphers: AES128-SHA}}", "apisix.ssl.ssl_ciphers"),
        ("apisix: {ssl: {ssl_protocols: TLSv1.1}}", "apisix.ssl.ssl_protocols"),
        ("nginx_config: {http_configuration_snippet: 'x on;'}", "nginx_config.http_configuration_snippet"),
    ] {
        let error = only_error(text);
        assert!(error.contains(key) && error.contains("not supported"), "{error}");
    }
    // The default, and nothing, are no requests.
    let config = parse("apisix: {proxy_mode: http, extra_lua_path: ''}\ndiscovery: {}\n");
    assert!(config.reports.is_empty());
}

#[test]
fn of_tls_what_there_is_remains() {
    let config = parse(
        "apisix: {ssl: {ssl_protocols: TLSv1.1 TLSv1.2, ssl_ciphers: 'AES128-SHA:ECDHE-RSA-AES128-GCM-SHA256'}}\n",
    );
    assert_eq!(config.ssl.protocols, ["TLSv1.2"]);
    assert_eq!(config.ssl.ciphers, ["ECDHE-RSA-AES128-GCM-SHA256"]);
    let told: Vec<_> = config.reports.iter().map(ToString::to_string).collect();
    assert!(told.len() == 2 && told[0].contains("TLSv1.1 is left out"), "{told:?}");
}

#[test]
fn what_has_no_effect_is_reported() {
    let config = parse(
        "apisix: {lru: {secret: {ttl: 1}}, ssl: {ssl_session_tickets: true}}\n\
         graphql: {max_size: 7}\ndiscovery: {dns: {servers: ['1.1.1.1']}, nacos: {host: ['http://a']}}\n",
    );
    let fields: Vec<_> = config.reports.iter().map(|report| report.field.clone().unwrap()).collect();
    assert_eq!(fields, ["apisix.lru", "apisix.ssl.ssl_session_tickets", "discovery.nacos"]);
    let limits = |text: &str| {
        let config = parse(text);
        (config.body_limits.fields, config.body_limits.graphql)
    };
    assert_eq!(limits(""), (64 << 20, 1 << 20));
    assert_eq!(limits("graphql: {max_size: 7}\napisix: {max_post_args_readable_size: 0}"), (usize::MAX, 7));
    assert_eq!(limits("apisix: {max_post_args_readable_size: 2}").0, 2 << 20);
}

#[test]
fn keys_of_what_is_kept_encrypted() {
    let of = |text: &str| parse(&format!("apisix: {{data_encryption: {text}}}")).data_encryption;
    let default = of("{}");
    assert!(default.enable_encrypt_fields);
    assert_eq!(*default.keyring, Keyring::new(["qeddd145sfvddff3", "edd1c9f0985e76a2"]).unwrap());
    let one = of("{enable_encrypt_fields: false, keyring: edd1c9f0985e76a2}");
    assert_eq!(
        one,
        DataEncryption {
            enable_encrypt_fields: false,
            keyring: Arc::new(Keyring::new(["edd1c9f0985e76a2"]).unwrap()),
        }
    );
    assert_eq!(*of("{keyring: ~}").keyring, Keyring::default());
    let error = only_error("apisix: {data_encryption: {keyring: [abc]}}");
    assert!(error.contains("keyring") && error.contains("16 or 32 bytes, and not 3"), "{error}");
}

#[test]
fn variables_are_replaced_in_values_and_keys() {
    let variables = [("PORT", "9090"), ("ON", "false"), ("NAME", "prometheus"), ("SNI", "a.b")];
    let text = "apisix: {node_listen: '${{ PORT }}', enable_http2: \"${{ON}}\", ssl: {fallback_sni: 'x.${{SNI}}'}}\n\
                plugin_attr: {'${{NAME}}': {export_addr: {port: '${{NONE:= 7 }}'}}}\n";
    let config = parse_with(text, &variables).unwrap();
    assert_eq!(config.http_listeners[0].address.port(), 9090);
    assert!(!config.enable_http2);
    assert_eq!(config.ssl.fallback_sni.as_deref(), Some("x.a.b"));
    assert_eq!(config.plugin_attr["prometheus"]["export_addr"]["port"], 7);
    let errors = parse_with("apisix: {id: '${{MISSING}}'}", &[]).unwrap_err();
    assert_eq!(
        errors,
        [
            "config.yaml:2:14: apisix.id: failed to handle configuration: can't find environment variable MISSING"
        ]
    );
}

#[test]
fn what_only_looks_like_a_variable_stays() {
    let environment = EnvVars::Fixed(HashMap::from([("A".to_owned(), "1".to_owned())]));
    for text in ["${{", "${{}}", "${{A", "${{a b}}", "$A ${A}", ""] {
        assert_eq!(substitute_text(text, &environment).unwrap(), text);
    }
    assert_eq!(substitute_text("${{ x y }} ${{A}}${{B:=}}", &environment).unwrap(), "${{ x y }} 1");
}

/// A password of digits, which a Secret may hold, kept a gateway from starting.
#[test]
fn a_field_of_text_takes_that_of_a_variable_whatever_it_looks_like() {
    let text = "deployment: {role: control_plane, etcd: {user: u, password: '${{P}}'}, admin: {admin_key: [{name: '${{P}}', \
                key: '${{P}}', role: admin}]}}\napisix: {ssl: {ssl_trusted_certificate: '${{P}}'}, data_encryption: {keyring: \
                ['${{K}}']}}\nnginx_config: {http: {access_log_format: '${{P}}', keepalive_timeout: '${{N}}'}}\n";
    for value in ["20261130", "0012345678", "1e10", "true", "-0", "7.50"] {
        let config = parse_with_role(text, &[("P", value), ("K", "0000000000000001"), ("N", "7")]);
        assert_eq!(config.deployment.etcd.unwrap().user.unwrap().password, value);
        let keys = config.admin.unwrap().keys;
        assert_eq!(keys.iter().map(|key| (&*key.name, &*key.key)).collect::<Vec<_>>(), [(value, value)]);
        assert_eq!(config.ssl.trusted_certificate, value);
        assert_eq!(*config.data_encryption.keyring, Keyring::new(["0000000000000001"]).unwrap());
        assert_eq!(config.http.access_log.unwrap().format, value);
        assert_eq!(config.http.keepalive_timeout, Duration::from_secs(7));
    }
    // What somebody wrote as a number is one.
    assert!(only_error("apisix: {ssl: {fallback_sni: 7}}").contains("expected a string, found 7"));
}

#[test]
fn workers_can_be_set_from_outside() {
    assert_eq!(parse_with("", &[("APISIX_WORKER_PROCESSES", "3")]).unwrap().worker_processes, Some(3));
    assert!(parse_with("", &[("APISIX_WORKER_PROCESSES", "x")]).is_err());
    assert_eq!(parse("apisix: {enable_dev_mode: true}").worker_processes, Some(1));
}

#[test]
fn a_profile_chooses_its_files() {
    let environment = EnvVars::Fixed(HashMap::from([("APISIX_PROFILE".to_owned(), "dev".to_owned())]));
    let directory = Path::new("conf");
    assert_eq!(config_path(directory, &environment), Path::new("conf/config-dev.yaml"));
    assert_eq!(parse("").resources_path(directory, &environment), Path::new("conf/apisix-dev.yaml"));
    let none = EnvVars::Fixed(HashMap::new());
    assert_eq!(parse("").resources_path(directory, &none), Path::new("conf/apisix.yaml"));
}

#[test]
fn times_and_sizes_are_nginxs() {
    let config =
        parse("nginx_config: {worker_shutdown_timeout: 1h30m, http: {client_header_timeout: 500ms}}");
    assert_eq!(config.worker_shutdown_timeout, Duration::from_secs(5400));
    assert_eq!(config.http.client_header_timeout, Duration::from_millis(500));
    assert!(
        only_error("nginx_config: {http: {keepalive_timeout: 5x}}")
            .contains("expected a time such as 60s, found \"5x\"")
    );
    assert!(
        only_error("nginx_config: {http: {client_max_body_size: '99999999999999999999g'}}")
            .contains("a size")
    );
}

/// Faults that show later were reported without a place, or as those of apisix.yaml.
#[test]
fn faults_found_later_name_the_line_of_their_key() {
    let text = "deployment:\n  role: data_plane\n  role_data_plane: {config_provider: yaml}\n\
                apisix:\n  node_listen:\n    - 9080\n    - {port: 9081}\n  status: null\n";
    let config = Config::parse(text, "config.yaml", &EnvVars::Process).unwrap();
    let fault = |key: &str| config.fault(key, "taken").to_string();
    assert_eq!(fault(&config.http_listeners[0].key()), "config.yaml:6:7: apisix.node_listen[0]: taken");
    let second = config.http_listeners.last().unwrap().key();
    assert_eq!(fault(&second), "config.yaml:7:7: apisix.node_listen[1]: taken");
    assert_eq!(fault("apisix.node_listen[1].port"), "config.yaml:7:8: apisix.node_listen[1].port: taken");
    // The nearest key that the file has.
    assert_eq!(fault("apisix.ssl.listen"), "config.yaml:4:1: apisix.ssl.listen: taken");
    assert_eq!(fault("plugin_attr.prometheus"), "config.yaml: plugin_attr.prometheus: taken");
    assert!(config.is_written("apisix.node_listen[1].port") && config.is_written("apisix"));
    for key in ["apisix.ssl", "apisix.status", "apisix.node_listen[2]", "plugin_attr"] {
        assert!(!config.is_written(key), "{key}");
    }
}

/// Attributes of another type were taken for their defaults, and misspelt ones were not told.
#[test]
fn attributes_of_plugins_are_held_to_their_types_and_names() {
    let metrics = parse("").metrics.unwrap();
    assert_eq!(
        (metrics.address.to_string().as_str(), &*metrics.path),
        ("127.0.0.1:9091", "/apisix/prometheus/metrics")
    );
    for (attributes, field) in [
        ("export_addr: {port: foo}", "export_addr.port"),
        ("export_addr: {port: 99999}", "export_addr.port"),
        ("export_addr: {ip: nowhere}", "export_addr.ip"),
        ("export_addr: foo", "export_addr"),
        ("enable_export_server: 'no'", "enable_export_server"),
        ("metric_prefix: 5", "metric_prefix"),
        ("export_uri: 7", "export_uri"),
        ("export_uri: metrics", "export_uri"),
        ("default_buckets: [2, 1]", "default_buckets"),
        ("metrics: {http_status: {expire: soon}}", "metrics.http_status.expire"),
        ("metrics: {bandwidth: {extra_labels: {a: b}}}", "metrics.bandwidth.extra_labels"),
        ("metrics: {http_latency: 5}", "metrics.http_latency"),
    ] {
        let error = only_error(&format!("plugin_attr:\n  prometheus:\n    {attributes}\n"));
        assert!(error.starts_with("config.yaml:4:"), "{error}");
        assert!(error.contains(&format!(": plugin_attr.prometheus.{field}: ")), "{error}");
    }
    for (attributes, said) in [
        ("prometeus: {}", "plugin_attr.prometeus: unknown field; did you mean \"prometheus\"?"),
        ("prometheus: {export_adr: {}}", "export_adr: unknown field; did you mean \"export_addr\"?"),
        ("server-info: {report_ttl: 1}", "plugin_attr.server-info: has no effect: "),
    ] {
        let reports = parse(&format!("plugin_attr: {{{attributes}}}")).reports;
        assert_eq!(reports.len(), 1, "{reports:?}");
        assert!(reports[0].to_string().contains(said), "{}", reports[0]);
    }
    assert_eq!(parse("plugin_attr: {prometheus: {enable_export_server: false}}").metrics, None);
}

#[test]
fn logs_are_rotated_where_the_plugin_is_listed() {
    let rotate = |text: &str| {
        let config = parse(text);
        assert_eq!(config.reports, []);
        config.log_rotate
    };
    assert_eq!(rotate("plugin_attr: {log-rotate: {interval: 10}}"), None);
    let listed = rotate("plugins: [log-rotate]").unwrap();
    assert_eq!((listed.interval, listed.max_kept), (Duration::from_secs(3600), 168));
    assert_eq!((listed.max_size, listed.enable_compression), (None, false));
    let told = "interval: 10, max_kept: 3, max_size: 1000, enable_compression: true";
    let listed =
        rotate(&format!("plugins: [cors, log-rotate]\nplugin_attr: {{log-rotate: {{{told}}}}}")).unwrap();
    assert_eq!((listed.interval, listed.max_kept), (Duration::from_secs(10), 3));
    assert_eq!((listed.max_size, listed.enable_compression), (Some(1000), true));
    for (attribute, field) in [
        ("interval: 0", "interval"),
        ("interval: 1h", "interval"),
        ("max_kept: -1", "max_kept"),
        ("max_size: 1m", "max_size"),
        ("enable_compression: gzip", "enable_compression"),
    ] {
        let error = only_error(&format!("plugin_attr:\n  log-rotate:\n    {attribute}\n"));
        assert!(error.starts_with("config.yaml:4:"), "{error}");
        assert!(error.contains(&format!(": plugin_attr.log-rotate.{field}: ")), "{error}");
    }
}

/// The system said that an address is in use, and neither whose it is nor where that stands.
#[test]
fn ports_that_are_given_twice_name_both_keys() {
    for (text, said) in [
        (
            "apisix:\n  node_listen: [9080]\n  status: {ip: 127.0.0.1, port: 9080}\n",
            "config.yaml:4:27: apisix.status.port: can't listen on 127.0.0.1:9080: apisix.node_listen[0] (line 3) listens \
             on 0.0.0.0:9080",
        ),
        (
            "apisix:\n  node_listen:\n    - 9080\n    - 9091\n",
            "config.yaml:5:7: apisix.node_listen[1]: can't listen on 0.0.0.0:9091: plugin_attr.prometheus.export_addr (by \
             default) listens on 127.0.0.1:9091",
        ),
        (
            "apisix:\n  node_listen: 8000\n  enable_ipv6: false\n  ssl: {listen: [{port: 8000}]}\n",
            "config.yaml:5:18: apisix.ssl.listen[0]: can't listen on 0.0.0.0:8000: apisix.node_listen[0] (line 3) listens \
             on 0.0.0.0:8000",
        ),
        (
            "apisix:\n  status: {port: 7}\nplugin_attr: {prometheus: {export_addr: {port: 7}}}\n",
            "config.yaml:3:12: apisix.status.port: can't listen on 127.0.0.1:7: plugin_attr.prometheus.export_addr.port \
             (line 4) listens on 127.0.0.1:7",
        ),
        (
            "apisix:\n  node_listen: 80\n  enable_ipv6: false\n  proxy_protocol: {listen_http_port: 80}\n",
            "config.yaml:5:20: apisix.proxy_protocol.listen_http_port: can't listen on 0.0.0.0:80: apisix.node_listen[0] \
             (line 3) listens on 0.0.0.0:80; one of them takes the PROXY protocol",
        ),
        (
            "apisix:\n  node_listen: 80\n  control: {port: 80}\n",
            "config.yaml:4:13: apisix.control.port: can't listen on 127.0.0.1:80: apisix.node_listen[0] (line 3) listens \
             on 0.0.0.0:80",
        ),
    ] {
        // A list's key is that of its entries, with the list's place.
        assert_eq!(
            only_error(text).replace("proxy_protocol.listen_http_port[0]", "proxy_protocol.listen_http_port"),
            said
        );
    }
    // Other addresses, and ports that the system chooses.
    parse("apisix: {node_listen: [{ip: 127.0.0.2, port: 9091}, {ip: '::1', port: 9091}, 0, 0]}");
    // The Admin API is APISIX's as `traditional` alone.
    assert!(parse("apisix: {node_listen: 9180}").reports.is_empty());
}

#[test]
fn ports_that_apisix_listens_on_once_are_reported() {
    let told = |text: &str, listening: (&[&str], &[&str])| {
        let config = parse(text);
        assert_eq!(addresses(&config.http_listeners), listening.0, "{text}");
        assert_eq!(addresses(&config.https_listeners), listening.1, "{text}");
        let reports: Vec<_> = config.reports.iter().map(ToString::to_string).collect();
        assert_eq!(reports.len(), 1, "{reports:?}");
        reports[0].clone()
    };
    let v4 = "enable_ipv6: false, ssl: {enable: false}";
    assert_eq!(
        told(&format!("apisix: {{node_listen: [80, 80], {v4}}}"), (&["0.0.0.0:80"], &[])),
        "config.yaml:2:28: apisix.node_listen[1]: 0.0.0.0:80 is listened on already, by apisix.node_listen[0] (line 2)"
    );
    let specific = format!("apisix: {{node_listen: [{{ip: 127.0.0.1, port: 80}}, 80], {v4}}}");
    told(&specific, (&["0.0.0.0:80"], &[]));
    let two = "{ip: 127.0.0.1, port: 80}, {ip: 127.0.0.2, port: 80}";
    told(&format!("apisix: {{node_listen: [{two}, 80], {v4}}}"), (&["0.0.0.0:80"], &[]));
    // APISIX has no TLS then.
    let report = told("apisix: {node_listen: 9443, enable_ipv6: false}", (&["0.0.0.0:9443"], &[]));
    assert!(
        report.ends_with(
            "apisix.ssl.listen[0] (by default) listens on 0.0.0.0:9443; the port is not TLS's then"
        )
    );
    let report = told(&format!("apisix: {{node_listen: 9090, {v4}}}"), (&["0.0.0.0:9090"], &[]));
    assert!(
        report.contains("apisix.control (by default)") && report.ends_with("is left out then"),
        "{report}"
    );
    // With IPv6 it is told once all the same.
    told("apisix: {node_listen: [9443, 80]}", (&["0.0.0.0:9443", "[::]:9443", "0.0.0.0:80", "[::]:80"], &[]));
    let config = parse(&format!("apisix: {{node_listen: 7085, {v4}}}"));
    assert_eq!((config.status, config.reports.len()), (None, 1));
}

#[test]
fn the_admin_apis_port_counts_as_traditional_with_the_api_alone() {
    let parse = |apisix: &str, admin: &str| {
        let text = format!(
            "apisix: {{enable_ipv6: false, {apisix}}}\n\
             deployment: {{role: traditional, role_traditional: {{config_provider: yaml}}, {admin}}}\n"
        );
        let told = |errors: Vec<ConfigError>| errors.iter().map(ToString::to_string).collect::<Vec<_>>();
        match Config::parse(&text, "config.yaml", &EnvVars::Fixed(HashMap::new())) {
            Ok(config) => (told(config.reports), Vec::new()),
            Err(errors) => (Vec::new(), told(errors)),
        }
    };
    let (reports, _) = parse("node_listen: 9180", "");
    assert_eq!(
        reports,
        [
            "config.yaml:1:30: apisix.node_listen[0]: can't listen on 0.0.0.0:9180: deployment.admin.admin_listen (by default) \
          listens on 127.0.0.1:9180; what would be there is left out then"
        ]
    );
    let (_, errors) = parse("node_listen: 9180", "admin: {admin_listen: {port: 9180}}");
    assert_eq!(
        errors,
        [
            "config.yaml:2:99: deployment.admin.admin_listen.port: can't listen on 127.0.0.1:9180: apisix.node_listen[0] \
          (line 1) listens on 0.0.0.0:9180"
        ]
    );
    // The two have each other's.
    let (_, errors) = parse("control: {port: 9180}", "");
    assert_eq!(
        errors,
        [
            "config.yaml:1:40: apisix.control.port: can't listen on 127.0.0.1:9180: deployment.admin.admin_listen (by default) \
          listens on 127.0.0.1:9180"
        ]
    );
    assert_eq!(parse("node_listen: 9180, enable_admin: false", "").0, Vec::<String>::new());
}

/// They became one key, and the object a false error.
#[test]
fn keys_with_variables_that_are_not_set_stay_apart() {
    let errors = parse_with("plugin_attr: {'${{A}}': {}, '${{B}}': {}}\n", &[]).unwrap_err();
    let unset = "failed to handle configuration: can't find environment variable";
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors.iter().zip(["A", "B"]).all(|(error, name)| error.ends_with(&format!("{unset} {name}"))));
}

/// The word that stands for it was told as an unknown key.
#[test]
fn a_key_with_a_variable_that_is_not_set_is_shown_as_it_is_written() {
    let errors = parse_with("'${{A}}': 1\napisix: {'${{B}}': {id: '${{C}}'}}\n", &[]).unwrap_err();
    assert_eq!(errors.len(), 3, "{errors:?}");
    assert!(errors.iter().all(|error| error.contains("can't find environment variable")), "{errors:?}");
    assert!(errors[2].contains("apisix.${{B}}.id: "), "{errors:?}");
}

/// The first one was told, and of the rest of the file nothing.
#[test]
fn variables_that_are_not_set_hide_nothing() {
    let text = "apisix:\n  id: '${{A}}'\n  node_listen: ['${{B}}', 80]\n  enable_ipv6: '${{C}}'\n  status: {port: -1}\n";
    let errors = parse_with(text, &[]).unwrap_err();
    let unset = |at: &str, name: &str| {
        format!("config.yaml:{at}: failed to handle configuration: can't find environment variable {name}")
    };
    assert_eq!(
        errors,
        [
            unset("3:7: apisix.id", "A"),
            unset("4:17: apisix.node_listen[0]", "B"),
            unset("5:16: apisix.enable_ipv6", "C"),
            "config.yaml:6:18: apisix.status.port: expected a port, found -1".to_owned(),
        ]
    );
    assert_eq!(
        parse_with("apisix: {id: '${{A}}'}", &[("A", "5")]).unwrap().instance_id.as_deref(),
        Some("5")
    );
}
