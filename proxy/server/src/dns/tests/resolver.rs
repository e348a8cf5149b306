//! What is asked, and how answers are taken.
use super::*;

#[tokio::test]
async fn families_are_asked_as_they_are_wanted() {
    let both = Server::start(v4(9), v6()).await;
    let only4 = Server::start(v4(9), NXDOMAIN).await;
    let v4_broken = Server::start(SERVFAIL, v6()).await;
    for (server, family, expected) in [
        (&both, DnsFamily::Auto, ips(&["fd00::1"])),
        (&both, DnsFamily::V4Preferred, ips(&["10.0.0.1", "10.0.0.2"])),
        (&both, DnsFamily::V4Only, ips(&["10.0.0.1", "10.0.0.2"])),
        (&both, DnsFamily::V6Only, ips(&["fd00::1"])),
        (&both, DnsFamily::All, ips(&["10.0.0.1", "10.0.0.2", "fd00::1"])),
        (&only4, DnsFamily::Auto, ips(&["10.0.0.1", "10.0.0.2"])),
        (&only4, DnsFamily::V6Only, vec![]),
        (&v4_broken, DnsFamily::V4Preferred, ips(&["fd00::1"])),
        (&v4_broken, DnsFamily::All, ips(&["fd00::1"])),
    ] {
        let answer = server.cache().look_up(&asks("a.test.", family)).await.unwrap();
        assert_eq!(*answer.addresses, expected, "{family:?}");
    }
    assert_eq!(only4.asked.lock()[0], ("a.test".to_owned(), AAAA));
}

/// `web_service` was refused as no name of a host, and never asked for.
#[tokio::test]
async fn names_are_asked_for_as_they_are() {
    let server = Server::start(v4(9), NXDOMAIN).await;
    let cache = server.cache();
    for (name, asked) in [
        ("web_service.", "web_service"),
        ("web_.a_b.test.", "web_.a_b.test"),
        ("-a-.b--c.test.", "-a-.b--c.test"),
        ("a+b,c~d.test.", "a+b,c~d.test"),
        ("a\\b.test.", "a\\b.test"),
        ("_sip._tcp.a.test.", "_sip._tcp.a.test"),
        ("b\u{fc}cher.a_b.test.", "xn--bcher-kva.a_b.test"),
    ] {
        let answer = cache.look_up(&asks(name, DnsFamily::V4Only)).await.unwrap();
        assert_eq!(*answer.addresses, ips(&["10.0.0.1", "10.0.0.2"]), "{name}");
        assert_eq!(server.asked.lock().pop(), Some((asked.to_owned(), A)));
    }
    let long = "a".repeat(64);
    for name in ["a..b.test.", ".", "", ".a.test.", &format!("{long}.test."), &"a.".repeat(200)] {
        let error = cache.look_up(&asks(name, DnsFamily::V4Only)).await.unwrap_err();
        assert!(matches!(&error, DnsError::Failed { name: named, .. } if &**named == name), "{error}");
    }
    assert!(server.asked.lock().is_empty(), "what is no name is not asked for");
}

#[tokio::test]
async fn lifetimes_are_kept_within_bounds() {
    for (ttl, seconds) in [(0, 1.0), (90, 90.0), (1_000_000, 86_400.0)] {
        let server = Server::start(v4(ttl), NXDOMAIN).await;
        let before = Instant::now();
        let answer = server.cache().look_up(&asks("a.test.", DnsFamily::V4Only)).await.unwrap();
        let left = answer.until.duration_since(before).as_secs_f64();
        assert!((seconds..seconds + 60.0).contains(&left), "{left}");
    }
}

#[tokio::test]
async fn a_missing_name_is_an_answer_and_a_failure_is_not() {
    let missing = Server::start(NXDOMAIN, NXDOMAIN).await;
    assert!(missing.cache().look_up(&asks("a.test.", DnsFamily::All)).await.unwrap().addresses.is_empty());
    let empty = Server::start(Say::Addresses(vec![], 0), NXDOMAIN).await;
    assert!(empty.cache().look_up(&asks("a.test.", DnsFamily::V4Only)).await.unwrap().addresses.is_empty());
    for say in [SERVFAIL, Say::Nothing] {
        let server = Server::start(say, NXDOMAIN).await;
        let config = ResolverConfig { timeout: Duration::from_millis(300), ..server.config() };
        let error = cache(config).look_up(&asks("a.test.", DnsFamily::V4Preferred)).await.unwrap_err();
        assert!(matches!(&error, DnsError::Failed { name, .. } if &**name == "a.test."), "{error}");
    }
}

#[tokio::test]
async fn addresses_and_the_hosts_file_need_no_server() {
    let server = Server::start(v4(9), v6()).await;
    let dir =
        std::env::temp_dir().join(format!("sixfold-hosts-{}-{}", std::process::id(), server.address.port()));
    std::fs::write(&dir, "192.0.2.7 Known.test\n").unwrap();
    let config = ResolverConfig {
        servers: vec![server.address],
        hosts_file: Some(dir.clone()),
        ..ResolverConfig::default()
    };
    let cache = cache(config);
    for (name, family, expected) in [
        ("192.0.2.1", DnsFamily::Auto, ips(&["192.0.2.1"])),
        ("[fd00::9]", DnsFamily::V4Only, ips(&["fd00::9"])),
        ("known.test", DnsFamily::V4Preferred, ips(&["192.0.2.7"])),
        ("KNOWN.test.", DnsFamily::Auto, ips(&["192.0.2.7"])),
    ] {
        assert_eq!(*cache.look_up(&asks(name, family)).await.unwrap().addresses, expected, "{name}");
    }
    assert!(server.asked.lock().is_empty());
    std::fs::remove_file(dir).unwrap();
}
