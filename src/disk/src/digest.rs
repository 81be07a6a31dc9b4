//! Our own digest of a file.
//!
//! It is made of the file's length and its CRC-64/NVME, the checksum that S3 keeps of objects: it runs over ranges in any
//! order and is put together afterwards, at a twentieth of the time that a cryptographic hash takes. That tells accidents,
//! torn writes and other content, wherever a file was fetched. It is no proof against somebody who makes another file for
//! the same digest; who may write to the store needs none.

use std::io::{self, Read};

use crc_fast::{CrcAlgorithm, Digest};

/// Bytes read at once.
const BUFFER: usize = 256 << 10;

/// The digest of a file of `bytes` bytes with this checksum.
#[must_use]
pub fn digest(bytes: u64, crc64nvme: u64) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key("berth disk tier, the digest of a file's length and CRC-64/NVME");
    hasher.update(&bytes.to_le_bytes()).update(&crc64nvme.to_le_bytes());
    *hasher.finalize().as_bytes()
}

/// The digest of what `file` gives.
pub(crate) fn of_reader(mut file: impl Read) -> io::Result<[u8; 32]> {
    let mut crc64nvme = Digest::new(CrcAlgorithm::Crc64Nvme);
    let (mut buffer, mut bytes) = (vec![0; BUFFER], 0);
    loop {
        let read = match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(fault) if fault.kind() == io::ErrorKind::Interrupted => continue,
            Err(fault) => return Err(fault),
        };
        bytes += read as u64;
        crc64nvme.update(&buffer[..read]);
    }
    Ok(digest(bytes, crc64nvme.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_digest_of_its_length_and_checksum() {
        // The checksum's known answer of these nine digits.
        assert_eq!(of_reader(&b"123456789"[..]).expect("reads"), digest(9, 0xae8b_1486_0a79_9888));
        assert_eq!(of_reader(std::io::empty()).expect("reads"), digest(0, 0));
        let long: Vec<u8> = (0..3 * BUFFER + 7).map(|at| (at >> 3) as u8).collect();
        assert_eq!(of_reader(&long[..]).expect("reads"), digest(long.len() as u64, crc_fast::checksum(CrcAlgorithm::Crc64Nvme, &long)));
    }

    #[test]
    fn length_and_checksum_both_count() {
        let all = [digest(1, 2), digest(2, 2), digest(1, 3)];
        assert!((0..3).all(|a| (0..a).all(|b| all[a] != all[b])));
    }
}
