//! Choice of a filter chain, compiled once a listener.
//!
//! Each criterion decides before the next, and there is no way back: once the destination's longest prefix
//! is found, chains of a shorter one are out, even if nothing fits below (filter_chain_manager_impl.cc).

use super::{FilterChain, FilterChainMatch, SourceType};
use crate::matching::{Subject, Tree};
use ipnet::IpNet;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;

/// What is known of a connection when its chain is chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct MatchInput<'a> {
    /// Address the client meant; `None` for a unix socket.
    pub destination: Option<SocketAddr>,
    /// Server name in lower case, if the TLS inspector found one.
    pub server_name: Option<&'a str>,
    /// Whether the TLS inspector saw TLS.
    pub tls: bool,
    /// ALPN protocols in the client's order, or what the HTTP inspector found.
    pub application_protocols: &'a [Box<[u8]>],
    /// Peer of the socket; `None` for a unix socket.
    pub direct_source: Option<SocketAddr>,
    /// Client address; `None` for a unix socket.
    pub source: Option<SocketAddr>,
}

/// The filter chains of a listener, which can be told apart.
#[derive(Debug, Default)]
pub struct FilterChains {
    chains: Vec<Arc<FilterChain>>,
    told: Told,
}

/// How chains are told apart.
#[derive(Debug)]
enum Told {
    /// There is one, which takes every connection.
    One,
    /// By their conditions.
    ByConditions(ChainMatcher),
    /// By a tree that leads to their positions; `None` at its end is a chain that there is not.
    ByTree(Tree<Option<usize>>),
}

impl Default for Told {
    fn default() -> Told {
        Told::ByConditions(ChainMatcher::default())
    }
}

impl FilterChains {
    /// Chains that are told apart by their conditions.
    ///
    /// # Errors
    /// Names two with the same condition: which one is meant could not be told.
    pub fn new(chains: Vec<Arc<FilterChain>>) -> Result<FilterChains, String> {
        let told = Told::ByConditions(ChainMatcher::new(&chains)?);
        Ok(FilterChains { chains, told })
    }

    /// One that takes every connection: its condition is not looked at.
    pub fn one(chain: FilterChain) -> FilterChains {
        FilterChains { chains: vec![Arc::new(chain)], told: Told::One }
    }

    /// Chains that a tree leads to by their positions, in place of their conditions (`filter_chain_matcher`). `None` at its
    /// end is a chain that there is not.
    pub fn by_tree(chains: Vec<Arc<FilterChain>>, tree: Tree<Option<usize>>) -> FilterChains {
        FilterChains { chains, told: Told::ByTree(tree) }
    }

    /// Position of the chain for a connection, or of one that there is not; `None` leaves it to the default chain.
    pub fn find(&self, input: &MatchInput<'_>) -> Option<Option<usize>> {
        match &self.told {
            Told::One => Some(Some(0)),
            Told::ByConditions(matcher) => matcher.find(input).map(Some),
            Told::ByTree(tree) => tree.find(Subject::Socket(input)).copied(),
        }
    }
}

impl Deref for FilterChains {
    type Target = [Arc<FilterChain>];
    fn deref(&self) -> &[Arc<FilterChain>] {
        &self.chains
    }
}

/// Compiled conditions of a listener's chains.
#[derive(Debug, Default)]
struct ChainMatcher(Keyed<u16, Prefixes<Names>>);

type Transports = Keyed<Box<str>, Keyed<Box<[u8]>, Prefixes<Sources>>>;

/// Values by key, with one for those that do not ask.
#[derive(Debug)]
struct Keyed<K, T> {
    by_key: HashMap<K, T>,
    any: Option<Box<T>>,
}

/// Values by prefix, with one for those that do not ask.
#[derive(Debug)]
struct Prefixes<T> {
    /// The longest first.
    lengths: Vec<(u8, HashMap<IpNet, T>)>,
    any: Option<Box<T>>,
}

#[derive(Debug, Default)]
struct Names {
    exact: HashMap<Box<str>, Transports>,
    /// By what follows `*`: `.example.com`.
    suffixes: HashMap<Box<str>, Transports>,
    any: Option<Box<Transports>>,
}

#[derive(Debug, Default)]
struct Sources {
    local: Option<Ends>,
    external: Option<Ends>,
    any: Option<Ends>,
}

type Ends = Prefixes<Keyed<u16, Leaf>>;

