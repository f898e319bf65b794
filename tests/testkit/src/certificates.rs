//! Certificates that tests make: self-signed, for any names and times.

use std::{fs, path::Path};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;

/// A certificate and its key as PEM.
#[derive(Clone)]
pub struct SelfSigned {
    pub cert: String,
    pub key: String,
    /// The certificate, for clients that trust it.
    pub der: Vec<u8>,
}

// Tags of DER, and the object identifiers that are needed.
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const DNS_NAME: u8 = 0x82;
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
const COMMON_NAME: &[u8] = &[0x06, 3, 0x55, 4, 3];
const SUBJECT_ALT_NAME: &[u8] = &[0x06, 3, 0x55, 0x1d, 0x11];
const ECDSA_WITH_SHA256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const EC_PUBLIC_KEY: &[u8] = &[0x06, 7, 0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const P256: &[u8] = &[0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];

/// For these DNS names, valid from one time to the other.
pub fn self_signed(names: &[&str], from: Timestamp, to: Timestamp) -> SelfSigned {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).unwrap();
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8.as_ref()).unwrap();

    let algorithm = node(SEQUENCE, &[ECDSA_WITH_SHA256]);
    let common_name = node(UTF8_STRING, &[b"test"]);
    let attribute = node(SEQUENCE, &[COMMON_NAME, &common_name]);
    let name = node(SEQUENCE, &[&node(SET, &[&attribute])]);
    let alternatives: Vec<_> = names
        .iter()
        .map(|name| node(DNS_NAME, &[name.as_bytes()]))
        .collect();
    let alternatives = node(SEQUENCE, &[&alternatives.concat()]);
    let alternatives = node(OCTET_STRING, &[&alternatives]);
    let extension = node(SEQUENCE, &[SUBJECT_ALT_NAME, &alternatives]);
    let point = bits(key.public_key().as_ref());
    let body = node(
        SEQUENCE,
        &[
            &node(VERSION, &[&node(INTEGER, &[&[2]])]),
            &node(INTEGER, &[&[1]]),
            &algorithm,
            &name,
            &node(SEQUENCE, &[&time(from), &time(to)]),
            &name,
            &node(SEQUENCE, &[&node(SEQUENCE, &[EC_PUBLIC_KEY, P256]), &point]),
            &node(EXTENSIONS, &[&node(SEQUENCE, &[&extension])]),
        ],
    );
    let signature = key.sign(&random, &body).unwrap();
    let der = node(SEQUENCE, &[&body, &algorithm, &bits(signature.as_ref())]);
    SelfSigned {
        cert: pem("CERTIFICATE", &der),
        key: pem("PRIVATE KEY", pkcs8.as_ref()),
        der,
    }
}

impl SelfSigned {
    /// Writes the pair where a node in this state directory keeps that of `name`.
    pub fn keep(&self, state: &Path, name: &str) {
        let folder = state.join("certs");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("{name}.crt")), &self.cert).unwrap();
        fs::write(folder.join(format!("{name}.key")), &self.key).unwrap();
    }
}

fn node(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let contents = parts.concat();
    let length = contents.len();
    let mut all = vec![tag];
    match length {
        0..0x80 => all.push(length as u8),
        0x80..0x100 => all.extend([0x81, length as u8]),
        _ => all.extend([0x82, (length >> 8) as u8, length as u8]),
    }
    all.extend(contents);
    all
}

fn bits(bytes: &[u8]) -> Vec<u8> {
    node(BIT_STRING, &[&[0], bytes])
}

fn time(time: Timestamp) -> Vec<u8> {
    node(
        GENERALIZED_TIME,
        &[time.strftime("%Y%m%d%H%M%SZ").to_string().as_bytes()],
    )
}

fn pem(label: &str, der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let lines: Vec<_> = text
        .as_bytes()
        .chunks(64)
        .map(|line| String::from_utf8_lossy(line))
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}
