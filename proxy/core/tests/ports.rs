//! Ports of tests are nobody else's.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "support/ports.rs"]
mod ports;

use ports::free_port;
use std::collections::BTreeSet;
use std::fs::{OpenOptions, read_to_string};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::MetadataExt;

/// Two tests that ran at the same time got one port, and each other's answers.
#[test]
fn a_port_is_given_once_and_never_one_that_is_used() {
    let user = std::fs::metadata("/proc/self").unwrap().uid();
    let folder = std::env::temp_dir().join(format!("sixfold-ports-{user}"));
    let first = free_port().unwrap();
    // The next ones: of another process of tests, and of anybody who knows nothing of them.
    let mut options = OpenOptions::new();
    options.create(true).truncate(false).write(true);
    let locked = options.open(folder.join((first + 1).to_string())).unwrap();
    let is_ours = locked.try_lock().is_ok();
    let listens = TcpListener::bind(("127.0.0.1", first + 2));
    let speaks = UdpSocket::bind(("127.0.0.1", first + 3));
    let mut given = BTreeSet::from([first]);
    for _ in 0..200 {
        let port = free_port().unwrap();
        assert!(given.insert(port), "{port} twice");
    }
    assert!(!(is_ours && given.contains(&(first + 1))));
    assert!(!(listens.is_ok() && given.contains(&(first + 2))));
    assert!(!(speaks.is_ok() && given.contains(&(first + 3))));
    // None that the kernel gives to whoever asks for any.
    let range = read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap();
    let lowest: u16 = range.split_whitespace().next().unwrap().parse().unwrap();
    assert!(lowest < 32_768 || given.iter().all(|port| *port < lowest));
}