/// Position of a chain in the listener's list.
#[derive(Debug, Default)]
struct Leaf(Option<usize>);

impl<K, T> Default for Keyed<K, T> {
    fn default() -> Self {
        Keyed { by_key: HashMap::new(), any: None }
    }
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Prefixes { lengths: Vec::new(), any: None }
    }
}

impl<K: Hash + Eq, T: Default> Keyed<K, T> {
    /// Visits the value of each key, or the one that does not ask when there is none.
    fn each<E>(
        &mut self,
        keys: impl ExactSizeIterator<Item = K>,
        mut visit: impl FnMut(&mut T) -> Result<(), E>,
    ) -> Result<(), E> {
        if keys.len() == 0 {
            return visit(self.any.get_or_insert_default());
        }
        for key in keys {
            visit(self.by_key.entry(key).or_default())?;
        }
        Ok(())
    }
}

impl<T: Default> Prefixes<T> {
    fn each<E>(
        &mut self,
        prefixes: &[IpNet],
        mut visit: impl FnMut(&mut T) -> Result<(), E>,
    ) -> Result<(), E> {
        if prefixes.is_empty() {
            return visit(self.any.get_or_insert_default());
        }
        for prefix in prefixes {
            let prefix = prefix.trunc();
            let at = self.lengths.partition_point(|(len, _)| *len > prefix.prefix_len());
            if self.lengths.get(at).is_none_or(|(len, _)| *len != prefix.prefix_len()) {
                self.lengths.insert(at, (prefix.prefix_len(), HashMap::new()));
            }
            if let Some((_, map)) = self.lengths.get_mut(at) {
                visit(map.entry(prefix).or_default())?;
            }
        }
        Ok(())
    }

    fn find(&self, ip: Option<IpAddr>) -> Option<&T> {
        let found = ip.and_then(|ip| {
            self.lengths.iter().find_map(|(len, map)| map.get(&IpNet::new(ip, *len).ok()?.trunc()))
        });
        found.or(self.any.as_deref())
    }
}

impl Names {
    fn each<E>(
        &mut self,
        names: &[Box<str>],
        mut visit: impl FnMut(&mut Transports) -> Result<(), E>,
    ) -> Result<(), E> {
        if names.is_empty() {
            return visit(self.any.get_or_insert_default());
        }
        for name in names {
            let name = name.to_ascii_lowercase();
            visit(match name.strip_prefix('*') {
                Some(suffix) => self.suffixes.entry(suffix.into()).or_default(),
                // Envoy keeps the chains of all names under the empty one.
                None if name.is_empty() => self.any.get_or_insert_default(),
                None => self.exact.entry(name.into()).or_default(),
            })?;
        }
        Ok(())
    }

    fn find(&self, name: Option<&str>) -> Option<&Transports> {
        let found = name.and_then(|name| {
            self.exact.get(name).or_else(|| {
                let dots = name.char_indices().skip(1).filter(|(_, c)| *c == '.');
                dots.filter_map(|(at, _)| name.get(at..)).find_map(|suffix| self.suffixes.get(suffix))
            })
        });
        found.or(self.any.as_deref())
    }
}

impl Sources {
    fn of(&mut self, kind: SourceType) -> &mut Ends {
        match kind {
            SourceType::Any => &mut self.any,
            SourceType::SameIpOrLoopback => &mut self.local,
            SourceType::External => &mut self.external,
        }
        .get_or_insert_default()
    }

    fn find(&self, input: &MatchInput<'_>) -> Option<&Ends> {
        let special = if is_local(input) { &self.local } else { &self.external };
        special.as_ref().or(self.any.as_ref())
    }
}

/// Whether the client is this host: a loopback address, our own, or a unix socket.
fn is_local(input: &MatchInput<'_>) -> bool {
    match (input.source, input.destination) {
        (None, _) => true,
        (Some(source), destination) => {
            source.ip().is_loopback() || destination.is_some_and(|d| d.ip() == source.ip())
        }
    }
}

impl ChainMatcher {
    /// Compiles the conditions.
    ///
    /// # Errors
    /// Names two chains with the same condition.
    fn new(chains: &[Arc<FilterChain>]) -> Result<ChainMatcher, String> {
        let mut matcher = ChainMatcher::default();
        for (i, chain) in chains.iter().enumerate() {
            matcher.add(&chain.matches, i).map_err(|earlier| {
                let name = |i: usize| match chains.get(i) {
                    Some(chain) if !chain.name.is_empty() => format!("\"{}\"", chain.name),
                    _ => format!("number {}", i + 1),
                };
                format!("filter chain {} has the same match as filter chain {}", name(i), name(earlier))
            })?;
        }
        Ok(matcher)
    }

