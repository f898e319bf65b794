//! The three CRCs that the AWS SDK needs, in place of the crate `crc-fast` (`[patch.crates-io]` in
//! the workspace's `Cargo.toml`).
//!
//! That crate is made for gigabytes a second: its tables and kernels for a hundred CRCs are 0.7 MB
//! of the program. The program checks a JWKS of a few kilobytes when it publishes it in a bucket,
//! so one table of 256 entries for each CRC is enough.
//!
//! Invariants: names, arguments and results are those of `crc-fast`, for what
//! `aws-smithy-checksums` calls. All three CRCs are reflected, and begin and end inverted.

/// A CRC, by its name in `crc-fast`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrcAlgorithm {
    /// CRC-32C, RFC 3720.
    Crc32Iscsi,
    /// CRC-32 of zip, gzip and PNG.
    Crc32IsoHdlc,
    /// CRC-64/NVME, the default of S3's SDKs.
    Crc64Nvme,
}

impl CrcAlgorithm {
    fn table(self) -> &'static [u64; 256] {
        const ISCSI: [u64; 256] = table(0x82f6_3b78);
        const ISO_HDLC: [u64; 256] = table(0xedb8_8320);
        const NVME: [u64; 256] = table(0x9a6c_9329_ac4b_c9b5);
        match self {
            Self::Crc32Iscsi => &ISCSI,
            Self::Crc32IsoHdlc => &ISO_HDLC,
            Self::Crc64Nvme => &NVME,
        }
    }

    /// All bits of the register.
    fn mask(self) -> u64 {
        match self {
            Self::Crc32Iscsi | Self::Crc32IsoHdlc => u32::MAX.into(),
            Self::Crc64Nvme => u64::MAX,
        }
    }
}

/// The remainder of each byte by the reflected polynomial.
const fn table(polynomial: u64) -> [u64; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < table.len() {
        let (mut remainder, mut bit) = (index as u64, 0);
        while bit < 8 {
            let odd = remainder & 1 == 1;
            remainder >>= 1;
            if odd {
                remainder ^= polynomial;
            }
            bit += 1;
        }
        table[index] = remainder;
        index += 1;
    }
    table
}

/// A CRC of bytes that come in pieces.
#[derive(Debug, Clone, Copy)]
pub struct Digest {
    algorithm: CrcAlgorithm,
    register: u64,
}

impl Digest {
    pub fn new(algorithm: CrcAlgorithm) -> Self {
        Self {
            algorithm,
            register: algorithm.mask(),
        }
    }

    pub fn update(&mut self, data: &[u8]) {
        let table = self.algorithm.table();
        for byte in data {
            let [low, ..] = self.register.to_le_bytes();
            self.register = self.register >> 8 ^ table[usize::from(low ^ byte)];
        }
    }

    pub fn finalize(&self) -> u64 {
        self.register ^ self.algorithm.mask()
    }
}

/// The CRC of these bytes.
pub fn checksum(algorithm: CrcAlgorithm, data: &[u8]) -> u64 {
    let mut digest = Digest::new(algorithm);
    digest.update(data);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Check values of the catalogue of parametrised CRC algorithms.
    const CHECKS: [(CrcAlgorithm, u64); 3] = [
        (CrcAlgorithm::Crc32Iscsi, 0xe306_9283),
        (CrcAlgorithm::Crc32IsoHdlc, 0xcbf4_3926),
        (CrcAlgorithm::Crc64Nvme, 0xae8b_1486_0a79_9888),
    ];

    #[test]
    fn check_values() {
        for (algorithm, check) in CHECKS {
            assert_eq!(checksum(algorithm, b"123456789"), check, "{algorithm:?}");
        }
    }

    #[test]
    fn pieces_give_what_the_whole_gives() {
        for (algorithm, check) in CHECKS {
            let mut digest = Digest::new(algorithm);
            for piece in [&b""[..], b"1234", b"5", b"", b"6789"] {
                digest.update(piece);
            }
            assert_eq!(digest.finalize(), check, "{algorithm:?}");
        }
    }

    #[test]
    fn nothing_is_zero() {
        for (algorithm, _) in CHECKS {
            assert_eq!(checksum(algorithm, b""), 0, "{algorithm:?}");
        }
    }
}
