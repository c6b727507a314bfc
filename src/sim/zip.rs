//! Zip archives of one uncompressed entry, as NVCF and Curator serve them.

use bytes::Bytes;

use super::store;

/// The archive's pieces; the content is not copied. Entries of 4 GiB and more are beyond this format.
pub(super) fn stored(name: &str, content: Vec<Bytes>) -> Vec<Bytes> {
    let crc = !content.iter().fold(!0, |crc, chunk| update(crc, chunk));
    let size = u32::try_from(store::length(&content)).unwrap_or(u32::MAX);
    let shared = shared_header(name, crc, size);

    let mut local = b"PK\x03\x04".to_vec();
    local.extend_from_slice(&shared);
    local.extend_from_slice(name.as_bytes());

    let mut central = b"PK\x01\x02\x14\x00".to_vec();
    central.extend_from_slice(&shared);
    // Comment length, disk, internal and external attributes, offset of the local header.
    central.extend_from_slice(&[0; 14]);
    central.extend_from_slice(name.as_bytes());

    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut end = b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00".to_vec();
    end.extend_from_slice(&length(&central).to_le_bytes());
    end.extend_from_slice(&length(&local).saturating_add(size).to_le_bytes());
    end.extend_from_slice(&[0; 2]);

    let mut archive = vec![Bytes::from(local)];
    archive.extend(content);
    archive.extend([Bytes::from(central), Bytes::from(end)]);
    archive
}

/// What the local and the central header have in common: version needed up to the length of the extra field.
fn shared_header(name: &str, crc: u32, size: u32) -> Vec<u8> {
    // Version 2.0, no flags, no compression, 00:00 on 1 January 1980.
    let mut header = vec![0x14, 0, 0, 0, 0, 0, 0, 0, 0x21, 0];
    header.extend_from_slice(&crc.to_le_bytes());
    header.extend_from_slice(&size.to_le_bytes());
    header.extend_from_slice(&size.to_le_bytes());
    header.extend_from_slice(&u16::try_from(name.len()).unwrap_or(u16::MAX).to_le_bytes());
    header.extend_from_slice(&[0; 2]);
    header
}

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut at = 0_u32;
    while at < 256 {
        let mut value = at;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { 0xedb8_8320 ^ (value >> 1) } else { value >> 1 };
            bit += 1;
        }
        table[at as usize] = value;
        at += 1;
    }
    table
}

fn update(crc: u32, bytes: &[u8]) -> u32 {
    bytes.iter().fold(crc, |crc, byte| TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard() {
        assert_eq!(!update(!0, b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn the_directory_is_where_the_end_record_says() {
        let archive = stored("a.response", vec![Bytes::from_static(b"{}")]).concat();
        let end = archive.len() - 22;
        assert_eq!(&archive[end..end + 4], b"PK\x05\x06");
        let at = u32::from_le_bytes(archive[end + 16..end + 20].try_into().unwrap()) as usize;
        assert_eq!(&archive[at..at + 4], b"PK\x01\x02");
        assert_eq!(&archive[40..42], b"{}");
    }
}