    /// Adds a chain under every combination of its values; the error is the chain that is there already.
    fn add(&mut self, of: &FilterChainMatch, chain: usize) -> Result<(), usize> {
        self.0.each(of.destination_port.as_slice().iter().copied(), |prefixes| {
            prefixes.each(&of.destination, |names| {
                names.each(&of.server_names, |transports| {
                    transports.each(of.transport.as_slice().iter().cloned(), |protocols| {
                        let wanted = of.application_protocols.iter().map(|p| p.as_bytes().into());
                        protocols.each(wanted, |direct| {
                            direct.each(&of.direct_source, |sources| {
                                sources.of(of.source_type).each(&of.source, |ports| {
                                    ports.each(of.source_ports.iter().copied(), |leaf| match leaf.0 {
                                        Some(earlier) => Err(earlier),
                                        None => {
                                            leaf.0 = Some(chain);
                                            Ok(())
                                        }
                                    })
                                })
                            })
                        })
                    })
                })
            })
        })
    }

    /// Position of the chain for a connection; `None` leaves it to the default chain.
    fn find(&self, input: &MatchInput<'_>) -> Option<usize> {
        let port = input.destination.map(|d| d.port());
        let prefixes = find(&self.0, port.as_ref())?;
        let transports = prefixes.find(input.destination.map(|d| d.ip()))?.find(input.server_name)?;
        let transport = if input.tls { "tls" } else { "raw_buffer" };
        let protocols = find(transports, Some(transport))?;
        let by_protocol = input.application_protocols.iter().find_map(|p| protocols.by_key.get(p));
        let direct = by_protocol.or(protocols.any.as_deref())?;
        let sources = direct.find(input.direct_source.map(|s| s.ip()))?;
        let ports = sources.find(input)?.find(input.source.map(|s| s.ip()))?;
        find(ports, input.source.map(|s| s.port()).as_ref())?.0
    }
}

