//! Headers of a tar archive, and what does not fit into one (POSIX, pax, "pax Extended Header").

use super::node::Xattrs;

/// Longest name that a header holds by itself.
const SHORT: usize = 100;

/// Bytes of a header, before it a header of its own for what does not fit.
pub(super) fn header(
    mut header: tar::Header,
    path: &[u8],
    link: &[u8],
    xattrs: Xattrs,
    size: u64,
) -> Vec<u8> {
    let mut records = Vec::new();
    if path.len() > SHORT {
        record(&mut records, b"path", path);
    }
    if link.len() > SHORT {
        record(&mut records, b"linkpath", link);
    }
    for (name, value) in xattrs {
        record(&mut records, &[b"SCHILY.xattr.", name.as_slice()].concat(), &value);
    }
    let mut bytes = Vec::new();
    if !records.is_empty() {
        let mut extended = tar::Header::new_ustar();
        extended.set_entry_type(tar::EntryType::XHeader);
        extended.set_mode(0o644);
        extended.set_mtime(0);
        extended.set_size(records.len() as u64);
        name(&mut extended.as_old_mut().name, b"pax");
        extended.set_cksum();
        bytes.extend_from_slice(extended.as_bytes());
        let padding = padding(records.len() as u64);
        bytes.append(&mut records);
        bytes.extend_from_slice(padding);
    }
    name(&mut header.as_old_mut().name, path);
    name(&mut header.as_old_mut().linkname, link);
    header.set_size(size);
    header.set_cksum();
    bytes.extend_from_slice(header.as_bytes());
    bytes
}

const ZEROS: [u8; 512] = [0; 512];

/// The zeros behind `size` bytes of content: all that is in an archive fills blocks.
pub(super) fn padding(size: u64) -> &'static [u8] {
    let padding = usize::try_from((512 - size % 512) % 512).unwrap_or_default();
    ZEROS.get(..padding).unwrap_or_default()
}

fn name(field: &mut [u8], text: &[u8]) {
    for (to, from) in field.iter_mut().zip(text) {
        *to = *from;
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_count_themselves() {
        let mut records = Vec::new();
        record(&mut records, b"path", &[b'x'; 89]);
        assert!(records.starts_with(b"98 path=xx") && records.len() == 98);
        records.clear();
        record(&mut records, b"path", &[b'x'; 91]);
        assert!(records.starts_with(b"101 path=xx") && records.len() == 101);
    }
}
