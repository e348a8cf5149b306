//! What is wrong with a token.

/// Why a token is not good, with Envoy's numbers and words (source/common/jwt/status.h, status.cc).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fault {
    Missing = 1,
    NotYetValid = 2,
    Expired = 3,
    BadFormat = 4,
    HeaderBase64 = 5,
    HeaderJson = 6,
    HeaderAlg = 7,
    UnknownAlg = 8,
    HeaderKid = 9,
    PayloadBase64 = 10,
    PayloadJson = 11,
    IssuerType = 12,
    SubjectType = 13,
    IssuedAtType = 14,
    IssuedAtRange = 15,
    NotBeforeType = 16,
    NotBeforeRange = 17,
    ExpiresType = 18,
    ExpiresRange = 19,
    IdType = 20,
    AudienceType = 21,
    SignatureBase64 = 22,
    Ed25519Length = 23,
    UnknownIssuer = 24,
    AudienceNotAllowed = 25,
    NotVerified = 26,
    NoValidKeys = 31,
    NoMatchingKey = 32,
    FetchFailed = 40,
}

impl Fault {
    /// The number by which metadata names it.
    pub(crate) fn code(self) -> u8 {
        self as u8
    }

    /// The words in which the client is told.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Fault::Missing => "Jwt is missing",
            Fault::NotYetValid => "Jwt not yet valid",
            Fault::Expired => "Jwt is expired",
            Fault::BadFormat => {
                "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
            }
            Fault::HeaderBase64 => "Jwt header is an invalid Base64url encoded",
            Fault::HeaderJson => "Jwt header is an invalid JSON",
            Fault::HeaderAlg => "Jwt header [alg] field is required and must be a string",
            Fault::UnknownAlg => "Jwt header [alg] is not supported",
            Fault::HeaderKid => "Jwt header [kid] field is not a string",
            Fault::PayloadBase64 => "Jwt payload is an invalid Base64url encoded",
            Fault::PayloadJson => "Jwt payload is an invalid JSON",
            Fault::IssuerType => "Jwt payload [iss] field is not a string",
            Fault::SubjectType => "Jwt payload [sub] field is not a string",
            Fault::IssuedAtType => "Jwt payload [iat] field is not an integer",
            Fault::IssuedAtRange => "Jwt payload [iat] field is not a positive 64 bit integer",
            Fault::NotBeforeType => "Jwt payload [nbf] field is not an integer",
            Fault::NotBeforeRange => "Jwt payload [nbf] field is not a positive 64 bit integer",
            Fault::ExpiresType => "Jwt payload [exp] field is not an integer",
            Fault::ExpiresRange => "Jwt payload [exp] field is not a positive 64 bit integer",
            Fault::IdType => "Jwt payload [jti] field is not a string",
            Fault::AudienceType => "Jwt payload [aud] field is not a string or string list",
            Fault::SignatureBase64 => "Jwt signature is an invalid Base64url encoded",
            Fault::Ed25519Length => "Jwt ED25519 signature is wrong length",
            Fault::UnknownIssuer => "Jwt issuer is not configured",
            Fault::AudienceNotAllowed => "Audiences in Jwt are not allowed",
            Fault::NotVerified => "Jwt verification fails",
            Fault::NoValidKeys => "Jwks doesn't have any valid public key",
            Fault::NoMatchingKey => "Jwks doesn't have key to match kid or alg from Jwt",
            Fault::FetchFailed => "Jwks remote fetch is failed",
        }
    }
}
