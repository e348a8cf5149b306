#![allow(clippy::unwrap_used)]
use super::*;
use sixfold_xds_api::pb::envoy::config::core::v3::TypedExtensionConfig;

fn extension(coding: &str, way: &str, settings: &str) -> TypedExtensionConfig {
    let (package, message) = (coding, format!("{}{}", coding[..1].to_uppercase(), &coding[1..]));
    crate::testing::read(&format!(
        "name: x\ntyped_config: {{'@type': type.googleapis.com/envoy.extensions.compression.{package}.{way}.v3.{message}{settings}}}"
    ))
}

fn encoder(coding: &str, settings: &str) -> Encoder {
    EncodeLibrary::new(&extension(coding, "compressor", settings)).unwrap().encoder().unwrap()
}

fn decoder(coding: &str, settings: &str) -> Decoder {
    DecodeLibrary::new(&extension(coding, "decompressor", settings)).unwrap().decoder().unwrap()
}

const CODINGS: [&str; 3] = ["gzip", "brotli", "zstd"];

#[test]
fn what_was_sent_can_be_read_piece_by_piece() {
    for coding in CODINGS {
        let (mut encoder, mut decoder) = (encoder(coding, ""), decoder(coding, ""));
        let mut whole = Vec::new();
        let mut random = fastrand::Rng::with_seed(7);
        for index in 0..20 {
            let piece: Vec<u8> = (0..index * 997).map(|_| random.u8(b'a'..=b'p')).collect();
            let encoded = encoder.encode(&piece, false).unwrap();
            let mut read = Vec::new();
            // Whatever the pieces are that it comes in.
            for part in encoded.chunks(1000) {
                let (decoded, fault) = decoder.decode(part);
                assert_eq!(fault, None, "{coding}");
                read.extend(decoded);
            }
            assert!(read == piece, "{coding}: piece {index}");
            whole.extend(encoded);
        }
        whole.extend(encoder.encode(b"end", true).unwrap());
        assert_eq!(encoder.encode(b"", true).map(|end| end.len()).unwrap_or(0), 0, "{coding}");
        let mut other = self::decoder(coding, "");
        let read: Vec<u8> = whole.chunks(777).flat_map(|part| other.decode(part).0).collect();
        assert!(read.ends_with(b"end") && read.len() > 100_000, "{coding}: {}", read.len());
    }
}

#[test]
fn a_body_without_bytes_is_one() {
    for coding in CODINGS {
        let empty = encoder(coding, "").encode(b"", true).unwrap();
        assert!(!empty.is_empty(), "{coding}");
        assert_eq!(decoder(coding, "").decode(&empty), (Vec::new(), None), "{coding}");
    }
}

#[test]
fn few_bytes_do_not_become_very_many() {
    for coding in CODINGS {
        let bomb = encoder(coding, "").encode(&vec![0; 32 << 20], true).unwrap();
        let (decoded, fault) = decoder(coding, "").decode(&bomb);
        assert_eq!(fault, Some(Undecodable::TooLong), "{coding}");
        assert!(decoded.len() <= bomb.len() * 100, "{coding}: {} of {}", decoded.len(), bomb.len());
    }
    let zeros = encoder("gzip", "").encode(&[0; 10_000], true).unwrap();
    assert_eq!(decoder("gzip", ", max_inflate_ratio: 2").decode(&zeros).1, Some(Undecodable::TooLong));
    assert_eq!(decoder("gzip", ", max_inflate_ratio: 1000").decode(&zeros).1, None);
}

#[test]
fn what_is_not_encoded_is_told_and_nothing_comes_after_it() {
    for coding in ["gzip", "zstd"] {
        let mut decoder = decoder(coding, "");
        let text = b"this is neither of them, and long enough to be seen as such by both of the libraries";
        assert_eq!(decoder.decode(text).1, Some(Undecodable::Invalid), "{coding}");
        assert_eq!(decoder.decode(text), (Vec::new(), None), "{coding}");
    }
}

#[test]
fn members_of_gzip_follow_one_another() {
    let member = |text: &[u8]| {
        encoder("gzip", ", window_bits: 15, compression_level: BEST_COMPRESSION").encode(text, true).unwrap()
    };
    let both = [member(b"one "), member(b"two")].concat();
    assert_eq!(decoder("gzip", "").decode(&both), (b"one two".to_vec(), None));
}

#[test]
fn settings_are_taken_or_refused_by_name() {
    encoder(
        "brotli",
        ", quality: 5, encoder_mode: TEXT, window_bits: 12, input_block_bits: 16, disable_literal_context_modeling: true",
    );
    encoder(
        "zstd",
        ", compression_level: 9, enable_checksum: true, strategy: LAZY, dictionary: {inline_string: abc}",
    );
    let refused = |coding, settings| {
        EncodeLibrary::new(&extension(coding, "compressor", settings)).err().unwrap().to_string()
    };
    for (coding, settings, reason) in [
        ("gzip", ", window_bits: 8", "typed_config.window_bits: must be between 9 and 15, not 8"),
        ("brotli", ", quality: 12", "typed_config.quality: must be between 0 and 11, not 12"),
        (
            "zstd",
            ", compression_level: 23",
            "typed_config.compression_level: must be between 1 and 22, not 23",
        ),
    ] {
        assert_eq!(refused(coding, settings), reason);
    }
    let wrong = extension("gzip", "decompressor", "");
    let reason = EncodeLibrary::new(&wrong).err().unwrap().to_string();
    assert!(reason.starts_with("typed_config: compressor library \"x\" of type "), "{reason}");
}