/// The value of a key, else the one that does not ask.
fn find<'a, K, Q, T>(keyed: &'a Keyed<K, T>, key: Option<&Q>) -> Option<&'a T>
where
    K: Hash + Eq + std::borrow::Borrow<Q>,
    Q: Hash + Eq + ?Sized,
{
    key.and_then(|key| keyed.by_key.get(key)).or(keyed.any.as_deref())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
    use super::*;
    use crate::listener::NetworkFilter;
    use bytes::Bytes;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{select, subsequence};

    fn chain(name: &str, matches: FilterChainMatch) -> Arc<FilterChain> {
        Arc::new(FilterChain {
            name: name.into(),
            matches,
            tls: None,
            handshake_timeout: std::time::Duration::from_secs(60),
            filters: Arc::default(),
            metadata: Arc::default(),
            filter: NetworkFilter::Direct(Bytes::new()),
            fingerprint: 0,
        })
    }

    fn names(names: &[&str]) -> FilterChainMatch {
        FilterChainMatch {
            server_names: names.iter().map(|n| (*n).into()).collect(),
            ..FilterChainMatch::default()
        }
    }

    fn nets(nets: &[&str]) -> Vec<IpNet> {
        nets.iter().map(|n| n.parse().unwrap()).collect()
    }

    fn at(input: MatchInput<'_>, chains: Vec<FilterChainMatch>) -> Option<usize> {
        let chains: Vec<_> = chains.into_iter().map(|m| chain("c", m)).collect();
        ChainMatcher::new(&chains).unwrap().find(&input)
    }

    #[test]
    fn server_names_go_from_exact_to_the_longest_wildcard_to_none() {
        let chains = || {
            vec![
                names(&["a.Server.test"]),
                names(&["*.server.test"]),
                names(&["*.deep.server.test"]),
                FilterChainMatch { transport: Some("tls".into()), ..FilterChainMatch::default() },
                FilterChainMatch { transport: Some("raw_buffer".into()), ..FilterChainMatch::default() },
            ]
        };
        let find = |name| at(MatchInput { server_name: name, tls: true, ..MatchInput::default() }, chains());
        assert_eq!(find(Some("a.server.test")), Some(0));
        assert_eq!(find(Some("b.server.test")), Some(1));
        assert_eq!(find(Some("x.deep.server.test")), Some(2));
        assert_eq!(find(Some("x.y.server.test")), Some(1));
        assert_eq!((find(Some("server.test")), find(Some(".server.test"))), (Some(3), Some(3)));
        assert_eq!(find(None), Some(3));
        assert_eq!(at(MatchInput::default(), chains()), Some(4));
    }

    #[test]
    fn the_source_type_decides_before_the_source_range() {
        let of = |source: &str, source_type, destination_port| FilterChainMatch {
            source: nets(&[source]),
            source_type,
            destination_port,
            ..FilterChainMatch::default()
        };
        let chains = vec![
            of("127.0.0.0/8", SourceType::Any, None),
            of("127.0.0.1/32", SourceType::Any, None),
            of("127.0.0.1/32", SourceType::Any, Some(9)),
            of("127.0.0.0/16", SourceType::SameIpOrLoopback, None),
        ];
        let input = |port, source: &str| MatchInput {
            destination: Some(SocketAddr::from(([127, 0, 0, 1], port))),
            source: Some(source.parse().unwrap()),
            ..MatchInput::default()
        };
        assert_eq!(at(input(80, "127.0.0.1:5"), chains.clone()), Some(3));
        assert_eq!(at(input(80, "127.9.0.1:5"), chains.clone()), None, "no way back to the /8");
        assert_eq!(at(input(9, "127.0.0.1:5"), chains.clone()), Some(2));
        assert_eq!(at(input(9, "127.0.0.2:5"), chains), None, "no way back from the port");
    }

    #[test]
    fn equal_conditions_are_refused() {
        let chains = [
            chain("one", names(&["a", "b"])),
            chain("", FilterChainMatch::default()),
            chain("two", names(&["c", "B"])),
        ];
        let error = FilterChains::new(chains.to_vec()).unwrap_err();
        assert_eq!(error, "filter chain \"two\" has the same match as filter chain \"one\"");
        let twice = [chain("", FilterChainMatch::default()), chain("", FilterChainMatch::default())];
        assert!(ChainMatcher::new(&twice).unwrap_err().contains("filter chain number 2"));
        let nested = FilterChainMatch { destination: nets(&["10.1.0.0/8"]), ..FilterChainMatch::default() };
        let same = FilterChainMatch { destination: nets(&["10.0.0.0/8"]), ..FilterChainMatch::default() };
        assert!(ChainMatcher::new(&[chain("a", nested), chain("b", same)]).is_err());
    }

    #[test]
    fn one_chain_takes_every_connection() {
        let only = Arc::into_inner(chain("only", names(&["a"]))).unwrap();
        let chains = FilterChains::one(only);
        assert_eq!((chains.len(), chains.find(&MatchInput::default())), (1, Some(Some(0))));
        assert_eq!(FilterChains::default().find(&MatchInput::default()), None);
    }

    /// The rules said directly: of the chains that are left, keep those that have the best value.
    fn model(chains: &[FilterChainMatch], input: &MatchInput<'_>) -> Option<usize> {
        let mut left: Vec<usize> = (0..chains.len()).collect();
        let keep = |left: &mut Vec<usize>, ranks: &dyn Fn(&FilterChainMatch) -> Option<u32>| {
            let rank = |i: &usize| chains.get(*i).and_then(ranks);
            let best = left.iter().filter_map(rank).max();
            left.retain(|i| best.is_some() && rank(i) == best);
        };
        let prefix = |nets: &[IpNet], ip: Option<SocketAddr>| match nets.is_empty() {
            true => Some(0),
            false => nets
                .iter()
                .filter(|n| ip.is_some_and(|ip| n.contains(&ip.ip())))
                .map(|n| u32::from(n.prefix_len()) + 1)
                .max(),
        };
        let exact = |asked: Option<bool>| match asked {
            None => Some(0),
            Some(true) => Some(1),
            Some(false) => None,
        };
        keep(&mut left, &|m| {
            exact(m.destination_port.map(|p| input.destination.is_some_and(|d| d.port() == p)))
        });
        keep(&mut left, &|m| prefix(&m.destination, input.destination));
        keep(&mut left, &|m| match m.server_names.is_empty() {
            true => Some(0),
            false => m
                .server_names
                .iter()
                .filter_map(|pattern| {
                    let name = input.server_name?;
                    match pattern.strip_prefix('*') {
                        Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix))
                            .then_some(suffix.len() as u32),
                        None => (**pattern == *name).then_some(1000),
                    }
                })
                .max(),
        });
        let transport = if input.tls { "tls" } else { "raw_buffer" };
        keep(&mut left, &|m| exact(m.transport.as_ref().map(|t| **t == *transport)));
        keep(&mut left, &|m| match m.application_protocols.is_empty() {
            true => Some(0),
            false => input
                .application_protocols
                .iter()
                .position(|p| m.application_protocols.iter().any(|a| a.as_bytes() == &**p))
                .map(|at| 100 - at as u32),
        });
        keep(&mut left, &|m| prefix(&m.direct_source, input.direct_source));
        keep(&mut left, &|m| match m.source_type {
            SourceType::Any => Some(0),
            SourceType::SameIpOrLoopback => is_local(input).then_some(1),
            SourceType::External => (!is_local(input)).then_some(1),
        });
        keep(&mut left, &|m| prefix(&m.source, input.source));
        keep(&mut left, &|m| match m.source_ports.is_empty() {
            true => Some(0),
            false => input.source.is_some_and(|s| m.source_ports.contains(&s.port())).then_some(1),
        });
        left.first().copied()
    }

    const NETS: [&str; 5] = ["10.0.0.0/8", "10.1.0.0/16", "10.1.1.0/24", "10.1.1.1/32", "::/0"];
    const NAMES: [&str; 5] = ["a.b.c", "*.b.c", "*.c", "b.c", "*.a.b.c"];

    prop_compose! {
        fn any_match()(
            destination_port in prop::option::weighted(0.2, 1u16..3),
            destination in subsequence(NETS.to_vec(), 0..3),
            server_names in subsequence(NAMES.to_vec(), 0..3),
            transport in prop::option::weighted(0.3, select(vec!["tls", "raw_buffer"])),
            protocols in subsequence(vec!["h2", "http/1.1"], 0..2),
            direct_source in subsequence(NETS.to_vec(), 0..2),
            source_type in
                select(vec![SourceType::Any, SourceType::SameIpOrLoopback, SourceType::External]),
            source in subsequence(NETS.to_vec(), 0..3),
            source_ports in subsequence(vec![5u16, 6], 0..2),
        ) -> FilterChainMatch {
            FilterChainMatch {
                destination_port,
                destination: nets(&destination),
                server_names: server_names.into_iter().map(Into::into).collect(),
                transport: transport.map(Into::into),
                application_protocols: protocols.into_iter().map(Into::into).collect(),
                direct_source: nets(&direct_source),
                source_type,
                source: nets(&source),
                source_ports,
            }
        }
    }

    fn any_address() -> impl Strategy<Value = SocketAddr> {
        let ips = ["10.1.1.1", "10.1.1.2", "10.1.2.1", "10.2.0.1", "127.0.0.1", "::1"];
        (select(ips.to_vec()), select(vec![1u16, 2, 5, 6]))
            .prop_map(|(ip, port)| SocketAddr::new(ip.parse().unwrap(), port))
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]
        #[test]
        fn the_compiled_choice_is_that_of_the_rules(
            all in vec(any_match(), 1..12),
            destination in any_address(),
            source in any_address(),
            direct_source in any_address(),
            server_name in prop::option::of(select(vec!["a.b.c", "x.b.c", "b.c", "x.y.c", "x.a.b.c", "z"])),
            tls: bool,
            protocols in subsequence(vec!["h2", "http/1.1", "spdy"], 0..3).prop_shuffle(),
        ) {
            // Conditions that are there already would be refused.
            let mut chains: Vec<FilterChainMatch> = Vec::new();
            for matches in all {
                let mut with: Vec<_> = chains.iter().map(|m| chain("", m.clone())).collect();
                with.push(chain("", matches.clone()));
                if ChainMatcher::new(&with).is_ok() {
                    chains.push(matches);
                }
            }
            let compiled: Vec<_> = chains.iter().map(|m| chain("", m.clone())).collect();
            let protocols: Vec<Box<[u8]>> = protocols.iter().map(|p| p.as_bytes().into()).collect();
            let input = MatchInput {
                destination: Some(destination),
                server_name,
                tls,
                application_protocols: &protocols,
                direct_source: Some(direct_source),
                source: Some(source),
            };
            prop_assert_eq!(ChainMatcher::new(&compiled).unwrap().find(&input), model(&chains, &input));
        }
    }
}
