//! Envoy's response flags.

use std::fmt;

/// One reason why a response is as it is (envoy/stream_info/stream_info.h `CoreResponseFlag`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Flag {
    /// FailedLocalHealthCheck
    LH,
    /// NoHealthyUpstream
    UH,
    /// UpstreamRequestTimeout
    UT,
    /// LocalReset
    LR,
    /// UpstreamRemoteReset
    UR,
    /// UpstreamConnectionFailure
    UF,
    /// UpstreamConnectionTermination
    UC,
    /// UpstreamOverflow
    UO,
    /// NoRouteFound
    NR,
    /// DelayInjected
    DI,
    /// FaultInjected
    FI,
    /// RateLimited
    RL,
    /// UnauthorizedExternalService
    UAEX,
    /// RateLimitServiceError
    RLSE,
    /// DownstreamConnectionTermination
    DC,
    /// UpstreamRetryLimitExceeded
    URX,
    /// StreamIdleTimeout
    SI,
    /// InvalidEnvoyRequestHeaders
    IH,
    /// DownstreamProtocolError
    DPE,
    /// UpstreamMaxStreamDurationReached
    UMSDR,
    /// ResponseFromCacheFilter
    RFCF,
    /// NoFilterConfigFound
    NFCF,
    /// DurationTimeout
    DT,
    /// UpstreamProtocolError
    UPE,
    /// NoClusterFound
    NC,
    /// OverloadManagerTerminated
    OM,
    /// DnsResolutionFailed
    DF,
    /// DropOverload
    DO,
    /// DownstreamRemoteReset
    DR,
    /// UnconditionalDropOverload
    UDO,
}

const NAMES: [(&str, &str); 30] = [
    ("LH", "FailedLocalHealthCheck"),
    ("UH", "NoHealthyUpstream"),
    ("UT", "UpstreamRequestTimeout"),
    ("LR", "LocalReset"),
    ("UR", "UpstreamRemoteReset"),
    ("UF", "UpstreamConnectionFailure"),
    ("UC", "UpstreamConnectionTermination"),
    ("UO", "UpstreamOverflow"),
    ("NR", "NoRouteFound"),
    ("DI", "DelayInjected"),
    ("FI", "FaultInjected"),
    ("RL", "RateLimited"),
    ("UAEX", "UnauthorizedExternalService"),
    ("RLSE", "RateLimitServiceError"),
    ("DC", "DownstreamConnectionTermination"),
    ("URX", "UpstreamRetryLimitExceeded"),
    ("SI", "StreamIdleTimeout"),
    ("IH", "InvalidEnvoyRequestHeaders"),
    ("DPE", "DownstreamProtocolError"),
    ("UMSDR", "UpstreamMaxStreamDurationReached"),
    ("RFCF", "ResponseFromCacheFilter"),
    ("NFCF", "NoFilterConfigFound"),
    ("DT", "DurationTimeout"),
    ("UPE", "UpstreamProtocolError"),
    ("NC", "NoClusterFound"),
    ("OM", "OverloadManagerTerminated"),
    ("DF", "DnsResolutionFailed"),
    ("DO", "DropOverload"),
    ("DR", "DownstreamRemoteReset"),
    ("UDO", "UnconditionalDropOverload"),
];

impl Flag {
    /// The abbreviation, such as `UF`.
    pub fn short(self) -> &'static str {
        NAMES[self as usize].0
    }

    /// The long name, such as `UpstreamConnectionFailure`.
    pub fn long(self) -> &'static str {
        NAMES[self as usize].1
    }

    /// The flag of an abbreviation, as access log filters name it.
    pub fn parse(short: &str) -> Option<Flag> {
        ALL.iter().copied().find(|f| f.short() == short)
    }
}

const ALL: [Flag; 30] = [
    Flag::LH,
    Flag::UH,
    Flag::UT,
    Flag::LR,
    Flag::UR,
    Flag::UF,
    Flag::UC,
    Flag::UO,
    Flag::NR,
    Flag::DI,
    Flag::FI,
    Flag::RL,
    Flag::UAEX,
    Flag::RLSE,
    Flag::DC,
    Flag::URX,
    Flag::SI,
    Flag::IH,
    Flag::DPE,
    Flag::UMSDR,
    Flag::RFCF,
    Flag::NFCF,
    Flag::DT,
    Flag::UPE,
    Flag::NC,
    Flag::OM,
    Flag::DF,
    Flag::DO,
    Flag::DR,
    Flag::UDO,
];

/// The most flags one request is given; later ones are remembered but not printed.
const PRINTED: usize = 8;

/// A set of flags that remembers the order they were raised in, which is the order Envoy prints.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct ResponseFlags {
    bits: u32,
    order: [u8; PRINTED],
    len: u8,
}

impl ResponseFlags {
    /// No flag.
    pub const fn empty() -> ResponseFlags {
        ResponseFlags { bits: 0, order: [0; PRINTED], len: 0 }
    }

    /// Whether no flag was raised.
    pub fn is_empty(self) -> bool {
        self.bits == 0
    }

    /// Whether `flag` was raised.
    pub fn contains(self, flag: Flag) -> bool {
        self.bits & (1 << flag as u32) != 0
    }

    /// Raises `flag`; a second time changes nothing.
    pub fn insert(&mut self, flag: Flag) {
        if !self.contains(flag) {
            self.bits |= 1 << flag as u32;
            if let Some(place) = self.order.get_mut(self.len as usize) {
                *place = flag as u8;
                self.len += 1;
            }
        }
    }

    /// All of them as Envoy numbers them: bit n is the flag of number n.
    pub fn bits(self) -> u32 {
        self.bits
    }

    /// The flags in the order they were raised.
    pub fn iter(&self) -> impl Iterator<Item = Flag> + '_ {
        self.order.iter().take(self.len as usize).map(|i| ALL[*i as usize])
    }

    /// `%RESPONSE_FLAGS%`: abbreviations joined by commas; nothing for none (text formats print `-`).
    pub fn write_short(&self, out: &mut Vec<u8>) {
        self.write(out, Flag::short);
    }

    /// `%RESPONSE_FLAGS_LONG%`.
    pub fn write_long(&self, out: &mut Vec<u8>) {
        self.write(out, Flag::long);
    }

    fn write(&self, out: &mut Vec<u8>, name: fn(Flag) -> &'static str) {
        for (i, flag) in self.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(name(flag).as_bytes());
        }
    }
}

impl fmt::Debug for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_in_the_order_they_were_raised() {
        let mut flags = ResponseFlags::empty();
        for f in [Flag::DI, Flag::URX, Flag::UF, Flag::URX] {
            flags.insert(f);
        }
        let mut out = Vec::new();
        flags.write_short(&mut out);
        assert_eq!(out, b"DI,URX,UF");
        assert!(flags.contains(Flag::UF) && !flags.contains(Flag::UT));
        assert_eq!(Flag::parse("UDO"), Some(Flag::UDO));
        assert_eq!(Flag::UDO.long(), "UnconditionalDropOverload");
    }
}
